// Entry point of the compare page: loads the two runs in the URL and shows how they differ.

import { ApiError, getText, redirectToLogin, runApiPath, url } from "../api.js";
import { announce, h, replace } from "../dom.js";
import { loadRun } from "../run/loaded-run.js";
import { shortcut } from "../shell.js";
import { diffView } from "./diff-view.js";
import { runPicker } from "./run-pickers.js";

const byId = (id) => document.getElementById(id);

/** Each side: label; name of its query parameter; id, loaded run and error of its run. */
const sides = [
  { label: "A", parameter: "a", id: "", loaded: null, error: null },
  { label: "B", parameter: "b", id: "", loaded: null, error: null },
];

async function load() {
  const query = new URLSearchParams(location.search);
  await Promise.all(sides.map((side) => loadSide(side, query.get(side.parameter) || "")));
  showDiff();
}

async function loadSide(side, id) {
  if (side.id === id && side.loaded) return;
  side.loaded?.close();
  Object.assign(side, { id, loaded: null, error: null });
  showPickers();
  if (!id) return;
  try {
    const loaded = await fetchRun(id);
    if (side.id === id) side.loaded = loaded;
    else loaded.close();
  } catch (error) {
    if (error.status === 401) redirectToLogin();
    if (side.id === id) side.error = error;
  }
  showPickers();
}

async function fetchRun(id) {
  const path = runApiPath(id);
  if (path === null)
    throw new ApiError({
      status: 404,
      code: "NOT_FOUND",
      message: id,
      title: "Browsers cannot open this id",
      hint: "Use runspan get instead.",
    });
  const { text } = await getText(path);
  return loadRun(text);
}

function showPickers() {
  replace(
    byId("run-pickers"),
    sides.map((side, index) => {
      const other = sides[1 - index];
      const workflowId = other.loaded?.run.workflowId || side.loaded?.run.workflowId || "";
      const onSelect = (id) => navigate({ [side.parameter]: id });
      return runPicker(side, { onSelect, workflowId, excludedId: other.id });
    }),
  );
}

function showDiff() {
  const [a, b] = sides;
  if (!a.loaded || !b.loaded) return replace(byId("diff"));
  const swap = h("button", { class: "button small", type: "button", onclick: swapSides }, "Swap A and B");
  replace(
    byId("diff"),
    h(
      "div",
      { class: "compare-tools" },
      a.id === b.id && h("p", { class: "notice" }, "A and B are the same run. Choose another run."),
      swap,
    ),
    diffView(a.loaded, b.loaded),
  );
  announce(byId("diff").querySelector("h2").textContent);
}

/** Change query parameters, as a new entry of the browser's history. */
function navigate(changes) {
  const query = new URLSearchParams(location.search);
  history.pushState(null, "", url("/compare", { a: query.get("a"), b: query.get("b"), ...changes }));
  load();
}

function swapSides() {
  const [a, b] = sides;
  if (a.id && b.id) navigate({ a: b.id, b: a.id });
}

addEventListener("popstate", load);
shortcut("s", "Swap A and B", swapSides);
load();
