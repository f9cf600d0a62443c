// Shows how two runs differ: a summary, then step by step, with the differences within payloads on demand.

import { h, replace } from "../dom.js";
import { cost, duration, number, statusBadge, textSize, tokens } from "../format.js";
import { isolated, visible } from "../invisible-characters.js";
import { durationOf } from "../run/document.js";
import { runStats } from "../run/run-stats.js";
import { alignSteps, changedPayloads, isDurationDifferent } from "./align.js";
import { diffJson, formatPath } from "./diff.js";

const PAGE_SIZE = 100; // steps shown at once
const MAX_VALUE = 400; // characters of a value

/**
 * Create the elements that compare two runs.
 *
 * @param {object} loadedA - The result of loadRun() for run A.
 * @param {object} loadedB - The result of loadRun() for run B.
 */
export function diffView(loadedA, loadedB) {
  const pairs = alignSteps(loadedA, loadedB);
  const different = pairs.filter((pair) => pair.changes.length || pair.isDurationDifferent);
  return [summary(loadedA, loadedB, pairs, different), stepTable(loadedA, loadedB, pairs, different)];
}

function summary(loadedA, loadedB, pairs, different) {
  const [a, b] = [loadedA.run, loadedB.run];
  const payloads = runPayloads(loadedA, loadedB);
  const title = different.length
    ? `${number(different.length)} of ${number(pairs.length)} steps differ.`
    : `All ${number(pairs.length)} steps have the same status and payloads.`;
  return h(
    "section",
    { class: "card compare-summary", "aria-label": "Summary" },
    h("h2", {}, title),
    a.workflowId !== b.workflowId &&
      h("p", { class: "notice" }, "The runs belong to different workflows. Steps are paired by their ids."),
    h(
      "div",
      { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Figures" },
      h("table", { class: "figures" }, tableHead([hiddenLabel("Figure"), "A", "B", "Difference"]), figures(a, b)),
    ),
    payloads.length > 0 &&
      h("div", { class: "payloads" }, h("h3", {}, "Input, output and error of the runs"), payloads),
  );
}

function figures(a, b) {
  const [usageA, usageB] = [runStats(a).usage, runStats(b).usage];
  const numbers = (name, valueA, valueB, format) =>
    figureRow(name, format(valueA), format(valueB), difference(valueA, valueB, format));
  const isSame = (name) => (a[name] === b[name] ? same() : changed("differs"));
  return h(
    "tbody",
    {},
    figureRow("Status", statusBadge(a.status || null), statusBadge(b.status || null), isSame("status")),
    numbers("Duration", durationOf(a), durationOf(b), duration),
    numbers("Steps", a.steps.length, b.steps.length, number),
    numbers("Tokens", usageA?.total ?? null, usageB?.total ?? null, tokens),
    numbers("Cost", usageA?.cost ?? null, usageB?.cost ?? null, cost),
    (a.triggerType || b.triggerType) &&
      figureRow("Trigger", isolated(a.triggerType || "–"), isolated(b.triggerType || "–"), isSame("triggerType")),
  );
}

function figureRow(name, ...values) {
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name),
    values.map((value) => h("td", { class: "tabular-nums" }, value)),
  );
}

function runPayloads(loadedA, loadedB) {
  const [a, b] = [loadedA.run, loadedB.run];
  const changedKeys = changedPayloads(loadedA, a, loadedB, b);
  const keys = new Set(["input", "output", "error", ...changedKeys]);
  return [...keys]
    .filter((key) => findPayload(a, key) || findPayload(b, key))
    .map((key) => {
      if (!changedKeys.includes(key))
        return h("p", { class: "payload-same" }, h("strong", {}, visible(key)), " ", same());
      const content = h("div", {});
      const onToggle = (event) => {
        if (event.target.open && !content.firstChild) replace(content, changesTable(loadedA, a, loadedB, b, key));
      };
      return h(
        "details",
        { class: "payload", ontoggle: onToggle },
        h("summary", {}, h("strong", {}, visible(key)), " ", changed("differs")),
        content,
      );
    });
}

function stepTable(loadedA, loadedB, pairs, different) {
  if (!pairs.length) return h("p", { class: "muted" }, "Neither run has steps.");
  const body = h("tbody", {});
  const more = h("button", { class: "button", type: "button", onclick: () => showMore() }, "Show more");
  const position = h("span", { class: "muted tabular-nums", role: "status" });
  const filter = h("input", { type: "checkbox", onchange: () => applyFilter() });
  let shownPairs = [];
  let count = 0;

  const showMore = () => {
    body.append(...shownPairs.slice(count, count + PAGE_SIZE).flatMap((pair) => pairRows(loadedA, loadedB, pair)));
    count = Math.min(count + PAGE_SIZE, shownPairs.length);
    more.hidden = count === shownPairs.length;
    position.textContent = `${number(count)} of ${number(shownPairs.length)}`;
  };
  const applyFilter = () => {
    shownPairs = filter.checked ? different : pairs;
    count = 0;
    replace(body);
    showMore();
  };
  filter.checked = different.length > 0 && different.length < pairs.length;
  applyFilter();
  return h(
    "section",
    { class: "card steps", "aria-label": "Step by step" },
    h(
      "header",
      { class: "steps-header" },
      h("h2", {}, "Step by step"),
      h("label", { class: "diff-filter" }, filter, " Only differences"),
    ),
    h(
      "div",
      { class: "scroll-x" },
      h("table", { class: "pairs", role: "table" }, tableHead(["Step", "A", "B", "Time", "Differences"]), body),
    ),
    h("footer", { class: "steps-footer" }, position, more),
  );
}

