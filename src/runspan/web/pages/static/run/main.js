// The run page begins here: it fetches the run, shows it, and follows it to its end.

import { getText, runApi, toLogin, url } from "../api.js";
import { h, replace, visible } from "../dom.js";
import { hasEnded } from "./document.js";
import { Follower } from "./live.js";
import { RunPage } from "./page.js";
import { readRun } from "./reading.js";

const place = document.getElementById("run");
const runId = decodeURIComponent(place.dataset.runId); // markup cannot hold every character as it is

async function open() {
  showLoading();
  let answer;
  try {
    answer = await getText(runApi(runId));
    performance.mark("runspan:answered");
    start(answer, await readRun(answer.text));
  } catch (error) {
    if (error.status === 401) toLogin();
    else showTrouble(error, answer);
  }
}

function start(answer, reading) {
  const page = new RunPage();
  let shown = reading;
  replace(place, page.element);
  page.show(reading, { note: answer.incomplete });
  const follower = new Follower({
    id: runId,
    isEnded: () => hasEnded(shown.run.status),
    async changed({ text, incomplete }) {
      shown = await readRun(text);
      page.show(shown, { note: incomplete });
    },
    trouble: (error) => page.tellTrouble(error),
  });
  follower.start(answer.text);
  setInterval(() => page.tick(), 1000);
  page.summary.askPlaces(runId).then((places) => page.showPlaces(places));
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("runspan:interactive")));
}

function showLoading() {
  const bar = (css) => h("span", { class: `skeleton ${css}` });
  replace(
    place,
    h(
      "div",
      { class: "run-loading", "aria-busy": "true", "aria-label": "Loading the run" },
      bar("wide"),
      bar("narrow"),
      bar("stats"),
      bar("tall"),
    ),
  );
}

function showTrouble(error, answer) {
  const again = h("button", { class: "button primary", type: "button", onclick: open }, "Try again");
  const all = h("a", { class: "button", href: url("/") }, "All runs");
  const known = error.title !== undefined;
  const raw = answer && h("a", { class: "button", href: url(runApi(runId)) }, "See the answer");
  replace(
    place,
    h(
      "div",
      { class: "state state-error", role: "alert" },
      h("h1", {}, known ? error.title : "This run cannot be shown"),
      h(
        "p",
        { class: "wrap" },
        known ? visible(error.message) : `The server's answer cannot be read: ${visible(error.message)}.`,
      ),
      h("p", {}, known ? error.todo : "Load the page again; if that does not help, look at the answer itself."),
      h("p", { class: "state-buttons" }, error.status === 404 ? [all, " ", again] : [again, " ", raw, " ", all]),
    ),
  );
}

open();
