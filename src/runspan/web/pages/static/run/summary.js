// The head of the page: what run this is, how it went, what it cost, and what failed first.

import { getJson, runApi, runPage, url } from "../api.js";
import { h, isolated, replace, visible } from "../dom.js";
import {
  cost,
  duration,
  instant,
  number,
  statusBadge,
  statusIcon,
  status,
  time,
  timeElement,
  tokens,
} from "../format.js";
import { copyOnClick } from "./copy.js";
import { hasEnded } from "./document.js";
import { elapsed } from "./facts.js";
import { icon } from "./icons.js";
import { faultText, titleOf } from "./words.js";

/** `element` is the head. `select` is called with the position of a step, `openRun` for the run's own payloads. */
export class Summary {
  constructor({ select, openRun }) {
    Object.assign(this, { select, openRun });
    this.title = h("div", { class: "run-title" });
    this.about = h("div", { class: "run-about" });
    this.links = h("div", { class: "run-links" });
    this.stats = h("dl", { class: "run-stats" });
    this.notices = h("div", { class: "run-notices" });
    this.element = h(
      "header",
      { class: "run-head" },
      h("div", { class: "run-top" }, h("div", { class: "run-names" }, this.title, this.about), this.links),
      this.stats,
      this.notices,
    );
    this.places = {};
    this.turns = new Map();
  }

  /** Shows a run. `note` is what the answer says is missing; `trouble` an ApiError of the last refresh, or null. */
  show(reading, facts, { note = "", trouble = null } = {}) {
    const { run } = reading;
    const stops = () => [...this.element.querySelectorAll("a, button")];
    const had = stops().indexOf(document.activeElement);
    Object.assign(this, { reading, run, facts });
    replace(
      this.title,
      h("h1", { class: "wrap clamped" }, isolated(run.workflowId || run.id)),
      statusBadge(run.status),
      this.liveMark(),
    );
    replace(this.about, this.aboutNodes());
    replace(this.stats, this.statNodes());
    replace(this.notices, this.noticeNodes(note, trouble));
    this.paintLinks();
    this.tick();
    if (had >= 0) stops()[had]?.focus({ preventScroll: true });
  }

  /** Brings what grows with the clock up to now. */
  tick(now = Date.now()) {
    if (!this.run) return;
    const took = this.run.status === "pending" ? null : elapsed(this.run, this.run.zero, now);
    this.took.textContent = duration(took);
  }

  liveMark() {
    if (hasEnded(this.run.status)) return null;
    return h(
      "span",
      { class: "live", title: "The page follows this run until it ends." },
      h("span", { class: "live-dot", "aria-hidden": "true" }),
      "Live",
    );
  }

  aboutNodes() {
    const { run } = this;
    const copy = h(
      "button",
      { class: "tool small copy-id", type: "button", title: "Copy the run id", "aria-label": "Copy the run id" },
      icon("copy"),
    );
    return [
      h(
        "span",
        { class: "run-id" },
        isolated(run.id, { class: "mono wrap" }),
        copyOnClick(copy, () => run.id, "Run id"),
      ),
      run.triggerType && h("span", {}, "Trigger: ", isolated(run.triggerType)),
      run.parentRunId &&
        runPage(run.parentRunId) &&
        h(
          "span",
          {},
          "Parent run: ",
          h("a", { class: "mono", href: runPage(run.parentRunId) }, visible(run.parentRunId)),
        ),
    ];
  }

  statNodes() {
    const { run, facts } = this;
    this.took = h("dd", { class: "stat-value numbers" });
    const { usage } = facts;
    return [
      stat("Duration", this.took, this.timesNodes()),
      stat(
        "Steps",
        h("dd", { class: "stat-value numbers" }, number(run.steps.length)),
        this.countNodes(),
        "stat-steps",
      ),
      usage &&
        stat(
          "Tokens",
          h("dd", { class: "stat-value numbers" }, tokens(usage.total)),
          usage.input !== null && `${tokens(usage.input)} in · ${tokens(usage.output)} out`,
        ),
      usage && stat("Cost", h("dd", { class: "stat-value numbers" }, cost(usage.cost)), this.modelsInWords()),
      facts.slowest.length > 1 &&
        stat(
          "Slowest",
          h(
            "dd",
            { class: "slowest" },
            facts.slowest.slice(0, 3).map((slow) => this.slowButton(slow)),
          ),
          null,
          "stat-slowest",
        ),
    ];
  }

  timesNodes() {
    const { run } = this;
    if (!run.startedAt) return run.createdAt ? ["created ", timeElement(run.createdAt)] : "not started";
    const [from, to] = [instant(run.startedAt), instant(run.completedAt)];
    if (from === null || to === null) return ["since ", timeElement(run.startedAt)];
    const near = new Date(from).toDateString() === new Date(to).toDateString();
    const end = near ? time(to).split(", ").at(-1) : time(to);
    return [
      timeElement(run.startedAt),
      " – ",
      h("time", { datetime: new Date(to).toISOString(), title: visible(run.completedAt) }, end),
    ];
  }

