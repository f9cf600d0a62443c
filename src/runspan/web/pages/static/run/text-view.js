// Virtualised viewer of a text of any length, unchanged: only the visible rows are elements.

import { h } from "../dom.js";
import { textNodes } from "../invisible-characters.js";
import { TextRows } from "./text-wrap.js";

const ROW_HEIGHT = 19; // as in detail.css
const PADDING = 8;
const MIN_COLUMNS = 20;
const OVERSCAN = 8; // rows rendered above and below the visible ones
const WRAP_CHUNK = 400_000; // characters wrapped per task
const MAX_HEIGHT = 12_000_000; // pixels; browsers lose precision in taller elements

/** Shows a text in `element`. Call `close` when the element is removed. */
export class TextView {
  /**
   * @param {object} options
   * @param {string} options.text - The text.
   * @param {string} options.label - Accessible name of the element.
   */
  constructor({ text, label }) {
    Object.assign(this, { text, highlights: [], timer: 0, frame: 0, renderedKey: "" });
    this.probe = h("span", { class: "text-view-probe", "aria-hidden": "true" }, "0".repeat(100));
    this.content = h("div", { class: "text-view-content" });
    this.element = h(
      "div",
      {
        class: "text-view",
        tabindex: "0",
        role: "region",
        "aria-label": label,
        onscroll: () => this.scheduleRender(),
        oncopy: (event) => this.onCopy(event),
      },
      this.probe,
      this.content,
    );
    this.observer = new ResizeObserver(() => this.onResize());
    this.observer.observe(this.element);
  }

  /**
   * Highlight matches and scroll to one of them.
   *
   * @param {number[]} positions - Where the matches begin.
   * @param {number} length - Length of each match.
   * @param {number} current - Index of the match to scroll to.
   */
  showMatches(positions, length, current) {
    this.highlights = positions.map((start, index) => ({ start, end: start + length, isCurrent: index === current }));
    this.scrollTo(positions[current]);
  }

  /** Remove all highlights. */
  clearMatches() {
    this.highlights = [];
    this.renderedKey = "";
    this.scheduleRender();
  }

  /** Stop observing the element and cancel pending work. */
  close() {
    this.observer.disconnect();
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
  }

  scrollTo(position) {
    this.pendingPosition = position;
    if (!this.rows) return; // onResize scrolls once the width is known
    const row = this.rows.rowAt(position);
    this.updateHeight();
    const top = row * this.rowPitch;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop + ROW_HEIGHT || top > scrollTop + clientHeight - 2 * ROW_HEIGHT) {
      this.element.scrollTop = Math.max(0, top - clientHeight / 3);
    }
    this.pendingPosition = undefined;
    this.renderedKey = "";
    this.scheduleRender();
  }

  onResize() {
    const columnWidth = this.probe.getBoundingClientRect().width / 100;
    if (!columnWidth || !this.element.clientWidth) return;
    const columns = Math.max(MIN_COLUMNS, Math.floor((this.element.clientWidth - 28) / columnWidth));
    if (this.rows?.columns === columns) return this.scheduleRender();
    const top = this.rows ? this.rows.bounds(Math.min(this.firstVisibleRow(), this.rows.length - 1))[0] : 0;
    this.rows = new TextRows(this.text, 0, this.text.length, columns);
    this.rows.extend(WRAP_CHUNK);
    this.updateHeight();
    if (this.pendingPosition !== undefined) this.scrollTo(this.pendingPosition);
    else if (top > 0) this.element.scrollTop = this.rows.rowAt(top) * this.rowPitch;
    this.renderedKey = "";
    this.scheduleRender();
    this.wrapRemaining();
  }

  /** Wrap the remaining text in short tasks, so that the page stays responsive. */
  wrapRemaining() {
    clearTimeout(this.timer);
    this.element.setAttribute("aria-busy", String(!this.rows.isComplete));
    if (this.rows.isComplete) return;
    this.timer = setTimeout(() => {
      this.rows.extend(this.rows.starts.at(-1) + WRAP_CHUNK);
      this.updateHeight();
      this.wrapRemaining();
    });
  }

  /** Set the height of the content. In very long texts, rows are closer than their height and overlap virtually. */
  updateHeight() {
    this.rowPitch = Math.min(ROW_HEIGHT, MAX_HEIGHT / this.rows.length);
    const height = Math.ceil((this.rows.length - 1) * this.rowPitch) + ROW_HEIGHT + 2 * PADDING;
    this.content.style.height = `${height}px`;
  }

  firstVisibleRow() {
    return Math.floor(this.element.scrollTop / this.rowPitch);
  }

  scheduleRender() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  render() {
    if (!this.rows) return;
    const visibleRows = Math.ceil(this.element.clientHeight / ROW_HEIGHT);
    const first = Math.max(0, this.firstVisibleRow() - OVERSCAN);
    const last = Math.min(this.rows.length, this.firstVisibleRow() + visibleRows + OVERSCAN);
    const key = `${first} ${last} ${this.rows.columns} ${this.rows.length > last}`;
    if (key === this.renderedKey) return;
    this.renderedKey = key;
    const [from] = this.rows.bounds(first);
    const to = last > first ? this.rows.bounds(last - 1)[1] : from;
    const highlights = this.highlights.filter(({ start, end }) => end > from && start < to);
    const rows = [];
    for (let row = first; row < last; row += 1) rows.push(this.createRow(row, highlights));
    this.content.replaceChildren(...rows);
  }

  createRow(row, highlights) {
    const [from, to] = this.rows.bounds(row);
    const text = this.text.slice(from, to).replace(/\r?\n$/, "");
    const inRow = highlights.filter(({ start, end }) => end > from && start < to);
    const element = h("div", { class: "text-view-row", dataset: { from } }, textNodes(text, from, inRow));
    const correction = this.rowPitch < ROW_HEIGHT ? (row - this.firstVisibleRow()) * (ROW_HEIGHT - this.rowPitch) : 0;
    element.style.transform = `translateY(${PADDING + row * this.rowPitch + correction}px)`;
    return element;
  }

  /** Copy the selected part of the text itself, without the line breaks between wrapped rows. */
  onCopy(event) {
    const selection = document.getSelection();
    if (!selection || selection.isCollapsed || !this.content.contains(selection.anchorNode)) return;
    const range = selection.getRangeAt(0);
    const from = textPosition(range.startContainer, range.startOffset);
    const to = textPosition(range.endContainer, range.endOffset);
    if (from === null || to === null || !event.clipboardData) return;
    event.clipboardData.setData("text/plain", this.text.slice(from, to));
    event.preventDefault();
  }
}

/** The position in the text of a DOM position within a row; null outside of the rows. */
function textPosition(node, offset) {
  const row = (node instanceof Element ? node : node.parentElement)?.closest(".text-view-row");
  if (!row) return null;
  const range = document.createRange();
  range.setStart(row, 0);
  range.setEnd(node, offset);
  return Number(row.dataset.from) + range.toString().length;
}
