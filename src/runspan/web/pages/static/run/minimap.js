// Minimap of a tall canvas: a strip with all steps and the visible part.

import { h } from "../dom.js";
import { status } from "../format.js";
import { readColours } from "./canvas-painter.js";

const WIDTH = 14; // as in views.css
const PADDING = 2;
const MIN_CONTENT_RATIO = 2; // shown if the content is at least twice as tall as the visible part
const PROMINENT = ["failed", "retrying", "running"]; // painted last and taller, so that they stay visible

/** Shows the minimap in `element`. */
export class Minimap {
  /**
   * @param {object} actions
   * @param {(y: number) => void} actions.onScroll - Called with the plane's y coordinate that the user points to.
   */
  constructor({ onScroll }) {
    this.canvas = h("canvas", { width: WIDTH });
    this.window = h("div", { class: "minimap-window" });
    this.element = h("div", { class: "minimap", "aria-hidden": "true", hidden: true }, this.canvas, this.window);
    const onPointer = (event) => {
      const box = this.element.getBoundingClientRect();
      onScroll(((event.clientY - box.top) / box.height) * this.layout.height);
    };
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      onPointer(event);
    });
    this.element.addEventListener("pointermove", (event) => event.buttons && onPointer(event));
  }

  /**
   * Show a layout.
   *
   * @param {object} layout - The result of layoutSteps().
   * @param {Map<object, string>} statuses - The status of each node.
   */
  show(layout, statuses) {
    Object.assign(this, { layout, statuses, paintedHeight: 0 });
  }

  /** Paint again with the page's current colours. */
  updateColours() {
    this.paintedHeight = 0;
  }

  /**
   * Show the visible part. Hide the minimap if most of the content is visible.
   *
   * @param {import("./viewport.js").Viewport} viewport - The viewport.
   */
  update(viewport) {
    const { height } = viewport.size;
    const visibleHeight = height / viewport.zoom;
    this.element.hidden = this.layout.height < MIN_CONTENT_RATIO * visibleHeight;
    if (this.element.hidden) return;
    const scale = height / this.layout.height;
    this.window.style.transform = `translateY(${Math.max(0, viewport.y * scale)}px)`;
    this.window.style.height = `${Math.max(8, visibleHeight * scale)}px`;
    if (this.paintedHeight !== height) this.paint(height, scale);
  }

  paint(height, scale) {
    this.paintedHeight = height;
    const pixelRatio = window.devicePixelRatio || 1;
    this.canvas.width = WIDTH * pixelRatio;
    this.canvas.height = height * pixelRatio;
    const context = this.canvas.getContext("2d");
    context.scale(pixelRatio, pixelRatio);
    const colours = readColours(this.element).statuses;
    const scaleX = (WIDTH - 2 * PADDING) / this.layout.width;
    const isProminent = (node) => PROMINENT.includes(this.statuses.get(node));
    for (const node of this.layout.nodes.toSorted((a, b) => isProminent(a) - isProminent(b))) {
      context.fillStyle = colours[status(this.statuses.get(node)).key].line;
      context.fillRect(
        PADDING + node.x * scaleX,
        node.y * scale,
        Math.max(1, node.w * scaleX),
        Math.max(isProminent(node) ? 2 : 1, node.h * scale),
      );
    }
  }
}