  countNodes() {
    const total = this.run.steps.length;
    if (!total) return "none in this document";
    return this.facts.counts.map(([value, count]) => {
      const { label, css } = status(value);
      const words = `${number(count)} ${label.toLowerCase()}`;
      return h(
        "button",
        {
          class: `count ${css}`,
          type: "button",
          title: `Go to the next step that is ${label.toLowerCase()}`,
          onclick: () => this.nextOf(value),
        },
        statusIcon(value, 14),
        h("span", {}, words),
      );
    });
  }

  /** Goes round the steps of one status, one at a click. */
  nextOf(value) {
    const places = this.run.steps.filter((step) => step.status === value).map((step) => step.index);
    const turn = this.turns.get(value) ?? 0;
    this.turns.set(value, turn + 1);
    this.select(places[turn % places.length]);
  }

  modelsInWords() {
    const { models, usage } = this.facts;
    const calls = `${number(usage.calls)} agent step${usage.calls === 1 ? "" : "s"}`;
    return models.length === 1 && models[0].model ? [calls, " · ", isolated(models[0].model)] : calls;
  }

  slowButton({ index, ms }) {
    const step = this.run.steps[index];
    const share = h("span", { class: `slow-share ${status(step.status).css}` });
    share.style.setProperty("--share", Math.min(1, ms / this.facts.slowest[0].ms));
    return h(
      "button",
      { class: "slow", type: "button", onclick: () => this.select(index) },
      h("bdi", { class: "slow-name" }, titleOf(step)),
      h("span", { class: "slow-bar", "aria-hidden": "true" }, share),
      h("span", { class: "numbers" }, duration(ms)),
    );
  }

  noticeNodes(note, trouble) {
    return [this.failureNode(), note && incompleteNode(note), trouble && troubleNode(trouble)];
  }

  failureNode() {
    const { failure } = this.facts;
    if (!failure) return null;
    const step = failure.index === null ? null : this.run.steps[failure.index];
    const more = failure.count > 1 ? `, the first of ${number(failure.count)} failures` : "";
    const head = step
      ? [h("bdi", {}, titleOf(step)), failure.tolerated ? ` failed and the run went on${more}` : ` failed${more}`]
      : "The run failed, none of its steps";
    return h(
      "div",
      { class: failure.tolerated ? "notice failure" : "notice bad failure" },
      statusIcon("failed"),
      h(
        "p",
        { class: "wrap clamped failure-text", title: failure.error && faultText(failure.error) },
        h("strong", {}, head),
        failure.error && [" ", h("span", { dir: "auto" }, faultText(failure.error))],
      ),
      step &&
        h("button", { class: "button small", type: "button", onclick: () => this.select(failure.index) }, "Show step"),
    );
  }

  /** Where else the run can be looked at; asked once, for the answer does not change. */
  async askPlaces(id) {
    try {
      const { body } = await getJson(runApi(id, "/trace"));
      this.places = body.data;
    } catch {
      this.places = {}; // the page is whole without these links
    }
    if (this.run) this.paintLinks();
    return this.places;
  }

  paintLinks() {
    const { id } = this.run;
    replace(
      this.links,
      traceLinks(this.places),
      h(
        "button",
        { class: "button small when-narrow", type: "button", onclick: () => this.openRun() },
        "Input and output",
      ),
      h("a", { class: "button small", href: url("/compare", { a: id }) }, "Compare"),
      h("a", { class: "button small", href: url(runApi(id)), title: "The run as the REST API answers it" }, "REST"),
      h(
        "button",
        {
          class: "button small",
          type: "button",
          title: "Save the document exactly as it was sent",
          onclick: () => this.download(),
        },
        icon("download"),
        "JSON",
      ),
    );
  }

  download() {
    const { text, run } = this.reading;
    const address = URL.createObjectURL(new Blob([text.slice(run.start, run.end)], { type: "application/json" }));
    h("a", { href: address, download: `${run.id.replace(/[^\w.-]+/g, "_").slice(0, 100)}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 60_000);
  }
}

const PLACES = { jaeger: "Jaeger", grafana: "Grafana", trace: "Trace" };

/** Links to the trace, in the places that the server knows. */
export function traceLinks(places, css = "button small") {
  return Object.entries(places.links ?? {}).map(([name, href]) =>
    h(
      "a",
      { class: css, href, target: "_blank", rel: "noopener noreferrer" },
      PLACES[name] ?? visible(name),
      icon("out"),
      h("span", { class: "unseen" }, " (opens a new tab)"),
    ),
  );
}

function stat(name, value, more, css = "") {
  return h("div", { class: `stat ${css}` }, h("dt", {}, name), value, more && h("dd", { class: "stat-more" }, more));
}

function incompleteNode(note) {
  return h(
    "p",
    { class: "notice wrap" },
    h(
      "span",
      {},
      h("strong", {}, "A newer revision is not complete yet. "),
      "This is the last one that its spans prove. Missing: ",
      h("span", { dir: "auto" }, visible(note)),
    ),
  );
}

function troubleNode(trouble) {
  return h(
    "p",
    { class: "notice wrap" },
    h("span", {}, h("strong", {}, `${trouble.title}. `), trouble.message, " ", trouble.todo),
  );
}
