// Moves a camera by mouse, touch and wheel.

const CLICK = 5;

/**
 * Follows pointers on `area`. `changed` is called after each move of the camera; `pick` with the pixel of a click that
 * hits no element; `isFar` says that nodes are no elements now.
 */
export function followPointer(area, { camera, changed, pick, isFar }) {
  const down = new Map();
  let travelled = 0;
  let spread = 0;

  const placeOf = (event) => {
    const box = area.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };

  area.addEventListener("pointerdown", (event) => {
    if (event.button > 1) return;
    down.set(event.pointerId, placeOf(event));
    travelled = 0;
    spread = 0;
  });

  area.addEventListener("pointermove", (event) => {
    const before = down.get(event.pointerId);
    if (!before) return;
    const place = placeOf(event);
    const [dx, dy] = [place[0] - before[0], place[1] - before[1]];
    travelled += Math.abs(dx) + Math.abs(dy);
    if (travelled < CLICK) return;
    if (!area.hasPointerCapture(event.pointerId)) area.setPointerCapture(event.pointerId);
    down.set(event.pointerId, place);
    if (down.size === 1) camera.pan(-dx, -dy);
    else pinch();
    area.classList.add("moving");
    changed();
  });

  const pinch = () => {
    const [[x1, y1], [x2, y2]] = down.values();
    const now = Math.hypot(x1 - x2, y1 - y2);
    if (spread) camera.zoomBy(now / spread, (x1 + x2) / 2, (y1 + y2) / 2);
    spread = now;
  };

  const release = (event) => {
    const place = down.get(event.pointerId);
    if (!down.delete(event.pointerId)) return;
    spread = 0;
    area.classList.remove("moving");
    if (event.type === "pointerup" && travelled < CLICK && isFar() && !event.target.closest(".node")) pick(...place);
  };
  area.addEventListener("pointerup", release);
  area.addEventListener("pointercancel", release);

  // What ends a drag is no click on the node under it.
  area.addEventListener(
    "click",
    (event) => {
      if (travelled >= CLICK && event.detail > 0) {
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
      const unit = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? camera.view.height : 1;
      if (event.ctrlKey || event.metaKey) camera.zoomBy(Math.exp((-event.deltaY * unit) / 240), ...placeOf(event));
      else if (event.shiftKey && !event.deltaX) camera.pan(event.deltaY * unit, 0);
      else camera.pan(event.deltaX * unit, event.deltaY * unit);
      changed();
    },
    { passive: false },
  );
}

/**
 * Whether a pointer is down on `area`: an element that is replaced meanwhile gets no click. `done` is called after the
 * click.
 */
export function watchPress(area, done) {
  const press = { isDown: false };
  const release = () => {
    if (!press.isDown) return;
    press.isDown = false;
    setTimeout(done);
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