/** The row of a pair and, if payloads differ, the row that shows how. */
function pairRows(loadedA, loadedB, pair) {
  const { a, b } = pair;
  const [msA, msB] = [a && durationOf(a), b && durationOf(b)];
  const changesCell = h("td", {}, changeTags(pair));
  const row = h(
    "tr",
    { class: pair.changes.length ? "different" : null },
    h(
      "th",
      { scope: "row" },
      h("span", { class: "step-name" }, isolated(pair.name || pair.id)),
      h(
        "span",
        { class: "muted mono step-id" },
        isolated(pair.id),
        pair.executions > 1 && ` #${number(pair.execution)}`,
      ),
    ),
    stepCell(a, msA),
    stepCell(b, msB),
    h("td", { class: "tabular-nums nowrap" }, a && b && difference(msA, msB, duration, pair.isDurationDifferent)),
    changesCell,
  );
  const payloadKeys = pair.changes.filter((change) => change !== "status" && change !== "missing");
  if (!payloadKeys.length) return [row];
  const content = h("td", { colspan: 5 });
  const detail = h("tr", { class: "detail", hidden: true }, content);
  const onclick = () => {
    detail.hidden = !detail.hidden;
    button.setAttribute("aria-expanded", String(!detail.hidden));
    button.textContent = detail.hidden ? "Show" : "Hide";
    if (content.firstChild) return;
    replace(
      content,
      payloadKeys.map((key) =>
        h("div", { class: "payload" }, h("h4", {}, visible(key)), changesTable(loadedA, a, loadedB, b, key)),
      ),
    );
  };
  const button = h("button", { class: "button small", type: "button", "aria-expanded": "false", onclick }, "Show");
  changesCell.append(" ", button);
  return [row, detail];
}

function stepCell(step, ms) {
  if (!step) return h("td", {}, h("span", { class: "muted" }, "absent"));
  const time = h("span", { class: "muted tabular-nums nowrap" }, ms !== null && duration(ms));
  return h("td", {}, statusBadge(step.status || null), " ", time);
}

function changeTags(pair) {
  if (pair.changes.includes("missing")) return tag(pair.a ? "only in A" : "only in B");
  if (pair.changes.length) return pair.changes.map((change) => tag(visible(change)));
  return pair.isDurationDifferent ? tag("time") : h("span", { class: "muted" }, "none");
}

/** A table of the differences within a payload. */
function changesTable(loadedA, a, loadedB, b, key) {
  const { changes, hasMore } = diffJson(loadedA.text, findPayload(a, key), loadedB.text, findPayload(b, key));
  if (!changes.length)
    return h("p", { class: "muted" }, "The values are the same; only the white space between them differs.");
  const rows = changes.map((change) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "mono wrap" }, isolated(formatPath(change.path))),
      valueCell(loadedA.text, change.a),
      valueCell(loadedB.text, change.b),
    ),
  );
  return h(
    "div",
    { class: "scroll-x" },
    h("table", { class: "changes" }, tableHead(["Path", "A", "B"]), h("tbody", {}, rows)),
    hasMore && h("p", { class: "muted" }, `Only the first ${number(changes.length)} differences are shown.`),
  );
}

function valueCell(text, bounds) {
  if (!bounds) return h("td", { class: "muted" }, "absent");
  const value = text.slice(bounds.start, bounds.end);
  const isCut = value.length > MAX_VALUE;
  return h(
    "td",
    { class: "mono wrap" },
    isolated(value.slice(0, MAX_VALUE)),
    isCut && h("span", { class: "muted" }, `… ${textSize(value)}`),
  );
}

function findPayload(item, key) {
  return item.payloads.find((payload) => payload.key === key) || null;
}

/** The difference of two numbers, with its factor; highlighted if it is large. */
function difference(a, b, format, isLarge = isDurationDifferent(a, b)) {
  if (a === b) return same();
  if (a === null || b === null) return changed("only one run");
  const sign = b > a ? "+" : "−";
  const text = `${sign}${format(Math.abs(b - a))}`;
  const factor = a > 0 && b > 0 ? ` (×${(b / a).toPrecision(2)})` : "";
  return h("span", { class: isLarge ? "changed" : "" }, text + factor);
}

function tableHead(columns) {
  return h(
    "thead",
    {},
    h(
      "tr",
      {},
      columns.map((column) => h("th", { scope: "col" }, column)),
    ),
  );
}

function hiddenLabel(text) {
  return h("span", { class: "visually-hidden" }, text);
}

function same() {
  return h("span", { class: "muted" }, "same");
}

function changed(text) {
  return h("span", { class: "changed" }, text);
}

function tag(text) {
  return h("span", { class: "tag" }, text);
}
