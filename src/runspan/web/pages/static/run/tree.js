// A JSON text as a tree whose branches are read when they are opened. Every value is shown by its own text.

import { h, replace } from "../dom.js";
import { bytes, number } from "../format.js";
import { byteLength, copyOnClick } from "./copy.js";
import { children, isEmpty, kindOf, pathTo } from "./json.js";
import { textNodes } from "./odd.js";
import { readable } from "./reader.js";

const PAGE = 100;
const SHOWN = 240;
const PREVIEW = 90;
const OPEN_AT_FIRST = 40;
const COUNTED = 100_000;
const MOST_OPEN = 2_000;

/** `element` shows the value between two places of `text`. */
export class JsonTree {
  constructor({ text, start, end, label }) {
    Object.assign(this, { text, start, end, mark: null, readers: new Set() });
    this.element = h("div", {
      class: "tree",
      role: "tree",
      "aria-label": label,
      onkeydown: (event) => this.onKey(event),
    });
    this.root = new Branch(this, { start, end }, 1, 1, 1);
    this.element.append(this.root.element);
    this.root.row.tabIndex = 0;
    this.openSome(OPEN_AT_FIRST);
  }

  close() {
    for (const reader of this.readers) reader.close();
  }

  /** Opens branches, the outer ones first, until about so many rows are shown. */
  openSome(rows) {
    let shown = 1;
    let level = [this.root];
    while (level.length) {
      const next = [];
      for (const branch of level) {
        if (!branch.isContainer || branch.isOpen) {
          next.push(...branch.below);
          continue;
        }
        const count = branch.countUpTo(PAGE);
        if (branch !== this.root && shown + count > rows) continue;
        branch.open();
        shown += branch.below.length;
        next.push(...branch.below);
      }
      level = next;
    }
  }

  openAll() {
    this.openSome(MOST_OPEN);
  }

  closeAll() {
    for (const branch of this.root.below) branch.shut();
  }

  /** Opens the way to the value around a position, highlights `length` characters there, and scrolls to it. */
  reveal(position, length) {
    let branch = this.root;
    for (const step of pathTo(this.text, this.start, position)) {
      branch.open();
      branch = branch.childAt(step.index);
    }
    const before = this.mark?.branch;
    this.mark = { branch, start: position, end: position + length, current: true };
    before?.paint();
    branch.paint();
    branch.row.scrollIntoView({ block: "nearest" });
  }

  unmark() {
    const before = this.mark?.branch;
    this.mark = null;
    before?.paint();
  }

