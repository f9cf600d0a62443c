// The payloads of a run or step: one tab for each, shown as a tree or as text, with search and copy.

import { copyOnClick } from "../clipboard.js";
import { announce, h, replace } from "../dom.js";
import { number, textSize } from "../format.js";
import { visible } from "../invisible-characters.js";
import { MAX_MATCHES } from "./document.js";
import { TextView } from "./text-view.js";
import { JsonTree } from "./tree.js";

const LABELS = { input: "Input", output: "Output", error: "Error" };
const DOCUMENT = "document"; // key of the tab with the document of the run or step itself
const SEARCH_DELAY_MS = 150;

let lastId = 0;

/** The payload to show first: the error of a failure, else the output, else the input. */
function defaultKey(owner, keys) {
  if (owner.status === "failed" && owner.error && keys.includes("error")) return "error";
  return ["output", "input", ...keys].find((key) => keys.includes(key));
}

/** Shows payloads in `element`. */
export class Payloads {
  /**
   * @param {object} actions
   * @param {(key: string) => void} actions.onTab - Called with the key of the tab that the user chooses.
   */
  constructor({ onTab }) {
    this.onTab = onTab;
    this.mode = "tree";
    this.id = `payload-${(lastId += 1)}`;
    this.searches = 0;
    this.tabs = h("div", {
      class: "tabs",
      role: "tablist",
      "aria-label": "Payloads",
      onkeydown: (event) => this.onTabKey(event),
    });
    this.area = h("div", { class: "payload-area", role: "tabpanel", id: this.id, "aria-label": "Payload" });
    this.modes = h(
      "div",
      { class: "segments", role: "group", "aria-label": "Show as" },
      this.modeButton("tree", "Tree"),
      this.modeButton("text", "Text"),
    );
    this.size = h("span", { class: "payload-size muted tabular-nums" });
    const copy = copyOnClick(
      h("button", { class: "button small copy", type: "button", title: "Copy the exact text" }, "Copy"),
      () => this.text,
      "Payload",
    );
    this.expand = h(
      "button",
      { class: "button small plain", type: "button", onclick: () => this.view.expandAll() },
      "Expand",
    );
    const bar = h("div", { class: "payload-bar" }, this.modes, this.createSearch(), this.size, this.expand, copy);
    this.element = h("div", { class: "payloads" }, this.tabs, bar, this.area);
  }

  /**
   * Show the payloads of a run or step. If the same one is shown already, unchanged payloads keep their state.
   *
   * @param {object} loaded - The result of loadRun().
   * @param {object} owner - The run, or a step of it.
   * @param {number|null} index - Index of the step; null for the run.
   * @param {string|null} tab - Key of the tab to show; null for the default.
   */
  show(loaded, owner, index, tab) {
    const payloads = [...owner.payloads, { key: DOCUMENT, start: owner.start, end: owner.end }];
    const keys = payloads.map(({ key }) => key);
    const isSameOwner = this.texts !== undefined && this.index === index;
    const previousKey = isSameOwner && keys.includes(this.key) ? this.key : defaultKey(owner, keys);
    const key = keys.includes(tab) ? tab : previousKey;
    const texts = new Map(payloads.map(({ key: name, start, end }) => [name, loaded.text.slice(start, end)]));
    const isUnchanged = isSameOwner && this.key === key && this.text === texts.get(key);
    Object.assign(this, { loaded, payloads, texts, key, index });
    this.renderTabs();
    if (!isUnchanged) this.open();
  }

  /** The exact text of the shown payload. */
  get text() {
    return this.texts.get(this.key);
  }

  open() {
    this.view?.close();
    const { text } = this;
    const label = `${this.labelOf(this.key)} as ${this.mode}`;
    this.view = this.mode === "tree" ? new JsonTree({ text, label }) : new TextView({ text, label });
    replace(this.area, this.view.element);
    this.area.classList.toggle("is-text", this.mode === "text");
    this.expand.hidden = this.mode !== "tree";
    this.size.textContent = textSize(text);
    for (const button of this.modes.children)
      button.setAttribute("aria-pressed", String(button.dataset.mode === this.mode));
    this.matches = [];
    if (this.input.value) this.search();
    else this.showResult("");
  }

