// The side panel: details and payloads of the selected step, or of the run if no step is selected.

import { runPage } from "../api.js";
import { h, replace } from "../dom.js";
import { cost, duration, number, status, statusBadge, statusIcon, timeElement, tokens } from "../format.js";
import { isolated } from "../invisible-characters.js";
import { durationOf, hasEnded } from "./document.js";
import { icon, iconButton } from "./icons.js";
import { Payloads } from "./payload.js";
import { elapsedMs } from "./run-stats.js";
import { attemptNumber, errorText, roundLabel, stepTitle } from "./step-labels.js";
import { openSteps, slowStepButton, traceLinks } from "./summary.js";

const MAX_EXECUTION_OPTIONS = 2000;
const MAX_OPEN = 50;

/** Shows the side panel in `element`. */
export class Detail {
  /**
   * @param {object} actions
   * @param {(index: number|null) => void} actions.select - Called to select a step, or none.
   * @param {(tab: string) => void} actions.onTab - Called with the key of the payload tab that the user chooses.
   */
  constructor({ select, onTab }) {
    this.select = select;
    this.payloads = new Payloads({ onTab });
    this.header = h("div", { class: "detail-header" });
    this.body = h("div", { class: "detail-body" });
    this.element = h(
      "aside",
      { class: "detail", "aria-label": "Details", tabindex: "-1", onkeydown: (event) => this.onKey(event) },
      this.header,
      this.body,
      this.payloads.element,
    );
    this.links = {};
    this.shownIndex = undefined;
  }

  /**
   * Show a step or the run.
   *
   * @param {object} loaded - The result of loadRun().
   * @param {object} stats - The result of runStats().
   * @param {number|null} index - Index of the step; null for the run.
   * @param {string|null} tab - Key of the payload tab; null for the default.
   */
  show(loaded, stats, index, tab) {
    Object.assign(this, { run: loaded.run, stats, index });
    const owner = index === null ? this.run : this.run.steps[index];
    this.element.classList.toggle("of-step", index !== null);
    this.element.setAttribute("aria-label", index === null ? "The run" : `Step ${stepTitle(owner)}`);
    this.render();
    this.payloads.show(loaded, owner, index, tab);
    if (this.shownIndex !== index) this.element.scrollTop = 0;
    this.shownIndex = index;
  }

  /**
   * Show links to the selected step in the run's trace.
   *
   * @param {object} links - URLs by trace UI.
   */
  setLinks(links) {
    if (JSON.stringify(links) === JSON.stringify(this.links)) return;
    this.links = links;
    if (this.index !== null) this.render();
  }

  /** Update the elapsed time. */
  tick() {
    if (this.index === null) return this.openDurations.forEach((update) => update());
    const step = this.run.steps[this.index];
    if (!hasEnded(step.status)) this.durationElement.textContent = this.durationText(step);
  }

  render() {
    const focused = this.element.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    if (this.index === null) {
      replace(this.header, this.runHeader());
      replace(this.body, this.runNodes());
    } else {
      const step = this.run.steps[this.index];
      replace(this.header, this.stepHeader(step));
      replace(this.body, this.stepNodes(step));
    }
    if (focused) this.element.querySelector(`[data-name="${focused}"]`)?.focus();
  }

  runHeader() {
    const close = tool("close", "Close (Esc)", () => document.body.classList.remove("run-open"));
    return [
      h("h2", {}, "Run"),
      h("div", { class: "detail-tools" }, this.widthButton(), h("span", { class: "narrow-only" }, close)),
    ];
  }