  onKey(event) {
    const row = event.target.closest(".tree-row");
    const branch = row && branches.get(row);
    if (!branch || event.target !== row || event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = [...this.element.querySelectorAll(".tree-row")];
    const at = rows.indexOf(row);
    const moves = {
      ArrowDown: () => rows[at + 1],
      ArrowUp: () => rows[at - 1],
      Home: () => rows[0],
      End: () => rows.at(-1),
      ArrowRight: () => (branch.isOpen ? branch.below[0]?.row : branch.open()),
      ArrowLeft: () => (branch.isOpen ? branch.shut() : branch.parent?.row),
      Enter: () => branch.toggle(),
      " ": () => branch.toggle(),
    };
    if (!Object.hasOwn(moves, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const next = moves[event.key]();
    if (next) this.focus(next);
  }

  focus(row) {
    for (const other of this.element.querySelectorAll('.tree-row[tabindex="0"]')) other.tabIndex = -1;
    row.tabIndex = 0;
    row.focus();
  }
}

const branches = new WeakMap();

/** One value: a row, and below it the values inside, once they were asked for. */
class Branch {
  constructor(tree, place, level, position, count, parent = null) {
    Object.assign(this, {
      tree,
      place,
      level,
      parent,
      index: position - 1,
      below: [],
      next: place.start + 1,
      isOpen: false,
    });
    this.kind = kindOf(tree.text, place.start);
    this.isContainer = (this.kind === "object" || this.kind === "array") && !isEmpty(tree.text, place.start);
    this.row = h("div", {
      class: "tree-row",
      role: "treeitem",
      tabindex: "-1",
      "aria-level": level,
      "aria-posinset": position,
      "aria-setsize": count,
      onclick: (event) => this.onClick(event),
    });
    this.row.style.setProperty("--level", level - 1);
    this.group = null;
    this.element = h("div", { role: "none" }, this.row);
    branches.set(this.row, this);
    this.paint();
  }

  onClick(event) {
    if (event.target.closest("button, a") || String(document.getSelection())) return;
    this.tree.focus(this.row);
    this.toggle();
  }

  toggle() {
    if (this.isOpen) this.shut();
    else this.open();
  }

  /** How many values are inside, counted no further than `limit`. */
  countUpTo(limit) {
    return children(this.tree.text, this.place.start, { limit }).items.length;
  }

  open() {
    if (!this.isContainer || this.isOpen) return;
    this.isOpen = true;
    if (!this.group) {
      this.group = h("div", { class: "tree-group", role: "group" });
      this.element.append(this.group);
      this.read();
    }
    this.group.hidden = false;
    this.paint();
  }

  shut() {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.group.hidden = true;
    this.paint();
  }

  /** Adds the next values inside. */
  read() {
    const { items, next } = children(this.tree.text, this.place.start, { from: this.next, limit: PAGE });
    this.next = next;
    this.group.querySelector(":scope > .tree-more")?.remove();
    const whole = next < 0 ? this.below.length + items.length : -1;
    for (const item of items) {
      const branch = new Branch(this.tree, item, this.level + 1, this.below.length + 1, whole, this);
      this.below.push(branch);
      this.group.append(branch.element);
    }
    if (next >= 0) {
      const label = `${number(this.below.length)} shown. Show ${PAGE} more`;
      const more = h("button", { class: "link-button", type: "button", onclick: () => this.read() }, label);
      const row = h("div", { class: "tree-more", role: "none" }, more);
      row.style.setProperty("--level", this.level);
      this.group.append(row);
    }
  }

  childAt(index) {
    while (index >= this.below.length && this.next >= 0) this.read();
    return this.below[index];
  }

  paint() {
    const { row, place, tree } = this;
    if (this.isContainer) row.setAttribute("aria-expanded", String(this.isOpen));
    const marks = tree.mark?.branch === this ? [tree.mark] : [];
    row.classList.toggle("hit-row", marks.length > 0);
    const named = place.keyStart !== undefined;
    replace(
      row,
      h("span", { class: this.isContainer ? "tree-toggle" : "tree-toggle none", "aria-hidden": "true" }),
      named && h("span", { class: "tree-key" }, this.keyNodes(marks)),
      !named && this.parent && h("span", { class: "tree-index" }, this.index),
      (named || this.parent) && h("span", { class: "tree-colon" }, ": "),
      this.isContainer ? this.containerNodes() : this.valueNodes(marks),
      this.copyButton(),
    );
  }

  keyNodes(marks) {
    const { keyStart, keyEnd } = this.place;
    if (keyEnd - keyStart === 2) return '""';
    const end = Math.min(keyEnd - 1, keyStart + 1 + SHOWN);
    return [textNodes(this.tree.text.slice(keyStart + 1, end), keyStart + 1, marks), end < keyEnd - 1 && "…"];
  }

  containerNodes() {
    const { text } = this.tree;
    const { start, end } = this.place;
    const [first, last] = this.kind === "object" ? ["{", "}"] : ["[", "]"];
    const size = end - start < COUNTED ? this.sizeInWords() : bytes(byteLength(text.slice(start, end)));
    if (this.isOpen) return [h("span", { class: "tree-brace" }, first), h("span", { class: "tree-size" }, size)];
    const inside = text.slice(start + 1, Math.min(end - 1, start + 1 + PREVIEW)).replace(/\s+/g, " ");
    const cut = end - start - 2 > PREVIEW ? "…" : "";
    return [
      h("span", { class: "tree-brace" }, first),
      h("span", { class: "tree-preview" }, textNodes(inside), cut),
      h("span", { class: "tree-brace" }, last),
      h("span", { class: "tree-size" }, size),
    ];
  }

  sizeInWords() {
    const count = this.countUpTo(Infinity);
    const word = this.kind === "object" ? "member" : "item";
    return `${number(count)} ${word}${count === 1 ? "" : "s"}`;
  }

  valueNodes(marks) {
    const { text } = this.tree;
    const { start, end } = this.place;
    const kind = ["true", "false", "null"].includes(this.kind) ? "word" : this.kind;
    const cut = end - start > SHOWN + 40 ? start + SHOWN : end;
    const value = h("span", { class: `tree-value ${kind}` }, textNodes(text.slice(start, cut), start, marks));
    if (cut === end && !(this.kind === "string" && text.slice(start, end).includes("\\n"))) return value;
    return [
      value,
      cut < end && h("span", { class: "tree-size" }, `… ${bytes(byteLength(text.slice(start, end)))}`),
      this.readButton(),
    ];
  }

  readButton() {
    const open = Boolean(this.reader);
    const words = this.kind === "string" ? "Read as text" : "Show all";
    return h(
      "button",
      { class: "link-button", type: "button", "aria-expanded": String(open), onclick: () => this.toggleReader() },
      open ? "Close" : words,
    );
  }

  toggleReader() {
    if (this.reader) {
      this.tree.readers.delete(this.reader);
      this.reader.close();
      this.reader.element.remove();
      this.reader = null;
    } else {
      this.reader = readable(this.tree.text, this.place, this.kind);
      this.tree.readers.add(this.reader);
      this.element.append(this.reader.element);
    }
    this.paint();
  }

  copyButton() {
    const button = h("button", {
      class: "tree-copy",
      type: "button",
      tabindex: "-1",
      title: "Copy this value exactly",
      "aria-label": "Copy this value",
    });
    return copyOnClick(button, () => this.tree.text.slice(this.place.start, this.place.end), "Value");
  }
}
