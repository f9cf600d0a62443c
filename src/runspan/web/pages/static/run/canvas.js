// The canvas view: steps as nodes on a plane that can be panned and zoomed. Only nodes near the viewport are elements.

import { announce, h, keyedChildren, replace } from "../dom.js";
import { number } from "../format.js";
import { paintCanvas, readColours } from "./canvas-painter.js";
import { iconButton } from "./icons.js";
import { EXECUTIONS_PER_PAGE, layoutSteps } from "./layout.js";
import { Minimap } from "./minimap.js";
import { createNode, mainExecution, nodeMeta, statusOf } from "./node.js";
import { Tooltip } from "./tooltip.js";
import { bindViewportInput, trackPress } from "./viewport-input.js";
import { Viewport, ZOOM } from "./viewport.js";

const MIN_ELEMENT_ZOOM = 0.34; // below, nodes are painted
const MAX_ELEMENTS = 400;
const OVERSCAN = 200; // units around the viewport in which nodes are elements
const CLICK_RADIUS = 8; // pixels between a click and the node that it hits
const ZOOM_STEP = 1.25;
const DIRECTIONS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

/** Shows the canvas in `element`. */
export class Canvas {
  /**
   * @param {object} actions
   * @param {(index: number) => void} actions.select - Called to select a step.
   */
  constructor({ select }) {
    Object.assign(this, {
      select,
      selected: null,
      expanded: new Set(),
      firstExecutions: new Map(), // key of a node -> first execution on its page
      tabStop: null, // key of the node that the Tab key reaches
      frame: 0,
      elements: new Map(),
      needsRebuild: false,
      isMovedByUser: false,
    });
    this.viewport = new Viewport();
    this.background = h("canvas", { class: "canvas-background", "aria-hidden": "true" });
    this.content = h("div", { class: "canvas-content" });
    this.minimap = new Minimap({ onScroll: (y) => this.centreVertically(y) });
    this.zoomButton = h("button", {
      class: "tool small tabular-nums canvas-level",
      type: "button",
      title: "Full size",
      onclick: () => this.zoomBy(1 / this.viewport.zoom),
    });
    this.area = h(
      "div",
      {
        class: "canvas-area",
        role: "group",
        "aria-label": "Steps of the run. Use the arrow keys to move between steps and Enter to open one.",
        onkeydown: (event) => this.onKey(event),
      },
      this.background,
      this.content,
    );
    const toolbar = h(
      "div",
      { class: "canvas-tools", role: "group", "aria-label": "Zoom" },
      iconButton("minus", "Zoom out (−)", () => this.zoomOut()),
      this.zoomButton,
      iconButton("plus", "Zoom in (+)", () => this.zoomIn()),
      iconButton("fit", "Show the entire run (f)", () => this.fit()),
    );
    this.element = h("div", { class: "canvas" }, this.area, this.minimap.element, toolbar);
    bindViewportInput(this.area, {
      viewport: this.viewport,
      onChange: () => this.onViewportChange(),
      onClick: (px, py) => this.selectAt(px, py),
      areNodesPainted: () => this.areNodesPainted,
    });
    this.press = trackPress(this.area, () => this.scheduleRender());
    this.tooltip = new Tooltip(this.area, (event) => this.stepAt(event));
    new ResizeObserver(() => this.onResize()).observe(this.area);
    const updateColours = () => this.updateColours();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", updateColours);
    new MutationObserver(updateColours).observe(document.documentElement, {
      attributes: true,
      attributeFilter: ["data-theme"],
    });
  }

  /**
   * Show a run. Position, zoom and expanded nodes are kept.
   *
   * @param {object} run - The result of indexRun().
   * @param {number|null} selected - Index of the selected step.
   */
  show(run, selected) {
    const isNewRun = this.run !== run;
    const isNewSelection = this.selected !== selected;
    Object.assign(this, { run, selected });
    if (isNewRun || this.turnToSelected()) this.updateLayout();
    if (isNewSelection && selected !== null) {
      this.tabStop = this.nodeOf(selected)?.key ?? this.tabStop;
      this.reveal(this.nodeOf(selected));
    }
    this.scheduleRender(true);
  }

  /** Show the entire run. */
  fit() {
    this.viewport.fit();
    this.scheduleRender();
    this.isMovedByUser = false;
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
    for (const [node, element] of this.elements) {
      const step = this.run.steps[mainExecution(node, this.run)];
      if (step.to === null && step.from !== null)
        replace(element.querySelector(".node-meta"), nodeMeta(node, step, this.run, Date.now()));
    }
  }

