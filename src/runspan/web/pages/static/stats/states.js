// Messages of the pages with statistics: no runs, no statistics over this backend, errors, and what is missing.

import { redirectToLogin, url } from "../api.js";
import { h } from "../dom.js";
import { time } from "../format.js";
import { visible } from "../invisible-characters.js";

/** Return the placeholder while statistics load. */
export function loadingState() {
  return h(
    "div",
    { class: "card loading-card", "aria-busy": "true" },
    h("span", { class: "visually-hidden" }, "Loading"),
    Array.from({ length: 5 }, () => h("span", { class: "skeleton" })),
  );
}

/**
 * Return the message for a range of time without runs.
 *
 * @param {{onAny: (() => void)|null}} actions - onAny: called to show any time; null if that is shown.
 */
export function emptyState({ onAny }) {
  return h(
    "div",
    { class: "state" },
    h("h2", {}, onAny ? "No runs in this time" : "No runs yet"),
    onAny
      ? h("p", {}, h("button", { class: "button primary", type: "button", onclick: onAny }, "Show any time"))
      : h("p", {}, "Statistics appear once runs have arrived."),
  );
}

/**
 * Return the message for statistics that could not be loaded. Without a login, go there instead.
 *
 * @param {import("../api.js").ApiError} error
 * @param {{listParameters: object, onRetry: () => void}} actions - listParameters: of a list of the same runs. onRetry:
 *   called to load the statistics again.
 */
export function errorState(error, { listParameters, onRetry }) {
  if (error.status === 401) redirectToLogin();
  const isUnsupported = error.code === "QUERY_UNSUPPORTED";
  return h(
    "div",
    { class: isUnsupported ? "state" : "state state-error", role: "alert" },
    h("h2", {}, isUnsupported ? "There are no statistics here" : error.title),
    h(
      "p",
      {},
      isUnsupported
        ? "This server cannot count runs exactly, so it does not show numbers at all. The list of runs works."
        : error.hint,
    ),
    h("p", { class: "muted wrap" }, visible(error.message)),
    h(
      "p",
      { class: "buttons" },
      isUnsupported && h("a", { class: "button primary", href: url("/", listParameters) }, "List of runs"),
      !isUnsupported && h("button", { class: "button primary", type: "button", onclick: onRetry }, "Try again"),
    ),
  );
}

/**
 * Return what the statistics cover: "Runs that started from 27 Nov, 00:00:00 to now. As of 14:03:22."
 *
 * @param {{from: string|null, to: string|null}} meta - Of the response.
 */
export function coverage({ from, to }) {
  const now = Date.now();
  const isOver = to !== null && Date.parse(to) <= now;
  const start = from === null ? "All runs" : `Runs that started from ${time(Date.parse(from), now)}`;
  return `${start} ${isOver ? `to ${time(Date.parse(to), now)}` : "until now"}`;
}

/**
 * Return the query parameters of the time for a list of the runs that statistics cover.
 *
 * @param {{from: string|null, to: string|null}} meta - Of the response.
 */
export function coveredTimes({ from, to }) {
  return { from, to: to !== null && Date.parse(to) <= Date.now() ? to : null };
}
