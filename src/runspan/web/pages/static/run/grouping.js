// Groups steps into nodes and frames: one node for all executions of a step id, one frame around the body of a loop.
// Pure.
//
// Documents do not list the bodies of loops. A body is derived from the loop's own step (type "loop"), whose time
// covers it, and from the order of the steps: all that is between the first and last execution of a repeated step.
// A loop within a loop is executed once in each round of the outer one, and its frame is inside the outer frame.

/**
 * Group steps. Return nodes and frames in the order of the document.
 *
 * @param {object[]} steps - Steps of indexRun().
 * @returns {object[]} Nodes and frames.
 *   A node is {kind: "node", key, steps, from, to}. steps: indexes of its executions. from, to: bounds of the first
 *   execution with times.
 *   A frame is {kind: "frame", key, header, items, steps, from, to}. header: indexes of the executions of the loop's
 *   own step, or null. items: the nodes and frames of the body. steps: all indexes in it, ascending. from, to: bounds
 *   of all its steps, or of the first execution of a loop within a loop.
 *   Times are in milliseconds; from is null without a start, to is Infinity without an end.
 */
export function groupSteps(steps) {
  const nodes = [...Map.groupBy(steps, (step) => step.id)].map(([key, executions]) => createNode(key, executions));
  const items = new Set(nodes);
  const addFrame = (loop, body) => {
    for (const item of loop ? [loop, ...body] : body) items.delete(item);
    items.add(createFrame(loop, body, steps));
  };
  frameLoopSteps(nodes, items, steps, addFrame);
  frameRepeatedSteps(items, steps, addFrame);
  return inOrder(items);
}

/**
 * Return the index of the first step of a node or frame.
 *
 * @param {object} item - An item of groupSteps().
 */
export const firstIndex = (item) => item.steps[0];

const lastIndex = (items) => items.reduce((max, item) => Math.max(max, item.steps.at(-1)), -1);

const inOrder = (items) => [...items].sort((a, b) => firstIndex(a) - firstIndex(b));

function createNode(key, executions) {
  const timed = executions.find((step) => step.from !== null);
  const [from, to] = timed ? [timed.from, timed.to ?? Infinity] : [null, null];
  return { kind: "node", key, steps: executions.map((step) => step.index), from, to };
}

function createFrame(loop, body, steps) {
  const members = loop ? [loop, ...body] : body;
  const frame = {
    kind: "frame",
    key: `loop ${members[0].key}`,
    header: loop ? loop.steps : null,
    items: body,
    steps: members.flatMap((item) => item.steps).sort((a, b) => a - b),
  };
  if (loop?.steps.length > 1) return { ...frame, from: loop.from, to: loop.to };
  const timed = timedSteps(members, steps);
  return {
    ...frame,
    from: timed.length ? timed.reduce((min, step) => Math.min(min, step.from), Infinity) : null,
    to: timed.length ? timed.reduce((max, step) => Math.max(max, step.to ?? Infinity), -Infinity) : null,
  };
}

/** The steps of items that have times. */
const timedSteps = (items, steps) =>
  items.flatMap((item) => item.steps.map((index) => steps[index])).filter((step) => step.from !== null);

/** Frame the loops that have a step of their own: around the repeated steps within its time. */
function frameLoopSteps(nodes, items, steps, addFrame) {
  const isLoop = (node) => node.from !== null && steps[node.steps[0]].type === "loop";
  const loops = nodes.filter(isLoop).map((node) => ({ node, intervals: intervalsOf(node, steps) }));
  const longest = ({ intervals }) => intervals.reduce((max, { from, to }) => Math.max(max, to - from), 0);
  loops.sort((a, b) => longest(a) - longest(b) || b.node.steps.length - a.node.steps.length); // inner loops first
  for (const { node, intervals } of loops) {
    if (!items.has(node)) continue;
    const [index] = node.steps;
    const isInside = (item) => item !== node && firstIndex(item) > index && isWithin(item, intervals, steps);
    const inside = [...items].filter(isInside);
    let body = inside.filter((item) => item.steps.length > 1);
    if (!body.length) body = inside.filter((item) => firstIndex(item) === index + 1);
    if (body.length) addFrame(node, addInterleaved(body, items, steps, { node, intervals }));
  }
}

/** Frame the repeated steps that alternate, where no step represents the loop. */
function frameRepeatedSteps(items, steps, addFrame) {
  const repeated = [...items].filter((item) => item.kind === "node" && item.steps.length > 1);
  for (const node of repeated) {
    if (!items.has(node)) continue;
    const body = [node];
    for (const other of repeated) {
      if (items.has(other) && other !== node && other.steps[0] < lastIndex(body)) body.push(other);
    }
    const all = addInterleaved(body, items, steps, null);
    if (all.length > 1) addFrame(null, all);
  }
}

/** Add the items between the first and the last step of a body that overlap none of its steps in time. */
function addInterleaved(body, items, steps, loop) {
  const first = body.reduce((min, item) => Math.min(min, firstIndex(item)), Infinity);
  const last = lastIndex(body);
  const timed = timedSteps(body, steps);
  const overlaps = (step) =>
    timed.some((other) => step.from < (other.to ?? Infinity) && other.from < (step.to ?? Infinity));
  const added = [...items].filter((item) => {
    if (item === loop?.node || body.includes(item)) return false;
    if (firstIndex(item) < first || item.steps.at(-1) > last) return false;
    const ownTimed = timedSteps([item], steps);
    if (ownTimed.length && loop && !isWithin(item, loop.intervals, steps)) return false;
    return ownTimed.every((step) => !overlaps(step));
  });
  return inOrder([...body, ...added]);
}

/** The times of the executions of a node by their start. */
function intervalsOf(node, steps) {
  const intervals = timedSteps([node], steps).map(({ from, to }) => ({ from, to: to ?? Infinity }));
  return intervals.sort((a, b) => a.from - b.from);
}

/** Whether an item has times, and each of its steps is within the last interval that began before it. */
function isWithin(item, intervals, steps) {
  const timed = timedSteps([item], steps);
  return timed.length > 0 && timed.every((step) => (step.to ?? Infinity) <= endOfIntervalAt(intervals, step.from));
}

function endOfIntervalAt(intervals, time) {
  let [low, high] = [0, intervals.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (intervals[middle].from <= time) low = middle + 1;
    else high = middle;
  }
  return low > 0 ? intervals[low - 1].to : -Infinity;
}
