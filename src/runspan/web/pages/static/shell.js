// What every page has: colours, the field that opens a run by its id, the shortcuts and their help.

import { getJson, runPage, toLogin, url } from "./api.js";
import { announce, h, replace } from "./dom.js";

const shortcuts = new Map();

/** Adds a shortcut: key as the browser calls it ("j", "ArrowDown", "?"). about: for the help; "" keeps it out. */
export function shortcut(key, about, action) {
  shortcuts.set(key, { about, action });
}

const THEMES = ["auto", "light", "dark"];
const NAMES = { auto: "as the system", light: "light", dark: "dark" };

function theme() {
  return document.documentElement.dataset.theme || "auto";
}

function showTheme() {
  const button = document.getElementById("theme-button");
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  button.dataset.theme = theme();
  button.title = `Colours: ${NAMES[theme()]}. Press for ${NAMES[next]}.`;
  button.setAttribute("aria-label", `Colours: ${NAMES[theme()]}`);
}

function nextTheme() {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length];
  const root = document.documentElement;
  if (next === "auto") delete root.dataset.theme;
  else root.dataset.theme = next;
  try {
    if (next === "auto") localStorage.removeItem("runspan.theme");
    else localStorage.setItem("runspan.theme", next);
  } catch {
    // Without storage the choice lasts as long as the page.
  }
  showTheme();
  announce(`Colours: ${NAMES[next]}`);
}

/** Opens the run of this id; 32 hex digits may also be a trace id, which is looked up. */
async function open(text) {
  let id = text;
  if (/^[0-9a-f]{32}$/i.test(text)) {
    try {
      id = (await runOfTrace(text)) || text;
    } catch (error) {
      if (error.status === 401) return toLogin();
      // It may be a run's id all the same: the run's page says what is wrong.
    }
  }
  const page = runPage(id);
  if (page) location.assign(page);
  else announce("A browser cannot ask for this id. Use: runspan get");
}

async function runOfTrace(traceId) {
  const { body } = await getJson(`/api/v1/traces/${traceId}`);
  for (const resource of body.resourceSpans || []) {
    for (const scope of resource.scopeSpans || []) {
      for (const span of scope.spans || []) {
        const found = (span.attributes || []).find((attribute) => attribute.key === "runspan.run.id");
        if (found?.value?.stringValue) return found.value.stringValue;
      }
    }
  }
  return null;
}

function help() {
  let dialog = document.getElementById("help");
  if (!dialog) {
    dialog = h("dialog", { id: "help", class: "dialog", "aria-labelledby": "help-title" });
    document.body.append(dialog);
  }
  const rows = [...shortcuts].filter(([, { about }]) => about);
  replace(
    dialog,
    h("h2", { id: "help-title" }, "Keyboard shortcuts"),
    h(
      "dl",
      { class: "keys" },
      rows.map(([key, { about }]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, about))),
    ),
    h("form", { method: "dialog" }, h("button", { class: "button", type: "submit" }, "Close")),
  );
  if (!dialog.open) dialog.showModal();
}

function isTyping(target) {
  return target instanceof Element && target.closest("input, textarea, select, [contenteditable]") !== null;
}

function onKey(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (document.querySelector("dialog[open]")) return;
  const found = shortcuts.get(event.key);
  if (found && found.action(event) !== false) event.preventDefault();
}

const lookup = document.getElementById("lookup");
if (lookup) {
  lookup.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = lookup.elements.id.value.trim();
    if (text) open(text);
  });
  lookup.elements.id.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.target.blur();
  });
  shortcut("/", "Open a run by its id", () => lookup.elements.id.select() ?? lookup.elements.id.focus());
}
shortcut("?", "These shortcuts", help);
shortcut("g", "All runs", () => location.assign(url("/")));
shortcut("t", "Light, dark, or as the system", nextTheme);
document.getElementById("help-button")?.addEventListener("click", help);
document.getElementById("theme-button")?.addEventListener("click", nextTheme);
document.addEventListener("keydown", onKey);
showTheme();
