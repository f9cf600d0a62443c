// The timeline view: steps as bars over time, in rows of which only the visible ones are elements.

import { getText, runApiPath, runPage } from "../api.js";
import { h, keyedChildren, replace } from "../dom.js";
import { number, statusIcon } from "../format.js";
import { millisecondsBetween, toEpochMs } from "../instants.js";
import { isolated, visible } from "../invisible-characters.js";
import { hasEnded } from "./document.js";
import { iconButton } from "./icons.js";
import { loadRun } from "./loaded-run.js";
import { mainExecution, statusOf } from "./node.js";
import { accessibleName, cutInMiddle, statusText, stepTitle } from "./step-labels.js";
import { TimeAxis, TimeAxisView } from "./time-axis.js";
import { barInterval, createBars } from "./timeline-bars.js";
import { timelineRows } from "./timeline-rows.js";
import { Tooltip } from "./tooltip.js";
import { formatUrlState } from "./url-state.js";
import { trackPress } from "./viewport-input.js";

const ROW_HEIGHT = 32; // as in views.css
const BOTTOM_PADDING = 48;
const OVERSCAN = 6; // rows rendered above and below the visible ones
const MIN_AXIS_WIDTH = 60;
const AXIS_PADDING = 16;
const ZOOM_STEP = 1.6;
const WHEEL_ZOOM_STEP = 240; // wheel pixels that multiply the zoom by e
const MAX_OPEN_RATIO = 30; // unfinished bars are cut if they would be so many times longer than what is known
const CUT_BAR_SHARE = 0.3;

/** Shows the timeline in `element`. */
export class Timeline {
  /**
   * @param {object} actions
   * @param {(index: number) => void} actions.select - Called to select a step.
   */
  constructor({ select }) {
    Object.assign(this, {
      select,
      selected: null,
      expanded: new Set(),
      children: new Map(), // id of a sub-workflow's run -> the run, or why it is not shown; see timelineRows()
      tabStop: null, // key of the row that the Tab key reaches
      frame: 0,
      needsRebuild: false,
      elements: new Map(),
    });
    this.axis = new TimeAxis();
    this.axisView = new TimeAxisView({ onPan: (px) => this.pan(px) });
    this.content = h("div", {
      class: "timeline-content",
      role: "tree",
      "aria-label": "Steps by start time. Press Enter to open one.",
    });
    this.area = h(
      "div",
      { class: "timeline-area", onscroll: () => this.scheduleRender(), onkeydown: (event) => this.onKey(event) },
      this.axisView.gridlines,
      this.content,
    );
    this.corner = h("div", { class: "timeline-corner" });
    const toolbar = h(
      "div",
      { class: "canvas-tools", role: "group", "aria-label": "Zoom in time" },
      iconButton("minus", "Zoom out (−)", () => this.zoomOut()),
      iconButton("plus", "Zoom in (+)", () => this.zoomIn()),
      iconButton("fit", "Show the entire run (f)", () => this.fit()),
    );
    this.element = h(
      "div",
      { class: "timeline" },
      h("div", { class: "timeline-header" }, this.corner, this.axisView.element),
      this.area,
      toolbar,
    );
    this.area.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    this.press = trackPress(this.area, () => this.scheduleRender());
    this.tooltip = new Tooltip(this.area, (event) => this.stepAt(event));
    new ResizeObserver(() => this.onResize()).observe(this.area);
  }

  /**
   * Show a run. Zoom and expanded rows are kept.
   *
   * @param {object} run - The result of indexRun().
   * @param {number|null} selected - Index of the selected step.
   */
  show(run, selected) {
    const isNewSelection = this.selected !== selected || this.run === undefined;
    const isNewRun = this.run !== run;
    Object.assign(this, { run, selected });
    if (isNewRun) {
      for (const [id, child] of this.children) if (!child.run || !hasEnded(child.run.status)) this.children.delete(id);
      this.updateRows();
    }
    if (isNewSelection && selected !== null) this.reveal(selected);
    this.scheduleRender(true);
  }

  /** Show the entire run. */
  fit() {
    this.axis.fit();
    this.scheduleRender(true);
  }

  /** Zoom in by a step. */
  zoomIn() {
    this.zoomBy(ZOOM_STEP);
  }