  stepHeader(step) {
    const { index } = this;
    const last = this.run.steps.length - 1;
    const round = roundLabel(step, this.stats);
    return [
      h(
        "div",
        { class: "detail-title" },
        h(
          "h2",
          { class: "wrap", title: stepTitle(step) },
          statusIcon(step.status, 18),
          h(
            "span",
            { class: "clamped" },
            h("bdi", {}, stepTitle(step)),
            round && h("span", { class: "muted" }, `, ${round}`),
          ),
        ),
        h(
          "p",
          { class: "muted wrap clamped" },
          isolated(step.id, { class: "mono" }),
          step.type && [" · ", isolated(step.type)],
        ),
      ),
      h(
        "div",
        { class: "detail-tools" },
        tool("previous", "Previous step (k)", () => this.select(index - 1), index === 0),
        tool("next", "Next step (j)", () => this.select(index + 1), index === last),
        this.widthButton(),
        tool("close", "Close (Esc)", () => this.select(null)),
      ),
    ];
  }

  widthButton() {
    const isWide = document.body.classList.contains("detail-wide");
    const button = tool("wide", isWide ? "Narrow panel" : "Wide panel", () => {
      document.body.classList.toggle("detail-wide");
      this.render();
    });
    button.setAttribute("aria-pressed", String(isWide));
    return button;
  }

  stepNodes(step) {
    const childPage = step.childRunId && runPage(step.childRunId);
    const links = traceLinks(this.links, "fact-link");
    return [
      this.executionPicker(step),
      step.error && errorCallout(step),
      childPage &&
        h(
          "a",
          { class: "child-link", href: childPage },
          icon("child"),
          h("span", {}, "Open the child run ", isolated(step.childRunId, { class: "mono wrap" })),
        ),
      h("dl", { class: "facts" }, this.timingFacts(step), usageFacts(step), links.length > 0 && fact("Trace", links)),
      attemptList(step),
    ];
  }

  timingFacts(step) {
    const ms = durationOf(step);
    const runMs = durationOf(this.run);
    const share = ms > 0 && runMs > 0 && ms <= runMs ? ` (${percent(ms / runMs)} of the run)` : "";
    const notStarted = step.status === "skipped" ? "not executed" : "not yet";
    this.durationElement = h("span", { class: "tabular-nums" }, this.durationText(step));
    return [
      fact("Status", statusBadge(step.status)),
      fact("Duration", [this.durationElement, share && h("span", { class: "muted" }, share)]),
      fact(
        "Started",
        step.startedAt
          ? [timeElement(step.startedAt), startOffset(step, this.run)]
          : h("span", { class: "muted" }, notStarted),
      ),
      step.completedAt && fact("Ended", timeElement(step.completedAt)),
      attemptNumber(step) && fact("Attempt", attemptNumber(step)),
    ];
  }

  durationText(step) {
    return duration(elapsedMs(step, this.run.origin, Date.now()));
  }

  /** Which execution of a repeated step is shown, and controls to go to the others. */
  executionPicker(step) {
    const indexes = this.stats.executions.get(step.id);
    if (indexes.length < 2) return null;
    const current = indexes.indexOf(step.index);
    const options = indexes
      .slice(0, MAX_EXECUTION_OPTIONS)
      .map((index, position) =>
        h(
          "option",
          { value: index, selected: index === step.index },
          `${position + 1}  ${status(this.run.steps[index].status).label}`,
        ),
      );
    if (current >= options.length)
      options.push(h("option", { value: step.index, selected: true }, String(current + 1)));
    const select = h(
      "select",
      {
        "aria-label": "Round",
        onchange: (event) => this.select(Number(event.target.value)),
        dataset: { name: "execution" },
      },
      options,
    );
    const last = indexes.length - 1;
    return h(
      "div",
      { class: "executions" },
      icon("loop"),
      h("span", {}, "Round "),
      select,
      h("span", { class: "muted tabular-nums" }, `of ${number(indexes.length)}`),
      h(
        "span",
        { class: "executions-nav" },
        tool("previous", "Previous round", () => this.select(indexes[current - 1]), current === 0),
        tool("next", "Next round", () => this.select(indexes[current + 1]), current === last),
      ),
    );
  }

