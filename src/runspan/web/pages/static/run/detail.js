// The panel at the side: everything about the selected step, and about the run when none is selected.

import { runPage } from "../api.js";
import { h, isolated, replace, visible } from "../dom.js";
import { cost, duration, number, statusBadge, statusIcon, status, timeElement, tokens } from "../format.js";
import { hasEnded, lengthOf } from "./document.js";
import { elapsed } from "./facts.js";
import { icon } from "./icons.js";
import { Payloads } from "./payload.js";
import { traceLinks } from "./summary.js";
import { attemptOf, faultText, titleOf } from "./words.js";

/** `element` is the panel. `select` takes a step's position or null; `onTab` the payload that a reader chooses. */
export class Detail {
  constructor({ select, onTab }) {
    this.select = select;
    this.payloads = new Payloads({ onTab });
    this.head = h("div", { class: "detail-head" });
    this.body = h("div", { class: "detail-facts" });
    this.element = h(
      "aside",
      { class: "detail", "aria-label": "Details", tabindex: "-1", onkeydown: (event) => this.onKey(event) },
      this.head,
      this.body,
      this.payloads.element,
    );
    this.places = {};
    this.shown = undefined;
  }

  /** Shows the step at a position, or the run for null. */
  show(reading, facts, index, tab) {
    Object.assign(this, { reading, run: reading.run, facts, index });
    const owner = index === null ? this.run : this.run.steps[index];
    this.element.classList.toggle("of-step", index !== null);
    this.element.setAttribute("aria-label", index === null ? "The run" : `Step ${titleOf(owner)}`);
    this.paint();
    this.payloads.show(reading, index === null ? { ...owner, index: null } : owner, tab);
    if (this.shown !== index) this.element.scrollTop = 0;
    this.shown = index;
  }

  /** Brings what grows with the clock up to now. */
  tick() {
    const owner = this.index === null ? null : this.run?.steps[this.index];
    if (owner && this.took && !hasEnded(owner.status))
      this.took.textContent = duration(elapsed(owner, this.run.zero, Date.now()));
  }

  paint() {
    const had = this.element.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    if (this.index === null) {
      const shut = this.tool("close", "Close (Esc)", () => document.body.classList.remove("run-open"));
      replace(
        this.head,
        h("h2", {}, "Run"),
        h("div", { class: "detail-tools" }, this.wideTool(), h("span", { class: "when-narrow" }, shut)),
      );
      replace(this.body, this.runNodes());
    } else {
      const step = this.run.steps[this.index];
      replace(this.head, this.stepHead(step));
      replace(this.body, this.stepNodes(step));
    }
    if (had) this.element.querySelector(`[data-name="${had}"]`)?.focus();
  }

  tool(name, label, act, disabled = false) {
    return h(
      "button",
      {
        class: "tool small",
        type: "button",
        title: label,
        "aria-label": label,
        dataset: { name },
        onclick: act,
        disabled,
      },
      icon(name),
    );
  }

  wideTool() {
    const wide = document.body.classList.contains("detail-wide");
    const button = this.tool("wide", wide ? "Narrow panel" : "Wide panel", () => {
      document.body.classList.toggle("detail-wide");
      this.paint();
    });
    button.setAttribute("aria-pressed", String(wide));
    return button;
  }

  stepHead(step) {
    const last = this.run.steps.length - 1;
    return [
      h(
        "div",
        { class: "detail-title" },
        h("h2", { class: "wrap" }, statusIcon(step.status, 18), h("bdi", { class: "clamped" }, titleOf(step))),
        h(
          "p",
          { class: "quiet wrap clamped" },
          isolated(step.id, { class: "mono" }),
          step.type && [" · ", isolated(step.type)],
        ),
      ),
      h(
        "div",
        { class: "detail-tools" },
        this.tool("previous", "Previous step (k)", () => this.select(this.index - 1), this.index === 0),
        this.tool("next", "Next step (j)", () => this.select(this.index + 1), this.index === last),
        this.wideTool(),
        this.tool("close", "Close (Esc)", () => this.select(null)),
      ),
    ];
  }

  stepNodes(step) {
    return [
      this.roundsNode(step),
      step.error &&
        h(
          "p",
          {
            tabindex: "0",
            role: "group",
            "aria-label": "Error",
            class: `callout ${status(step.status === "failed" ? "failed" : "retrying").css} wrap`,
          },
          h("span", { dir: "auto" }, faultText(step.error)),
        ),
      step.child &&
        runPage(step.child) &&
        h(
          "a",
          { class: "child-link", href: runPage(step.child) },
          icon("child"),
          h("span", {}, "Open the child run ", isolated(step.child, { class: "mono wrap" })),
        ),
      h("dl", { class: "facts" }, this.timingFacts(step), this.usageFacts(step), this.traceFact()),
      attemptsNode(step),
    ];
  }

  traceFact() {
    const links = traceLinks(this.places, "fact-link");
    return links.length ? fact("Trace", links) : null;
  }

