// One node of the canvas as an element: a step, or all executions of a step.

import { runPage } from "../api.js";
import { h } from "../dom.js";
import { duration, number, status, statusIcon } from "../format.js";
import { visible } from "../invisible-characters.js";
import { durationOf } from "./document.js";
import { icon, iconButton } from "./icons.js";
import { EXECUTIONS_PER_PAGE } from "./layout.js";
import { countByStatus } from "./run-stats.js";
import {
  accessibleName,
  attemptLabel,
  cutInMiddle,
  attemptNumber,
  statusText,
  stepDetails,
  stepTitle,
} from "./step-labels.js";

const executionsOf = (item, run) => item.steps.map((index) => run.steps[index]);

/**
 * Return the status of a node or timeline row: of several executions, the one that needs attention most.
 *
 * @param {{steps: number[]}} item - A node or row.
 * @param {object} run - The result of indexRun().
 */
export const statusOf = (item, run) => countByStatus(executionsOf(item, run))[0][0];

/**
 * Return the index of the execution that a node or timeline row opens: the first with the status that it shows, or the
 * first of all if they completed.
 *
 * @param {{steps: number[]}} item - A node or row.
 * @param {object} run - The result of indexRun().
 */
export function mainExecution(item, run) {
  if (item.steps.length === 1) return item.steps[0];
  const value = statusOf(item, run);
  return value === "completed" ? item.steps[0] : item.steps.find((index) => run.steps[index].status === value);
}

/**
 * Create the element of a node.
 *
 * @param {object} node - A node of layoutSteps().
 * @param {object} options
 * @param {object} options.run - The result of indexRun().
 * @param {number} options.now - The current time in milliseconds since 1970.
 * @param {number|null} options.selected - Index of the selected step.
 * @param {number} options.firstExecution - Position of the first execution on the shown page of an expanded node.
 * @param {boolean} options.isTabStop - Whether the Tab key reaches the node.
 * @param {object} options.actions
 * @param {(index: number) => void} options.actions.select - Called to select a step.
 * @param {(node: object) => void} options.actions.toggle - Called to expand or collapse the node.
 * @param {(node: object, by: number) => void} options.actions.turnPage - Called to show other executions.
 */
export function createNode(node, options) {
  const { run, selected } = options;
  const value = statusOf(node, run);
  const main = run.steps[mainExecution(node, run)];
  const isSelected = node.steps.includes(selected);
  const isRepeated = node.steps.length > 1;
  const modifiers = `${isSelected ? " selected" : ""}${isRepeated ? " multiple" : ""}`;
  const element = h(
    "div",
    { class: `node ${node.kind} ${status(value).css}${modifiers}`, dataset: { key: node.key } },
    nodeBody(node, main, value, options, isSelected),
    nodeBadge(node, main, options),
    node.isExpanded && executionCells(node, options),
  );
  const { style } = element;
  style.transform = `translate(${node.x}px, ${node.y}px)`;
  style.width = `${node.w}px`;
  style.height = `${node.h}px`;
  if (isRepeated) style.setProperty("--badge-width", `${3.4 + 0.45 * String(node.steps.length).length}rem`);
  return element;
}

function nodeBody(node, main, value, { run, now, actions, selected, isTabStop }, isSelected) {
  const label =
    node.steps.length > 1
      ? `${stepTitle(main)}, ${number(node.steps.length)} rounds, ${countsText(node, run)}`
      : accessibleName(main, run.origin, now);
  return h(
    "button",
    {
      class: "node-body",
      type: "button",
      "aria-label": label,
      "aria-current": isSelected ? "true" : null,
      tabindex: isTabStop ? "0" : "-1",
      dataset: { step: main.index },
      onclick: () => actions.select(isSelected ? selected : main.index),
    },
    statusIcon(value, node.kind === "header" ? 16 : 20),
    h(
      "span",
      { class: "node-text" },
      h("bdi", { class: "node-name" }, cutInMiddle(stepTitle(main))),
      h("span", { class: "node-meta" }, nodeMeta(node, main, run, now)),
    ),
  );
}

