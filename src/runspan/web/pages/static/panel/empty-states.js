// Messages in place of the list or above it: no runs, no matches, errors, and partial results.

import { h } from "../dom.js";
import { visible } from "../invisible-characters.js";
import { hasFilters } from "./filters.js";
import { TIME_PARAMETERS } from "./time-range.js";

const SHOWN_PARTIAL_REASONS = 5;

/**
 * Return the message for an empty list.
 *
 * @param {object} page
 * @param {object} page.parameters - Query parameters of the list.
 * @param {boolean} page.acceptsRuns - Whether this server ingests runs itself.
 * @param {boolean} page.hasMore - Whether older pages may contain runs.
 * @param {boolean} page.isPartial - Whether the backend searched only a part.
 * @param {string} [page.searches] - What this server searches for a text, in words.
 * @param {() => void} page.onClear - Called to clear the filters.
 * @param {() => void} page.onSearchAll - Called to clear all filters but the text.
 */
export function emptyState({ parameters, acceptsRuns, hasMore, isPartial, searches, onClear, onSearchAll }) {
  if (hasMore) {
    return state("No run on this page", "The backend searched only a part of the time range. Try the older pages.");
  }
  if (parameters.cursor) return state("No older runs", "This is the end of the list.");
  if (parameters.q) {
    const { q, limit, ...others } = parameters;
    const isFiltered = hasFilters(others);
    return state(
      isFiltered ? "No run with these filters contains this text" : "No run contains this text",
      `Searched: ${searches || "the documents of runs"}.${isPartial ? " The results are incomplete, see above." : ""}`,
      h(
        "p",
        { class: "buttons" },
        isFiltered && button("Search all runs", onSearchAll),
        button("Clear the search", onClear),
      ),
    );
  }
  if (hasFilters(parameters)) {
    const partial = isPartial ? " The results are incomplete, see above." : "";
    const hint = TIME_PARAMETERS.some((name) => parameters[name])
      ? "Choose a longer time range, or clear the filters."
      : "Check the workflow id, or clear the filters.";
    return state("No run matches these filters", hint + partial, button("Clear filters", onClear));
  }
  if (isPartial) return state("No runs to show", "The results are incomplete, see above.");
  if (!acceptsRuns)
    return state(
      "No runs yet",
      "This server reads from another backend. Runs appear once they are sent to its OTLP receiver:",
      code("runspan export runs.ndjson --endpoint http://localhost:4318"),
    );
  return state(
    "No runs yet",
    "Send runs to this server from a shell:",
    code(`runspan export runs.ndjson --endpoint ${location.origin}`),
  );
}

const RANGE_HINT = "Write a time such as 2026-11-27T09:00:00Z or 24h. A range ends after it begins.";
const FIELD_HINTS = {
  since: "Write a time as a number with m, h or d: 90m, 24h, 7d.",
  from: RANGE_HINT,
  to: RANGE_HINT,
  endedFrom: RANGE_HINT,
  endedTo: RANGE_HINT,
  stuckAfter: "Write a time as a number with s, m, h or d: 90s, 15m, 2h.",
  status: "Choose a status from the list above.",
  minDuration: "Write a duration as a number with s, m, h or d: 90s, 5m, 1h.",
  q: "Search for 3 to 200 characters.",
  limit: "The limit is a number from 1 to 200.",
  cursor: "This page of the list no longer exists. Start with the newest runs.",
};

/**
 * Return the message for a list that could not be loaded.
 *
 * @param {import("../api.js").ApiError} error - The error.
 * @param {object} actions
 * @param {() => void} actions.onRetry - Called to load the list again.
 * @param {() => void} actions.onClear - Called to clear the filters.
 * @param {(() => void)|null} actions.onNewest - Called to go to the first page; null if this is the first page.
 */
export function errorState(error, { onRetry, onClear, onNewest }) {
  const hints = error.fields.map((name) => FIELD_HINTS[name]).filter(Boolean);
  const isInvalidQuery = error.status === 400;
  return h(
    "div",
    { class: "state state-error", role: "alert" },
    h("h2", {}, error.title),
    h("p", {}, hints.length ? hints.join(" ") : error.hint),
    h("p", { class: "muted wrap" }, visible(error.message)),
    h(
      "p",
      { class: "buttons" },
      isInvalidQuery && onNewest && button("Newest runs", onNewest, "primary"),
      isInvalidQuery && button("Clear filters", onClear),
      !isInvalidQuery && button("Try again", onRetry, "primary"),
    ),
  );
}

/**
 * Return the notice for a list that could not be refreshed.
 *
 * @param {import("../api.js").ApiError} error - The error.
 * @param {() => void} onRetry - Called to load the list again.
 */
export function staleNotice(error, onRetry) {
  return h(
    "div",
    { class: "notice error", role: "alert" },
    h("strong", {}, `${error.title}.`),
    h("span", { class: "wrap" }, `The list may be out of date. ${error.hint}`),
    button("Try again", onRetry, "small"),
  );
}

/**
 * Return the notice for partial results, or null if the results are complete.
 *
 * @param {string[]|undefined} reasons - What the backend could not search.
 */
export function partialNotice(reasons) {
  if (!reasons?.length) return null;
  const hidden = reasons.length - SHOWN_PARTIAL_REASONS;
  return h(
    "div",
    { class: "notice", role: "status" },
    h("strong", {}, "The results are incomplete."),
    h(
      "div",
      { class: "wrap" },
      reasons.slice(0, SHOWN_PARTIAL_REASONS).map((reason) => h("div", {}, visible(reason))),
      hidden > 0 && h("div", {}, `and ${hidden} more`),
      h("div", {}, "Narrow the time range or the workflow to see all results."),
    ),
  );
}

function state(title, text, ...more) {
  return h("div", { class: "state" }, h("h2", {}, title), h("p", {}, text), more);
}

function button(label, onclick, kind = "") {
  return h("button", { class: `button ${kind}`, type: "button", onclick }, label);
}

function code(text) {
  return h("pre", { class: "sample" }, h("code", {}, text));
}