  /** Zoom out by a step. */
  zoomOut() {
    this.zoomBy(1 / ZOOM_STEP);
  }

  /** Update what changes with the clock. */
  tick() {
    if (!this.run || hasEnded(this.run.status) || !this.area.clientHeight) return;
    this.updateRows();
    this.scheduleRender(true);
  }

  updateRows() {
    const { run } = this;
    this.rows = timelineRows(run, this.expanded, this.children);
    for (const row of this.rows) if (row.kind === "note" && !row.note) this.loadChild(row.childRunId);
    this.now = Date.now();
    const timed = run.steps.filter((step) => step.from !== null);
    const first = timed.reduce((min, step) => Math.min(min, step.from), run.from ?? Infinity);
    const known = timed.reduce((max, step) => Math.max(max, step.to ?? step.from), run.to ?? run.from ?? 0);
    this.last = this.endOfRange(first, known);
    this.axis.setRange(first === Infinity ? 0 : first, this.last);
    this.content.style.height = `${this.rows.length * ROW_HEIGHT + BOTTOM_PADDING}px`;
    replace(this.corner, `${number(run.steps.length)} step${run.steps.length === 1 ? "" : "s"}`);
    if (!this.rows.some((row) => row.key === this.tabStop)) this.tabStop = this.rows[0]?.key ?? null;
  }

  /** The end of the time range: now for an unfinished run, unless the known times would become too small to see. */
  endOfRange(first, known) {
    if (hasEnded(this.run.status) || !this.run.origin) return known;
    const now = this.now - toEpochMs(this.run.origin);
    const length = Math.max(known - first, 1);
    return now - first > MAX_OPEN_RATIO * length ? known + length * CUT_BAR_SHARE : Math.max(now, known);
  }

  reveal(index) {
    const isShownIn = (row) => row.run === this.run && row.steps.includes(index);
    let position = this.rows.findIndex((row) => isShownIn(row) && !this.isExpanded(row));
    if (position < 0) position = this.rows.findIndex(isShownIn);
    if (position < 0) return;
    this.tabStop = this.rows[position].key;
    this.scrollToRow(position);
  }

  isExpanded(row) {
    return row.isExpandable && this.expanded.has(row.key);
  }

  scrollToRow(position) {
    const { scrollTop, clientHeight } = this.area;
    if (!clientHeight) {
      this.pendingRow = position; // onResize scrolls once the view is shown
      return;
    }
    const top = position * ROW_HEIGHT;
    if (top < scrollTop || top + ROW_HEIGHT > scrollTop + clientHeight)
      this.area.scrollTop = Math.max(0, top - clientHeight / 3);
  }

  onResize() {
    const { clientWidth } = this.area;
    if (!clientWidth) return;
    const labelWidth = this.corner.getBoundingClientRect().width;
    this.axis.width = Math.max(MIN_AXIS_WIDTH, clientWidth - labelWidth - AXIS_PADDING);
    this.element.style.setProperty("--label", `${labelWidth}px`);
    if (this.pendingRow !== undefined) this.scrollToRow(this.pendingRow);
    this.pendingRow = undefined;
    this.scheduleRender(true);
  }

  zoomBy(factor, px) {
    this.axis.zoomBy(factor, px);
    this.scheduleRender(true);
  }

  pan(px) {
    this.axis.pan(px);
    this.scheduleRender(true);
  }

