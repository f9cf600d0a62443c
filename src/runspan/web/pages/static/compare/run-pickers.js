// The two cards that show which runs are compared and let the user choose others.

import { getJson, runPage } from "../api.js";
import { h, replace } from "../dom.js";
import { duration, relativeTime, statusBadge, timeElement } from "../format.js";
import { parseEpochMs } from "../instants.js";
import { isolated } from "../invisible-characters.js";

const MAX_SUGGESTIONS = 20;

/**
 * Create the card of a side.
 *
 * @param {{label: string, id: string, loaded: object|null, error: object|null}} side - The side: "A" or "B", the id of
 *   its run, the run once it is loaded, and the ApiError if that failed.
 * @param {object} options
 * @param {(id: string) => void} options.onSelect - Called with the id of the run that the user chooses.
 * @param {string} options.workflowId - Suggest runs of this workflow; "" for all workflows.
 * @param {string} options.excludedId - Do not suggest this run.
 */
export function runPicker(side, options) {
  return h(
    "section",
    { class: "card run-picker", "aria-label": `Run ${side.label}` },
    h("span", { class: "run-picker-letter", "aria-hidden": "true" }, side.label),
    runDescription(side),
    runChooser(side, options),
  );
}

function runDescription({ id, loaded, error }) {
  const container = (attributes, ...children) => h("div", { class: "run-picker-text", ...attributes }, children);
  if (error)
    return container(
      { role: "alert" },
      h("strong", { class: "error" }, error.title),
      h("p", { class: "mono wrap" }, isolated(id)),
      h("p", { class: "muted wrap" }, error.hint),
    );
  if (!id)
    return container(
      {},
      h("strong", {}, "No run chosen"),
      h(
        "p",
        { class: "muted" },
        "Choose a run from the list, or enter a run id. In the runs panel, press x to select a run.",
      ),
    );
  if (!loaded)
    return container({ "aria-busy": "true" }, h("span", { class: "skeleton" }), h("span", { class: "skeleton" }));
  const { run } = loaded;
  const page = runPage(id);
  return container(
    {},
    h("p", {}, statusBadge(run.status || null), " ", h("strong", {}, isolated(run.workflowId || "No workflow"))),
    h("p", { class: "mono wrap" }, page ? h("a", { href: page }, isolated(id)) : isolated(id)),
    h("p", { class: "muted" }, timeElement(run.startedAt || run.createdAt || null)),
  );
}

function runChooser(side, options) {
  const input = h("input", {
    name: "id",
    type: "search",
    value: "",
    placeholder: "Run id",
    "aria-label": `Id of run ${side.label}`,
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: false,
    required: true,
  });
  const onsubmit = (event) => {
    event.preventDefault();
    const id = input.value.trim();
    if (id) options.onSelect(id);
  };
  const form = h(
    "form",
    { class: "run-picker-form", onsubmit },
    input,
    h("button", { class: "button", type: "submit" }, "Choose"),
  );
  const suggestions = h("div", { class: "suggestions" });
  const details = h(
    "details",
    { class: "run-picker-change", open: !side.id || Boolean(side.error) },
    h("summary", {}, side.id ? "Choose another run" : "Choose a run"),
    form,
    suggestions,
  );
  let isLoaded = false;
  const loadOnce = () => {
    if (isLoaded || !details.open) return;
    isLoaded = true;
    loadSuggestions(suggestions, options);
  };
  details.addEventListener("toggle", loadOnce);
  loadOnce();
  return details;
}

async function loadSuggestions(container, { workflowId, excludedId, onSelect }) {
  const paragraph = (...children) => h("p", { class: "muted" }, children);
  try {
    const { body } = await getJson("/api/v1/runs", { workflowId, limit: MAX_SUGGESTIONS });
    const runs = body.data.filter((run) => run.id !== excludedId);
    if (!runs.length) {
      const text = workflowId ? "There is no other run of this workflow." : "There are no runs.";
      replace(container, paragraph(text));
      return;
    }
    const items = runs.map((run) => h("li", {}, suggestion(run, onSelect)));
    const title = workflowId ? ["Newest runs of ", isolated(workflowId)] : "Newest runs";
    replace(container, paragraph(title), h("ul", {}, items));
  } catch (error) {
    replace(container, paragraph(`Runs could not be listed: ${error.title}. ${error.hint}`));
  }
}

function suggestion(run, onSelect) {
  const started = parseEpochMs(run.startedAt ?? run.createdAt);
  const cell = (css, text) => h("span", { class: `muted tabular-nums ${css}` }, text);
  return h(
    "button",
    { class: "suggestion", type: "button", onclick: () => onSelect(run.id) },
    statusBadge(run.status),
    h("span", { class: "mono suggestion-id" }, isolated(run.id)),
    cell("", typeof run.durationMs === "number" ? duration(run.durationMs) : ""),
    cell("suggestion-ago", started === null ? "" : relativeTime(started)),
  );
}
