// Mouse, touch and wheel input of a viewport.

const CLICK_TOLERANCE = 5; // pixels that the pointer may move during a click
const LINE_HEIGHT = 16; // pixels of a wheel event that counts lines
const WHEEL_ZOOM_STEP = 240; // wheel pixels that multiply the zoom by e

/**
 * Pan and zoom a viewport by pointer and wheel events.
 *
 * @param {Element} area - The element that receives the events.
 * @param {object} options
 * @param {import("./viewport.js").Viewport} options.viewport - The viewport.
 * @param {() => void} options.onChange - Called after the viewport has changed.
 * @param {(px: number, py: number) => void} options.onClick - Called with the pixel of a click outside of the nodes'
 *   elements, while nodes are painted.
 * @param {() => boolean} options.areNodesPainted - Returns whether nodes are painted rather than elements.
 */
export function bindViewportInput(area, { viewport, onChange, onClick, areNodesPainted }) {
  const pointers = new Map(); // pointer id -> [x, y]
  let travelled = 0;
  let pinchDistance = 0;

  const positionOf = (event) => {
    const box = area.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  area.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    pointers.set(event.pointerId, positionOf(event));
    travelled = 0;
    pinchDistance = 0;
  });

  area.addEventListener("pointermove", (event) => {
    const previous = pointers.get(event.pointerId);
    if (!previous) return;
    const position = positionOf(event);
    const [dx, dy] = [position[0] - previous[0], position[1] - previous[1]];
    travelled += Math.abs(dx) + Math.abs(dy);
    if (travelled < CLICK_TOLERANCE) return;
    if (!area.hasPointerCapture(event.pointerId)) area.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, position);
    if (pointers.size === 1) viewport.pan(-dx, -dy);
    else pinch();
    area.classList.add("moving");
    onChange();
  });

  const pinch = () => {
    const [[x1, y1], [x2, y2]] = pointers.values();
    const distance = Math.hypot(x1 - x2, y1 - y2);
    if (pinchDistance) viewport.zoomBy(distance / pinchDistance, (x1 + x2) / 2, (y1 + y2) / 2);
    pinchDistance = distance;
  };

  const onRelease = (event) => {
    const position = pointers.get(event.pointerId);
    if (!pointers.delete(event.pointerId)) return;
    pinchDistance = 0;
    area.classList.remove("moving");
    const isClick = event.type === "pointerup" && travelled < CLICK_TOLERANCE;
    if (isClick && areNodesPainted() && !event.target.closest(".node")) onClick(...position);
  };
  area.addEventListener("pointerup", onRelease);
  area.addEventListener("pointercancel", onRelease);

  // The click event that ends a drag must not open the node under the pointer.
  area.addEventListener(
    "click",
    (event) => {
      if (travelled >= CLICK_TOLERANCE && event.detail > 0) {
        event.preventDefault();
        event.stopPropagation();
      }
    },
    { capture: true },
  );

  area.addEventListener("dragstart", (event) => event.preventDefault());

  area.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      const unit = { [WheelEvent.DOM_DELTA_LINE]: LINE_HEIGHT, [WheelEvent.DOM_DELTA_PAGE]: viewport.size.height };
      const [dx, dy] = [event.deltaX, event.deltaY].map((delta) => delta * (unit[event.deltaMode] ?? 1));
      if (event.ctrlKey || event.metaKey) viewport.zoomBy(Math.exp(-dy / WHEEL_ZOOM_STEP), ...positionOf(event));
      else if (event.shiftKey && !dx) viewport.pan(dy, 0);
      else viewport.pan(dx, dy);
      onChange();
    },
    { passive: false },
  );
}

/**
 * Track whether a pointer is pressed on an element. While it is, the element's children must not be replaced, because a
 * replaced element receives no click.
 *
 * @param {Element} area - The element.
 * @param {() => void} onRelease - Called after the click.
 * @returns {{isDown: boolean}} isDown is updated.
 */
export function trackPress(area, onRelease) {
  const press = { isDown: false };
  const release = () => {
    if (!press.isDown) return;
    press.isDown = false;
    setTimeout(onRelease);
  };
  area.addEventListener(
    "pointerdown",
    () => {
      press.isDown = true;
    },
    { capture: true },
  );
  window.addEventListener("pointerup", release);
  window.addEventListener("pointercancel", release);
  return press;
}
