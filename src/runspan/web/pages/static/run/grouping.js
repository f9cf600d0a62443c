// Groups steps into nodes and frames: one node for all executions of a step id, one frame around the body of a loop.
// Pure.
//
// Documents do not list the bodies of loops. A body is derived from the loop's own step (type "loop"), whose time
// covers it, and from the order of the steps: all that is between the first and last execution of a repeated step.

/**
 * Group steps. Return nodes and frames in the order of the document.
 *
 * @param {object[]} steps - Steps of indexRun().
 * @returns {object[]} Nodes and frames.
 *   A node is {kind: "node", key, steps, from, to}. steps: indexes of its executions. from, to: bounds of the first
 *   execution with times.
 *   A frame is {kind: "frame", key, header, items, iterations, from, to}. header: index of the loop's own step, or
 *   null. items: the nodes of the body.
 *   Times are in milliseconds; from is null without a start, to is Infinity without an end.
 */
export function groupSteps(steps) {
  const nodes = [...Map.groupBy(steps, (step) => step.id)].map(([key, executions]) => createNode(key, executions));
  const frames = [...framesOfLoopSteps(nodes, steps), ...framesOfRepeatedSteps(nodes, steps)];
  const ungrouped = nodes.filter((node) => !node.isGrouped);
  for (const node of nodes) delete node.isGrouped;
  return [...ungrouped, ...frames].sort((a, b) => firstIndex(a) - firstIndex(b));
}

/**
 * Return the index of the first step of a node or frame.
 *
 * @param {object} item - An item of groupSteps().
 */
export const firstIndex = (item) => item.header ?? (item.kind === "node" ? item.steps[0] : firstIndex(item.items[0]));

function createNode(key, executions) {
  const timed = executions.find((step) => step.from !== null);
  const [from, to] = timed ? [timed.from, timed.to ?? Infinity] : [null, null];
  return { kind: "node", key, steps: executions.map((step) => step.index), from, to, isGrouped: false };
}

/** The steps of nodes that have times. */
const timedSteps = (nodes, steps) =>
  nodes.flatMap((node) => node.steps.map((index) => steps[index])).filter((step) => step.from !== null);

const lastIndex = (nodes) => Math.max(...nodes.map((node) => node.steps.at(-1)));

/** Frames of the loops that have a step of their own: around the repeated steps within that step's time. */
function framesOfLoopSteps(nodes, steps) {
  const isLoop = (node) => node.steps.length === 1 && node.from !== null && steps[node.steps[0]].type === "loop";
  const loops = nodes.filter(isLoop);
  loops.sort((a, b) => a.to - a.from - (b.to - b.from)); // inner loops first
  return loops.flatMap((loop) => {
    if (loop.isGrouped) return [];
    const [index] = loop.steps;
    const isInside = (node) =>
      !node.isGrouped && node !== loop && node.steps[0] > index && isWithinTime(node, loop, steps);
    let body = nodes.filter((node) => node.steps.length > 1 && isInside(node));
    if (!body.length)
      body = nodes.filter((node) => node.steps[0] === index + 1 && node.from !== null && isInside(node));
    if (!body.length) return [];
    return [createFrame(loop, addInterleaved(body, nodes, steps, loop), steps)];
  });
}

/** Frames around repeated steps that alternate, where no step represents the loop. */
function framesOfRepeatedSteps(nodes, steps) {
  const repeated = nodes.filter((node) => !node.isGrouped && node.steps.length > 1);
  const frames = [];
  for (const node of repeated) {
    if (node.isGrouped) continue;
    let body = [node];
    for (const other of repeated) {
      if (!other.isGrouped && other !== node && other.steps[0] < lastIndex(body)) body.push(other);
    }
    body = addInterleaved(body, nodes, steps, null);
    if (body.length > 1) frames.push(createFrame(null, body, steps));
  }
  return frames;
}

/** Add the nodes between the first and the last step of a body that overlap none of its steps in time. */
function addInterleaved(body, nodes, steps, loop) {
  const first = Math.min(...body.map((node) => node.steps[0]));
  const last = lastIndex(body);
  const timed = timedSteps(body, steps);
  const overlaps = (step) =>
    timed.some((other) => step.from < (other.to ?? Infinity) && other.from < (step.to ?? Infinity));
  const added = nodes.filter((node) => {
    if (node.isGrouped || node === loop || body.includes(node)) return false;
    if (node.steps[0] < first || node.steps.at(-1) > last) return false;
    return node.steps.every((index) => steps[index].from === null || !overlaps(steps[index]));
  });
  return [...body, ...added].sort((a, b) => a.steps[0] - b.steps[0]);
}

function isWithinTime(node, loop, steps) {
  const timed = timedSteps([node], steps);
  return timed.length > 0 && timed.every((step) => step.from >= loop.from && (step.to ?? Infinity) <= loop.to);
}

function createFrame(loop, items, steps) {
  const members = loop ? [loop, ...items] : items;
  for (const node of members) node.isGrouped = true;
  const timed = timedSteps(members, steps);
  return {
    kind: "frame",
    key: `loop ${loop ? loop.key : items[0].key}`,
    header: loop ? loop.steps[0] : null,
    items,
    iterations: items.reduce((max, node) => Math.max(max, node.steps.length), 1),
    from: timed.length ? timed.reduce((min, step) => Math.min(min, step.from), Infinity) : null,
    to: timed.length ? timed.reduce((max, step) => Math.max(max, step.to ?? Infinity), -Infinity) : null,
  };
}
