// The canvas: steps as nodes on a plane that is moved and zoomed. Only what is in sight is made of elements.

import { announce, h, replace } from "../dom.js";
import { number } from "../format.js";
import { Camera, ZOOM } from "./camera.js";
import { icon } from "./icons.js";
import { draw, readColours } from "./ink.js";
import { keepInOrder } from "./kept.js";
import { PAGE, layout } from "./layout.js";
import { chiefOf, moreOf, nodeElement, statusOf } from "./node.js";
import { Overview } from "./overview.js";
import { followPointer, watchPress } from "./pointer.js";
import { Tip } from "./tip.js";

const FAR = 0.34;
const MOST_ELEMENTS = 400;
const AROUND = 200;
const NEAR = 8;

/** `element` is the view. `select` is called with a step's position when a reader opens it. */
export class Canvas {
  constructor({ select }) {
    Object.assign(this, {
      select,
      selected: null,
      open: new Set(),
      pages: new Map(),
      stop: null,
      frame: 0,
      made: new Map(),
      moved: false,
    });
    this.camera = new Camera();
    this.sheet = h("canvas", { class: "canvas-ink", "aria-hidden": "true" });
    this.world = h("div", { class: "canvas-world" });
    this.overview = new Overview({ go: (y) => this.goTo(y) });
    this.level = h("button", {
      class: "tool small numbers canvas-level",
      type: "button",
      title: "Full size",
      onclick: () => this.zoomTo(1),
    });
    this.area = h(
      "div",
      {
        class: "canvas-area",
        role: "group",
        "aria-label": "Steps of the run. Arrow keys go from step to step, Enter opens one.",
        onkeydown: (event) => this.onKey(event),
      },
      this.sheet,
      this.world,
    );
    this.element = h("div", { class: "canvas" }, this.area, this.overview.element, this.tools());
    followPointer(this.area, {
      camera: this.camera,
      changed: () => this.turned(),
      pick: (px, py) => this.pick(px, py),
      isFar: () => this.isFar,
    });
    this.press = watchPress(this.area, () => this.render());
    this.tip = new Tip(this.area, (event) => this.stepAt(event));
    new ResizeObserver(() => this.resize()).observe(this.area);
    const recolour = () => this.recolour();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", recolour);
    new MutationObserver(recolour).observe(document.documentElement, {
      attributes: true,
      attributeFilter: ["data-theme"],
    });
  }

  tools() {
    const tool = (name, label, act) =>
      h("button", { class: "tool small", type: "button", title: label, "aria-label": label, onclick: act }, icon(name));
    return h(
      "div",
      { class: "canvas-tools", role: "group", "aria-label": "Zoom" },
      tool("minus", "Zoom out (−)", () => this.zoomTo(this.camera.zoom / 1.25)),
      this.level,
      tool("plus", "Zoom in (+)", () => this.zoomTo(this.camera.zoom * 1.25)),
      tool("fit", "Show everything (f)", () => this.fit()),
    );
  }

  get isFar() {
    return this.camera.zoom < FAR;
  }

  /** Shows a run, with a step selected or none. What a reader moved and opened stays. */
  show(run, selected) {
    const isNew = this.run !== run;
    const isMoved = this.selected !== selected;
    Object.assign(this, { run, selected });
    if (isNew || this.reopen()) this.arrange();
    if (isMoved && selected !== null) {
      this.stop = this.nodeOf(selected)?.key ?? this.stop;
      this.reveal(this.nodeOf(selected));
    }
    this.render(true);
  }

  /** Whether an opened node had to turn to the page that holds the selected execution. */
  reopen() {
    const node = this.selected === null ? null : this.nodeOf(this.selected);
    if (!node?.open) return false;
    this.pages.set(node.key, Math.floor(node.steps.indexOf(this.selected) / PAGE) * PAGE);
    return true;
  }

