// The parts that the pages with statistics share: tiles, sections, charts with their table, links to failed runs.

import { runPage } from "../api.js";
import { h } from "../dom.js";
import { relativeTime } from "../format.js";
import { isolated, visible } from "../invisible-characters.js";
import { barChart } from "./charts.js";
import { sortableTable } from "./sortable-table.js";

const PADDING = 34; // of a section and its border, in CSS pixels

/** Return what a cell without a value shows. */
export function none() {
  return h("span", { class: "muted" }, "–");
}

/**
 * Return one number of the page with its name.
 *
 * @param {string} title
 * @param {string|Node} value
 * @param {string|Node} detail - What is shown below the number.
 */
export function tile(title, value, detail) {
  return h(
    "div",
    { class: "card tile" },
    h("dt", {}, title),
    h("dd", {}, value, h("div", { class: "detail" }, detail)),
  );
}

/**
 * Return a card with a heading.
 *
 * @param {string} title
 * @param {...*} content - As h() takes it.
 */
export function section(title, ...content) {
  return h("section", { class: "card stats-section" }, h("h2", {}, title), content);
}

/**
 * Return the title of a chart over time.
 *
 * @param {string} what
 * @param {{unit: string, isCut: boolean}} bins - As chooseBins() returns them.
 */
export function titleOf(what, { unit, isCut }) {
  return `${what} by ${unit}${isCut ? ", last 92 days" : ""}`;
}

/**
 * Return a chart, with its numbers as a table below.
 *
 * @param {string} title
 * @param {object[]} bars - As barChart() takes them.
 * @param {object[]} columns - Of the table, as sortableTable() takes them.
 * @param {object[]} rows - Of the table, the oldest first; it shows the newest first.
 * @param {Node|null} [legendElement] - Above the chart.
 */
export function chartSection(title, bars, columns, rows, legendElement = null) {
  return section(
    title,
    legendElement,
    barChart({
      label: `${title}, ${bars.length} bars; the table below has the same numbers`,
      bars,
      width: document.getElementById("stats").clientWidth - PADDING,
    }),
    h(
      "details",
      { class: "chart-table" },
      h("summary", {}, "As a table"),
      sortableTable({ caption: title, columns, rows: rows.toReversed() }),
    ),
  );
}

/**
 * Return the link to a run that failed: how long ago it started.
 *
 * @param {{id: string, time: string}} run
 */
export function failureLink({ id, time }) {
  const page = runPage(id);
  const ago = h("time", { datetime: time }, relativeTime(Date.parse(time)));
  return page ? h("a", { href: page, title: `Run ${visible(id)}` }, ago) : ago;
}

/**
 * Return the message of a run that failed, if it has one.
 *
 * @param {{errorMessage?: string}} run
 */
export function failureMessage({ errorMessage }) {
  return (
    errorMessage && h("span", { class: "failure-message", title: visible(errorMessage) }, isolated(errorMessage))
  );
}
