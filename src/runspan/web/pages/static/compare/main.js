// Compares two runs: the URL names them, both are read as they are stored, and what differs is shown.

import { ApiError, getText, runApi, toLogin, url } from "../api.js";
import { announce, h, replace } from "../dom.js";
import { readRun } from "../run/reading.js";
import { shortcut } from "../shell.js";
import { result } from "./result.js";
import { card } from "./sides.js";

const byId = (id) => document.getElementById(id);
const sides = [
  { letter: "A", name: "a" },
  { letter: "B", name: "b" },
];

async function load() {
  const query = new URLSearchParams(location.search);
  await Promise.all(sides.map((side) => loadSide(side, query.get(side.name) || "")));
  showResult();
}

async function loadSide(side, id) {
  if (side.id === id && side.reading) return;
  side.reading?.close();
  Object.assign(side, { id, reading: null, error: null });
  showSides();
  if (!id) return;
  try {
    const reading = await read(id);
    if (side.id === id) side.reading = reading;
    else reading.close();
  } catch (error) {
    if (error.status === 401) toLogin();
    if (side.id === id) side.error = error;
  }
  showSides();
}

async function read(id) {
  const path = runApi(id);
  if (path === null)
    throw new ApiError({
      status: 404,
      code: "NOT_FOUND",
      message: id,
      title: "A browser cannot ask for this id",
      todo: "Use: runspan get",
    });
  const { text } = await getText(path);
  try {
    return await readRun(text);
  } catch (error) {
    throw new ApiError({
      status: 0,
      code: "UNREADABLE",
      message: String(error.message),
      title: "The answer cannot be read",
      todo: "Try again.",
    });
  }
}

function showSides() {
  replace(
    byId("sides"),
    sides.map((side, place) => {
      const other = sides[1 - place];
      const workflowId = other.reading?.run.workflowId || side.reading?.run.workflowId || "";
      return card(side, { onChoose: (id) => go({ [side.name]: id }), offer: { workflowId, not: other.id } });
    }),
  );
}

function showResult() {
  const [a, b] = sides;
  if (!a.reading || !b.reading) return replace(byId("result"));
  const swap = h(
    "button",
    { class: "button small", type: "button", onclick: () => go({ a: b.id, b: a.id }) },
    "Swap A and B",
  );
  replace(
    byId("result"),
    h(
      "div",
      { class: "compare-tools" },
      a.id === b.id && h("p", { class: "notice" }, "Both sides are the same run. Choose another one."),
      swap,
    ),
    result(a.reading, b.reading),
  );
  announce(byId("result").querySelector("h2").textContent);
}

function go(change) {
  const query = new URLSearchParams(location.search);
  const target = { a: query.get("a"), b: query.get("b"), ...change };
  history.pushState(null, "", url("/compare", target));
  load();
}

addEventListener("popstate", load);
shortcut("s", "Swap A and B", () => sides.every((side) => side.id) && go({ a: sides[1].id, b: sides[0].id }));
load();
