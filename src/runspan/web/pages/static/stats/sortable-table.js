// A table whose columns can be sorted by.

import { announce, h, replace } from "../dom.js";

/**
 * @typedef {object} Column
 * @property {string} title
 * @property {(row: any) => any} cell - Returns the content of the cell: children of h().
 * @property {(row: any) => number|string|null} [by] - Returns what to sort by; null sorts last. Without it the column
 *   cannot be sorted by.
 * @property {boolean} [isNumber] - Whether to align right, and to sort the highest first.
 * @property {string} [css] - A class of its cells.
 */

/**
 * Return a table in a region that scrolls if it is too wide.
 *
 * @param {object} table
 * @param {string} table.caption - What the rows are.
 * @param {Column[]} table.columns - The cells of the first one are headings of their rows.
 * @param {any[]} table.rows
 * @param {number} [table.sortedBy] - Number of the column to sort by at first; the rows stay in their order without it.
 * @param {number} [table.limit] - How many rows to show before a button shows all.
 */
export function sortableTable({ caption, columns, rows, sortedBy, limit = Infinity }) {
  let sorting = { column: sortedBy, isReversed: false };
  let isWhole = rows.length <= limit;
  const head = h("tr");
  const body = h("tbody");
  const more = h("button", { class: "button small", type: "button", onclick: showAll }, `Show all ${rows.length}`);
  const region = h(
    "div",
    { class: "table-scroll", tabindex: 0, role: "region", "aria-label": caption },
    h("table", { class: "stats" }, h("caption", { class: "visually-hidden" }, caption), h("thead", {}, head), body),
  );

  function showAll() {
    isWhole = true;
    fill();
    region.focus();
  }

  function sortBy(column) {
    const isReversed = sorting.column === column && !sorting.isReversed;
    sorting = { column, isReversed };
    fill();
    head.children[column].querySelector("button").focus();
    announce(`Sorted by ${columns[column].title}`);
  }

  function heading(column, index) {
    const { title, by, isNumber, css = "" } = column;
    const isSorted = sorting.column === index;
    const isDescending = Boolean(isNumber) !== sorting.isReversed;
    const direction = isDescending ? "descending" : "ascending";
    const mark = isSorted && h("span", { "aria-hidden": "true" }, isDescending ? " ↓" : " ↑");
    const content = by
      ? h("button", { class: "sort", type: "button", onclick: () => sortBy(index) }, title, mark)
      : title;
    const attributes = { scope: "col", class: `${css}${isNumber ? " number" : ""}` };
    return h("th", { ...attributes, "aria-sort": by && isSorted ? direction : null }, content);
  }

  function fill() {
    replace(head, columns.map(heading));
    const shown = sorted(rows, columns[sorting.column], sorting.isReversed).slice(0, isWhole ? Infinity : limit);
    replace(
      body,
      shown.map((row) =>
        h(
          "tr",
          {},
          columns.map(({ cell, isNumber, css = "" }, index) =>
            h(
              index ? "td" : "th",
              { class: `${css}${isNumber ? " number" : ""}`, scope: index ? null : "row" },
              cell(row),
            ),
          ),
        ),
      ),
    );
    more.hidden = isWhole;
  }

  fill();
  return h("div", { class: "table-block" }, region, more);
}

function sorted(rows, column, isReversed) {
  if (!column?.by) return rows;
  const sign = Boolean(column.isNumber) !== isReversed ? -1 : 1;
  return rows.toSorted((one, other) => {
    const [a, b] = [column.by(one), column.by(other)];
    if (a === null || b === null) return (a === null) - (b === null);
    return sign * (typeof a === "string" ? a.localeCompare(b) : a - b);
  });
}
