// Assigns items to layers by their times, and derives the edges between them. Pure.
//
// Documents have no edges. An item follows another if it began after the other had ended; items that overlap share a
// layer. The layer of an item is the length of the longest path to it. An edge leads to an item from the item that
// ended last before it, and from every item that has no outgoing edge yet. So forks, joins and branches of several
// steps are shown as such, and a pool of workers does not turn into a web of edges.

/**
 * Set `layer` (from 0) and `isUntimed` of every item, and return the edges. Items without times follow the item before
 * them in the document.
 *
 * @param {{from: number|null, to: number}[]} items - In the order of the document. from: null without times. to:
 *   Infinity without an end.
 * @returns {{from: object[], to: object[], isInferred: boolean}[]} Edges from all items in from to all items in to.
 *   isInferred: whether the order follows from the document rather than from times.
 */
export function assignLayers(items) {
  const edges = assignTimed(items.filter((item) => item.from !== null));
  return [...edges, ...assignUntimed(items, edges)];
}

function assignTimed(timed) {
  const position = new Map(timed.map((item, index) => [item, index]));
  const byPosition = (a, b) => position.get(a) - position.get(b);
  const starts = timed.toSorted((a, b) => a.from - b.from || a.to - b.to || byPosition(a, b));
  const ends = timed.toSorted((a, b) => a.to - b.to || a.from - b.from || byPosition(a, b));
  const edges = [];
  const sources = new Set(); // items that have ended and have no outgoing edge
  let ended = 0;
  let layer = 0;
  let latest = null; // the item that ended last
  let edge = null; // the edge to the items that began since then
  for (const item of starts) {
    item.isUntimed = false;
    while (ended < ends.length && ends[ended].to <= item.from && ends[ended].layer !== undefined) {
      latest = ends[ended];
      sources.add(latest);
      layer = Math.max(layer, latest.layer + 1);
      ended += 1;
      edge = null;
    }
    item.layer = layer;
    if (edge) edge.to.push(item);
    else if (latest) {
      sources.add(latest);
      edge = { from: [...sources], to: [item], isInferred: false };
      sources.clear();
      edges.push(edge);
    }
  }
  return edges;
}

function assignUntimed(items, timedEdges) {
  const lastLayer = items.reduce((max, item) => Math.max(max, item.layer ?? -1), -1);
  const sources = new Set(timedEdges.flatMap((edge) => edge.from));
  const sinks = items.filter((item) => item.from !== null && !sources.has(item));
  const edges = [];
  let previous = null;
  for (const item of items) {
    if (item.from === null) {
      item.isUntimed = true;
      item.layer = previous ? previous.layer + 1 : 0;
      const followsAll = previous && previous.layer === lastLayer && !previous.isUntimed;
      if (previous) edges.push({ from: followsAll ? sinks : [previous], to: [item], isInferred: true });
    }
    previous = item;
  }
  return edges;
}
