// The timeline view: steps as bars over time, in rows of which only the visible ones are elements.

import { h, keyedChildren, replace } from "../dom.js";
import { number, statusIcon } from "../format.js";
import { toEpochMs } from "../instants.js";
import { hasEnded } from "./document.js";
import { iconButton } from "./icons.js";
import { mainExecution, statusOf } from "./node.js";
import { accessibleName, cutInMiddle, statusText, stepTitle } from "./step-labels.js";
import { TimeAxis, TimeAxisView } from "./time-axis.js";
import { barInterval, createBars } from "./timeline-bars.js";
import { timelineRows } from "./timeline-rows.js";
import { Tooltip } from "./tooltip.js";
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
    if (isNewRun) this.updateRows();
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
    this.rows = timelineRows(run.steps, this.expanded);
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
    const isShownIn = (row) => row.steps.includes(index);
    let position = this.rows.findIndex((row) => isShownIn(row) && !this.isExpanded(row));
    if (position < 0) position = this.rows.findIndex(isShownIn);
    if (position < 0) return;
    this.tabStop = this.rows[position].key;
    this.scrollToRow(position);
  }

  isExpanded(row) {
    return row.kind === "loop" && this.expanded.has(row.key);
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
    const { run, axis, last, now, selected } = this;
    const main = run.steps[mainExecution(row, run)];
    const value = statusOf(row, run);
    const isSelected = row.steps.includes(selected) && !this.isExpanded(row);
    const element = h(
      "div",
      {
        class: `timeline-row ${row.kind}${isSelected ? " selected" : ""}`,
        role: "treeitem",
        "aria-level": row.level,
        "aria-posinset": position + 1,
        "aria-setsize": this.rows.length,
        "aria-selected": String(isSelected),
        "aria-expanded": row.kind === "loop" ? String(this.isExpanded(row)) : null,
        "aria-label": this.rowLabel(row, main, value),
        tabindex: row.key === this.tabStop ? "0" : "-1",
        dataset: { position },
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
    element.style.transform = `translateY(${position * ROW_HEIGHT}px)`;
    element.style.setProperty("--level", row.level - 1);
    return element;
  }

  rowLabel(row, main, value) {
    if (row.kind === "loop") return `${stepTitle(main)}, ${number(row.steps.length)} rounds, ${statusText(value)}`;
    const name = accessibleName(main, this.run.origin, this.now);
    return row.kind === "execution" ? `Round ${row.execution}, ${name}` : name;
  }

  onClick(event, row, main) {
    this.tabStop = row.key;
    if (event.target.closest(".timeline-toggle")) this.toggle(row);
    else this.select(this.executionAt(event, row) ?? main.index);
  }

  /** The step for the tooltip. */
  stepAt(event) {
    const element = event.target.closest?.(".timeline-row");
    const row = element && this.rows[Number(element.dataset.position)];
    if (!row) return null;
    return { run: this.run, step: this.run.steps[this.executionAt(event, row) ?? mainExecution(row, this.run)] };
  }

  /** The execution of a loop whose bar is nearest to the pointer; null outside of a loop's track. */
  executionAt(event, row) {
    const track = event.target.closest(".timeline-track");
    if (row.kind !== "loop" || !track) return null;
    const ms = this.axis.toTime(event.clientX - track.getBoundingClientRect().left);
    const distance = (index) => {
      const { from, to } = barInterval(this.run.steps[index], this.last);
      return ms < from ? from - ms : Math.max(0, ms - to);
    };
    return row.steps
      .filter((index) => this.run.steps[index].from !== null)
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
    else if (event.key === "Enter" || event.key === " ") this.select(mainExecution(row, this.run));
    else if (event.key === "ArrowRight" && row.kind === "loop" && !this.isExpanded(row)) this.toggle(row);
    else if (event.key === "ArrowLeft" && this.isExpanded(row)) this.toggle(row);
    else if (event.key === "ArrowLeft" && row.kind === "execution") this.moveFocus(position - row.execution);
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

function labelNodes(row, main, value) {
  const isLoop = row.kind === "loop";
  const name =
    row.kind === "execution"
      ? h("span", { class: "tabular-nums" }, `Round ${number(row.execution)}`)
      : h("bdi", { class: "timeline-name" }, cutInMiddle(stepTitle(main)));
  return [
    isLoop && h("span", { class: "timeline-toggle", "aria-hidden": "true" }),
    statusIcon(value),
    name,
    isLoop && h("span", { class: "timeline-count tabular-nums" }, `×${number(row.steps.length)}`),
  ];
}
