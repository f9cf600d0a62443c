// The visible part of a plane: position and zoom. Pure.

/** Zoom factors: the limits, and the smallest at which text is legible. */
export const ZOOM = Object.freeze({ min: 0.02, max: 1.6, legible: 0.6 });

const MAX_OVERSCROLL = 120; // pixels

const clamp = (value, min, max) => Math.min(Math.max(value, min), Math.max(min, max));

/**
 * A viewport of `size` = {width, height} pixels on a plane of `contentSize` units. `x` and `y` are the plane's
 * coordinates at the top left corner; one unit is `zoom` pixels.
 */
export class Viewport {
  constructor() {
    Object.assign(this, { x: 0, y: 0, zoom: 1, size: { width: 1, height: 1 }, contentSize: { width: 1, height: 1 } });
  }

  /** Whether the size was measured already. */
  get isMeasured() {
    return this.size.width > 1;
  }

  /** The visible part of the plane, as {left, top, right, bottom}. */
  get visibleRect() {
    const { x, y, zoom, size } = this;
    return { left: x, top: y, right: x + size.width / zoom, bottom: y + size.height / zoom };
  }

  /**
   * Return the point of the plane at a pixel.
   *
   * @param {number} px - Pixels from the left.
   * @param {number} py - Pixels from the top.
   */
  toPlane(px, py) {
    return { x: this.x + px / this.zoom, y: this.y + py / this.zoom };
  }

  /**
   * Scroll by pixels.
   *
   * @param {number} dx - Pixels to the right.
   * @param {number} dy - Pixels down.
   */
  pan(dx, dy) {
    this.x += dx / this.zoom;
    this.y += dy / this.zoom;
    this.constrain();
  }

  /**
   * Multiply the zoom, keeping the point at a pixel in place.
   *
   * @param {number} factor - The factor.
   * @param {number} [px] - Pixels from the left; the centre by default.
   * @param {number} [py] - Pixels from the top; the centre by default.
   */
  zoomBy(factor, px = this.size.width / 2, py = this.size.height / 2) {
    const { x, y } = this.toPlane(px, py);
    this.zoom = clamp(this.zoom * factor, ZOOM.min, ZOOM.max);
    this.x = x - px / this.zoom;
    this.y = y - py / this.zoom;
    this.constrain();
  }

  /** Show the entire plane, at most at its full size. */
  fit() {
    const { size, contentSize } = this;
    this.zoom = clamp(Math.min(size.width / contentSize.width, size.height / contentSize.height), ZOOM.min, 1);
    this.constrain();
  }

  /** Show the entire plane if it is legible, else as much of its top as is. */
  fitLegibly() {
    this.fit();
    if (this.zoom < ZOOM.legible) {
      this.zoom = clamp(this.size.width / this.contentSize.width, ZOOM.legible, 1);
      this.x = (this.contentSize.width - this.size.width / this.zoom) / 2;
      this.y = 0;
      this.constrain();
    }
  }

  /**
   * Scroll as little as necessary to show a box.
   *
   * @param {{x: number, y: number, w: number, h: number}} box - The box on the plane.
   * @param {number} [margin] - Pixels to keep between the box and the edges.
   */
  reveal(box, margin = 24) {
    const [width, height] = [this.size.width / this.zoom, this.size.height / this.zoom];
    const gap = margin / this.zoom;
    this.x = clamp(this.x, Math.min(box.x + box.w + gap - width, box.x - gap), box.x - gap);
    this.y = clamp(this.y, Math.min(box.y + box.h + gap - height, box.y - gap), box.y - gap);
    this.constrain();
  }

  /** Centre the plane where it is smaller than the viewport, and limit scrolling beyond its edges elsewhere. */
  constrain() {
    for (const [axis, side] of [
      ["x", "width"],
      ["y", "height"],
    ]) {
      const visible = this.size[side] / this.zoom;
      const total = this.contentSize[side];
      const overscroll = Math.min(MAX_OVERSCROLL / this.zoom, visible / 3);
      this[axis] =
        total <= visible ? (total - visible) / 2 : clamp(this[axis], -overscroll, total - visible + overscroll);
    }
  }
}