  runNodes() {
    const { slowest, models } = this.stats;
    const total = durationOf(this.run) || slowest[0]?.ms;
    const rows = slowest.map(({ index, ms, count }) =>
      slowStepButton(this.run.steps[index], ms, {
        count,
        share: ms / total,
        onclick: () => this.select(index),
        hasIcon: true,
      }),
    );
    const open = openSteps(this.run, this.stats, this.select, MAX_OPEN);
    this.openDurations = open.map(({ update }) => update);
    return [
      open.length > 0 &&
        h(
          "section",
          {},
          h(
            "h3",
            {},
            this.stats.open.length > MAX_OPEN ? `Open steps, the longest ${MAX_OPEN}` : "Open steps, longest first",
          ),
          h(
            "ol",
            { class: "slow-list" },
            open.map(({ button }) => h("li", {}, button)),
          ),
        ),
      rows.length > 0 &&
        h(
          "section",
          { class: "narrow-only" },
          h("h3", {}, "Slowest steps"),
          h(
            "ol",
            { class: "slow-list" },
            rows.map((row) => h("li", {}, row)),
          ),
        ),
      models.length > 0 && modelsTable(models),
    ];
  }

  onKey(event) {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    event.preventDefault();
    document.body.classList.remove("run-open");
    if (this.index !== null) this.select(null);
  }
}

/** A button that keeps the focus when the panel is rendered again. */
function tool(name, label, onclick, disabled = false) {
  return iconButton(name, label, onclick, { dataset: { name }, disabled });
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function errorCallout(step) {
  const { css } = status(step.status === "failed" ? "failed" : "retrying");
  return h(
    "p",
    { tabindex: "0", role: "group", "aria-label": "Error", class: `callout ${css} wrap` },
    h("span", { dir: "auto" }, errorText(step.error)),
  );
}

function usageFacts({ usage }) {
  if (!usage) return null;
  const isSplit = usage.input !== null || usage.output !== null;
  const split = isSplit && ` (${tokens(usage.input)} in, ${tokens(usage.output)} out)`;
  return [
    usage.model && fact("Model", isolated(usage.model)),
    usage.total !== null &&
      fact("Tokens", [h("span", { class: "tabular-nums" }, number(usage.total)), h("span", { class: "muted" }, split)]),
    usage.cost !== null && fact("Cost", h("span", { class: "tabular-nums" }, cost(usage.cost))),
  ];
}

function startOffset(step, run) {
  if (step.from === null || run.from === null || step.from === run.from) return null;
  const offset = step.from - run.from;
  const text = offset < 0 ? ` (${duration(-offset)} before the run)` : ` (+${duration(offset)})`;
  return h("span", { class: "muted tabular-nums" }, text);
}

function percent(share) {
  return share < 0.01 ? "<1 %" : `${Math.round(share * 100)} %`;
}

function attemptList(step) {
  if (!step.attempts?.length) return null;
  const rows = step.attempts.map((attempt) => {
    const ms = durationOf({ durationMs: null, ...attempt });
    return h(
      "li",
      {},
      statusIcon(attempt.status || "other", 14),
      h("span", { class: "tabular-nums" }, `Attempt ${number(attempt.number)}`),
      h("span", { class: "muted tabular-nums" }, ms !== null && duration(ms)),
      attempt.error && h("span", { class: "wrap", dir: "auto" }, errorText(attempt.error)),
    );
  });
  return h("section", {}, h("h3", {}, "Attempts"), h("ol", { class: "attempt-list" }, rows));
}

function modelsTable(models) {
  const rows = models.map(({ model, calls, input, output, cost: usd }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, isolated(model || "(no model)")),
      [number(calls), tokens(input), tokens(output), cost(usd)].map((text) => h("td", { class: "tabular-nums" }, text)),
    ),
  );
  return h(
    "section",
    {},
    h("h3", {}, "Tokens and cost"),
    h(
      "table",
      { class: "models" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          ["Model", "Steps", "In", "Out", "Cost"].map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h("tbody", {}, rows),
    ),
  );
}