  labelOf(key) {
    if (key === DOCUMENT) return this.index === null ? "Document" : "Step";
    return LABELS[key] ?? visible(key);
  }

  modeButton(mode, label) {
    const onclick = () => {
      this.mode = mode;
      this.open();
    };
    return h("button", { type: "button", dataset: { mode }, "aria-pressed": "false", onclick }, label);
  }

  renderTabs() {
    const hadFocus = this.tabs.contains(document.activeElement);
    replace(
      this.tabs,
      this.payloads.map(({ key }) => this.createTab(key)),
    );
    const selected = this.tabs.querySelector('[aria-selected="true"]');
    if (hadFocus) selected.focus();
    selected.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  createTab(key) {
    const isSelected = key === this.key;
    const isNull = key !== DOCUMENT && this.texts.get(key) === "null";
    return h(
      "button",
      {
        type: "button",
        role: "tab",
        class: "tab",
        "aria-selected": String(isSelected),
        "aria-controls": this.id,
        tabindex: isSelected ? "0" : "-1",
        dataset: { key },
        onclick: () => this.selectTab(key),
      },
      h("bdi", { class: LABELS[key] || key === DOCUMENT ? "" : "mono" }, this.labelOf(key)),
      isNull && h("span", { class: "tab-note" }, " null"),
    );
  }

  selectTab(key) {
    this.key = key;
    this.renderTabs();
    this.open();
    this.onTab(key);
  }

  onTabKey(event) {
    const keys = this.payloads.map(({ key }) => key);
    const current = keys.indexOf(this.key);
    const next = { ArrowRight: current + 1, ArrowLeft: current - 1, Home: 0, End: keys.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.selectTab(keys[(next + keys.length) % keys.length]);
    this.tabs.querySelector('[aria-selected="true"]').focus();
  }

  createSearch() {
    let timer = 0;
    this.input = h("input", {
      type: "search",
      placeholder: "Search",
      "aria-label": "Search in this payload",
      autocomplete: "off",
      spellcheck: "false",
      oninput: () => {
        clearTimeout(timer);
        timer = setTimeout(() => this.search(), SEARCH_DELAY_MS);
      },
      onkeydown: (event) => this.onSearchKey(event),
    });
    this.result = h("output", { class: "search-result tabular-nums" });
    const stepButton = (by, label, arrow) =>
      h(
        "button",
        { class: "search-step", type: "button", "aria-label": label, title: label, onclick: () => this.goToMatch(by) },
        arrow,
      );
    this.searchNav = h(
      "span",
      { class: "search-nav", hidden: true },
      this.result,
      stepButton(-1, "Previous match", "↑"),
      stepButton(1, "Next match", "↓"),
    );
    return h("div", { class: "search", role: "search", "aria-label": "In this payload" }, this.input, this.searchNav);
  }

  onSearchKey(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      this.goToMatch(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape" && this.input.value) {
      event.preventDefault();
      event.stopPropagation();
      this.input.value = "";
      this.search();
    }
  }

  async search() {
    const needle = this.input.value;
    const id = (this.searches += 1);
    const { start, end } = this.payloads.find(({ key }) => key === this.key);
    const matches = (await this.loaded.find(start, end, needle)).map((position) => position - start);
    if (id !== this.searches) return; // a newer search has begun
    Object.assign(this, { matches, needle, currentMatch: 0 });
    if (matches.length) return this.goToMatch(0);
    this.showResult(needle && "none");
    this.view.clearMatches();
  }

  /** Go forward or back by a number of matches, around the ends. */
  goToMatch(by) {
    const { matches } = this;
    if (!matches.length) return;
    this.currentMatch = (this.currentMatch + by + matches.length) % matches.length;
    const total = matches.length === MAX_MATCHES ? `${number(MAX_MATCHES)}+` : number(matches.length);
    this.showResult(`${number(this.currentMatch + 1)} of ${total}`);
    this.view.showMatches(matches, this.needle.length, this.currentMatch);
  }

  showResult(result) {
    this.searchNav.hidden = result === "";
    this.result.textContent = result;
    if (result) announce(result === "none" ? "No match" : `Match ${result}`);
  }
}
