// The two cards that show which runs are compared and let the user choose others.

import { getJson, runPage } from "../api.js";
import { h, replace } from "../dom.js";
import { duration, statusBadge, timeElement } from "../format.js";
import { isolated, visible } from "../invisible-characters.js";
import { cutInMiddle } from "../run/step-labels.js";

const PAGE_SIZE = 20;

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
      h("p", { class: "muted" }, "Choose a run from the list, or enter its id."),
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
  const runs = runList(options);
  const details = h(
    "details",
    { class: "run-picker-change", open: !side.id || Boolean(side.error) },
    h("summary", {}, side.id ? "Choose another run" : "Choose a run"),
    form,
    runs.element,
  );
  let isLoaded = false;
  const loadOnce = () => {
    if (isLoaded || !details.open) return;
    isLoaded = true;
    runs.load();
  };
  details.addEventListener("toggle", loadOnce);
  loadOnce();
  return details;
}

/**
 * The runs to choose from, the newest first, a page at a time.
 *
 * @returns {{element: Element, load: () => void}} load: shows the first page, or the next one.
 */
function runList({ workflowId, excludedId, onSelect }) {
  const list = h("ul", {});
  const title = h("p", { class: "muted", role: "status" });
  const older = h(
    "button",
    { class: "button small", type: "button", hidden: true, onclick: () => load() },
    "Older runs",
  );
  const before = h("input", { type: "datetime-local", onchange: () => restart() });
  const isAny = h("input", { type: "checkbox", onchange: () => restart() });
  let cursor = null;
  let requests = 0;

  const restart = () => {
    cursor = null;
    replace(list);
    load();
  };
  const load = async () => {
    const request = (requests += 1);
    const workflow = isAny.checked ? "" : workflowId;
    const to = before.value && new Date(before.value).toISOString();
    try {
      const { body } = await getJson("/api/v1/runs", { workflowId: workflow, to, limit: PAGE_SIZE, cursor });
      if (request !== requests) return;
      const runs = body.data.filter((run) => run.id !== excludedId);
      list.append(...runs.map((run) => h("li", {}, runButton(run, onSelect))));
      cursor = body.meta.cursor;
      older.hidden = cursor === null;
      replace(title, listTitle(list.children.length || cursor, workflow, to));
    } catch (error) {
      if (request !== requests) return;
      older.hidden = true;
      replace(title, `Runs could not be listed: ${error.title}. ${error.hint}`);
    }
  };
  const element = h(
    "div",
    { class: "suggestions" },
    h(
      "div",
      { class: "suggestions-bar" },
      h("label", {}, "Started before ", before),
      workflowId && h("label", { class: "diff-filter" }, isAny, " Any workflow"),
    ),
    title,
    list,
    older,
  );
  return { element, load };
}

function listTitle(hasRuns, workflow, to) {
  const what = [workflow && [" of ", isolated(workflow)], to && [" that started before ", timeElement(to)]];
  return hasRuns ? [to ? "Runs" : "Newest runs", what] : ["There is no other run", what, "."];
}

function runButton(run, onSelect) {
  const { status, workflowId, startedAt, createdAt, durationMs } = run;
  return h(
    "button",
    { class: "suggestion", type: "button", onclick: () => onSelect(run.id) },
    h(
      "span",
      { class: "suggestion-line" },
      statusBadge(status),
      h("bdi", { class: "suggestion-workflow" }, visible(workflowId ?? "No workflow")),
      h("span", { class: "tabular-nums" }, timeElement(startedAt ?? createdAt)),
    ),
    h(
      "span",
      { class: "suggestion-line muted" },
      h("bdi", { class: "mono suggestion-id" }, cutInMiddle(visible(run.id))),
      h("span", { class: "tabular-nums" }, typeof durationMs === "number" ? duration(durationMs) : ""),
    ),
  );
}
