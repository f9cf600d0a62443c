// The list of runs. Rows stay in the document while their content changes, so that they keep focus.

import { runPage, url } from "../api.js";
import { h, keyedChildren, replace } from "../dom.js";
import { cost, duration, number, relativeTime, status, statusBadge, timeElement, tokens, utcTime } from "../format.js";
import { parseEpochMs } from "../instants.js";
import { isolated, visible } from "../invisible-characters.js";
import { formatUrlState } from "../run/url-state.js";
import { Totals } from "./totals.js";
import { FILTER_PARAMETERS } from "./filters.js";

const COLUMNS = ["Status", "Workflow", "Run", "Started", "Duration", "Tokens", "Cost"];
const NUMBER_COLUMNS = new Set(["Duration", "Tokens", "Cost"]);
const MAX_ERROR_CHARACTERS = 200;
const MAX_TITLE_CHARACTERS = 500;
const ORDERS = { duration: "longest first", cost: "highest cost first" };

const none = () => h("span", { class: "muted" }, "–");

/** The table of runs. */
export class RunList {
  /**
   * @param {HTMLElement} container - The element to show the list in.
   * @param {import("./compare-selection.js").CompareSelection} selection - The runs selected for comparison.
   */
  constructor(container, selection) {
    this.container = container;
    this.selection = selection;
    this.rows = new Map();
    this.elements = new Map();
    this.totals = new Totals((id) => this.fillTotals(this.rows.get(id)));
    this.observer = new IntersectionObserver((entries) => this.onIntersect(entries), { rootMargin: "200px" });
    setInterval(() => this.tick(), 1000);
  }

  /**
   * Show runs.
   *
   * @param {object[]} runs - Items of GET /api/v1/runs.
   * @param {object} [matches] - Where each run contains the text that was searched for, by run id: meta.matches.
   * @param {string} [sort] - What they are sorted by, if not by their start.
   */
  show(runs, matches = {}, sort) {
    if (!this.body) this.createTable();
    this.caption.textContent = `Runs, ${ORDERS[sort] || "newest first"}`;
    this.container.classList.remove("loading");
    const ids = new Set(runs.map((run) => run.id));
    for (const [id, row] of this.rows) {
      if (ids.has(id)) continue;
      this.observer.unobserve(row.element);
      this.totals.cancel(id);
      this.rows.delete(id);
    }
    const elements = new Map();
    for (const run of runs) {
      const row = this.rows.get(run.id) || this.createRow(run);
      this.fillRow(row, run, Object.hasOwn(matches, run.id) ? matches[run.id] : null);
      elements.set(run.id, row.element);
    }
    this.elements = keyedChildren(this.body, this.elements, elements);
  }

  /**
   * Show a message in place of the list.
   *
   * @param {Element} element - The message.
   */
  showMessage(element) {
    for (const row of this.rows.values()) this.observer.unobserve(row.element);
    this.rows.clear();
    this.elements.clear();
    this.body = null;
    this.container.classList.remove("loading");
    replace(this.container, element);
  }

  /** Show that the list is loading. */
  showLoading() {
    if (this.body) this.container.classList.add("loading");
    else replace(this.container, skeleton());
  }

  get isFocused() {
    return this.container.contains(document.activeElement);
  }

  /** The id of the run whose row has the focus, or null. */
  get focusedId() {
    return this.isFocused ? (document.activeElement.closest("tbody tr")?.dataset.run ?? null) : null;
  }

  /**
   * Move the focus to a run, if it is in the list.
   *
   * @param {string} id - Run id.
   */
  focus(id) {
    const link = this.rows.get(id)?.element.querySelector(".row-link");
    link?.focus({ preventScroll: true });
    link?.closest("tr").scrollIntoView({ block: "center" });
  }

  /**
   * Move the focus by a number of rows. Return whether there are rows.
   *
   * @param {number} by - 1 for the next row, -1 for the previous one.
   */
  moveFocus(by) {
    const links = [...this.container.querySelectorAll("tbody .row-link")];
    if (!links.length) return false;
    const current = links.indexOf(document.activeElement?.closest("tr")?.querySelector(".row-link"));
    const last = links.length - 1;
    const next = current < 0 ? (by > 0 ? 0 : last) : Math.min(Math.max(current + by, 0), last);
    links[next].focus();
    links[next].closest("tr").scrollIntoView({ block: "nearest" });
    return true;
  }

