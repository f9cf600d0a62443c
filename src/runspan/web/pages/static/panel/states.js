// What stands in place of the list, or above it: nothing there, nothing found, an error, a part of the answer.

import { h, visible } from "../dom.js";

/** Nothing in the list. writes: whether this server takes runs itself. more: whether older pages may have some. */
export function empty({ parameters, writes, more, partial, clear }) {
  const filtered = ["workflowId", "status", "since", "stuckAfter"].some((name) => parameters[name]);
  if (more) {
    return state("No run on this page", "The backend looked at a part of the time only. Older pages may have some.");
  }
  if (parameters.cursor) return state("No older runs", "This is the end of the list.");
  if (filtered) {
    const part = partial ? " The backend could look at a part only, see above." : "";
    const advice = parameters.since
      ? "Take a longer time, or clear the filters."
      : "Check how the workflow is written, or clear the filters.";
    return state(
      "No run matches these filters",
      advice + part,
      h("button", { class: "button", type: "button", onclick: clear }, "Clear filters"),
    );
  }
  if (partial) return state("No runs to show", "The backend could look at a part only, see above.");
  if (!writes)
    return state(
      "No runs yet",
      "This server reads from another backend. Runs appear once they are sent to its OTLP receiver:",
      code("runspan export runs.ndjson --endpoint http://localhost:4318"),
    );
  return state(
    "No runs yet",
    "Send some to this server, from a shell:",
    code(`runspan export runs.ndjson --endpoint ${location.origin}`),
  );
}

const FORMS = {
  since: "A time is a number with m, h or d: 90m, 24h, 7d.",
  stuckAfter: "A time is a number with s, m, h or d: 90s, 15m, 2h.",
  status: "A status is one of the list above.",
  limit: "The limit is a number from 1 to 200.",
  cursor: "This place in the list is not known any more. Begin with the newest runs.",
};

/** The list could not be read. cursor: goes to the newest page, where the error may come of the page's own cursor. */
export function failure(error, { again, clear, cursor }) {
  const button = (text, onclick, kind = "") => h("button", { class: `button ${kind}`, type: "button", onclick }, text);
  const hints = error.fields.map((name) => FORMS[name]).filter(Boolean);
  const ours = error.status === 400;
  return h(
    "div",
    { class: "state state-error", role: "alert" },
    h("h2", {}, error.title),
    h("p", {}, hints.length ? hints.join(" ") : error.todo),
    h("p", { class: "quiet wrap" }, visible(error.message)),
    h(
      "p",
      { class: "buttons" },
      ours && cursor && button("Newest runs", cursor, "primary"),
      ours && button("Clear filters", clear),
      !ours && button("Try again", again, "primary"),
    ),
  );
}

/** The list on the screen could not be brought up to date. */
export function stale(error, again) {
  return h(
    "div",
    { class: "notice bad", role: "alert" },
    h("strong", {}, `${error.title}.`),
    h("span", { class: "wrap" }, `The list is as it was before. ${error.todo}`),
    h("button", { class: "button small", type: "button", onclick: again }, "Try again"),
  );
}

/** What the backend could not look at; nothing when it looked at everything. */
export function missing(partial) {
  if (!partial?.length) return null;
  return h(
    "div",
    { class: "notice", role: "status" },
    h("strong", {}, "Not everything was looked at."),
    h(
      "div",
      { class: "wrap" },
      partial.slice(0, 5).map((line) => h("div", {}, visible(line))),
      partial.length > 5 && h("div", {}, `and ${partial.length - 5} more`),
      h("div", {}, "Narrow the time or the workflow to see the rest."),
    ),
  );
}

function state(title, text, ...more) {
  return h("div", { class: "state" }, h("h2", {}, title), h("p", {}, text), more);
}

function code(text) {
  return h("pre", { class: "sample" }, h("code", {}, text));
}
