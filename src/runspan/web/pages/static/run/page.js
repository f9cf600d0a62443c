// The run page: header, canvas and timeline with their tabs, and side panel, which share one selected step.

import { getJson, runApiPath } from "../api.js";
import { announce, h } from "../dom.js";
import { shortcut } from "../shell.js";
import { Canvas } from "./canvas.js";
import { Detail } from "./detail.js";
import { hasEnded } from "./document.js";
import { icon } from "./icons.js";
import { findNeighbours } from "./neighbours.js";
import { PrintView } from "./print-view.js";
import { runStats } from "./run-stats.js";
import { statusText, stepTitle } from "./step-labels.js";
import { StepFinder } from "./step-finder.js";
import { Summary } from "./summary.js";
import { Timeline } from "./timeline.js";
import { UrlState } from "./url-state.js";

const VIEWS = [
  ["canvas", "Canvas"],
  ["timeline", "Timeline"],
];
const STEP_LINKS_DELAY_MS = 200; // steps that are only passed on the way to another one need no links
const NARROW = "(max-width: 60rem)"; // as in detail.css

/** Shows a run in `element`. */
export class RunPage {
  constructor() {
    this.selected = null;
    this.error = null;
    this.traceLinks = {};
    this.state = new UrlState(() => this.onNavigate());
    const select = (index) => this.select(index);
    this.summary = new Summary({ select, onShowRun: () => this.showRunDetails() });
    this.views = { canvas: new Canvas({ select }), timeline: new Timeline({ select }) };
    this.detail = new Detail({ select, onTab: (tab) => this.state.set({ tab }) });
    this.tabs = h(
      "div",
      { class: "view-tabs", role: "tablist", "aria-label": "Views", onkeydown: (event) => this.onTabKey(event) },
      VIEWS.map(([name, label]) => this.createTab(name, label)),
    );
    this.empty = h("div", { class: "state", hidden: true });
    const panels = VIEWS.map(([name]) =>
      h(
        "div",
        { class: "view-panel", role: "tabpanel", id: `view-${name}`, "aria-labelledby": `tab-${name}` },
        this.views[name].element,
      ),
    );
    this.panels = new Map(VIEWS.map(([name], position) => [name, panels[position]]));
    this.finder = new StepFinder({ select });
    this.bar = h("div", { class: "view-bar" }, this.tabs, this.finder.element);
    const views = h("section", { class: "views", "aria-label": "Steps" }, this.bar, this.empty, panels);
    this.element = h(
      "div",
      { class: "run" },
      this.summary.element,
      h("div", { class: "run-body" }, views, this.detail.element),
      new PrintView(() => this).element,
    );
    this.addShortcuts();
  }

  /**
   * Show a run. A newer version of the same run keeps selection, scroll position and zoom.
   *
   * @param {object} loaded - The result of loadRun(). The page closes it when the next one is shown.
   * @param {{incomplete?: string, observedAt?: string}} [response] - What getText() returned.
   */
  show(loaded, { incomplete = "", observedAt = "" } = {}) {
    const previousStatus = this.run?.status;
    const isFirst = this.loaded === undefined;
    const selected = this.selectedExecution();
    this.loaded?.close();
    Object.assign(this, { loaded, run: loaded.run, incomplete, observedAt, stats: runStats(loaded.run) });
    this.selected = isFirst ? this.indexFromUrl() : this.findExecution(selected);
    document.title = `${this.run.workflowId || this.run.id}, ${statusText(this.run.status)} · runspan`;
    this.finder.show(this.run, this.stats);
    this.showSummary();
    this.showEmptyState();
    this.render();
    if (!isFirst && previousStatus !== this.run.status) announce(`The run is now ${statusText(this.run.status)}`);
  }

  /**
   * Note when the run was last observed, of a document that is otherwise the same.
   *
   * @param {string} observedAt - The time, "" if it is not known.
   */
  setObservedAt(observedAt) {
    this.observedAt = observedAt;
    this.summary.setObservedAt(observedAt);
  }

  /**
   * Show or hide the error of the last refresh.
   *
   * @param {import("../api.js").ApiError|null} error - The error; null if the refresh succeeded.
   */
  showError(error) {
    if (error === this.error) return;
    this.error = error;
    this.showSummary();
  }

  /**
   * Load the links to the run's trace and show them.
   *
   * @param {string} id - Run id.
   */
  async loadTraceLinks(id) {
    this.traceLinks = await loadLinks(id);
    this.summary.setTraceLinks(this.traceLinks);
    this.linksToStep = async (step) => ({ ...this.traceLinks, ...(await loadLinks(id, { step })) });
    this.showStepLinks();
  }

  /** Find the runs of the same workflow around the run, and show links to them. Without an answer there are none. */
  async loadNeighbours() {
    try {
      this.summary.setNeighbours(await findNeighbours(this.run));
    } catch {
      this.summary.setNeighbours({});
    }
  }

  /** Show links to the selected step in the trace. Until they are loaded, they lead to the trace. */
  showStepLinks() {
    const { selected } = this;
    const linked = selected === null ? null : `${selected} ${this.run.steps[selected].status}`;
    if (!Object.keys(this.traceLinks).length || linked === this.linked) return;
    this.linked = linked;
    this.detail.setLinks(this.traceLinks);
    clearTimeout(this.linksTimer);
    if (selected === null) return;
    this.linksTimer = setTimeout(async () => {
      const links = await this.linksToStep(selected);
      if (linked === this.linked) this.detail.setLinks(links);
    }, STEP_LINKS_DELAY_MS);
  }

  /** Update what changes with the clock. Called every second. */
  tick() {
    if (hasEnded(this.run.status) || document.hidden) return;
    this.summary.tick();
    this.detail.tick();
    if (this.run.steps.length) this.currentView.tick();
  }

