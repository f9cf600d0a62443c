// The field that finds steps by name, id, status or type, with a list of those that match.

import { h, replace } from "../dom.js";
import { number, status, statusIcon } from "../format.js";
import { visible } from "../invisible-characters.js";
import { iconButton } from "./icons.js";
import { cutInMiddle, roundLabel, statusText, stepTitle } from "./step-labels.js";

const PAGE_SIZE = 50; // matches in the list at once

/** Finds steps; the field, its list and buttons are in `element`. */
export class StepFinder {
  /**
   * @param {object} actions
   * @param {(index: number) => void} actions.select - Called to open a step.
   */
  constructor({ select }) {
    Object.assign(this, { select, query: "", matches: [], current: -1, texts: null });
    this.list = h("ul", {
      class: "finder-list",
      id: "finder-list",
      role: "listbox",
      "aria-label": "Steps found",
      hidden: true,
    });
    this.list.addEventListener("mousedown", (event) => event.preventDefault()); // the field keeps the focus
    this.input = h("input", {
      type: "search",
      role: "combobox",
      placeholder: "Find a step",
      title: "Find a step by name, id, status or type (s)",
      "aria-label": "Find a step by name, id, status or type",
      "aria-autocomplete": "list",
      "aria-controls": "finder-list",
      "aria-expanded": "false",
      autocomplete: "off",
      autocapitalize: "off",
      spellcheck: "false",
      oninput: () => this.find(this.input.value),
      onfocus: () => this.setOpen(this.query !== ""),
      onblur: () => this.setOpen(false),
      onkeydown: (event) => this.onKey(event),
    });
    this.count = h("span", { class: "finder-count tabular-nums", role: "status" });
    const button = (name, label, by) => iconButton(name, label, () => this.open(this.position(by)));
    this.buttons = [button("previous", "Previous match", -1), button("next", "Next match", 1)];
    this.element = h(
      "div",
      { class: "finder", role: "search", "aria-label": "Steps" },
      this.input,
      this.count,
      this.buttons,
      this.list,
    );
    this.render();
  }

  /**
   * Search in a run.
   *
   * @param {object} run - The result of indexRun().
   * @param {object} stats - The result of runStats().
   */
  show(run, stats) {
    if (this.run === run) return;
    const found = this.run && this.current >= 0 ? this.matches[this.current] : null;
    Object.assign(this, { run, stats, texts: null });
    this.element.hidden = run.steps.length < 2;
    this.matches = this.matchesOf(this.query);
    this.current = found === null ? -1 : this.matches.indexOf(found);
    this.render();
  }

  /** Focus the field. */
  focus() {
    this.input.focus();
    this.input.select();
  }

  find(text) {
    this.query = text.trim().toLowerCase();
    this.matches = this.matchesOf(this.query);
    this.current = this.matches.length ? 0 : -1;
    this.setOpen(this.query !== "");
  }

  /** The indexes of the steps that contain each of the words. */
  matchesOf(query) {
    if (!query) return [];
    this.texts ??= this.run.steps.map((step) =>
      [step.name, step.id, step.type, step.status, status(step.status).label].join("\n").toLowerCase(),
    );
    const words = query.split(/\s+/);
    return this.run.steps
      .map((step) => step.index)
      .filter((index) => words.every((word) => this.texts[index].includes(word)));
  }

  /** The position of the match so many places after the current one, from the last on to the first. */
  position(by) {
    const { length } = this.matches;
    return length ? (this.current + by + length) % length : -1;
  }

  moveTo(position) {
    this.current = position;
    this.setOpen(this.query !== "");
  }

  open(position) {
    if (position < 0) return;
    this.current = position;
    this.setOpen(false);
    this.select(this.matches[position]);
  }

  setOpen(isOpen) {
    this.isOpen = isOpen;
    this.render();
  }

  render() {
    const { matches, current, query, isOpen } = this;
    for (const button of this.buttons) button.disabled = !matches.length;
    this.count.textContent = !query
      ? ""
      : `${current >= 0 ? `${number(current + 1)} of ` : ""}${number(matches.length)}`;
    this.input.setAttribute("aria-expanded", String(Boolean(isOpen)));
    this.list.hidden = !isOpen;
    this.input.removeAttribute("aria-activedescendant");
    if (!isOpen) return;
    const first = Math.max(0, Math.floor(current / PAGE_SIZE) * PAGE_SIZE);
    const options = matches.slice(first, first + PAGE_SIZE).map((index, offset) => this.option(index, first + offset));
    replace(
      this.list,
      options.length
        ? options
        : h("li", { class: "finder-none", role: "option", "aria-disabled": "true" }, "No step matches."),
    );
    const chosen = this.list.querySelector('[aria-selected="true"]');
    if (!chosen) return;
    this.input.setAttribute("aria-activedescendant", chosen.id);
    chosen.scrollIntoView({ block: "nearest" });
  }

  option(index, position) {
    const step = this.run.steps[index];
    const details = [step.type && visible(step.type), roundLabel(step, this.stats)].filter(Boolean).join(" · ");
    return h(
      "li",
      {
        id: `finder-option-${position}`,
        role: "option",
        "aria-selected": String(position === this.current),
        "aria-label": [stepTitle(step), statusText(step.status), details].filter(Boolean).join(", "),
        title: `${stepTitle(step)} (${visible(step.id)})`,
        onclick: () => this.open(position),
      },
      statusIcon(step.status, 14),
      h("bdi", { class: "finder-name" }, cutInMiddle(stepTitle(step))),
      h("span", { class: "muted" }, details),
    );
  }

  onKey(event) {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    const { key } = event;
    if (key in moves && this.matches.length) this.moveTo(this.isOpen ? this.position(moves[key]) : this.current);
    else if (key === "Enter")
      this.open(event.shiftKey ? this.position(-1) : this.isOpen ? this.current : this.position(1));
    else if (key === "Escape" && this.input.value) {
      this.input.value = "";
      this.find("");
    } else if (key === "Escape") this.input.blur();
    else return;
    event.preventDefault();
  }
}
