// A strip at the side of a tall canvas: all steps in little, and the part in sight.

import { h } from "../dom.js";
import { status } from "../format.js";
import { readColours } from "./ink.js";

const WIDTH = 14;
const WORTH = 2;

/** `go` is called with the place in the plane that a reader clicks or drags to. */
export class Overview {
  constructor({ go }) {
    this.sheet = h("canvas", { width: WIDTH });
    this.window = h("div", { class: "overview-window" });
    this.element = h("div", { class: "overview", "aria-hidden": "true", hidden: true }, this.sheet, this.window);
    const follow = (event) => {
      const box = this.element.getBoundingClientRect();
      go(((event.clientY - box.top) / box.height) * this.board.height);
    };
    this.element.addEventListener("pointerdown", (event) => {
      this.element.setPointerCapture(event.pointerId);
      follow(event);
    });
    this.element.addEventListener("pointermove", (event) => event.buttons && follow(event));
  }

  show(board, values) {
    Object.assign(this, { board, values, drawn: "" });
  }

  recolour() {
    this.drawn = "";
  }

  /** Shows where the camera is; hides itself when that says nothing. */
  mark(camera) {
    const seen = camera.view.height / camera.zoom;
    this.element.hidden = this.board.height < WORTH * seen;
    if (this.element.hidden) return;
    const { height } = camera.view;
    const scale = height / this.board.height;
    this.window.style.transform = `translateY(${Math.max(0, camera.y * scale)}px)`;
    this.window.style.height = `${Math.max(8, seen * scale)}px`;
    if (this.drawn !== `${height}`) this.draw(height, scale);
  }

  draw(height, scale) {
    this.drawn = `${height}`;
    const ratio = window.devicePixelRatio || 1;
    this.sheet.width = WIDTH * ratio;
    this.sheet.height = height * ratio;
    const context = this.sheet.getContext("2d");
    context.scale(ratio, ratio);
    const { statuses } = readColours(this.element);
    const across = (WIDTH - 4) / this.board.width;
    const loud = (node) => (["failed", "retrying", "running"].includes(this.values.get(node)) ? 1 : 0);
    for (const node of [...this.board.nodes].sort((one, other) => loud(one) - loud(other))) {
      context.fillStyle = statuses[status(this.values.get(node)).key].line;
      context.fillRect(
        2 + node.x * across,
        node.y * scale,
        Math.max(1, node.w * across),
        Math.max(loud(node) ? 2 : 1, node.h * scale),
      );
    }
  }
}
