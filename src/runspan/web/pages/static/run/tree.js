// Shows a JSON text as a tree. Branches are scanned when they are expanded, and every value is shown as its own text.

import { copyOnClick } from "../clipboard.js";
import { h, replace } from "../dom.js";
import { number, textSize } from "../format.js";
import { textNodes } from "../invisible-characters.js";
import { children, isEmpty, pathTo, valueType } from "./json.js";
import { valueView } from "./value-view.js";

const PAGE_SIZE = 100; // children shown at once
const INITIAL_ROWS = 40;
const MAX_EXPANDED_ROWS = 2_000;
const MAX_VALUE = 240; // characters of a value or key in its row
const VALUE_TOLERANCE = 40; // a value that is only this much longer is not cut
const MAX_PREVIEW = 90; // characters of a collapsed container
const MAX_COUNTED = 100_000; // the children of containers with more characters are not counted

/** Shows a tree in `element`. Call `close` when the element is removed. */
export class JsonTree {
  /**
   * @param {object} options
   * @param {string} options.text - The JSON text.
   * @param {string} options.label - Accessible name of the tree.
   */
  constructor({ text, label }) {
    Object.assign(this, { text, highlight: null, valueViews: new Set() });
    this.element = h("div", {
      class: "tree",
      role: "tree",
      "aria-label": label,
      onkeydown: (event) => this.onKey(event),
    });
    this.root = new TreeNode(this, { start: 0, end: text.length }, { level: 1, position: 1, count: 1 });
    this.element.append(this.root.element);
    this.root.row.tabIndex = 0;
    this.expandTo(INITIAL_ROWS);
  }

  /** Close the views of long values. */
  close() {
    for (const view of this.valueViews) view.close();
  }

  /** Expand all branches, up to a limit of rows. */
  expandAll() {
    this.expandTo(MAX_EXPANDED_ROWS);
  }

  /**
   * Expand the path to a match, highlight the match and scroll to it.
   *
   * @param {number[]} positions - Where the matches begin.
   * @param {number} length - Length of each match.
   * @param {number} current - Index of the match to show.
   */
  showMatches(positions, length, current) {
    const start = positions[current];
    let node = this.root;
    for (const { index } of pathTo(this.text, 0, start)) {
      node.expand();
      node = node.childAt(index);
    }
    const previous = this.highlight?.node;
    this.highlight = { node, start, end: start + length, isCurrent: true };
    previous?.render();
    node.render();
    node.row.scrollIntoView({ block: "nearest" });
  }

  /** Remove the highlight. */
  clearMatches() {
    const previous = this.highlight?.node;
    this.highlight = null;
    previous?.render();
  }

  /** Expand branches level by level, until about so many rows are shown. */
  expandTo(maxRows) {
    let rows = 1;
    let level = [this.root];
    while (level.length) {
      const nextLevel = [];
      for (const node of level) {
        if (node.isContainer && !node.isExpanded) {
          const count = node.countChildren(PAGE_SIZE);
          if (node !== this.root && rows + count > maxRows) continue;
          node.expand();
          rows += node.children.length;
        }
        nextLevel.push(...node.children);
      }
      level = nextLevel;
    }
  }

  onKey(event) {
    const row = event.target.closest(".tree-row");
    const node = row && nodesByRow.get(row);
    if (!node || event.target !== row || event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = [...this.element.querySelectorAll(".tree-row")];
    const position = rows.indexOf(row);
    const actions = {
      ArrowDown: () => rows[position + 1],
      ArrowUp: () => rows[position - 1],
      Home: () => rows[0],
      End: () => rows.at(-1),
      ArrowRight: () => (node.isExpanded ? node.children[0]?.row : node.expand()),
      ArrowLeft: () => (node.isExpanded ? node.collapse() : node.parent?.row),
      Enter: () => node.toggle(),
      " ": () => node.toggle(),
    };
    if (!Object.hasOwn(actions, event.key)) return;
    event.preventDefault();
    event.stopPropagation();
    const target = actions[event.key]();
    if (target) this.focus(target);
  }

  focus(row) {
    for (const other of this.element.querySelectorAll('.tree-row[tabindex="0"]')) other.tabIndex = -1;
    row.tabIndex = 0;
    row.focus();
  }
}

const nodesByRow = new WeakMap();

/** A value: its row and, once it was expanded, the nodes of its children. */
class TreeNode {
  /**
   * @param {JsonTree} tree - The tree.
   * @param {object} bounds - Where the value and its key are in the text, from children().
   * @param {object} place
   * @param {number} place.level - Level in the tree, from 1.
   * @param {number} place.position - Position among the siblings, from 1.
   * @param {number} place.count - Number of siblings, -1 if unknown.
   * @param {TreeNode|null} [parent] - The parent.
   */
  constructor(tree, bounds, { level, position, count }, parent = null) {
    Object.assign(this, {
      tree,
      bounds,
      level,
      parent,
      index: position - 1,
      children: [],
      next: bounds.start + 1,
      isExpanded: false,
    });
    this.type = valueType(tree.text, bounds.start);
    this.isContainer = (this.type === "object" || this.type === "array") && !isEmpty(tree.text, bounds.start);
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
    nodesByRow.set(this.row, this);
    this.render();
  }

  /** The JSON text of the value. */
  get text() {
    return this.tree.text.slice(this.bounds.start, this.bounds.end);
  }

  onClick(event) {
    if (event.target.closest("button, a") || String(document.getSelection())) return;
    this.tree.focus(this.row);
    this.toggle();
  }