  /** Select or deselect the focused row for comparison. Return whether there is one. */
  toggleFocused() {
    const checkbox = document.activeElement?.closest("tbody tr")?.querySelector("input");
    checkbox?.click();
    return Boolean(checkbox);
  }

  createTable() {
    this.body = h("tbody", { role: "rowgroup" });
    const columns = COLUMNS.map((name) =>
      h("th", { scope: "col", role: "columnheader", class: NUMBER_COLUMNS.has(name) ? "number" : null }, name),
    );
    const selectColumn = h(
      "th",
      { scope: "col", role: "columnheader", class: "select-cell" },
      h("span", { class: "visually-hidden" }, "Compare"),
    );
    this.caption = h("caption", { class: "visually-hidden" });
    const table = h(
      "table",
      { class: "runs", role: "table" },
      this.caption,
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, selectColumn, columns)),
      this.body,
    );
    replace(this.container, table);
  }

  createRow(run) {
    const cells = Object.fromEntries(
      COLUMNS.map((name) => [
        name,
        h("td", { role: "cell", class: `cell-${name.toLowerCase()}${NUMBER_COLUMNS.has(name) ? " number" : ""}` }),
      ]),
    );
    const checkbox = h("input", {
      type: "checkbox",
      "aria-label": `Compare run ${visible(run.id)}`,
      onchange: () => this.select(run.id, checkbox.checked),
    });
    checkbox.checked = this.selection.has(run.id);
    const element = h(
      "tr",
      { role: "row", dataset: { run: run.id } },
      h("td", { role: "cell", class: "select-cell" }, checkbox),
      COLUMNS.map((name) => cells[name]),
    );
    const row = { element, cells, checkbox, version: "" };
    this.rows.set(run.id, row);
    this.observer.observe(element);
    return row;
  }

  fillRow(row, run, match) {
    const version = JSON.stringify(run);
    const matchText = JSON.stringify(match);
    if (row.version === version && row.match === matchText) return;
    const hadFocus = row.element.contains(document.activeElement) && document.activeElement !== row.checkbox;
    Object.assign(row, { version, match: matchText, run, startedMs: parseEpochMs(run.startedAt) });
    const { cells } = row;
    replace(cells.Status, statusBadge(run.status));
    replace(cells.Workflow, workflowNodes(run));
    replace(cells.Run, runLink(run), run.error && errorElement(run.error), match && matchElement(run, match));
    replace(cells.Started, startedElement(run));
    this.fillDuration(row);
    this.fillTotals(row);
    if (row.isInView) this.totals.request(run.id, row.version);
    if (hadFocus) row.element.querySelector(".row-link")?.focus({ preventScroll: true });
  }

  fillDuration({ run, startedMs, cells }) {
    const ended = parseEpochMs(run.completedAt);
    const isTimed = startedMs !== null && ended !== null;
    const ms = typeof run.durationMs === "number" ? run.durationMs : isTimed ? ended - startedMs : null;
    if (ms !== null) replace(cells.Duration, duration(ms));
    else if (startedMs !== null && !status(run.status).isFinal) {
      const elapsed = duration(Math.max(0, Date.now() - startedMs));
      replace(cells.Duration, h("span", { class: "elapsed", title: "Elapsed so far" }, elapsed));
    } else replace(cells.Duration, none());
  }

  fillTotals(row) {
    if (!row) return;
    const { run, cells, version } = row;
    const current = this.totals.get(run.id, version);
    const totals = current === undefined ? this.totals.getAnyVersion(run.id) : current;
    if (totals === undefined) {
      for (const cell of [cells.Tokens, cells.Cost]) replace(cell, h("span", { class: "skeleton short" }));
      return;
    }
    const { inputTokens: input, outputTokens: output, costUsd } = totals || {};
    const split = `${tokens(input)} in, ${tokens(output)} out`;
    replace(cells.Tokens, input === undefined ? none() : h("span", { title: split }, tokens(input + output)));
    replace(cells.Cost, costUsd === undefined ? none() : cost(costUsd));
  }

  onIntersect(entries) {
    for (const { target, isIntersecting } of entries) {
      const row = this.rows.get(target.dataset.run);
      if (!row) continue;
      row.isInView = isIntersecting;
      if (isIntersecting && row.run) this.totals.request(row.run.id, row.version);
      else this.totals.cancel(target.dataset.run);
    }
  }

  tick() {
    if (document.hidden) return;
    const now = Date.now();
    for (const row of this.rows.values()) {
      if (!row.isInView || row.startedMs === null) continue;
      if (!status(row.run.status).isFinal) this.fillDuration(row);
      const element = row.cells.Started.querySelector(".ago");
      const text = relativeTime(row.startedMs, now);
      if (element && element.textContent !== text) element.textContent = text;
    }
  }

  select(id, isSelected) {
    this.selection.set(id, isSelected);
    for (const [other, row] of this.rows) row.checkbox.checked = this.selection.has(other);
  }
}