  /** Render in the next frame. rebuild: create the elements of all rows again. */
  scheduleRender(rebuild = false) {
    this.needsRebuild ||= rebuild;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  render() {
    const { scrollTop, clientHeight } = this.area;
    if (!this.rows || !clientHeight || this.press.isDown) return;
    const first = Math.max(0, Math.floor(scrollTop / ROW_HEIGHT) - OVERSCAN);
    const last = Math.min(this.rows.length, Math.ceil((scrollTop + clientHeight) / ROW_HEIGHT) + OVERSCAN);
    if (this.needsRebuild) this.axisView.render(this.axis, this.run);
    const hadFocus = this.content.contains(document.activeElement);
    const positions = Array.from({ length: Math.max(0, last - first) }, (_, offset) => first + offset);
    const tabStop = this.rows.findIndex((row) => row.key === this.tabStop);
    if (tabStop >= 0 && tabStop < first) positions.unshift(tabStop);
    if (tabStop >= last) positions.push(tabStop);
    const elements = new Map(
      positions.map((position) => {
        const row = this.rows[position];
        return [row.key, (!this.needsRebuild && this.elements.get(row.key)) || this.createRow(row, position)];
      }),
    );
    this.elements = keyedChildren(this.content, this.elements, elements);
    this.needsRebuild = false;
    if (hadFocus && !this.content.contains(document.activeElement)) this.focusTabStop();
  }

  createRow(row, position) {
    if (row.kind === "note") return this.placeRow(noteRow(row, row.key === this.tabStop), row, position);
    const { axis, last, now } = this;
    const { run } = row;
    const isOwn = run === this.run;
    const selected = isOwn ? this.selected : null;
    const main = run.steps[mainExecution(row, run)];
    const value = statusOf(row, run);
    const isSelected = row.steps.includes(selected) && !(row.kind === "loop" && this.isExpanded(row));
    const element = h(
      "div",
      {
        class: `timeline-row ${row.kind}${isSelected ? " selected" : ""}${isOwn ? "" : " of-child"}`,
        role: "treeitem",
        "aria-level": row.level,
        "aria-selected": String(isSelected),
        "aria-expanded": row.isExpandable ? String(this.isExpanded(row)) : null,
        "aria-label": this.rowLabel(row, main, value),
        tabindex: row.key === this.tabStop ? "0" : "-1",
        onclick: (event) => this.onClick(event, row, main),
      },
      h("div", { class: "timeline-label" }, labelNodes(row, main, value)),
      h(
        "div",
        { class: "timeline-track", "aria-hidden": "true" },
        createBars(row, { run, axis, last, now, selected }),
        row.steps.every((index) => run.steps[index].from === null) &&
          h("span", { class: "bar-text tabular-nums none" }, statusText(value)),
      ),
    );
    return this.placeRow(element, row, position);
  }

  placeRow(element, row, position) {
    element.dataset.position = position;
    element.setAttribute("aria-posinset", position + 1);
    element.setAttribute("aria-setsize", this.rows.length);
    element.style.transform = `translateY(${position * ROW_HEIGHT}px)`;
    element.style.setProperty("--level", row.level - 1);
    return element;
  }

  rowLabel(row, main, value) {
    if (row.kind === "loop") return `${stepTitle(main)}, ${number(row.steps.length)} rounds, ${statusText(value)}`;
    const name = accessibleName(main, row.run.origin, this.now);
    const label = row.kind === "execution" ? `Round ${row.execution}, ${name}` : name;
    return row.run === this.run ? label : `${label}, in the child run`;
  }

  onClick(event, row, main) {
    this.tabStop = row.key;
    if (event.target.closest(".timeline-toggle")) this.toggle(row);
    else this.open(row, this.executionAt(event, row) ?? main.index);
  }

  /** Select a step, or go to the page of its run if that is the run of a sub-workflow. */
  open(row, index) {
    if (row.run === this.run) return this.select(index);
    const { id } = row.run.steps[index];
    const execution = row.run.steps.filter((step) => step.id === id && step.index <= index).length;
    const page = runPage(row.run.id);
    if (page) location.assign(page + formatUrlState({ view: "timeline", step: id, execution, tab: null }));
  }

  /** Load the run of a sub-workflow, and show its steps at their times. */
  async loadChild(id) {
    const child = {};
    this.children.set(id, { note: "Loading the child run…" });
    try {
      const path = runApiPath(id);
      const loaded = await loadRun((await getText(path)).text);
      loaded.close();
      child.run = shiftTimes(loaded.run, this.run.origin);
    } catch (error) {
      child.note = `${error.title ?? "The child run cannot be shown"}: ${error.message}`;
    }
    this.children.set(id, child);
    this.updateRows();
    this.scheduleRender(true);
  }

  /** The step for the tooltip. */
  stepAt(event) {
    const element = event.target.closest?.(".timeline-row");
    const row = element && this.rows[Number(element.dataset.position)];
    if (!row?.steps.length) return null;
    return { run: row.run, step: row.run.steps[this.executionAt(event, row) ?? mainExecution(row, row.run)] };
  }

  /** The execution of a loop whose bar is nearest to the pointer; null outside of a loop's track. */
  executionAt(event, row) {
    const track = event.target.closest(".timeline-track");
    if (row.kind !== "loop" || !track) return null;
    const ms = this.axis.toTime(event.clientX - track.getBoundingClientRect().left);
    const distance = (index) => {
      const { from, to } = barInterval(row.run.steps[index], this.last);
      return ms < from ? from - ms : Math.max(0, ms - to);
    };
    return row.steps
      .filter((index) => row.run.steps[index].from !== null)
      .reduce((best, index) => (best === null || distance(index) < distance(best) ? index : best), null);
  }

  toggle(row) {
    if (!this.expanded.delete(row.key)) this.expanded.add(row.key);
    this.updateRows();
    this.scheduleRender(true);
  }

  onKey(event) {
    const position = this.rows.findIndex((row) => row.key === this.tabStop);
    const row = this.rows[position];
    if (!row || !event.target.closest(".timeline-row") || event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, Math.floor(this.area.clientHeight / ROW_HEIGHT) - 1);
    const last = this.rows.length - 1;
    const target = {
      ArrowDown: position + 1,
      ArrowUp: position - 1,
      PageDown: position + page,
      PageUp: position - page,
      Home: 0,
      End: last,
    }[event.key];
    if (target !== undefined) this.moveFocus(Math.min(Math.max(target, 0), last));
    else if (event.key === "Enter" || event.key === " ") {
      if (row.steps.length) this.open(row, mainExecution(row, row.run));
    } else if (event.key === "ArrowRight" && row.isExpandable && !this.isExpanded(row)) this.toggle(row);
    else if (event.key === "ArrowLeft" && this.isExpanded(row)) this.toggle(row);
    else if (event.key === "ArrowLeft" && row.level > 1)
      this.moveFocus(this.rows.findLastIndex((one, at) => at < position && one.level < row.level));
    else return;
    event.preventDefault();
  }

  moveFocus(position) {
    this.tabStop = this.rows[position].key;
    this.scrollToRow(position);
    this.needsRebuild = true;
    this.render();
    this.focusTabStop();
  }

  focusTabStop() {
    this.elements.get(this.tabStop)?.focus({ preventScroll: true });
  }

  onWheel(event) {
    const { deltaX, deltaY, shiftKey } = event;
    const horizontal = shiftKey ? deltaX || deltaY : deltaX;
    const vertical = shiftKey ? 0 : deltaY;
    if (event.ctrlKey || event.metaKey) {
      const left = this.axisView.element.getBoundingClientRect().left;
      this.zoomBy(Math.exp(-deltaY / WHEEL_ZOOM_STEP), Math.max(0, event.clientX - left));
    } else if (horizontal && Math.abs(horizontal) > Math.abs(vertical) && !this.axis.isFitted) this.pan(horizontal);
    else return;
    event.preventDefault();
  }
}

function noteRow(row, isTabStop) {
  return h(
    "div",
    {
      class: "timeline-row note",
      role: "treeitem",
      "aria-level": row.level,
      "aria-selected": "false",
      "aria-label": visible(row.note),
      tabindex: isTabStop ? "0" : "-1",
    },
    h(
      "div",
      { class: "timeline-label muted", title: visible(row.note) },
      isolated(row.note, { class: "timeline-name" }),
    ),
  );
}

/** Count the times of a run from another origin. */
function shiftTimes(run, origin) {
  if (!run.origin || !origin) return run;
  const offset = millisecondsBetween(origin, run.origin);
  for (const item of [run, ...run.steps, ...run.steps.flatMap((step) => step.attempts ?? [])]) {
    if (item.from !== null) item.from += offset;
    if (item.to !== null) item.to += offset;
  }
  run.origin = origin;
  return run;
}

function labelNodes(row, main, value) {
  const isLoop = row.kind === "loop";
  const name =
    row.kind === "execution"
      ? h("span", { class: "tabular-nums" }, `Round ${number(row.execution)}`)
      : h("bdi", { class: "timeline-name" }, cutInMiddle(stepTitle(main)));
  return [
    row.isExpandable && h("span", { class: "timeline-toggle", "aria-hidden": "true" }),
    statusIcon(value),
    name,
    isLoop && h("span", { class: "timeline-count tabular-nums" }, `×${number(row.steps.length)}`),
  ];
}