/**
 * Return the content of a node's second line.
 *
 * @param {object} node - A node of layoutSteps().
 * @param {object} main - The step that the node opens.
 * @param {object} run - The result of indexRun().
 * @param {number} now - The current time in milliseconds since 1970.
 */
export function nodeMeta(node, main, run, now) {
  if (node.steps.length > 1) {
    const total = executionsOf(node, run).reduce((sum, step) => sum + Math.max(0, durationOf(step) ?? 0), 0);
    return [main.type && `${visible(main.type)} · `, h("span", { class: "tabular-nums" }, `${duration(total)} total`)];
  }
  const details = stepDetails(main, run.origin, now).filter((text) => text !== attemptLabel(main));
  return h("bdi", { class: "tabular-nums" }, details.join(" · ") || status(main.status).label);
}

function countsText(node, run) {
  return countByStatus(executionsOf(node, run))
    .map(([value, count]) => `${number(count)} ${statusText(value)}`)
    .join(", ");
}

/** The badge at the right of a node: number of executions, link to a child run, or number of attempts. */
function nodeBadge(node, main, { actions }) {
  if (node.steps.length > 1) {
    const count = number(node.steps.length);
    if (node.kind === "header")
      return h("span", { class: "node-count tabular-nums", "aria-hidden": "true" }, `×${count}`);
    const label = `${node.isExpanded ? "Hide" : "Show"} the ${count} rounds`;
    return h(
      "button",
      {
        class: "node-count tabular-nums",
        type: "button",
        tabindex: "-1",
        title: label,
        "aria-label": label,
        "aria-expanded": String(node.isExpanded),
        onclick: () => actions.toggle(node),
      },
      `×${count}`,
      h("span", { class: "node-caret", "aria-hidden": "true" }),
    );
  }
  const childPage = main.childRunId && runPage(main.childRunId);
  if (childPage) {
    return h(
      "a",
      {
        class: "node-child",
        href: childPage,
        tabindex: "-1",
        title: `Open the child run ${visible(main.childRunId)}`,
        "aria-label": "Open the child run",
      },
      icon("child"),
    );
  }
  if (!attemptNumber(main)) return null;
  const title = `Attempt ${attemptNumber(main)}`;
  return h(
    "span",
    { class: "node-attempt tabular-nums", title, "aria-hidden": "true" },
    `↻ ${attemptNumber(main).replace(" of ", "/")}`,
  );
}

function executionCells(node, { run, now, actions, selected, firstExecution: first }) {
  const total = node.steps.length;
  const cells = node.steps.slice(first, first + EXECUTIONS_PER_PAGE).map((index, position) => {
    const step = run.steps[index];
    return h(
      "button",
      {
        class: `cell ${status(step.status).css}`,
        type: "button",
        dataset: { step: index },
        "aria-label": `Round ${first + position + 1}, ${accessibleName(step, run.origin, now)}`,
        "aria-current": index === selected ? "true" : null,
        onclick: () => actions.select(index),
      },
      statusIcon(step.status, 16),
    );
  });
  const last = Math.min(total, first + EXECUTIONS_PER_PAGE);
  const turnButton = (name, label, by, disabled) =>
    iconButton(name, label, () => actions.turnPage(node, by), { disabled });
  const pager = h(
    "div",
    { class: "cells-pager tabular-nums" },
    turnButton("previous", "Earlier rounds", -EXECUTIONS_PER_PAGE, first === 0),
    `${number(first + 1)}–${number(last)} of ${number(total)}`,
    turnButton("next", "Later rounds", EXECUTIONS_PER_PAGE, last === total),
  );
  return h(
    "div",
    { class: "cells", role: "group", "aria-label": "Rounds" },
    h("div", { class: "cells-grid" }, cells),
    total > EXECUTIONS_PER_PAGE && pager,
  );
}
