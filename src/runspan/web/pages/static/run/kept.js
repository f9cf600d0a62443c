// Elements in a parent that stay as long as they are wanted, so that focus and clicks in them are not lost.

/** Makes the values of the map `after` the children of `parent`, in their order; `before` was the last such map. */
export function keepInOrder(parent, before, after) {
  for (const [key, element] of before) if (after.get(key) !== element) element.remove();
  let place = parent.firstChild;
  for (const element of after.values()) {
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  return after;
}
