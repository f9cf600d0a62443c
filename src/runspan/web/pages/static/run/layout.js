// Places steps on the plane of the canvas: steps that overlap in time are side by side, steps that follow are below,
// and loops are folded into one node for each step. Pure.

import { groupSteps } from "./grouping.js";
import { assignLayers } from "./layering.js";

/** Sizes in units of the plane, which are pixels at a zoom of 1. */
const SIZE = Object.freeze({
  width: 236,
  height: 60,
  gapX: 28,
  gapY: 44,
  framePadding: 18,
  blockPadding: 14,
  frameTitle: 44,
  cell: 24,
  cellGap: 4,
  cellsPadding: 8,
  pager: 30,
  margin: 40,
});
const CELLS_PER_ROW = 8;
const MAX_CELL_ROWS = 8;
const MAX_ROW_ITEMS = 8; // longer rows are wrapped into blocks
const MIN_BLOCK_COLUMNS = 6;
const MAX_BLOCK_COLUMNS = 12;

/** The number of executions that an expanded node shows at a time. */
export const EXECUTIONS_PER_PAGE = CELLS_PER_ROW * MAX_CELL_ROWS;

/**
 * Place the steps of a run.
 *
 * @param {object[]} steps - Steps of indexRun().
 * @param {{expanded?: Set<string>}} [options] - expanded: keys of the nodes that show their executions.
 * @returns {{width: number, height: number, nodes: object[], frames: object[], lines: object[]}}
 *   nodes: {key, steps, x, y, w, h, kind, isExpanded} in reading order. steps: indexes of the executions. kind: "step",
 *   "loop" for several executions, or "header" for a loop's own step in the title of its frame.
 *   frames: {x, y, w, h}, around the body of a loop or a block of parallel steps.
 *   lines: {points: [x1, y1, x2, y2], isInferred, hasArrow}, the segments of the edges.
 */
export function layoutSteps(steps, { expanded = new Set() } = {}) {
  const group = arrange(groupSteps(steps), expanded);
  const layout = {
    width: group.width + 2 * SIZE.margin,
    height: group.height + 2 * SIZE.margin,
    nodes: [],
    frames: [],
    lines: [],
  };
  collect(group, SIZE.margin - group.left, SIZE.margin, layout);
  layout.nodes.sort((a, b) => a.y - b.y || a.x - b.x);
  return layout;
}

/** Place items around x = 0, from y = 0 down. Sets x (the centre), y, w and h of each item. */
function arrange(items, expanded) {
  for (const item of items) measure(item, expanded);
  const edges = assignLayers(items);
  const rows = rowsOf(items);
  assignColumns(rows, edges);
  const { tops, height } = placeTimed(rows);
  placeUntimed(rows, tops);
  const left = items.reduce((min, item) => Math.min(min, item.x - item.w / 2), 0);
  const right = items.reduce((max, item) => Math.max(max, item.x + item.w / 2), 0);
  return { items, edges, left, width: right - left, height: items.length ? height : 0 };
}

function measure(item, expanded) {
  if (item.kind === "frame") {
    item.group = arrange(item.items, expanded);
    item.w = Math.max(SIZE.width, item.group.width) + 2 * SIZE.framePadding;
    item.h = SIZE.frameTitle + item.group.height + SIZE.framePadding;
    return;
  }
  item.isExpanded = item.steps.length > 1 && expanded.has(item.key);
  item.w = SIZE.width;
  item.h = SIZE.height + (item.isExpanded ? cellsHeight(item.steps.length) : 0);
}

function cellsHeight(count) {
  const rows = Math.min(MAX_CELL_ROWS, Math.ceil(count / CELLS_PER_ROW));
  return rows * (SIZE.cell + SIZE.cellGap) + SIZE.cellsPadding + (count > EXECUTIONS_PER_PAGE ? SIZE.pager : 0);
}

/** One row for each layer. isCrossed: whether an edge from above passes the row's lower end in a column of its own. */
function rowsOf(items) {
  const rows = [];
  for (const item of items) {
    while (rows.length <= item.layer) rows.push({ timed: [], untimed: [], isCrossed: false });
    rows[item.layer][item.isUntimed ? "untimed" : "timed"].push(item);
  }
  for (const row of rows) row.timed.sort((a, b) => a.from - b.from);
  return rows;
}

/**
 * Set the column of each item with times: that of the item it follows, if it is free. The column of an edge that spans
 * several rows stays free in the rows between.
 */
function assignColumns(rows, edges) {
  const source = new Map(); // item -> the item it follows
  const lastRow = new Map(); // item -> the last row that its outgoing edge passes
  for (const edge of edges.filter((one) => !one.isInferred)) {
    const { layer } = edge.to[0];
    for (const item of edge.to) source.set(item, edge.from.at(-1));
    for (const item of edge.from) lastRow.set(item, Math.min(lastRow.get(item) ?? Infinity, layer - 1));
  }
  const busyUntil = []; // for each column, the last row in which it is taken
  rows.forEach((row, number) => {
    const isCrossed = busyUntil.some((last) => last >= number);
    const taken = new Set();
    const isFree = (column) => !taken.has(column) && (busyUntil[column] ?? -1) < number;
    row.timed.forEach((item, position) => {
      const preferred = source.get(item)?.column ?? 0;
      const isFork = !isCrossed && new Set(row.timed.map((one) => source.get(one))).size === 1;
      item.column = isFork ? position : preferred;
      for (let column = 0; !isFree(item.column); column += 1) item.column = column;
      taken.add(item.column);
    });
    for (const item of row.timed) busyUntil[item.column] = Math.max(number, lastRow.get(item) ?? number);
    row.isCrossed = busyUntil.some((last) => last > number);
  });
}