  get areNodesPainted() {
    return this.viewport.zoom < MIN_ELEMENT_ZOOM;
  }

  /** Turn an expanded node to the page with the selected execution. Return whether the selected node is expanded. */
  turnToSelected() {
    const node = this.selected === null ? null : this.nodeOf(this.selected);
    if (!node?.isExpanded) return false;
    this.firstExecutions.set(node.key, pageStart(node.steps.indexOf(this.selected)));
    return true;
  }

  updateLayout() {
    const { viewport } = this;
    this.layout = layoutSteps(this.run.steps, { expanded: this.expanded });
    const { nodes, width, height } = this.layout;
    this.nodesByStep = new Map(nodes.flatMap((node) => node.steps.map((index) => [index, node])));
    this.statuses = new Map(nodes.map((node) => [node, statusOf(node, this.run)]));
    viewport.contentSize = { width, height };
    this.fitOrConstrain();
    if (!nodes.some((node) => node.key === this.tabStop)) this.tabStop = nodes[0]?.key ?? null;
    this.minimap.show(this.layout, this.statuses);
  }

  fitOrConstrain() {
    if (!this.isMovedByUser && this.viewport.isMeasured) this.viewport.fitLegibly();
    else this.viewport.constrain();
  }

  nodeOf(index) {
    return this.nodesByStep?.get(index) ?? null;
  }

  reveal(node) {
    if (!node || !this.viewport.isMeasured) return;
    this.isMovedByUser = true;
    this.viewport.reveal(node);
  }

  onResize() {
    const { clientWidth: width, clientHeight: height } = this.area;
    if (!width || !height) return;
    const isFirst = !this.viewport.isMeasured;
    this.viewport.size = { width, height };
    this.pixelRatio = window.devicePixelRatio || 1;
    this.background.width = Math.round(width * this.pixelRatio);
    this.background.height = Math.round(height * this.pixelRatio);
    if (this.layout) {
      this.fitOrConstrain();
      if (isFirst && this.selected !== null) this.reveal(this.nodeOf(this.selected));
    }
    this.scheduleRender();
  }

  updateColours() {
    this.colours = null;
    this.minimap.updateColours();
    this.scheduleRender();
  }

  zoomBy(factor) {
    this.viewport.zoomBy(factor);
    this.onViewportChange();
  }

  centreVertically(y) {
    this.viewport.y = y - this.viewport.size.height / this.viewport.zoom / 2;
    this.viewport.constrain();
    this.onViewportChange();
  }

  onViewportChange() {
    this.isMovedByUser = true;
    this.scheduleRender();
  }

