// Steps into the things that are placed: one node for a step, one for all executions of a step id, and a frame around
// what a loop executes again and again. Pure.
//
// A document names no loop bodies. What belongs to one follows from the loop's own step (type `loop`), whose time
// covers its body, and from the order of the steps: between the first and the last execution of a repeated step stands
// its loop.

const WORST = ["failed", "retrying", "running", "suspended", "pending", "completed", "skipped"];

/** The status that a reader must know first of several. */
export function worst(statuses) {
  const rank = (status) => (WORST.includes(status) ? WORST.indexOf(status) : WORST.length);
  return statuses.reduce((most, status) => (rank(status) < rank(most) ? status : most), statuses[0] ?? "");
}

/**
 * Nodes and frames in the order of the document.
 *
 * A node is {kind: "node", key, steps, from, to}: `steps` are positions in the document, several for a loop; `from` and
 * `to` bound the first execution. A frame is {kind: "frame", key, header, items, rounds, from, to}: `header` is the
 * position of the loop's own step or null. Times are milliseconds; `from` is null without a start, `to` Infinity
 * without an end.
 */
export function fold(steps) {
  const byId = new Map();
  for (const step of steps) {
    if (byId.has(step.id)) byId.get(step.id).push(step);
    else byId.set(step.id, [step]);
  }
  const nodes = [...byId].map(([key, executions]) => nodeOf(key, executions));
  const frames = [...headed(nodes, steps), ...headless(nodes, steps)];
  const rest = nodes.filter((node) => !node.taken);
  for (const node of nodes) delete node.taken;
  return [...rest, ...frames].sort((one, other) => firstOf(one) - firstOf(other));
}

/** The position of the first step of a node or frame. */
export const firstOf = (item) => item.header ?? (item.kind === "node" ? item.steps[0] : firstOf(item.items[0]));

function nodeOf(key, executions) {
  const timed = executions.find((step) => step.from !== null);
  const [from, to] = timed ? [timed.from, timed.to ?? Infinity] : [null, null];
  return { kind: "node", key, steps: executions.map((step) => step.index), from, to, taken: false };
}

const isLoop = (node, steps) => steps[node.steps[0]].type === "loop";

/** Frames whose loop tells itself by a step of its own: what is executed again and again in that step's time. */
function headed(nodes, steps) {
  const loops = nodes.filter((node) => node.steps.length === 1 && node.from !== null && isLoop(node, steps));
  loops.sort((one, other) => one.to - one.from - (other.to - other.from)); // inner loops take theirs first
  return loops.flatMap((loop) => {
    if (loop.taken) return [];
    const [index] = loop.steps;
    const inside = (node) => !node.taken && node !== loop && node.steps[0] > index && within(node, loop, steps);
    let body = nodes.filter((node) => node.steps.length > 1 && inside(node));
    if (!body.length) body = nodes.filter((node) => node.steps[0] === index + 1 && node.from !== null && inside(node));
    if (!body.length) return [];
    return [frameOf(loop, gather(body, nodes, steps, loop), steps)];
  });
}

/** Frames around repeated steps that take turns, where no step says that it is their loop. */
function headless(nodes, steps) {
  const repeated = nodes.filter((node) => !node.taken && node.steps.length > 1);
  const frames = [];
  for (const node of repeated) {
    if (node.taken) continue;
    let body = [node];
    for (const other of repeated) {
      if (!other.taken && other !== node && other.steps[0] < lastOf(body)) body.push(other);
    }
    body = gather(body, nodes, steps, null);
    if (body.length > 1) frames.push(frameOf(null, body, steps));
  }
  return frames;
}

const lastOf = (body) => Math.max(...body.map((node) => node.steps.at(-1)));

/** A body with the steps between its first and last that some rounds execute and that run beside none of the others. */
function gather(body, nodes, steps, loop) {
  const first = Math.min(...body.map((node) => node.steps[0]));
  const last = lastOf(body);
  const times = body.flatMap((node) => node.steps.map((index) => steps[index])).filter((step) => step.from !== null);
  const beside = (step) => times.some((one) => step.from < (one.to ?? Infinity) && one.from < (step.to ?? Infinity));
  const more = nodes.filter((node) => {
    if (node.taken || node === loop || body.includes(node)) return false;
    if (node.steps[0] < first || node.steps.at(-1) > last) return false;
    return node.steps.every((index) => steps[index].from === null || !beside(steps[index]));
  });
  return [...body, ...more].sort((one, other) => one.steps[0] - other.steps[0]);
}

function within(node, loop, steps) {
  const timed = node.steps.map((index) => steps[index]).filter((step) => step.from !== null);
  return timed.length > 0 && timed.every((step) => step.from >= loop.from && (step.to ?? Infinity) <= loop.to);
}

function frameOf(loop, items, steps) {
  const members = loop ? [loop, ...items] : items;
  for (const node of members) node.taken = true;
  const timed = members
    .flatMap((node) => node.steps)
    .map((index) => steps[index])
    .filter((step) => step.from !== null);
  return {
    kind: "frame",
    key: `loop ${loop ? loop.key : items[0].key}`,
    header: loop ? loop.steps[0] : null,
    items,
    rounds: items.reduce((most, node) => Math.max(most, node.steps.length), 1),
    from: timed.length ? timed.reduce((least, step) => Math.min(least, step.from), Infinity) : null,
    to: timed.length ? timed.reduce((most, step) => Math.max(most, step.to ?? Infinity), -Infinity) : null,
  };
}
