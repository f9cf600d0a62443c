// The run page as a whole: the head, the two views with their tabs, and the panel, which all show one selection.

import { announce, h } from "../dom.js";
import { status } from "../format.js";
import { shortcut } from "../shell.js";
import { Canvas } from "./canvas.js";
import { Detail } from "./detail.js";
import { hasEnded } from "./document.js";
import { factsOf } from "./facts.js";
import { icon } from "./icons.js";
import { AddressState } from "./state.js";
import { Summary } from "./summary.js";
import { Timeline } from "./timeline.js";
import { titleOf } from "./words.js";

const VIEWS = [
  ["canvas", "Canvas"],
  ["timeline", "Timeline"],
];

/** `element` shows one run, reading after reading. */
export class RunPage {
  constructor() {
    this.selected = null;
    this.state = new AddressState(() => this.onAddress());
    const select = (index) => this.select(index);
    this.summary = new Summary({ select, openRun: () => this.openRun() });
    this.views = { canvas: new Canvas({ select }), timeline: new Timeline({ select }) };
    this.detail = new Detail({ select, onTab: (tab) => this.state.set({ tab }) });
    this.tabs = h(
      "div",
      { class: "view-tabs", role: "tablist", "aria-label": "Views", onkeydown: (event) => this.onTabKey(event) },
      VIEWS.map(([name, label]) => this.tab(name, label)),
    );
    this.empty = h("div", { class: "state", hidden: true });
    const panels = VIEWS.map(([name]) =>
      h(
        "div",
        { class: "view-panel", role: "tabpanel", id: `view-${name}`, "aria-labelledby": `tab-${name}` },
        this.views[name].element,
      ),
    );
    this.panels = new Map(VIEWS.map(([name], place) => [name, panels[place]]));
    const views = h("section", { class: "views", "aria-label": "Steps" }, this.tabs, this.empty, panels);
    this.element = h(
      "div",
      { class: "run" },
      this.summary.element,
      h("div", { class: "run-body" }, views, this.detail.element),
    );
    this.addShortcuts();
  }

  /** Shows a reading; a newer one of the same run keeps selection, scroll and zoom. */
  show(reading, { note = "", trouble = null } = {}) {
    const before = this.reading?.run.status;
    const isFirst = this.reading === undefined;
    if (this.reading !== reading) this.reading?.close();
    const chosen = this.chosenStep();
    Object.assign(this, { reading, run: reading.run, note, facts: factsOf(reading.run) });
    this.selected = isFirst ? this.stepOfAddress() : this.sameStep(chosen);
    document.title = `${this.run.workflowId || this.run.id}, ${status(this.run.status).label.toLowerCase()} · runspan`;
    this.summary.show(reading, this.facts, { note, trouble });
    this.showEmpty();
    this.paint();
    if (!isFirst && before !== this.run.status)
      announce(`The run is now ${status(this.run.status).label.toLowerCase()}`);
  }

  /** Tells that a refresh failed, or null that it works again. */
  tellTrouble(trouble) {
    if (!this.reading || trouble === this.trouble) return;
    this.trouble = trouble;
    this.summary.show(this.reading, this.facts, { note: this.note, trouble });
  }

  showPlaces(places) {
    this.detail.places = places;
    if (this.reading && this.selected !== null) this.detail.paint();
  }

  /** Every second while the run goes on. */
  tick() {
    if (!this.run || hasEnded(this.run.status) || document.hidden) return;
    this.summary.tick();
    this.detail.tick();
    if (this.run.steps.length) this.views[this.state.value.view].tick();
  }

  select(index) {
    if (index === this.selected && index !== null) return this.openSheet();
    const before = this.selected;
    document.body.classList.remove("run-open");
    this.selected = index;
    const step = index === null ? null : this.run.steps[index];
    const round = step ? this.facts.occurrences.get(step.id).indexOf(index) + 1 : 1;
    this.state.set({ step: step ? step.id : null, round, tab: null });
    this.paint();
    if (step) {
      announce(`${titleOf(step)}, ${status(step.status).label.toLowerCase()}`);
      this.openSheet();
    } else if (this.detail.element.contains(document.activeElement) || document.activeElement === document.body)
      this.focusStep(before);
  }

