// What part of a plane is in sight, at which zoom. Pure.

export const ZOOM = Object.freeze({ least: 0.02, most: 1.6, readable: 0.6 });

const clamp = (value, least, most) => Math.min(Math.max(value, least), Math.max(least, most));

/** A view of `view` = {width, height} pixels on a plane of `world` = {width, height} units. */
export class Camera {
  constructor() {
    Object.assign(this, { x: 0, y: 0, zoom: 1, view: { width: 1, height: 1 }, world: { width: 1, height: 1 } });
  }

  /** The part of the plane in sight, as {left, top, right, bottom}. */
  get sight() {
    const { x, y, zoom, view } = this;
    return { left: x, top: y, right: x + view.width / zoom, bottom: y + view.height / zoom };
  }

  /** The place in the plane under a pixel. */
  at(px, py) {
    return { x: this.x + px / this.zoom, y: this.y + py / this.zoom };
  }

  /** Moves by pixels. */
  pan(dx, dy) {
    this.x += dx / this.zoom;
    this.y += dy / this.zoom;
    this.settle();
  }

  /** Zooms by a factor; what is under the pixel stays there. */
  zoomBy(factor, px = this.view.width / 2, py = this.view.height / 2) {
    const { x, y } = this.at(px, py);
    this.zoom = clamp(this.zoom * factor, ZOOM.least, ZOOM.most);
    this.x = x - px / this.zoom;
    this.y = y - py / this.zoom;
    this.settle();
  }

  /** Everything in sight, no larger than life. */
  fit() {
    this.zoom = clamp(
      Math.min(this.view.width / this.world.width, this.view.height / this.world.height),
      ZOOM.least,
      1,
    );
    this.settle();
  }

  /** Everything in sight if that can be read, else as much as can, from the top. */
  open() {
    this.fit();
    if (this.zoom < ZOOM.readable) {
      this.zoom = clamp(this.view.width / this.world.width, ZOOM.readable, 1);
      this.x = (this.world.width - this.view.width / this.zoom) / 2;
      this.y = 0;
      this.settle();
    }
  }

  /** Moves as little as brings a box into sight, `margin` pixels from the edges. */
  show(box, margin = 24) {
    const [wide, tall] = [this.view.width / this.zoom, this.view.height / this.zoom];
    const room = margin / this.zoom;
    this.x = clamp(this.x, Math.min(box.x + box.w + room - wide, box.x - room), box.x - room);
    this.y = clamp(this.y, Math.min(box.y + box.h + room - tall, box.y - room), box.y - room);
    this.settle();
  }

  /** Keeps the plane in sight: centred where it is smaller than the view, else without more than a little beyond it. */
  settle() {
    for (const [axis, side] of [
      ["x", "width"],
      ["y", "height"],
    ]) {
      const seen = this.view[side] / this.zoom;
      const whole = this.world[side];
      const beyond = Math.min(120 / this.zoom, seen / 3);
      this[axis] = whole <= seen ? (whole - seen) / 2 : clamp(this[axis], -beyond, whole - seen + beyond);
    }
  }
}
