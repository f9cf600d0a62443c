// A text of any length, exactly as it is, in rows of which only those in sight are elements.

import { h } from "../dom.js";
import { textNodes } from "./odd.js";
import { Rows } from "./rows.js";

const ROW = 19;
const MORE = 400_000;
const TALLEST = 12_000_000; // browsers lose precision in taller elements

/** `element` scrolls `text` between two places. Call `close` when it is taken away. */
export class TextView {
  constructor({ text, start = 0, end = text.length, label }) {
    Object.assign(this, { text, start, end, marks: [], current: -1, timer: 0, frame: 0, shown: "" });
    this.probe = h("span", { class: "textview-probe", "aria-hidden": "true" }, "0".repeat(100));
    this.sheet = h("div", { class: "textview-sheet" });
    this.element = h(
      "div",
      {
        class: "textview",
        tabindex: "0",
        role: "region",
        "aria-label": label,
        onscroll: () => this.plan(),
        oncopy: (event) => this.copy(event),
      },
      this.probe,
      this.sheet,
    );
    this.watcher = new ResizeObserver(() => this.resize());
    this.watcher.observe(this.element);
  }

  /** Highlights these positions, each `length` long. */
  mark(positions, length, current) {
    this.marks = positions.map((start, index) => ({ start, end: start + length, current: index === current }));
    this.shown = "";
    this.plan();
  }

  /** Scrolls to a position in the text. */
  reveal(position) {
    this.wanted = position;
    if (!this.rows) return;
    const row = this.rows.rowOf(position);
    this.grow();
    const top = row * this.pitch;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop + ROW || top > scrollTop + clientHeight - 2 * ROW) {
      this.element.scrollTop = Math.max(0, top - clientHeight / 3);
    }
    this.wanted = undefined;
    this.shown = "";
    this.plan();
  }

  close() {
    this.watcher.disconnect();
    clearTimeout(this.timer);
    cancelAnimationFrame(this.frame);
  }

  resize() {
    const width = this.probe.getBoundingClientRect().width / 100;
    if (!width || !this.element.clientWidth) return;
    const columns = Math.max(20, Math.floor((this.element.clientWidth - 28) / width));
    if (this.rows?.columns === columns) return this.plan();
    const top = this.rows ? this.rows.bounds(Math.min(this.first(), this.rows.length - 1))[0] : this.start;
    this.rows = new Rows(this.text, this.start, this.end, columns);
    this.rows.extend(this.start + MORE);
    this.grow();
    if (this.wanted !== undefined) this.reveal(this.wanted);
    else if (top > this.start) this.element.scrollTop = this.rows.rowOf(top) * this.pitch;
    this.shown = "";
    this.plan();
    this.more();
  }

  /** Works out further rows a piece at a time, between which the page answers. */
  more() {
    clearTimeout(this.timer);
    this.element.setAttribute("aria-busy", String(!this.rows.done));
    if (this.rows.done) return;
    this.timer = setTimeout(() => {
      this.rows.extend(this.rows.starts.at(-1) + MORE);
      this.grow();
      this.more();
    });
  }

  grow() {
    this.pitch = Math.min(ROW, TALLEST / this.rows.length);
    this.sheet.style.height = `${Math.ceil((this.rows.length - 1) * this.pitch) + ROW + 16}px`;
  }

  first() {
    return Math.floor(this.element.scrollTop / this.pitch);
  }

  plan() {
    if (!this.frame) {
      this.frame = requestAnimationFrame(() => {
        this.frame = 0;
        this.paint();
      });
    }
  }

  paint() {
    if (!this.rows) return;
    const first = Math.max(0, this.first() - 8);
    const last = Math.min(this.rows.length, this.first() + Math.ceil(this.element.clientHeight / ROW) + 8);
    const key = `${first} ${last} ${this.rows.columns} ${this.rows.length > last}`;
    if (key === this.shown) return;
    this.shown = key;
    const [from] = this.rows.bounds(first);
    const to = last > first ? this.rows.bounds(last - 1)[1] : from;
    const marks = this.marks.filter((mark) => mark.end > from && mark.start < to);
    const rows = [];
    for (let row = first; row < last; row += 1) rows.push(this.rowElement(row, marks));
    this.sheet.replaceChildren(...rows);
  }

  rowElement(row, marks) {
    const [from, to] = this.rows.bounds(row);
    const piece = this.text.slice(from, to);
    const near = marks.filter((mark) => mark.end > from && mark.start < to);
    const element = h(
      "div",
      { class: "textview-row", dataset: { from } },
      textNodes(piece.replace(/\r?\n$/, ""), from, near),
    );
    const under = this.pitch < ROW ? (row - this.first()) * (ROW - this.pitch) : 0;
    element.style.transform = `translateY(${8 + row * this.pitch + under}px)`;
    return element;
  }

  /** A selection over rows copies the text itself, without line ends that are only the view's. */
  copy(event) {
    const selection = document.getSelection();
    if (!selection || selection.isCollapsed || !this.sheet.contains(selection.anchorNode)) return;
    const range = selection.getRangeAt(0);
    const [from, to] = [placeOf(range.startContainer, range.startOffset), placeOf(range.endContainer, range.endOffset)];
    if (from === null || to === null || !event.clipboardData) return;
    event.clipboardData.setData("text/plain", this.text.slice(from, to));
    event.preventDefault();
  }
}

/** Where a point in a row stands in the text. */
function placeOf(node, offset) {
  const row = (node instanceof Element ? node : node.parentElement)?.closest(".textview-row");
  if (!row) return null;
  const before = document.createRange();
  before.setStart(row, 0);
  before.setEnd(node, offset);
  return Number(row.dataset.from) + before.toString().length;
}