  toggle() {
    if (this.isExpanded) this.collapse();
    else this.expand();
  }

  /** Count the children, up to a limit. */
  countChildren(limit = Infinity) {
    return children(this.tree.text, this.bounds.start, { limit }).items.length;
  }

  expand() {
    if (!this.isContainer || this.isExpanded) return;
    this.isExpanded = true;
    if (!this.group) {
      this.group = h("div", { class: "tree-group", role: "group" });
      this.element.append(this.group);
      this.showMore();
    }
    this.group.hidden = false;
    this.render();
  }

  collapse() {
    if (!this.isExpanded) return;
    this.isExpanded = false;
    this.group.hidden = true;
    this.render();
  }

  /** Add the next page of children. */
  showMore() {
    const { items, next } = children(this.tree.text, this.bounds.start, { from: this.next, limit: PAGE_SIZE });
    this.next = next;
    this.group.querySelector(":scope > .tree-more")?.remove();
    const count = next < 0 ? this.children.length + items.length : -1;
    for (const item of items) {
      const place = { level: this.level + 1, position: this.children.length + 1, count };
      const child = new TreeNode(this.tree, item, place, this);
      this.children.push(child);
      this.group.append(child.element);
    }
    if (next >= 0) {
      const label = `${number(this.children.length)} shown. Show ${PAGE_SIZE} more`;
      const more = h("button", { class: "link-button", type: "button", onclick: () => this.showMore() }, label);
      const row = h("div", { class: "tree-more", role: "none" }, more);
      row.style.setProperty("--level", this.level);
      this.group.append(row);
    }
  }

  childAt(index) {
    while (index >= this.children.length && this.next >= 0) this.showMore();
    return this.children[index];
  }

  render() {
    const { row, bounds, tree } = this;
    if (this.isContainer) row.setAttribute("aria-expanded", String(this.isExpanded));
    const highlights = tree.highlight?.node === this ? [tree.highlight] : [];
    row.classList.toggle("match-row", highlights.length > 0);
    const hasKey = bounds.keyStart !== undefined;
    replace(
      row,
      h("span", { class: this.isContainer ? "tree-toggle" : "tree-toggle none", "aria-hidden": "true" }),
      hasKey && h("span", { class: "tree-key" }, this.keyNodes(highlights)),
      !hasKey && this.parent && h("span", { class: "tree-index" }, this.index),
      this.parent && h("span", { class: "tree-colon" }, ": "),
      this.isContainer ? this.containerNodes() : this.valueNodes(highlights),
      this.copyButton(),
    );
  }

  keyNodes(highlights) {
    const { keyStart, keyEnd } = this.bounds;
    if (keyEnd - keyStart === 2) return '""';
    const end = Math.min(keyEnd - 1, keyStart + 1 + MAX_VALUE);
    return [textNodes(this.tree.text.slice(keyStart + 1, end), keyStart + 1, highlights), end < keyEnd - 1 && "…"];
  }

  containerNodes() {
    const { start, end } = this.bounds;
    const [open, close] = this.type === "object" ? ["{", "}"] : ["[", "]"];
    const brace = (character) => h("span", { class: "tree-brace" }, character);
    const size = h("span", { class: "tree-size" }, end - start < MAX_COUNTED ? this.countText() : textSize(this.text));
    if (this.isExpanded) return [brace(open), size];
    const preview = this.tree.text.slice(start + 1, Math.min(end - 1, start + 1 + MAX_PREVIEW)).replace(/\s+/g, " ");
    const ellipsis = end - start - 2 > MAX_PREVIEW && "…";
    return [brace(open), h("span", { class: "tree-preview" }, textNodes(preview), ellipsis), brace(close), size];
  }

  countText() {
    const count = this.countChildren();
    const noun = this.type === "object" ? "member" : "item";
    return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
  }

  valueNodes(highlights) {
    const { start, end } = this.bounds;
    const css = ["true", "false", "null"].includes(this.type) ? "word" : this.type;
    const shownEnd = end - start > MAX_VALUE + VALUE_TOLERANCE ? start + MAX_VALUE : end;
    const shown = textNodes(this.tree.text.slice(start, shownEnd), start, highlights);
    const value = h("span", { class: `tree-value ${css}` }, shown);
    const isCut = shownEnd < end;
    if (!isCut && !(this.type === "string" && this.text.includes("\\n"))) return value;
    return [value, isCut && h("span", { class: "tree-size" }, `… ${textSize(this.text)}`), this.valueViewButton()];
  }

  valueViewButton() {
    const isOpen = Boolean(this.valueView);
    const label = this.type === "string" ? "Read as text" : "Show all";
    return h(
      "button",
      {
        class: "link-button",
        type: "button",
        "aria-expanded": String(isOpen),
        onclick: () => this.toggleValueView(),
      },
      isOpen ? "Close" : label,
    );
  }

  toggleValueView() {
    const { valueViews, text } = this.tree;
    if (this.valueView) {
      valueViews.delete(this.valueView);
      this.valueView.close();
      this.valueView.element.remove();
      this.valueView = null;
    } else {
      this.valueView = valueView(text, this.bounds, this.type);
      valueViews.add(this.valueView);
      this.element.append(this.valueView.element);
    }
    this.render();
  }

  copyButton() {
    const button = h("button", {
      class: "tree-copy",
      type: "button",
      tabindex: "-1",
      title: "Copy this value exactly",
      "aria-label": "Copy this value",
    });
    return copyOnClick(button, () => this.text, "Value");
  }
}
