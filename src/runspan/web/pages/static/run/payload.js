// The payloads of a run or a step: a tab for each, as a tree or as the text itself, with search and copy.

import { announce, h, replace, visible } from "../dom.js";
import { bytes, number } from "../format.js";
import { byteLength, copyOnClick } from "./copy.js";
import { MOST } from "./find.js";
import { TextView } from "./textview.js";
import { JsonTree } from "./tree.js";

const NAMES = { input: "Input", output: "Output", error: "Error" };
const WHOLE = "document";

let count = 0;

/** What most readers look for: the error of what failed, else the output, else whatever there is. */
function preferred(owner, names) {
  if (owner.status === "failed" && owner.error && names.includes("error")) return "error";
  return ["output", "input", ...names].find((key) => names.includes(key));
}

/** `element` shows the payloads of a run or step; `onTab` hears the key of the tab that a reader chooses. */
export class Payloads {
  constructor({ onTab }) {
    this.onTab = onTab;
    this.mode = "tree";
    this.id = `payload-${(count += 1)}`;
    this.asked = 0;
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
    this.size = h("span", { class: "payload-size quiet numbers" });
    this.copy = copyOnClick(
      h("button", { class: "button small copy", type: "button", title: "Copy the exact text" }, "Copy"),
      () => this.exact(),
      "Payload",
    );
    this.all = h(
      "button",
      { class: "button small plain", type: "button", onclick: () => this.view.openAll() },
      "Expand",
    );
    this.buildSearch();
    this.bar = h("div", { class: "payload-bar" }, this.modes, this.search, this.size, this.all, this.copy);
    this.element = h("div", { class: "payloads" }, this.tabs, this.bar, this.area);
  }

  /** Shows another owner, or the same one as it is in a newer reading; what is unchanged stays as it is. */
  show(reading, owner, tab) {
    const payloads = [...owner.payloads, { key: WHOLE, start: owner.start, end: owner.end }];
    const names = payloads.map(({ key }) => key);
    const isSame = this.texts !== undefined && this.owner === owner.index;
    const kept = isSame && names.includes(this.key) ? this.key : preferred(owner, names);
    const key = names.includes(tab) ? tab : kept;
    const texts = new Map(payloads.map((place) => [place.key, reading.text.slice(place.start, place.end)]));
    const isUnchanged = isSame && this.key === key && this.texts.get(key) === texts.get(key);
    Object.assign(this, { reading, payloads, texts, key, owner: owner.index, isRun: owner.steps !== undefined });
    this.paintTabs();
    if (!isUnchanged) this.open();
  }

  exact() {
    return this.texts.get(this.key);
  }

  open() {
    this.view?.close();
    const text = this.exact();
    const label = `${this.nameOf(this.key)} as ${this.mode}`;
    this.view =
      this.mode === "tree" ? new JsonTree({ text, start: 0, end: text.length, label }) : new TextView({ text, label });
    replace(this.area, this.view.element);
    this.area.classList.toggle("is-text", this.mode === "text");
    this.all.hidden = this.mode !== "tree";
    this.size.textContent = bytes(byteLength(text));
    for (const button of this.modes.children)
      button.setAttribute("aria-pressed", String(button.dataset.mode === this.mode));
    this.found = [];
    if (this.input.value) this.find();
    else this.tell("");
  }

  nameOf(key) {
    if (key === WHOLE) return this.isRun ? "Document" : "Step";
    return NAMES[key] ?? visible(key);
  }

  modeButton(mode, label) {
    const choose = () => {
      this.mode = mode;
      this.open();
    };
    return h("button", { type: "button", dataset: { mode }, "aria-pressed": "false", onclick: choose }, label);
  }

  paintTabs() {
    const had = this.tabs.contains(document.activeElement);
    const tabs = this.payloads.map(({ key }) => {
      const chosen = key === this.key;
      const attributes = {
        type: "button",
        role: "tab",
        class: "tab",
        "aria-selected": String(chosen),
        "aria-controls": this.id,
        tabindex: chosen ? "0" : "-1",
        dataset: { key },
        onclick: () => this.choose(key),
      };
      const isNull = key !== WHOLE && this.texts.get(key) === "null";
      return h(
        "button",
        attributes,
        h("bdi", { class: NAMES[key] || key === WHOLE ? "" : "mono" }, this.nameOf(key)),
        isNull && h("span", { class: "tab-note" }, " null"),
      );
    });
    replace(this.tabs, tabs);
    const chosen = this.tabs.querySelector('[aria-selected="true"]');
    if (had) chosen.focus();
    chosen.scrollIntoView({ block: "nearest", inline: "nearest" });
  }

  choose(key) {
    this.key = key;
    this.paintTabs();
    this.open();
    this.onTab(key);
  }

  onTabKey(event) {
    const keys = this.payloads.map(({ key }) => key);
    const at = keys.indexOf(this.key);
    const next = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: keys.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    this.choose(keys[(next + keys.length) % keys.length]);
    this.tabs.querySelector('[aria-selected="true"]').focus();
  }

  buildSearch() {
    let timer = 0;
    const later = () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.find(), 150);
    };
    this.input = h("input", {
      type: "search",
      placeholder: "Search",
      "aria-label": "Search in this payload",
      autocomplete: "off",
      spellcheck: "false",
      oninput: later,
      onkeydown: (event) => this.onSearchKey(event),
    });
    this.result = h("output", { class: "find-result numbers" });
    const step = (by, label, mark) =>
      h(
        "button",
        { class: "find-step", type: "button", "aria-label": label, title: label, onclick: () => this.go(by) },
        mark,
      );
    this.steps = h(
      "span",
      { class: "find-steps", hidden: true },
      this.result,
      step(-1, "Previous match", "↑"),
      step(1, "Next match", "↓"),
    );
    this.search = h("div", { class: "find", role: "search", "aria-label": "In this payload" }, this.input, this.steps);
  }

  onSearchKey(event) {
    if (event.key === "Enter") {
      event.preventDefault();
      this.go(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape" && this.input.value) {
      event.preventDefault();
      event.stopPropagation();
      this.input.value = "";
      this.find();
    }
  }

  async find() {
    const needle = this.input.value;
    const asked = (this.asked += 1);
    const { start, end } = this.payloads.find(({ key }) => key === this.key);
    const found = (await this.reading.find(start, end, needle)).map((position) => position - start);
    if (asked !== this.asked) return;
    Object.assign(this, { found, at: 0, needle });
    if (!needle) {
      this.tell("");
      this.view.mark?.([], 0, -1);
      this.view.unmark?.();
    } else if (!found.length) {
      this.tell("none");
      this.view.mark?.([], 0, -1);
      this.view.unmark?.();
    } else this.go(0);
  }

  go(by) {
    if (!this.found.length) return;
    this.at = (this.at + by + this.found.length) % this.found.length;
    const position = this.found[this.at];
    const total = this.found.length === MOST ? `${number(MOST)}+` : number(this.found.length);
    this.tell(`${number(this.at + 1)} of ${total}`);
    if (this.mode === "text") {
      this.view.mark(this.found, this.needle.length, this.at);
      this.view.reveal(position);
    } else this.view.reveal(position, this.needle.length);
  }

  tell(result) {
    this.steps.hidden = result === "";
    this.result.textContent = result;
    if (result) announce(result === "none" ? "No match" : `Match ${result}`);
  }
}
