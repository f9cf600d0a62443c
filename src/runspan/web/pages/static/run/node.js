// One node of the canvas as an element: a step, or all executions of one.

import { runPage } from "../api.js";
import { h, visible } from "../dom.js";
import { duration, number, status, statusIcon } from "../format.js";
import { lengthOf } from "./document.js";
import { icon } from "./icons.js";
import { PAGE } from "./layout.js";
import { worst } from "./loops.js";
import { attemptOf, nameOf, piecesOf, titleOf } from "./words.js";

/** The status that a node shows. */
export const statusOf = (node, run) =>
  node.steps.length === 1 ? run.steps[node.steps[0]].status : worst(node.steps.map((index) => run.steps[index].status));

/** The step that a node opens: of several executions the first with the status that it shows. */
export function chiefOf(node, run) {
  if (node.steps.length === 1) return node.steps[0];
  const shown = statusOf(node, run);
  return shown === "completed" ? node.steps[0] : node.steps.find((index) => run.steps[index].status === shown);
}

/**
 * The element of a node. `acts`: select(index), toggle(node), page(node, by). `selected` is a step's position or null;
 * `first` the first execution that an opened node shows.
 */
export function nodeElement(node, { run, now, acts, selected, first = 0, isStop }) {
  const value = statusOf(node, run);
  const chief = run.steps[chiefOf(node, run)];
  const isChosen = node.steps.includes(selected);
  const many = node.steps.length > 1;
  const element = h(
    "div",
    {
      class: `node ${node.kind} ${status(value).css}${isChosen ? " chosen" : ""}${many ? " many" : ""}`,
      dataset: { key: node.key },
    },
    bodyElement(node, chief, value, { run, now, acts, isChosen, isStop }),
    sideElement(node, chief, { acts }),
    node.open && cellsElement(node, { run, acts, selected, first }),
  );
  const { style } = element;
  style.transform = `translate(${node.x}px, ${node.y}px)`;
  style.width = `${node.w}px`;
  style.height = `${node.h}px`;
  if (many) style.setProperty("--side", `${3 + 0.45 * String(node.steps.length).length}rem`);
  return element;
}

function bodyElement(node, chief, value, { run, now, acts, isChosen, isStop }) {
  const label =
    node.steps.length > 1
      ? `${titleOf(chief)}, ${number(node.steps.length)} executions, ${countsInWords(node, run)}`
      : nameOf(chief, run.zero, now);
  return h(
    "button",
    {
      class: "node-body",
      type: "button",
      "aria-label": label,
      "aria-current": isChosen ? "true" : null,
      tabindex: isStop ? "0" : "-1",
      dataset: { step: chief.index },
      onclick: () => acts.select(isChosen ? acts.selected() : chief.index),
    },
    statusIcon(value, node.kind === "header" ? 16 : 20),
    h(
      "span",
      { class: "node-text" },
      h("bdi", { class: "node-name" }, titleOf(chief)),
      h("span", { class: "node-more" }, moreOf(node, chief, run, now)),
    ),
  );
}

/** The second line of a node. */
export function moreOf(node, chief, run, now) {
  if (node.steps.length > 1)
    return [
      chief.type && `${visible(chief.type)} · `,
      h("span", { class: "numbers" }, `${duration(totalOf(node, run))} in all`),
    ];
  return h(
    "bdi",
    { class: "numbers" },
    piecesOf(chief, run.zero, now)
      .filter((piece) => piece !== attemptOf(chief))
      .join(" · ") || status(chief.status).label,
  );
}

const totalOf = (node, run) => node.steps.reduce((sum, index) => sum + Math.max(0, lengthOf(run.steps[index]) ?? 0), 0);

function countsInWords(node, run) {
  const counts = new Map();
  for (const index of node.steps) counts.set(run.steps[index].status, (counts.get(run.steps[index].status) ?? 0) + 1);
  return [...counts].map(([value, count]) => `${number(count)} ${status(value).label.toLowerCase()}`).join(", ");
}

/** What stands at the right of a node: the number of executions, of attempts, the way to a child run. */
function sideElement(node, chief, { acts }) {
  if (node.steps.length > 1) {
    const label = `${node.open ? "Hide" : "Show"} the ${number(node.steps.length)} executions`;
    return h(
      "button",
      {
        class: "node-count numbers",
        type: "button",
        tabindex: "-1",
        title: label,
        "aria-label": label,
        "aria-expanded": String(node.open),
        onclick: () => acts.toggle(node),
      },
      `×${number(node.steps.length)}`,
      h("span", { class: "node-caret", "aria-hidden": "true" }),
    );
  }
  if (chief.child && runPage(chief.child)) {
    return h(
      "a",
      {
        class: "node-child",
        href: runPage(chief.child),
        tabindex: "-1",
        title: `Open the child run ${visible(chief.child)}`,
        "aria-label": "Open the child run",
      },
      icon("child"),
    );
  }
  if (!attemptOf(chief)) return null;
  const of = chief.maxAttempts !== null ? `/${number(chief.maxAttempts)}` : "";
  return h(
    "span",
    {
      class: "node-attempt numbers",
      title: `Attempt ${chief.attempt}${of && ` of ${chief.maxAttempts}`}`,
      "aria-hidden": "true",
    },
    `↻ ${number(chief.attempt)}${of}`,
  );
}

function cellsElement(node, { run, acts, selected, first }) {
  const shown = node.steps.slice(first, first + PAGE);
  const cells = shown.map((index, place) => {
    const step = run.steps[index];
    const label = `Execution ${first + place + 1}, ${nameOf(step, run.zero, Date.now())}`;
    return h(
      "button",
      {
        class: `cell ${status(step.status).css}`,
        type: "button",
        dataset: { step: index },
        "aria-label": label,
        "aria-current": index === selected ? "true" : null,
        onclick: () => acts.select(index),
      },
      statusIcon(step.status, 16),
    );
  });
  const total = node.steps.length;
  const pager =
    total > PAGE &&
    h(
      "div",
      { class: "cells-pager numbers" },
      h(
        "button",
        {
          class: "tool small",
          type: "button",
          "aria-label": "Earlier executions",
          disabled: first === 0,
          onclick: () => acts.page(node, -PAGE),
        },
        icon("previous"),
      ),
      `${number(first + 1)}–${number(Math.min(total, first + PAGE))} of ${number(total)}`,
      h(
        "button",
        {
          class: "tool small",
          type: "button",
          "aria-label": "Later executions",
          disabled: first + PAGE >= total,
          onclick: () => acts.page(node, PAGE),
        },
        icon("next"),
      ),
    );
  return h(
    "div",
    { class: "cells", role: "group", "aria-label": "Executions" },
    h("div", { class: "cells-grid" }, cells),
    pager,
  );
}
