// Steps into places: what overlaps in time stands side by side, what comes after stands below, loops are folded. Pure.

import { fold } from "./loops.js";
import { rank } from "./ranks.js";

/** Sizes in the canvas's own units, which are pixels at a zoom of 1. */
const SIZE = Object.freeze({
  width: 236,
  height: 60,
  gapX: 28,
  gapY: 44,
  pad: 18,
  inset: 14,
  title: 44,
  cell: 24,
  cellGap: 4,
  cellsInRow: 8,
  cellRows: 8,
  pager: 30,
  wide: 8,
  margin: 40,
});

/** How many executions an opened node shows at a time. */
export const PAGE = SIZE.cellsInRow * SIZE.cellRows;

/**
 * The places of a run's steps. `open` holds the keys of the nodes whose executions are shown one by one.
 *
 * Returns {width, height, nodes, frames, lines}. A node is {key, steps, x, y, w, h, kind, open}; kind is "step",
 * "loop" for several executions, "header" for a loop's own step in the title of its frame. A frame is {x, y, w, h,
 * header, rounds}; one with 0 rounds holds what runs side by side.
 * A line is {points: [x1, y1, x2, y2], loose, arrow}. Nodes stand in reading order.
 */
export function layout(steps, { open = new Set() } = {}) {
  const board = arrange(fold(steps), open);
  const nodes = [];
  const frames = [];
  const lines = [];
  collect(board, SIZE.margin - board.left, SIZE.margin, { nodes, frames, lines });
  nodes.sort((one, other) => one.y - other.y || one.x - other.x);
  return { width: board.width + 2 * SIZE.margin, height: board.height + 2 * SIZE.margin, nodes, frames, lines };
}

/** Places items around x = 0 from y = 0 on: each gets x (its middle), y, w and h. */
function arrange(items, open) {
  for (const item of items) measure(item, open);
  const links = rank(items);
  const rows = rowsOf(items);
  takeLanes(rows, links);
  const tops = placeRows(rows);
  placeLoose(rows, tops);
  const left = items.reduce((least, item) => Math.min(least, item.x - item.w / 2), 0);
  const right = items.reduce((most, item) => Math.max(most, item.x + item.w / 2), 0);
  return { items, links, left, width: right - left, height: items.length ? tops.height : 0 };
}

function measure(item, open) {
  if (item.kind === "frame") {
    item.board = arrange(item.items, open);
    item.w = Math.max(SIZE.width + 2 * SIZE.pad, item.board.width + 2 * SIZE.pad);
    item.h = SIZE.title + item.board.height + SIZE.pad;
    return;
  }
  item.open = item.steps.length > 1 && open.has(item.key);
  item.w = SIZE.width;
  item.h = SIZE.height + (item.open ? cellsHeight(item.steps.length) : 0);
}

function cellsHeight(count) {
  const rows = Math.min(SIZE.cellRows, Math.ceil(count / SIZE.cellsInRow));
  return rows * (SIZE.cell + SIZE.cellGap) + 8 + (count > PAGE ? SIZE.pager : 0);
}

function rowsOf(items) {
  const rows = [];
  for (const item of items) {
    while (rows.length <= item.rank) rows.push({ fixed: [], loose: [], through: false });
    rows[item.rank][item.loose ? "loose" : "fixed"].push(item);
  }
  for (const row of rows) row.fixed.sort((one, other) => one.from - other.from);
  return rows;
}

/**
 * Gives each item with times a lane: that of what it follows, if it is free. A line over several rows keeps its lane
 * free in the rows between; `through` says that such a line goes on into the next row.
 */
function takeLanes(rows, links) {
  const source = new Map();
  const until = new Map();
  for (const link of links.filter((one) => !one.loose)) {
    const next = link.to[0].rank;
    for (const item of link.to) source.set(item, link.from.at(-1));
    for (const item of link.from) until.set(item, Math.min(until.get(item) ?? Infinity, next - 1));
  }
  const busy = []; // for each lane the last row in which it is taken
  rows.forEach((row, number) => {
    const crossed = busy.some((last) => last >= number);
    const taken = new Set();
    const free = (lane) => !taken.has(lane) && (busy[lane] ?? -1) < number;
    row.fixed.forEach((item, place) => {
      const wanted = source.get(item)?.lane ?? 0;
      const apart = !crossed && new Set(row.fixed.map((one) => source.get(one))).size === 1;
      item.lane = apart ? place : wanted;
      for (let lane = 0; !free(item.lane); lane += 1) item.lane = lane;
      taken.add(item.lane);
    });
    for (const item of row.fixed) busy[item.lane] = Math.max(number, until.get(item) ?? number);
    row.through = busy.some((last) => last > number);
  });
}

/** Gives x, y to the items with times. Rows that a line goes through share their columns; all else is centred. */
function placeRows(rows) {
  const tops = { of: [], height: 0, right: [] };
  let y = 0;
  let block = [];
  rows.forEach((row) => {
    block.push(row);
    if (row.through) return;
    placeBlock(block);
    block = [];
  });
  rows.forEach((row) => {
    const tall = row.block?.h ?? [...row.fixed, ...row.loose].reduce((most, item) => Math.max(most, item.h), 0);
    tops.of.push(y);
    if (row.block) row.block.y = y;
    for (const item of row.fixed) item.y = y + (item.below ?? 0);
    y += tall + SIZE.gapY;
  });
  tops.height = y - SIZE.gapY;
  return tops;
}