  arrange() {
    this.board = layout(this.run.steps, { open: this.open });
    this.byStep = new Map();
    for (const node of this.board.nodes) for (const index of node.steps) this.byStep.set(index, node);
    this.values = new Map(this.board.nodes.map((node) => [node, statusOf(node, this.run)]));
    this.camera.world = { width: this.board.width, height: this.board.height };
    if (!this.moved && this.camera.view.width > 1) this.camera.open();
    else this.camera.settle();
    if (!this.board.nodes.some((node) => node.key === this.stop)) this.stop = this.board.nodes[0]?.key ?? null;
    this.overview.show(this.board, this.values);
  }

  nodeOf(index) {
    return this.byStep?.get(index) ?? null;
  }

  reveal(node) {
    if (!node || this.camera.view.width <= 1) return;
    this.moved = true;
    this.camera.show(node);
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.area;
    if (!width || !height) return;
    const isFirst = this.camera.view.width <= 1;
    this.camera.view = { width, height };
    this.ratio = window.devicePixelRatio || 1;
    this.sheet.width = Math.round(width * this.ratio);
    this.sheet.height = Math.round(height * this.ratio);
    if (this.board) {
      if (!this.moved) this.camera.open();
      else this.camera.settle();
      if (isFirst && this.selected !== null) this.reveal(this.nodeOf(this.selected));
    }
    this.turned(false);
  }

  recolour() {
    this.colours = null;
    this.overview.recolour();
    this.render();
  }

  zoomTo(zoom) {
    this.camera.zoomBy(zoom / this.camera.zoom);
    this.turned();
  }

  fit() {
    this.camera.fit();
    this.turned();
    this.moved = false;
  }

  goTo(y) {
    this.camera.y = y - this.camera.view.height / this.camera.zoom / 2;
    this.camera.settle();
    this.turned();
  }

  turned(byReader = true) {
    if (byReader) this.moved = true;
    this.render();
  }