/** Set x and y of the items with times. Rows joined by a crossing edge share columns; all others are centred. */
function placeTimed(rows) {
  let joined = [];
  for (const row of rows) {
    joined.push(row);
    if (row.isCrossed) continue;
    placeJoinedRows(joined);
    joined = [];
  }
  const tops = [];
  let y = 0;
  for (const row of rows) {
    const height = row.block?.h ?? maxOf([...row.timed, ...row.untimed], "h");
    tops.push(y);
    if (row.block) row.block.y = y;
    for (const item of row.timed) item.y = y + (item.offsetInBlock ?? 0);
    y += height + SIZE.gapY;
  }
  return { tops, height: y - SIZE.gapY };
}

function placeJoinedRows(rows) {
  if (rows.length === 1 && rows[0].timed.length > MAX_ROW_ITEMS) {
    wrapRow(rows[0]);
    return;
  }
  const items = rows.flatMap((row) => row.timed);
  const widths = [];
  for (const { column, w } of items) widths[column] = Math.max(widths[column] ?? 0, w);
  const columns = Object.keys(widths).map(Number);
  const total = columns.reduce((sum, column) => sum + widths[column] + SIZE.gapX, -SIZE.gapX);
  const centres = new Map();
  let x = -total / 2;
  for (const column of columns) {
    centres.set(column, x + widths[column] / 2);
    x += widths[column] + SIZE.gapX;
  }
  for (const item of items) item.x = centres.get(item.column);
}

/** Wrap a row that is too wide into a block of several lines. Edges lead to the block as a whole. */
function wrapRow(row) {
  const count = row.timed.length;
  const columns = Math.min(count, MAX_BLOCK_COLUMNS, Math.max(MIN_BLOCK_COLUMNS, Math.ceil(Math.sqrt(count))));
  const pitch = maxOf(row.timed, "w") + SIZE.gapX;
  row.block = { x: 0, w: columns * pitch - SIZE.gapX + 2 * SIZE.blockPadding, h: SIZE.blockPadding };
  for (let first = 0; first < count; first += columns) {
    const line = row.timed.slice(first, first + columns);
    line.forEach((item, position) => {
      item.x = (position - (columns - 1) / 2) * pitch;
      item.offsetInBlock = row.block.h;
      item.block = row.block;
    });
    row.block.h += maxOf(line, "h") + SIZE.blockPadding;
  }
}

/** Set x and y of the items without times: right of the other items in their row, with one column for each chain. */
function placeUntimed(rows, tops) {
  const rightEdges = rows.map((row) => row.timed.reduce((max, item) => Math.max(max, item.x + item.w / 2), -Infinity));
  const pending = rows.map((row) => [...row.untimed]);
  pending.forEach((first, number) => {
    for (const item of first) {
      const chain = [item];
      for (let next = number + 1; pending[next]?.length; next += 1) chain.push(pending[next].shift());
      const width = maxOf(chain, "w");
      const edge = chain.reduce((max, one) => Math.max(max, rightEdges[one.layer]), -Infinity);
      const x = edge === -Infinity ? 0 : edge + SIZE.gapX + width / 2;
      for (const one of chain) {
        one.x = x;
        one.y = tops[one.layer];
        rightEdges[one.layer] = x + width / 2;
      }
    }
  });
}

/** Add the boxes and lines of a group to the layout. `centre` and `top` are where the group's origin is. */
function collect(group, centre, top, layout) {
  for (const item of group.items) {
    const box = { x: centre + item.x - item.w / 2, y: top + item.y, w: item.w, h: item.h };
    if (item.kind === "node") {
      const kind = item.steps.length > 1 ? "loop" : "step";
      layout.nodes.push({ key: item.key, steps: item.steps, kind, isExpanded: item.isExpanded, ...box });
      continue;
    }
    layout.frames.push(box);
    if (item.header !== null) {
      const title = { ...box, h: SIZE.frameTitle - 4 };
      layout.nodes.push({ key: item.key, steps: item.header, kind: "header", isExpanded: false, ...title });
    }
    const left = box.x + (box.w - item.group.width) / 2;
    collect(item.group, left - item.group.left, box.y + SIZE.frameTitle, layout);
  }
  for (const { x, y, w, h } of new Set(group.items.map((item) => item.block).filter(Boolean))) {
    layout.frames.push({ x: centre + x - w / 2, y: top + y, w, h });
  }
  for (const edge of group.edges) layout.lines.push(...linesOf(edge, centre, top));
}

/** The lines of an edge: down from each source to a bus above the targets, along the bus, and down to each target. */
function linesOf({ from, to, isInferred }, centre, top) {
  const boxesOf = (items) => [...new Set(items.map((item) => item.block ?? item))];
  const [sources, targets] = [boxesOf(from), boxesOf(to)];
  const bus = top + Math.min(...targets.map((box) => box.y)) - SIZE.gapY / 2;
  const xs = [...sources, ...targets].map((box) => centre + box.x);
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  const vertical = (x, y1, y2, hasArrow) => ({ points: [x, y1, x, y2], isInferred, hasArrow });
  return [
    ...sources.map((box) => vertical(centre + box.x, top + box.y + box.h, bus, false)),
    ...targets.map((box) => vertical(centre + box.x, bus, top + box.y, true)),
    ...(right > left ? [{ points: [left, bus, right, bus], isInferred, hasArrow: false }] : []),
  ];
}

const maxOf = (items, property) => items.reduce((max, item) => Math.max(max, item[property]), 0);
