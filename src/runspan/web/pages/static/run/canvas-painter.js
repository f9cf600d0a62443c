// Paints the 2D canvas behind the nodes: frames, edges, and the nodes themselves when they are too small for elements.

import { STATUS_KEYS, status } from "../format.js";

const ARROW_LENGTH = 6;
const MIN_ARROW_ZOOM = 0.3;

/**
 * Return the page's current colours in a form that a canvas accepts.
 *
 * @param {Element} element - An element that inherits the colours.
 * @returns {object} statuses: {line, fill} of each status key. edge, frame, accent: colours.
 */
export function readColours(element) {
  const probe = document.createElement("i");
  probe.hidden = true;
  element.append(probe);
  const colour = (property) => {
    probe.style.color = `var(${property})`;
    return getComputedStyle(probe).color;
  };
  const statuses = {};
  for (const key of STATUS_KEYS) {
    probe.className = `status-${key}`;
    statuses[key] = { line: colour("--status"), fill: colour("--status-tint") };
  }
  const colours = {
    statuses,
    edge: colour("--border-strong"),
    frame: colour("--surface-2"),
    accent: colour("--accent"),
  };
  probe.remove();
  return colours;
}

/**
 * Paint the visible part of a layout.
 *
 * @param {CanvasRenderingContext2D} context - Where to paint.
 * @param {object} options
 * @param {import("./viewport.js").Viewport} options.viewport - The viewport.
 * @param {object} options.layout - The result of layoutSteps().
 * @param {Map<object, string>} options.statuses - The status of each node.
 * @param {object} options.colours - The result of readColours().
 * @param {number} options.pixelRatio - Device pixels per CSS pixel.
 * @param {boolean} options.paintsNodes - Whether to paint the nodes.
 * @param {object|null} options.selected - The selected node.
 */
export function paintCanvas(context, options) {
  const { viewport, pixelRatio, paintsNodes } = options;
  const { zoom, size } = viewport;
  const scale = pixelRatio * zoom;
  context.setTransform(pixelRatio, 0, 0, pixelRatio, 0, 0);
  context.clearRect(0, 0, size.width, size.height);
  context.setTransform(scale, 0, 0, scale, -viewport.x * scale, -viewport.y * scale);
  paintFrames(context, options);
  paintEdges(context, options);
  if (paintsNodes) paintNodes(context, options);
}

const isVisible = (box, rect) =>
  box.x < rect.right && box.x + box.w > rect.left && box.y < rect.bottom && box.y + box.h > rect.top;

function paintFrames(context, { viewport, layout, colours }) {
  for (const frame of layout.frames) {
    if (!isVisible(frame, viewport.visibleRect)) continue;
    context.beginPath();
    context.roundRect(frame.x, frame.y, frame.w, frame.h, 12);
    context.fillStyle = colours.frame;
    context.globalAlpha = 0.75;
    context.fill();
    context.globalAlpha = 0.55;
    context.setLineDash([6, 5]);
    context.lineWidth = Math.max(1, 0.7 / viewport.zoom);
    context.strokeStyle = colours.edge;
    context.stroke();
    context.globalAlpha = 1;
    context.setLineDash([]);
  }
}

function paintEdges(context, { viewport, layout, colours }) {
  const { zoom, visibleRect } = viewport;
  context.strokeStyle = colours.edge;
  context.fillStyle = colours.edge;
  context.lineWidth = Math.max(1.5, 0.6 / zoom);
  context.lineCap = "round";
  for (const { points, isInferred, hasArrow } of layout.lines) {
    const [x1, y1, x2, y2] = points;
    if (Math.max(x1, x2) < visibleRect.left || Math.min(x1, x2) > visibleRect.right) continue;
    if (Math.max(y1, y2) < visibleRect.top || Math.min(y1, y2) > visibleRect.bottom) continue;
    context.globalAlpha = isInferred ? 0.6 : 0.85;
    context.setLineDash(isInferred ? [2, 5] : []);
    context.beginPath();
    context.moveTo(x1, y1);
    context.lineTo(x2, y2 - (hasArrow ? ARROW_LENGTH : 0));
    context.stroke();
    if (!hasArrow || zoom < MIN_ARROW_ZOOM) continue;
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

function paintNodes(context, { viewport, layout, statuses, colours, selected }) {
  for (const node of layout.nodes) {
    if (!isVisible(node, viewport.visibleRect)) continue;
    const value = statuses.get(node);
    const { line, fill } = colours.statuses[status(value).key];
    context.beginPath();
    context.roundRect(node.x, node.y, node.w, node.h, 8);
    context.fillStyle = value === "failed" ? line : fill;
    context.fill();
    context.strokeStyle = node === selected ? colours.accent : line;
    context.lineWidth = (node === selected ? 3 : 1.2) / viewport.zoom;
    context.stroke();
  }
}