  /** Render in the next frame. rebuild: create the elements of all nodes again. */
  scheduleRender(rebuild = false) {
    this.needsRebuild ||= rebuild;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  render() {
    const { viewport, layout } = this;
    if (!layout || !viewport.isMeasured) return;
    this.colours ??= readColours(this.element);
    const selected = this.selected === null ? null : this.nodeOf(this.selected);
    paintCanvas(this.background.getContext("2d"), {
      viewport,
      layout,
      statuses: this.statuses,
      colours: this.colours,
      pixelRatio: this.pixelRatio,
      paintsNodes: this.areNodesPainted,
      selected,
    });
    this.content.style.transform = `scale(${viewport.zoom}) translate(${-viewport.x}px, ${-viewport.y}px)`;
    this.renderNodes(selected);
    this.zoomButton.textContent = `${Math.round(viewport.zoom * 100)} %`;
    this.minimap.update(viewport);
  }

  /** Create elements for the nodes near the viewport, for the selected node and for the tab stop. */
  renderNodes(selected) {
    const { left, top, right, bottom } = this.viewport.visibleRect;
    const isNear = (node) =>
      node.x < right + OVERSCAN &&
      node.x + node.w > left - OVERSCAN &&
      node.y < bottom + OVERSCAN &&
      node.y + node.h > top - OVERSCAN;
    let remaining = this.areNodesPainted ? 0 : MAX_ELEMENTS;
    const nodes = this.layout.nodes.filter((node) => {
      if (node === selected || node.key === this.tabStop) return true;
      if (remaining === 0 || !isNear(node)) return false;
      remaining -= 1;
      return true;
    });
    const focused = this.content.contains(document.activeElement) ? document.activeElement : null;
    const focusedKey = focused?.closest(".node")?.dataset.key;
    const rebuild = this.needsRebuild && !this.press.isDown;
    const elements = new Map(
      nodes.map((node) => [node, (!rebuild && this.elements.get(node)) || this.createElement(node)]),
    );
    this.elements = keyedChildren(this.content, this.elements, elements);
    if (rebuild) this.needsRebuild = false;
    if (focused && !this.content.contains(document.activeElement)) this.focusNode(focusedKey, focused.classList[0]);
  }

  createElement(node) {
    return createNode(node, {
      run: this.run,
      now: Date.now(),
      selected: this.selected,
      firstExecution: this.firstExecutions.get(node.key) ?? 0,
      isTabStop: node.key === this.tabStop,
      actions: {
        select: this.select,
        toggle: (one) => this.toggle(one),
        turnPage: (one, by) => this.turnPage(one, by),
      },
    });
  }

  /** Focus the part of a node that has a class, else its body. */
  focusNode(key, partClass = "node-body") {
    const element = [...this.elements].find(([node]) => node.key === key)?.[1];
    const part = element?.querySelector(`.${partClass}`) ?? element?.querySelector(".node-body");
    part?.focus({ preventScroll: true });
  }

  toggle(node) {
    const { key, steps } = node;
    if (!this.expanded.delete(key)) this.expanded.add(key);
    if (steps.includes(this.selected)) this.firstExecutions.set(key, pageStart(steps.indexOf(this.selected)));
    this.isMovedByUser = true;
    this.updateLayout();
    this.scheduleRender(true);
    announce(this.expanded.has(key) ? `${number(steps.length)} rounds shown` : "Rounds hidden");
  }

  turnPage(node, by) {
    const first = (this.firstExecutions.get(node.key) ?? 0) + by;
    this.firstExecutions.set(node.key, Math.min(Math.max(first, 0), pageStart(node.steps.length - 1)));
    this.scheduleRender(true);
  }

  /** Select the painted node at a pixel, or the nearest one within the click radius. */
  selectAt(px, py) {
    const { x, y } = this.viewport.toPlane(px, py);
    const distance = (node) =>
      Math.hypot(Math.max(node.x - x, 0, x - node.x - node.w), Math.max(node.y - y, 0, y - node.y - node.h));
    const [nearest, min] = this.layout.nodes.reduce(
      (best, node) => (distance(node) <= best[1] ? [node, distance(node)] : best),
      [null, Infinity],
    );
    if (nearest && min * this.viewport.zoom <= CLICK_RADIUS) this.select(mainExecution(nearest, this.run));
  }

  /** The step for the tooltip: that of a node, or one execution in an expanded node. */
  stepAt(event) {
    const part = event.target.closest?.("[data-step]");
    return part ? { run: this.run, step: this.run.steps[Number(part.dataset.step)] } : null;
  }

  onKey(event) {
    const body = event.target.closest?.(".node-body");
    if (!body || event.ctrlKey || event.metaKey || event.altKey) return;
    const { nodes } = this.layout;
    const current = nodes.find((node) => node.key === this.tabStop);
    const direction = DIRECTIONS[event.key];
    const target = direction ? neighbour(nodes, current, direction) : { Home: nodes[0], End: nodes.at(-1) }[event.key];
    if (event.key === " " && current.steps.length > 1) this.toggle(current);
    else if (!target && !direction) return;
    event.preventDefault();
    if (target) this.moveFocus(target);
  }

  moveFocus(node) {
    this.tabStop = node.key;
    if (this.viewport.zoom < ZOOM.legible) this.viewport.zoomBy(ZOOM.legible / this.viewport.zoom);
    this.reveal(node);
    this.needsRebuild = true;
    this.render();
    this.focusNode(node.key);
  }
}

const pageStart = (execution) => Math.floor(execution / EXECUTIONS_PER_PAGE) * EXECUTIONS_PER_PAGE;

/** The nearest node in a direction. A distance across the direction counts twice. */
function neighbour(nodes, from, [dx, dy]) {
  if (!from) return nodes[0];
  let nearest = null;
  let min = Infinity;
  const centre = (node) => [node.x + node.w / 2, node.y + Math.min(node.h, 60) / 2];
  const [x, y] = centre(from);
  for (const node of nodes) {
    const [otherX, otherY] = centre(node);
    const along = (otherX - x) * dx + (otherY - y) * dy;
    const across = Math.abs((otherX - x) * dy) + Math.abs((otherY - y) * dx);
    if (node === from || along <= 1 || (dx !== 0 && across > 50)) continue;
    const distance = along + 2 * across;
    if (distance < min) [nearest, min] = [node, distance];
  }
  return nearest;
}