  get currentView() {
    return this.views[this.state.value.view];
  }

  select(index) {
    if (index === this.selected && index !== null) return this.focusSheet();
    const previous = this.selected;
    document.body.classList.remove("run-open");
    this.selected = index;
    const step = index === null ? null : this.run.steps[index];
    const execution = step ? this.stats.executions.get(step.id).indexOf(index) + 1 : 1;
    const state = { step: step ? step.id : null, execution, tab: null };
    if (previous === null && step) this.state.open(state);
    else if (step) this.state.set(state);
    else this.state.close(state);
    if (previous === null) this.showSummary(); // it may have said that the address names no step
    this.render();
    if (step) {
      announce(`${stepTitle(step)}, ${statusText(step.status)}`);
      this.focusSheet();
    } else if (this.detail.element.contains(document.activeElement) || document.activeElement === document.body)
      this.focusTabStop(previous);
  }

  /** Show the run's own payloads in the sheet of a narrow screen. */
  showRunDetails() {
    document.body.classList.add("run-open");
    this.focusSheet();
  }

  /** On a narrow screen, move the focus into the side panel, which covers the view. */
  focusSheet() {
    if (matchMedia(NARROW).matches) this.detail.element.focus({ preventScroll: true });
  }

  focusTabStop(index) {
    if (index === null) return;
    const selector = '[tabindex="0"].node-body, [tabindex="0"].timeline-row';
    const { element } = this.currentView;
    requestAnimationFrame(() => element.querySelector(selector)?.focus({ preventScroll: true }));
  }

  showSummary() {
    const { step } = this.state.value;
    const missingStep = step === null || this.stats.executions.has(step) ? null : step;
    const { incomplete, observedAt, error } = this;
    this.summary.show(this.loaded, this.stats, { incomplete, observedAt, error, missingStep });
  }

  render() {
    const { view, tab } = this.state.value;
    for (const [name] of VIEWS) {
      const isShown = name === view && this.run.steps.length > 0;
      this.panels.get(name).hidden = !isShown;
      if (isShown) this.views[name].show(this.run, this.selected);
    }
    for (const button of this.tabs.children) {
      const isSelected = button.dataset.view === view;
      button.setAttribute("aria-selected", String(isSelected));
      button.tabIndex = isSelected ? 0 : -1;
    }
    document.body.classList.toggle("step-open", this.selected !== null);
    this.detail.show(this.loaded, this.stats, this.selected, tab);
    this.showStepLinks();
  }

  createTab(name, label) {
    return h(
      "button",
      {
        class: "view-tab",
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        "aria-controls": `view-${name}`,
        dataset: { view: name },
        onclick: () => this.switchTo(name),
      },
      icon(name),
      label,
    );
  }

  switchTo(view) {
    this.state.set({ view });
    this.render();
  }

  switchView() {
    this.switchTo(this.state.value.view === "canvas" ? "timeline" : "canvas");
  }

  onTabKey(event) {
    if (!["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    event.preventDefault();
    this.switchView();
    this.tabs.querySelector('[aria-selected="true"]').focus();
  }

  showEmptyState() {
    this.empty.hidden = this.run.steps.length > 0;
    this.bar.hidden = !this.empty.hidden;
    if (this.empty.hidden) return;
    const [title, text] = hasEnded(this.run.status)
      ? ["This run has no steps", "The side panel shows the input, the output and the error of the run."]
      : ["No steps yet", "Steps appear here automatically."];
    this.empty.replaceChildren(h("h2", {}, title), h("p", {}, text));
  }

  /** The id of the selected step, and which of its executions is selected. */
  selectedExecution() {
    if (!this.run || this.selected === null) return null;
    const { id } = this.run.steps[this.selected];
    return { id, position: this.stats.executions.get(id).indexOf(this.selected) };
  }

  /** The index of an execution in another version of the run. */
  findExecution(selected) {
    return selected ? (this.stats.executions.get(selected.id)?.[selected.position] ?? null) : null;
  }

  indexFromUrl() {
    const { step, execution } = this.state.value;
    const indexes = step === null ? undefined : this.stats.executions.get(step);
    return indexes ? (indexes[execution - 1] ?? indexes[0]) : null;
  }

  onNavigate() {
    if (!this.loaded) return;
    this.selected = this.indexFromUrl();
    this.showSummary();
    this.render();
  }

  addShortcuts() {
    const selectBy = (offset) => () => {
      if (!this.run?.steps.length) return;
      const last = this.run.steps.length - 1;
      const next = this.selected === null ? (offset > 0 ? 0 : last) : this.selected + offset;
      this.select(Math.min(Math.max(next, 0), last));
    };
    const selectFailure = () => {
      const index = this.stats?.failure?.index ?? null;
      if (index !== null) this.select(index);
    };
    shortcut("s", "Find a step", () => this.finder.focus());
    shortcut("j", "Next step", selectBy(1));
    shortcut("k", "Previous step", selectBy(-1));
    shortcut("e", "Go to the first failure", selectFailure);
    shortcut("v", "Switch between canvas and timeline", () => this.switchView());
    shortcut("f", "Show the entire run", () => this.currentView.fit());
    shortcut("+", "Zoom in", () => this.currentView.zoomIn());
    shortcut("-", "Zoom out", () => this.currentView.zoomOut());
    shortcut("Escape", "Close the step", () => (this.selected === null ? false : this.select(null)));
  }
}

/** Return the links to a run's trace. Links are optional: if that fails, there are none. */
async function loadLinks(id, parameters) {
  try {
    return (await getJson(runApiPath(id, "/trace"), parameters)).body.data.links;
  } catch {
    return {};
  }
}