function placeBlock(rows) {
  if (rows.length === 1 && rows[0].fixed.length > SIZE.wide) {
    wrap(rows[0]);
    return;
  }
  const widths = [];
  for (const item of rows.flatMap((row) => row.fixed)) widths[item.lane] = Math.max(widths[item.lane] ?? 0, item.w);
  const lanes = Object.keys(widths).map(Number);
  const whole = lanes.reduce((sum, lane) => sum + widths[lane] + SIZE.gapX, -SIZE.gapX);
  const middles = new Map();
  let x = -whole / 2;
  for (const lane of lanes) {
    middles.set(lane, x + widths[lane] / 2);
    x += widths[lane] + SIZE.gapX;
  }
  for (const item of rows.flatMap((row) => row.fixed)) item.x = middles.get(item.lane);
}

/** A row too wide to read, as several lines in one block, to which lines lead as to one thing. */
function wrap(row) {
  const count = row.fixed.length;
  const columns = Math.min(count, 12, Math.max(6, Math.ceil(Math.sqrt(count))));
  const w = row.fixed.reduce((most, item) => Math.max(most, item.w), 0) + SIZE.gapX;
  row.block = { x: 0, w: columns * w - SIZE.gapX + 2 * SIZE.inset, h: SIZE.inset };
  for (let first = 0; first < count; first += columns) {
    const line = row.fixed.slice(first, first + columns);
    line.forEach((item, place) => {
      item.x = (place - (columns - 1) / 2) * w;
      item.below = row.block.h;
      item.block = row.block;
    });
    row.block.h += line.reduce((most, item) => Math.max(most, item.h), 0) + SIZE.inset;
  }
}

/** Gives x, y to the items without times: to the right of what stands in their row, in a column for each chain. */
function placeLoose(rows, tops) {
  const right = rows.map((row) => row.fixed.reduce((most, item) => Math.max(most, item.x + item.w / 2), -Infinity));
  const todo = rows.map((row) => [...row.loose]);
  todo.forEach((waiting, number) => {
    for (const head of waiting) {
      const chain = [head];
      for (let next = number + 1; todo[next]?.length; next += 1) chain.push(todo[next].shift());
      const widest = chain.reduce((most, item) => Math.max(most, item.w), 0);
      const edge = chain.reduce((most, item) => Math.max(most, right[item.rank]), -Infinity);
      const x = edge === -Infinity ? 0 : edge + SIZE.gapX + widest / 2;
      for (const item of chain) {
        item.x = x;
        item.y = tops.of[item.rank];
        right[item.rank] = x + widest / 2;
      }
    }
  });
}

/** Boxes and lines of a board in absolute places; `middle` is where the board's x = 0 is. */
function collect(board, middle, top, found) {
  for (const item of board.items) {
    const box = { x: middle + item.x - item.w / 2, y: top + item.y, w: item.w, h: item.h };
    if (item.kind === "node") {
      const kind = item.steps.length > 1 ? "loop" : "step";
      found.nodes.push({ key: item.key, steps: item.steps, kind, open: item.open, ...box });
      continue;
    }
    found.frames.push({ ...box, header: item.header, rounds: item.rounds });
    if (item.header !== null) {
      const title = { ...box, h: SIZE.title - 4 };
      found.nodes.push({ key: item.key, steps: [item.header], kind: "header", open: false, ...title });
    }
    collect(item.board, box.x + (box.w - item.board.width) / 2 - item.board.left, box.y + SIZE.title, found);
  }
  for (const { x, y, w, h } of new Set(board.items.map((item) => item.block).filter(Boolean))) {
    found.frames.push({ x: middle + x - w / 2, y: top + y, w, h, header: null, rounds: 0 });
  }
  for (const link of board.links) found.lines.push(...linesOf(link, middle, top));
}

/** The lines of a link: down from each source to a bus above the targets, along it, and down to each target. */
function linesOf(link, middle, top) {
  const ends = (items) => [...new Set(items.map((item) => item.block ?? item))];
  const [sources, heads] = [ends(link.from), ends(link.to)];
  const bus = top + Math.min(...heads.map((item) => item.y)) - SIZE.gapY / 2;
  const xs = [...sources, ...heads].map((item) => middle + item.x);
  const down = (x, y1, y2, arrow) => ({ points: [x, y1, x, y2], loose: link.loose, arrow });
  const lines = [
    ...sources.map((item) => down(middle + item.x, top + item.y + item.h, bus, false)),
    ...heads.map((item) => down(middle + item.x, bus, top + item.y, true)),
  ];
  const [left, right] = [Math.min(...xs), Math.max(...xs)];
  if (right > left) lines.push({ points: [left, bus, right, bus], loose: link.loose, arrow: false });
  return lines;
}
