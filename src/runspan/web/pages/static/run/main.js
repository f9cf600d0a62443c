// Entry point of the run page: loads the run, shows it, and refreshes it until it has ended.

import { getText, redirectToLogin, runApiPath, url } from "../api.js";
import { h, replace } from "../dom.js";
import { visible } from "../invisible-characters.js";
import { Poller } from "../poll.js";
import { hasEnded } from "./document.js";
import { loadRun } from "./loaded-run.js";
import { RunPage } from "./page.js";

const MIN_DELAY = 2_000;
const MAX_DELAY = 20_000;
const UNCHANGED_FACTOR = 1.4; // wait longer after each response without a change
const RESPONSE_TIME_FACTOR = 10; // wait at least ten times as long as the response took

const container = document.getElementById("run");
const runId = decodeURIComponent(container.dataset.runId); // encoded, because HTML cannot contain every character

async function open() {
  showLoading();
  try {
    const response = await getText(runApiPath(runId));
    const loaded = await loadRun(response.text);
    start(loaded, response);
  } catch (error) {
    if (error.status === 401) redirectToLogin();
    else showError(error);
  }
}

function start(loaded, response) {
  const page = new RunPage();
  replace(container, page.element);
  page.show(loaded, response);
  if (!hasEnded(loaded.run.status)) follow(page, loaded);
  setInterval(() => page.tick(), 1000);
  page.loadTraceLinks(runId);
  page.loadNeighbours();
  requestAnimationFrame(() => requestAnimationFrame(() => performance.mark("runspan:interactive")));
}

/** Refresh the page until the run has ended. */
function follow(page, loaded) {
  let delay = MIN_DELAY;
  const poller = new Poller(refresh, { minDelay: MIN_DELAY, maxDelay: MAX_DELAY });
  poller.schedule(delay);

  async function refresh() {
    poller.begin();
    const started = performance.now();
    try {
      const response = await getText(runApiPath(runId));
      const responseTime = performance.now() - started;
      const hasChanged = response.text !== loaded.text;
      page.showError(null);
      if (hasChanged) {
        loaded = await loadRun(response.text);
        page.show(loaded, response);
      } else page.setObservedAt(response.observedAt);
      if (hasEnded(loaded.run.status)) return;
      delay = hasChanged ? MIN_DELAY : Math.min(delay * UNCHANGED_FACTOR, MAX_DELAY);
      delay = Math.max(delay, responseTime * RESPONSE_TIME_FACTOR);
      poller.schedule(delay);
    } catch (error) {
      if (error.status === 401) return redirectToLogin();
      page.showError(error);
      poller.fail(error, error.isRetryable || error.status === 404);
    }
  }
}

function showLoading() {
  const skeleton = (css) => h("span", { class: `skeleton ${css}` });
  replace(
    container,
    h(
      "div",
      { class: "run-loading", "aria-busy": "true", "aria-label": "Loading the run" },
      ["wide", "narrow", "stats", "tall"].map(skeleton),
    ),
  );
}

function showError(error) {
  const retry = h("button", { class: "button primary", type: "button", onclick: open }, "Try again");
  const allRuns = h("a", { class: "button", href: url("/") }, "All runs");
  const isUnreadable = error.code === "UNREADABLE";
  const response = isUnreadable && h("a", { class: "button", href: url(runApiPath(runId)) }, "Show the response");
  replace(
    container,
    h(
      "div",
      { class: "state state-error", role: "alert" },
      h("h1", {}, error.title ?? "This run cannot be shown"),
      h("p", { class: "wrap" }, visible(error.message)),
      h("p", {}, error.hint ?? "Reload the page."),
      h(
        "p",
        { class: "state-buttons" },
        error.status === 404 ? [allRuns, " ", retry] : [retry, " ", response, allRuns],
      ),
    ),
  );
}

open();