  /** On narrow screens: the run's own payloads, in the sheet. */
  openRun() {
    document.body.classList.add("run-open");
    this.openSheet();
  }

  /** On narrow screens the panel covers the view, so it takes the focus. */
  openSheet() {
    if (matchMedia("(max-width: 60rem)").matches) this.detail.element.focus({ preventScroll: true });
  }

  focusStep(index) {
    const view = this.views[this.state.value.view];
    if (index !== null)
      requestAnimationFrame(() =>
        view.element
          .querySelector('[tabindex="0"].node-body, [tabindex="0"].timeline-row')
          ?.focus({ preventScroll: true }),
      );
  }

  paint() {
    const { view, tab } = this.state.value;
    for (const [name] of VIEWS) {
      const isShown = name === view && this.run.steps.length > 0;
      this.panels.get(name).hidden = !isShown;
      if (isShown) this.views[name].show(this.run, this.selected);
    }
    for (const button of this.tabs.children) {
      const isChosen = button.dataset.view === view;
      button.setAttribute("aria-selected", String(isChosen));
      button.tabIndex = isChosen ? 0 : -1;
    }
    document.body.classList.toggle("step-open", this.selected !== null);
    this.detail.show(this.reading, this.facts, this.selected, tab);
  }

  tab(name, label) {
    return h(
      "button",
      {
        class: "view-tab",
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        "aria-controls": `view-${name}`,
        dataset: { view: name },
        onclick: () => this.turnTo(name),
      },
      icon(name),
      label,
    );
  }

  turnTo(view) {
    this.state.set({ view });
    this.paint();
  }

  onTabKey(event) {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    this.turnTo(this.state.value.view === "canvas" ? "timeline" : "canvas");
    this.tabs.querySelector('[aria-selected="true"]').focus();
  }

  showEmpty() {
    this.empty.hidden = this.run.steps.length > 0;
    this.tabs.hidden = !this.empty.hidden;
    if (this.empty.hidden) return;
    const words = hasEnded(this.run.status)
      ? ["This run has no steps", "Its document lists none. Input, output and error of the run are at the side."]
      : [
          "No steps yet",
          "They appear here as soon as the run's document lists them. The page looks for them by itself.",
        ];
    this.empty.replaceChildren(h("h2", {}, words[0]), h("p", {}, words[1]));
  }

  chosenStep() {
    if (!this.run || this.selected === null) return null;
    const { id } = this.run.steps[this.selected];
    return { id, place: this.facts.occurrences.get(id).indexOf(this.selected) };
  }

  /** The same execution of the same step in a newer reading. */
  sameStep(chosen) {
    return chosen ? (this.facts.occurrences.get(chosen.id)?.[chosen.place] ?? null) : null;
  }

  stepOfAddress() {
    const { step, round } = this.state.value;
    const places = step === null ? undefined : this.facts.occurrences.get(step);
    return places ? (places[round - 1] ?? places[0]) : null;
  }

  onAddress() {
    if (!this.reading) return;
    this.selected = this.stepOfAddress();
    this.paint();
  }

  addShortcuts() {
    const by = (step) => () => {
      if (!this.run?.steps.length) return;
      const last = this.run.steps.length - 1;
      this.select(this.selected === null ? (step > 0 ? 0 : last) : Math.min(Math.max(this.selected + step, 0), last));
    };
    const view = () => this.views[this.state.value.view];
    shortcut("j", "Next step", by(1));
    shortcut("k", "Previous step", by(-1));
    shortcut(
      "e",
      "The first failure",
      () => this.facts?.failure?.index != null && this.select(this.facts.failure.index),
    );
    shortcut("v", "Canvas or timeline", () => this.turnTo(this.state.value.view === "canvas" ? "timeline" : "canvas"));
    shortcut("f", "Show everything", () => view().fit());
    shortcut("+", "Zoom in", () => this.zoom(1.25));
    shortcut("-", "Zoom out", () => this.zoom(1 / 1.25));
    shortcut("Escape", "Close the step", () => (this.selected === null ? false : this.select(null)));
  }

  zoom(factor) {
    const { canvas, timeline } = this.views;
    if (this.state.value.view === "canvas") canvas.zoomTo(canvas.camera.zoom * factor);
    else timeline.zoomBy(factor);
  }
}
