// Features of every page: colour theme, the search field, keyboard shortcuts and their help dialog.

import { getJson, hasRun, redirectToLogin, runPage, url } from "./api.js";
import { announce, h, replace } from "./dom.js";

const shortcuts = new Map();
const SHORTCUTS_KEY = "runspan.shortcuts";

/**
 * Register a keyboard shortcut.
 *
 * @param {string} key - KeyboardEvent.key, such as "j", "ArrowDown" or "?".
 * @param {string} description - Text for the help dialog; "" hides the shortcut there.
 * @param {(event: KeyboardEvent) => any} action - Return false to let the browser handle the key.
 */
export function shortcut(key, description, action) {
  shortcuts.set(key, { description, action });
}

const THEMES = ["auto", "light", "dark"];
const THEME_LABELS = { auto: "system", light: "light", dark: "dark" };

function currentTheme() {
  return document.documentElement.dataset.theme || "auto";
}

function nextTheme() {
  return THEMES[(THEMES.indexOf(currentTheme()) + 1) % THEMES.length];
}

function showTheme() {
  const button = document.getElementById("theme-button");
  const label = `Theme: ${THEME_LABELS[currentTheme()]}`;
  button.dataset.theme = currentTheme();
  button.title = `${label}. Click to switch to ${THEME_LABELS[nextTheme()]} (t)`;
  button.setAttribute("aria-label", label);
}

function switchTheme() {
  const theme = nextTheme();
  const root = document.documentElement;
  if (theme === "auto") delete root.dataset.theme;
  else root.dataset.theme = theme;
  try {
    if (theme === "auto") localStorage.removeItem("runspan.theme");
    else localStorage.setItem("runspan.theme", theme);
  } catch {
    // Without storage the theme applies to this page only.
  }
  showTheme();
  announce(`Theme: ${THEME_LABELS[theme]}`);
}

/**
 * Open the run with an id, or search for the text if there is none. 32 hex digits are looked up as a trace id first.
 *
 * @param {string} text - What was entered.
 * @param {boolean} canSearch - Whether this server searches for texts.
 */
async function openOrSearch(text, canSearch) {
  let id = text;
  if (/^[0-9a-f]{32}$/i.test(text)) {
    try {
      id = (await runIdOfTrace(text)) || text;
    } catch (error) {
      if (error.status === 401) return redirectToLogin();
      // The text may be a run id nevertheless, and the run page reports errors.
    }
  }
  if (canSearch && !(await hasRun(id))) return search(text);
  const page = runPage(id);
  if (page) location.assign(page);
  else announce("Browsers cannot open this id. Use runspan get instead.");
}

/** List the runs that contain a text, all runs for "". On the runs page the other filters stay. */
function search(text) {
  const isList = location.pathname === url("/");
  const { cursor, ...filters } = isList ? Object.fromEntries(new URLSearchParams(location.search)) : {};
  location.assign(url("/", { ...filters, q: text }));
}

async function runIdOfTrace(traceId) {
  const { body } = await getJson(`/api/v1/traces/${traceId}`);
  for (const resource of body.resourceSpans || []) {
    for (const scope of resource.scopeSpans || []) {
      for (const span of scope.spans || []) {
        const attribute = (span.attributes || []).find(({ key }) => key === "runspan.run.id");
        if (attribute?.value?.stringValue) return attribute.value.stringValue;
      }
    }
  }
  return null;
}

function showHelp() {
  let dialog = document.getElementById("help");
  if (!dialog) {
    dialog = h("dialog", { id: "help", class: "dialog", "aria-labelledby": "help-title" });
    document.body.append(dialog);
  }
  const rows = [...shortcuts].filter(([, { description }]) => description);
  replace(
    dialog,
    h("h2", { id: "help-title" }, "Keyboard shortcuts"),
    h(
      "dl",
      { class: "keys" },
      rows.map(([key, { description }]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, description))),
    ),
    h(
      "label",
      { class: "switch" },
      h("input", { type: "checkbox", checked: areLettersOn(), onchange: (event) => setLetters(event.target.checked) }),
      "Shortcuts of a single character. Speech input may press them by mistake.",
    ),
    h("form", { method: "dialog" }, h("button", { class: "button", type: "submit" }, "Close")),
  );
  if (!dialog.open) dialog.showModal();
}

/** Whether shortcuts of a single character are on (WCAG 2.1.4). */
function areLettersOn() {
  try {
    return localStorage.getItem(SHORTCUTS_KEY) !== "off";
  } catch {
    return true;
  }
}

function setLetters(areOn) {
  try {
    if (areOn) localStorage.removeItem(SHORTCUTS_KEY);
    else localStorage.setItem(SHORTCUTS_KEY, "off");
  } catch {
    announce("This browser does not keep the settings of this page.");
  }
}

function isTextInput(target) {
  return target instanceof Element && target.closest("input, textarea, select, [contenteditable]") !== null;
}

function onKeyDown(event) {
  if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || isTextInput(event.target)) return;
  if (document.querySelector("dialog[open]")) return;
  const found = shortcuts.get(event.key);
  if (found && event.key.length === 1 && !areLettersOn()) return;
  if (found && found.action(event) !== false) event.preventDefault();
}

// The server does not see the fragment of an address, which names the selected step: the login takes it along.
const next = document.querySelector(".login [name=next]");
if (next && location.hash) next.value = next.value.replace(/#.*/s, "") + location.hash;

const lookup = document.getElementById("lookup");
if (lookup) {
  lookup.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = lookup.elements.id.value.trim();
    if (text) openOrSearch(text, Boolean(lookup.dataset.searches));
    else if (new URLSearchParams(location.search).has("q")) search("");
  });
  lookup.elements.id.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.target.blur();
  });
  shortcut("/", lookup.dataset.searches ? "Search runs, or open one by its id" : "Open a run by its id", () => {
    lookup.elements.id.select();
    lookup.elements.id.focus();
  });
}
shortcut("?", "Show these shortcuts", showHelp);
shortcut("g", "Go to all runs", () => location.assign(url("/")));
shortcut("w", "Go to all workflows", () => location.assign(url("/workflows")));
shortcut("t", "Switch theme: light, dark or system", switchTheme);
document.getElementById("help-button")?.addEventListener("click", showHelp);
document.getElementById("theme-button")?.addEventListener("click", switchTheme);
document.addEventListener("keydown", onKeyDown);
showTheme();
