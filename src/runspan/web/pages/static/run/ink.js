// What is drawn behind the nodes of the canvas: frames and lines, and the nodes themselves when too small to read.

import { status } from "../format.js";

const KEYS = [
  "completed",
  "failed",
  "timed_out",
  "retrying",
  "running",
  "suspended",
  "pending",
  "skipped",
  "cancelled",
  "other",
];

/** The colours of the page as they are now, in the form that a canvas takes. */
export function readColours(element) {
  const probe = document.createElement("i");
  probe.hidden = true;
  element.append(probe);
  const colour = (name) => {
    probe.style.color = `var(${name})`;
    return getComputedStyle(probe).color;
  };
  const statuses = {};
  for (const key of KEYS) {
    probe.className = `status-${key}`;
    statuses[key] = { line: colour("--status"), fill: colour("--status-tint") };
  }
  const found = {
    statuses,
    line: colour("--border-strong"),
    inside: colour("--surface-2"),
    accent: colour("--accent"),
  };
  probe.remove();
  return found;
}

const meets = (box, sight) =>
  box.x < sight.right && box.x + box.w > sight.left && box.y < sight.bottom && box.y + box.h > sight.top;

/** Draws onto a canvas's context. `far` says that the nodes are drawn too, as boxes. */
export function draw(context, { camera, board, statusOf, colours, ratio, far, selected }) {
  const { zoom, view, sight } = camera;
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, view.width, view.height);
  context.setTransform(ratio * zoom, 0, 0, ratio * zoom, -camera.x * zoom * ratio, -camera.y * zoom * ratio);
  drawFrames(context, board, sight, colours, zoom);
  drawLines(context, board, sight, colours, zoom);
  if (far) drawNodes(context, board, sight, colours, statusOf, selected, zoom);
}

function drawFrames(context, board, sight, colours, zoom) {
  for (const frame of board.frames) {
    if (!meets(frame, sight)) continue;
    context.beginPath();
    context.roundRect(frame.x, frame.y, frame.w, frame.h, 12);
    context.fillStyle = colours.inside;
    context.globalAlpha = 0.75;
    context.fill();
    context.globalAlpha = 0.55;
    context.setLineDash([6, 5]);
    context.lineWidth = Math.max(1, 0.7 / zoom);
    context.strokeStyle = colours.line;
    context.stroke();
    context.globalAlpha = 1;
    context.setLineDash([]);
  }
}

function drawLines(context, board, sight, colours, zoom) {
  context.strokeStyle = colours.line;
  context.fillStyle = colours.line;
  context.lineWidth = Math.max(1.5, 0.6 / zoom);
  context.lineCap = "round";
  for (const {
    points: [x1, y1, x2, y2],
    loose,
    arrow,
  } of board.lines) {
    if (Math.max(x1, x2) < sight.left || Math.min(x1, x2) > sight.right) continue;
    if (Math.max(y1, y2) < sight.top || Math.min(y1, y2) > sight.bottom) continue;
    context.globalAlpha = loose ? 0.6 : 0.85;
    context.setLineDash(loose ? [2, 5] : []);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2 - (arrow ? 6 : 0));
    context.stroke();
    if (!arrow || zoom < 0.3) continue;
    context.setLineDash([]);
    context.beginPath();
    context.moveTo(x2 - 4.5, y2 - 8);
    context.lineTo(x2 + 4.5, y2 - 8);
    context.lineTo(x2, y2 - 1);
    context.fill();
  }
  context.globalAlpha = 1;
  context.setLineDash([]);
}

function drawNodes(context, board, sight, colours, statusOf, selected, zoom) {
  for (const node of board.nodes) {
    if (!meets(node, sight)) continue;
    const { line, fill } = colours.statuses[status(statusOf(node)).key];
    context.beginPath();
    context.roundRect(node.x, node.y, node.w, node.h, 8);
    context.fillStyle = statusOf(node) === "failed" ? line : fill;
    context.fill();
    context.strokeStyle = node === selected ? colours.accent : line;
    context.lineWidth = (node === selected ? 3 : 1.2) / zoom;
    context.stroke();
  }
}