  timingFacts(step) {
    const length = lengthOf(step);
    const whole = lengthOf(this.run);
    this.took = h("span", { class: "numbers" }, duration(elapsed(step, this.run.zero, Date.now())));
    const share = length > 0 && whole > 0 && length <= whole ? ` (${percent(length / whole)} of the run)` : "";
    const untimed = step.status === "skipped" ? "not executed" : "not yet";
    return [
      fact("Status", statusBadge(step.status)),
      fact("Duration", [this.took, share && h("span", { class: "quiet" }, share)]),
      fact(
        "Started",
        step.startedAt ? [timeElement(step.startedAt), offset(step, this.run)] : h("span", { class: "quiet" }, untimed),
      ),
      step.completedAt && fact("Ended", timeElement(step.completedAt)),
      attemptOf(step) && fact("Attempt", attemptOf(step).replace("attempt ", "")),
    ];
  }

  usageFacts({ usage }) {
    if (!usage) return null;
    const parts =
      usage.input === null && usage.output === null ? "" : ` (${tokens(usage.input)} in, ${tokens(usage.output)} out)`;
    return [
      usage.model && fact("Model", isolated(usage.model)),
      usage.total !== null &&
        fact("Tokens", [h("span", { class: "numbers" }, number(usage.total)), h("span", { class: "quiet" }, parts)]),
      usage.cost !== null && fact("Cost", h("span", { class: "numbers" }, cost(usage.cost))),
    ];
  }

  /** Which execution of a loop this is, and the way to the others. */
  roundsNode(step) {
    const places = this.facts.occurrences.get(step.id);
    if (places.length < 2) return null;
    const at = places.indexOf(step.index);
    const options = places
      .slice(0, 2000)
      .map((index, round) =>
        h(
          "option",
          { value: index, selected: index === step.index },
          `${round + 1}  ${status(this.run.steps[index].status).label}`,
        ),
      );
    if (at >= options.length) options.push(h("option", { value: step.index, selected: true }, String(at + 1)));
    const choose = h(
      "select",
      {
        "aria-label": "Execution",
        onchange: (event) => this.select(Number(event.target.value)),
        dataset: { name: "round" },
      },
      options,
    );
    return h(
      "div",
      { class: "rounds" },
      icon("loop"),
      h("span", {}, "Execution "),
      choose,
      h("span", { class: "quiet numbers" }, `of ${number(places.length)}`),
      h(
        "span",
        { class: "rounds-steps" },
        this.tool("previous", "Previous execution", () => this.select(places[at - 1]), at === 0),
        this.tool("next", "Next execution", () => this.select(places[at + 1]), at === places.length - 1),
      ),
    );
  }

  runNodes() {
    const { facts, run } = this;
    return [
      facts.slowest.length > 0 &&
        h(
          "section",
          { class: "when-narrow" },
          h("h3", {}, "Slowest steps"),
          h(
            "ol",
            { class: "slow-list" },
            facts.slowest.map(({ index, ms }) => h("li", {}, this.slowRow(run.steps[index], ms))),
          ),
        ),
      facts.models.length > 0 && modelsTable(facts.models),
    ];
  }

  slowRow(step, ms) {
    const bar = h("span", { class: `slow-share ${status(step.status).css}` });
    bar.style.setProperty("--share", Math.min(1, ms / (lengthOf(this.run) || this.facts.slowest[0].ms)));
    return h(
      "button",
      { class: "slow", type: "button", onclick: () => this.select(step.index) },
      statusIcon(step.status, 14),
      h("bdi", { class: "slow-name" }, titleOf(step)),
      h("span", { class: "slow-bar", "aria-hidden": "true" }, bar),
      h("span", { class: "numbers" }, duration(ms)),
    );
  }

  onKey(event) {
    if (event.key !== "Escape" || event.defaultPrevented) return;
    event.preventDefault();
    document.body.classList.remove("run-open");
    if (this.index !== null) this.select(null);
  }
}

function fact(name, value) {
  return h("div", {}, h("dt", {}, name), h("dd", {}, value));
}

function offset(step, run) {
  if (step.from === null || run.from === null) return null;
  const after = step.from - run.from;
  if (after === 0) return null;
  return h(
    "span",
    { class: "quiet numbers" },
    after < 0 ? ` (${duration(-after)} before the run)` : ` (+${duration(after)})`,
  );
}

function percent(share) {
  return share < 0.01 ? "<1 %" : `${Math.round(share * 100)} %`;
}

function attemptsNode(step) {
  if (!step.attempts?.length) return null;
  const rows = step.attempts.map((attempt) => {
    const took = attempt.from !== null && attempt.to !== null ? duration(attempt.to - attempt.from) : "";
    return h(
      "li",
      {},
      statusIcon(attempt.status || "other", 14),
      h("span", { class: "numbers" }, `Attempt ${number(attempt.number)}`),
      h("span", { class: "quiet numbers" }, took),
      attempt.error && h("span", { class: "wrap", dir: "auto" }, faultText(attempt.error)),
    );
  });
  return h("section", {}, h("h3", {}, "Attempts"), h("ol", { class: "attempt-list" }, rows));
}

function modelsTable(models) {
  const rows = models.map(({ model, calls, input, output, cost: usd }) =>
    h(
      "tr",
      {},
      h("th", { scope: "row" }, isolated(model ? visible(model) : "(no model)")),
      [number(calls), tokens(input), tokens(output), cost(usd)].map((text) => h("td", { class: "numbers" }, text)),
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