  /** Draws in the next frame; `anew` makes the nodes' elements again. */
  render(anew = false) {
    this.anew ||= anew;
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.paint();
    });
  }

  paint() {
    if (!this.board || this.camera.view.width <= 1) return;
    const { camera, board } = this;
    this.colours ??= readColours(this.element);
    const selected = this.selected === null ? null : this.nodeOf(this.selected);
    draw(this.sheet.getContext("2d"), {
      camera,
      board,
      statusOf: (node) => this.values.get(node),
      colours: this.colours,
      ratio: this.ratio,
      far: this.isFar,
      selected,
    });
    this.world.style.transform = `scale(${camera.zoom}) translate(${-camera.x}px, ${-camera.y}px)`;
    this.place(selected);
    this.level.textContent = `${Math.round(camera.zoom * 100)} %`;
    this.overview.mark(camera);
  }

  /** Makes elements of the nodes in sight, and of the one that the keyboard is at. */
  place(selected) {
    const { left, top, right, bottom } = this.camera.sight;
    const near = (node) =>
      node.x < right + AROUND &&
      node.x + node.w > left - AROUND &&
      node.y < bottom + AROUND &&
      node.y + node.h > top - AROUND;
    const isKept = (node) => node === selected || node.key === this.stop;
    let room = this.isFar ? 0 : MOST_ELEMENTS;
    const wanted = this.board.nodes.filter((node) => isKept(node) || (room > 0 && near(node) && room--));
    const had = this.world.contains(document.activeElement) ? document.activeElement : null;
    const [hadKey, hadClass] = [had?.closest(".node")?.dataset.key, had?.classList[0]];
    const anew = this.anew && !this.press.isDown;
    const made = new Map();
    for (const node of wanted) made.set(node, (!anew && this.made.get(node)) || this.elementOf(node));
    this.made = keepInOrder(this.world, this.made, made);
    if (anew) this.anew = false;
    if (had && !this.world.contains(document.activeElement)) this.focusNode(hadKey, hadClass);
  }

  /** Brings what grows with the clock up to now. */
  tick() {
    for (const [node, element] of this.made) {
      const step = this.run.steps[chiefOf(node, this.run)];
      if (step.to === null && step.from !== null)
        replace(element.querySelector(".node-more"), moreOf(node, step, this.run, Date.now()));
    }
  }

  elementOf(node) {
    return nodeElement(node, {
      run: this.run,
      now: Date.now(),
      selected: this.selected,
      first: this.pages.get(node.key) ?? 0,
      isStop: node.key === this.stop,
      acts: {
        select: this.select,
        selected: () => this.selected,
        toggle: (one) => this.toggle(one),
        page: (one, by) => this.turn(one, by),
      },
    });
  }

  focusNode(key, name = "node-body") {
    const element = [...this.made].find(([node]) => node.key === key)?.[1];
    (element?.querySelector(`.${name}`) ?? element?.querySelector(".node-body"))?.focus({ preventScroll: true });
  }

  toggle(node) {
    if (this.open.has(node.key)) this.open.delete(node.key);
    else this.open.add(node.key);
    if (node.steps.includes(this.selected))
      this.pages.set(node.key, Math.floor(node.steps.indexOf(this.selected) / PAGE) * PAGE);
    this.moved = true;
    this.arrange();
    this.render(true);
    announce(this.open.has(node.key) ? `${number(node.steps.length)} executions shown` : "Executions hidden");
  }

  turn(node, by) {
    const last = Math.floor((node.steps.length - 1) / PAGE) * PAGE;
    this.pages.set(node.key, Math.min(Math.max((this.pages.get(node.key) ?? 0) + by, 0), last));
    this.render(true);
  }

  /** A click on the plane itself: the node there, or the nearest of those that are too small to be hit exactly. */
  pick(px, py) {
    const { x, y } = this.camera.at(px, py);
    const away = (node) =>
      Math.hypot(Math.max(node.x - x, 0, x - node.x - node.w), Math.max(node.y - y, 0, y - node.y - node.h));
    const [node, least] = this.board.nodes.reduce(
      (best, one) => (away(one) <= best[1] ? [one, away(one)] : best),
      [null, Infinity],
    );
    if (node && least * this.camera.zoom <= NEAR) this.select(chiefOf(node, this.run));
  }

  /** What the card at the pointer tells of: a step, or one execution in an opened node. */
  stepAt(event) {
    const part = event.target.closest?.("[data-step]");
    return part ? { run: this.run, step: this.run.steps[Number(part.dataset.step)] } : null;
  }

  onKey(event) {
    const body = event.target.closest?.(".node-body");
    if (!body || event.ctrlKey || event.metaKey || event.altKey) return;
    const here = this.board.nodes.find((node) => node.key === this.stop);
    const node = DIRECTIONS[event.key]
      ? neighbour(this.board.nodes, here, DIRECTIONS[event.key])
      : { Home: this.board.nodes[0], End: this.board.nodes.at(-1) }[event.key];
    if (event.key === " " && here.steps.length > 1) this.toggle(here);
    else if (!node && !DIRECTIONS[event.key]) return;
    event.preventDefault();
    if (node) this.goToNode(node);
  }

  goToNode(node) {
    this.stop = node.key;
    if (this.camera.zoom < ZOOM.readable) this.camera.zoomBy(ZOOM.readable / this.camera.zoom);
    this.reveal(node);
    this.anew = true;
    this.paint();
    this.focusNode(node.key);
  }
}

const DIRECTIONS = { ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0] };

/** The nearest node in a direction; what is beside the way counts as farther than what is on it. */
function neighbour(nodes, from, [dx, dy]) {
  if (!from) return nodes[0];
  let best = null;
  let least = Infinity;
  const middle = (node) => [node.x + node.w / 2, node.y + Math.min(node.h, 60) / 2];
  const [x, y] = middle(from);
  for (const node of nodes) {
    const [otherX, otherY] = middle(node);
    const along = (otherX - x) * dx + (otherY - y) * dy;
    const aside = Math.abs((otherX - x) * dy) + Math.abs((otherY - y) * dx);
    if (node === from || along <= 1 || (dx !== 0 && aside > 50)) continue;
    const far = along + 2 * aside;
    if (far < least) [best, least] = [node, far];
  }
  return best;
}