function workflowNodes(run) {
  if (run.workflowId === undefined || run.workflowId === null) return none();
  const workflowId = typeof run.workflowId === "string" ? run.workflowId : JSON.stringify(run.workflowId);
  const query = new URLSearchParams(location.search);
  const kept = Object.fromEntries(FILTER_PARAMETERS.map((name) => [name, query.get(name)]));
  const href = url("/", { ...kept, workflowId, stuckAfter: null, limit: null });
  return [
    h("a", { class: "workflow", href, title: "Show only runs of this workflow" }, isolated(workflowId)),
    typeof run.triggerType === "string" && h("span", { class: "trigger" }, isolated(run.triggerType)),
  ];
}

function runLink(run) {
  const page = runPage(run.id);
  if (page) return h("a", { class: "row-link mono", href: page }, isolated(run.id));
  const title = "Browsers cannot open this id. Use runspan get instead.";
  return h("span", { class: "mono", title }, isolated(run.id));
}

/** Where a run contains the text: the step and its member, which the link opens, and what is around the text there. */
function matchElement(run, { stepId, execution, member, snippet, start, length }) {
  const isInStep = stepId !== undefined;
  const page = runPage(run.id);
  const href = page + (isInStep ? formatUrlState({ view: "canvas", step: stepId, execution, tab: tabOf(member) }) : "");
  const characters = [...snippet]; // as the server counts them
  const part = (from, to) => visible(characters.slice(from, to).join(""));
  const place = [isInStep && [isolated(stepId), execution > 1 && ` (${number(execution)})`, " · "], isolated(member)];
  return h(
    "div",
    { class: "run-match" },
    page ? h("a", { class: "match-place", href }, place) : h("span", { class: "match-place" }, place),
    " ",
    h("bdi", {}, part(0, start), h("mark", {}, part(start, start + length)), part(start + length)),
  );
}

function tabOf(member) {
  return ["input", "output", "error"].includes(member) ? member : null;
}

function errorElement(error) {
  const message = typeof error === "string" ? error : error.message || error.code;
  const text = typeof message === "string" && message ? message : JSON.stringify(error);
  const title = visible(text).slice(0, MAX_TITLE_CHARACTERS);
  return h("div", { class: "run-error", title }, isolated(text.slice(0, MAX_ERROR_CHARACTERS)));
}

function startedElement(run) {
  const value = run.startedAt ?? run.createdAt;
  const ms = parseEpochMs(value);
  if (ms === null) return timeElement(value);
  const ago = h("span", { class: "muted ago" }, relativeTime(ms));
  return h("div", { title: utcTime(ms, value) }, timeElement(value), " ", ago);
}

function skeleton() {
  const row = () =>
    h(
      "div",
      { class: "skeleton-row" },
      Array.from({ length: 5 }, () => h("span", { class: "skeleton" })),
    );
  return h(
    "div",
    { class: "skeleton-list", "aria-busy": "true" },
    h("span", { class: "visually-hidden" }, "Loading"),
    Array.from({ length: 8 }, row),
  );
}
