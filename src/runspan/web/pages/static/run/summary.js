// The header of the run page: identity and status of the run, its statistics, its first failure, and links.

import { runApiPath, runPage, url, workflowPage } from "../api.js";
import { copyOnClick } from "../clipboard.js";
import { h, replace } from "../dom.js";
import { cost, duration, number, status, statusBadge, statusIcon, time, timeElement, tokens } from "../format.js";
import { parseEpochMs } from "../instants.js";
import { isolated, visible } from "../invisible-characters.js";
import { hasEnded } from "./document.js";
import { icon, iconButton } from "./icons.js";
import { elapsedMs } from "./run-stats.js";
import { silenceOf, silenceText } from "./silence.js";
import { cutInMiddle, errorText, roundLabel, statusText, stepTitle } from "./step-labels.js";
import { Tooltip } from "./tooltip.js";

const SHOWN_SLOWEST = 3;
const MAX_FILE_NAME = 100;
const REVOKE_DELAY_MS = 60_000;
const SILENT_HINT = "This run has not been heard from for longer than usual.";
const DEAD_HINT =
  "This run has not been heard from for more than a day. Its engine has probably ended without saying so: " +
  "end it with runspan resolve.";

/** Shows the header in `element`. */
export class Summary {
  /**
   * @param {object} actions
   * @param {(index: number) => void} actions.select - Called to select a step.
   * @param {() => void} actions.onShowRun - Called to show the run's own payloads.
   */
  constructor({ select, onShowRun }) {
    Object.assign(this, { select, onShowRun, traceLinks: {}, neighbours: {} });
    this.title = h("div", { class: "run-title" });
    this.meta = h("div", { class: "run-meta" });
    this.links = h("div", { class: "run-links" });
    this.statList = h("dl", { class: "run-stats" });
    this.notices = h("div", { class: "run-notices" });
    this.element = h(
      "header",
      { class: "run-header" },
      h("div", { class: "run-header-top" }, h("div", { class: "run-names" }, this.title, this.meta), this.links),
      this.statList,
      this.notices,
    );
    this.clicksByStatus = new Map();
    this.tooltip = new Tooltip(this.statList, (event) => {
      const button = event.target.closest?.("[data-step]");
      return button && { run: this.run, step: this.run.steps[Number(button.dataset.step)] };
    });
  }

  /**
   * Show a run.
   *
   * @param {object} loaded - The result of loadRun().
   * @param {object} stats - The result of runStats().
   * @param {object} notices
   * @param {string} notices.incomplete - What is missing from a newer revision, "" if nothing is.
   * @param {string} notices.observedAt - When an unfinished run was last observed, "" if that is not known.
   * @param {import("../api.js").ApiError|null} notices.error - The error of the last refresh.
   * @param {string|null} notices.missingStep - The id of a step in the address that the run does not have.
   */
  show(loaded, stats, { incomplete, observedAt, error, missingStep }) {
    const { run } = loaded;
    const focusable = () => [...this.element.querySelectorAll("a, button")];
    const focused = focusable().indexOf(document.activeElement);
    Object.assign(this, { loaded, run, stats, observedAt });
    this.live = h("span", { class: "live" });
    replace(
      this.title,
      h("h1", { class: "wrap clamped" }, workflowTitle(run)),
      statusBadge(run.status),
      !hasEnded(run.status) && this.live,
    );
    replace(this.meta, this.metaNodes());
    replace(this.statList, this.statNodes());
    replace(
      this.notices,
      this.waitingNotice(),
      this.failureNotice(),
      incomplete && incompleteNotice(incomplete),
      missingStep !== null && missingStepNotice(missingStep),
      error && errorNotice(error),
    );
    this.renderLinks();
    this.tick();
    if (focused >= 0) focusable()[focused]?.focus({ preventScroll: true });
  }

  /** Update what changes with the clock. */
  tick() {
    const ms = this.run.status === "pending" ? null : elapsedMs(this.run, this.run.origin, Date.now());
    this.durationElement.textContent = duration(ms);
    for (const update of this.openDurations) update();
    const silence = silenceOf(this.run, this.observedAt, Date.now());
    const text = silence ? silenceText(silence) : "Live";
    if (this.live.textContent === text) return;
    this.live.classList.toggle("silent", silence !== null);
    this.live.title = silence
      ? `${silence.isDead ? DEAD_HINT : SILENT_HINT} Last observed: ${visible(this.observedAt)}`
      : "This page updates automatically until the run ends.";
    replace(this.live, h("span", { class: "live-dot", "aria-hidden": "true" }), text);
  }

  /** Note when the run was last observed, of a document that is otherwise the same. */
  setObservedAt(observedAt) {
    this.observedAt = observedAt;
    this.tick();
  }

  /**
   * Show links to the run's trace.
   *
   * @param {object} links - URLs by trace UI.
   */
  setTraceLinks(links) {
    this.traceLinks = links;
    this.renderLinks();
  }

  /**
   * Show links to the runs around this one.
   *
   * @param {object} neighbours - The result of findNeighbours().
   */
  setNeighbours(neighbours) {
    this.neighbours = neighbours;
    this.renderLinks();
  }

  metaNodes() {
    const { run } = this;
    const copyId = iconButton("copy", "Copy the run id", null, { class: "tool small copy-id" });
    const parent = run.parentRunId && runPage(run.parentRunId);
    return [
      h(
        "span",
        { class: "run-id" },
        isolated(run.id, { class: "mono wrap" }),
        copyOnClick(copyId, () => run.id, "Run id"),
      ),
      run.triggerType && h("span", {}, "Trigger: ", isolated(run.triggerType)),
      parent && h("span", {}, "Parent run: ", h("a", { class: "mono", href: parent }, visible(run.parentRunId))),
    ];
  }

  statNodes() {
    const { run, stats } = this;
    const { usage } = stats;
    const value = (text) => h("dd", { class: "stat-value tabular-nums" }, text);
    this.durationElement = value();
    const split = usage && usage.input !== null && `${tokens(usage.input)} in · ${tokens(usage.output)} out`;
    const open = openSteps(run, stats, this.select, SHOWN_SLOWEST);
    this.openDurations = open.map(({ update }) => update);
    const slowest = stats.slowest.slice(0, SHOWN_SLOWEST).map(({ index, ms, count }) =>
      slowStepButton(run.steps[index], ms, {
        count,
        share: ms / stats.slowest[0].ms,
        onclick: () => this.select(index),
      }),
    );
    return [
      stat("Duration", this.durationElement, this.timeNodes()),
      stat("Steps", value(number(run.steps.length)), this.countNodes(), "stat-steps"),
      usage && stat("Tokens", value(tokens(usage.total)), split),
      usage && stat("Cost", value(cost(usage.cost)), this.modelNodes()),
      open.length > 0
        ? slowStat(
            stats.open.length > open.length
              ? `Open, longest ${open.length} of ${number(stats.open.length)}`
              : "Open, longest first",
            open.map(({ button }) => button),
          )
        : slowest.length > 1 && slowStat("Slowest", slowest),
    ];
  }

  timeNodes() {
    const { run } = this;
    if (!run.startedAt) return run.createdAt ? ["created ", timeElement(run.createdAt)] : "not started";
    const [from, to] = [parseEpochMs(run.startedAt), parseEpochMs(run.completedAt)];
    if (from === null || to === null) return ["since ", timeElement(run.startedAt)];
    const isSameDay = new Date(from).toDateString() === new Date(to).toDateString();
    const end = isSameDay ? time(to).split(", ").at(-1) : time(to);
    return [
      timeElement(run.startedAt),
      " – ",
      h("time", { datetime: new Date(to).toISOString(), title: visible(run.completedAt) }, end),
    ];
  }

  countNodes() {
    if (!this.run.steps.length) return "none in this document";
    return this.stats.counts.map(([value, count]) =>
      h(
        "button",
        {
          class: `count ${status(value).css}`,
          type: "button",
          title: `Go to the next step that is ${statusText(value)}`,
          onclick: () => this.selectNextWithStatus(value),
        },
        statusIcon(value, 14),
        h("span", {}, `${number(count)} ${statusText(value)}`),
      ),
    );
  }

  /** Select the steps with a status one after the other, starting again after the last. */
  selectNextWithStatus(value) {
    const steps = this.run.steps.filter((step) => step.status === value);
    const clicks = this.clicksByStatus.get(value) ?? 0;
    this.clicksByStatus.set(value, clicks + 1);
    this.select(steps[clicks % steps.length].index);
  }

  modelNodes() {
    const { models, usage } = this.stats;
    const calls = `${number(usage.calls)} agent step${usage.calls === 1 ? "" : "s"}`;
    return models.length === 1 && models[0].model ? [calls, " · ", isolated(models[0].model)] : calls;
  }

  waitingNotice() {
    if (this.run.status !== "suspended") return null;
    const { waiting } = this.stats;
    if (waiting === null)
      return h("p", { class: "notice waiting" }, "The run is waiting, and none of its steps says for what.");
    const step = this.run.steps[waiting];
    const since = h("span", { class: "tabular-nums" });
    const update = () =>
      replace(
        since,
        `, since `,
        timeElement(step.startedAt),
        ` (${duration(elapsedMs(step, this.run.origin, Date.now()))})`,
      );
    update();
    return h(
      "div",
      { class: "notice waiting" },
      statusIcon("suspended"),
      h(
        "p",
        { class: "wrap" },
        "Waiting for ",
        h("strong", {}, h("bdi", {}, stepTitle(step))),
        step.type && [" (", isolated(step.type), ")"],
        since,
      ),
      button("Show step", () => this.select(waiting)),
    );
  }

  failureNotice() {
    const { failure } = this.stats;
    if (!failure) return null;
    const step = failure.index === null ? null : this.run.steps[failure.index];
    const round = step && roundLabel(step, this.stats);
    const more = failure.count > 1 ? `, the first of ${number(failure.count)} failures` : "";
    const title = step
      ? [
          h("bdi", {}, stepTitle(step)),
          round && `, ${round},`,
          failure.tolerated ? ` failed, but the run continued${more}` : ` failed${more}`,
        ]
      : "The run failed, but none of its steps did";
    const message = failure.error && errorText(failure.error);
    return h(
      "div",
      { class: failure.tolerated ? "notice failure" : "notice error failure" },
      statusIcon("failed"),
      h(
        "p",
        { class: "wrap clamped failure-text", title: message },
        h("strong", {}, title),
        message && [" ", h("span", { dir: "auto" }, message)],
      ),
      step && button("Show step", () => this.select(failure.index)),
    );
  }

  renderLinks() {
    const { id } = this.run;
    const showRun = button("Input and output", () => this.onShowRun(), { class: "button small narrow-only" });
    const title = "Download the document exactly as it was received";
    const { older, newer, success } = this.neighbours;
    const compare = success
      ? h("a", { class: "button small", href: url("/compare", { a: success, b: id }) }, "Compare with last success")
      : h("a", { class: "button small", href: url("/compare", { a: id }) }, "Compare");
    replace(
      this.links,
      runLink(older, "Older run", "The run of this workflow that started before this one"),
      runLink(newer, "Newer run", "The run of this workflow that started after this one"),
      traceLinks(this.traceLinks),
      showRun,
      compare,
      h("a", { class: "button small", href: url(runApiPath(id)), title: "Open the run in the REST API" }, "REST"),
      button([icon("download"), "JSON"], () => this.download(), { title }),
    );
  }

  download() {
    const { text, run } = this.loaded;
    const blobUrl = URL.createObjectURL(new Blob([text.slice(run.start, run.end)], { type: "application/json" }));
    const name = run.id.replace(/[^\w.-]+/g, "_").slice(0, MAX_FILE_NAME);
    h("a", { href: blobUrl, download: `${name}.json` }).click();
    setTimeout(() => URL.revokeObjectURL(blobUrl), REVOKE_DELAY_MS);
  }
}

function runLink(id, text, title) {
  const href = id && runPage(id);
  return href && h("a", { class: "button small", href, title }, text);
}

const TRACE_UI_NAMES = { jaeger: "Jaeger", grafana: "Grafana", trace: "Trace" };

/**
 * Return links to a trace, one for each trace UI that the server knows.
 *
 * @param {object} links - URLs by trace UI.
 * @param {string} [css] - Class of the links.
 */
export function traceLinks(links, css = "button small") {
  return Object.entries(links).map(([name, href]) =>
    h(
      "a",
      { class: css, href, target: "_blank", rel: "noopener noreferrer" },
      TRACE_UI_NAMES[name] ?? visible(name),
      icon("external"),
      h("span", { class: "visually-hidden" }, " (opens a new tab)"),
    ),
  );
}

/**
 * Return a button that shows a step with its duration as a bar.
 *
 * @param {object} step - A step of indexRun().
 * @param {number} ms - Its duration in milliseconds.
 * @param {object} options
 * @param {number} options.share - Length of the bar, 0 to 1.
 * @param {() => void} options.onclick - Click listener.
 * @param {number} [options.count] - The number of executions that took this long together.
 * @param {boolean} [options.hasIcon] - Whether to show the status icon.
 */
export function slowStepButton(step, ms, { share, onclick, count = 1, hasIcon = false }) {
  const bar = h("span", { class: `slow-share ${status(step.status).css}` });
  bar.style.setProperty("--share", Math.min(1, share));
  return h(
    "button",
    { class: "slow", type: "button", onclick, dataset: { step: step.index } },
    hasIcon && statusIcon(step.status, 14),
    h("bdi", { class: "slow-name" }, cutInMiddle(stepTitle(step))),
    count > 1 &&
      h("span", { class: "slow-count muted", title: `${number(count)} rounds in total` }, `×${number(count)}`),
    h("span", { class: "slow-bar", "aria-hidden": "true" }, bar),
    h("span", { class: "tabular-nums slow-ms" }, duration(ms)),
  );
}

/**
 * Return buttons that show the open steps of a run, the longest first, as {button, update}. update() sets the time that
 * the step has taken until now.
 *
 * @param {object} run - The result of indexRun().
 * @param {object} stats - The result of runStats().
 * @param {(index: number) => void} select - Called to select a step.
 * @param {number} limit - Maximum number of steps.
 */
export function openSteps(run, stats, select, limit) {
  const elapsed = (index) => elapsedMs(run.steps[index], run.origin, Date.now());
  const longest = stats.open.length ? elapsed(stats.open[0]) : 0;
  return stats.open.slice(0, limit).map((index) => {
    const options = { share: elapsed(index) / Math.max(longest, 1), onclick: () => select(index), hasIcon: true };
    const button = slowStepButton(run.steps[index], elapsed(index), options);
    return { button, update: () => (button.lastChild.textContent = duration(elapsed(index))) };
  });
}

function button(content, onclick, attributes = {}) {
  return h("button", { class: "button small", type: "button", onclick, ...attributes }, content);
}

/** The name of the workflow, which leads to its page, or else the id of the run. */
function workflowTitle(run) {
  const page = run.workflowId ? workflowPage(run.workflowId) : null;
  if (!page) return isolated(run.workflowId || run.id);
  return h("a", { class: "title-link", href: page, title: "Statistics of this workflow" }, isolated(run.workflowId));
}

function slowStat(name, buttons) {
  return stat(name, h("dd", { class: "slowest" }, buttons), null, "stat-slowest");
}

function stat(name, value, note, css = "") {
  return h("div", { class: `stat ${css}` }, h("dt", {}, name), value, note && h("dd", { class: "stat-note" }, note));
}

function incompleteNotice(incomplete) {
  return h(
    "p",
    { class: "notice wrap" },
    h(
      "span",
      {},
      h("strong", {}, "A newer revision is not complete yet. "),
      "This is the latest complete revision. Missing from the newer one: ",
      h("span", { dir: "auto" }, visible(incomplete)),
    ),
  );
}

function missingStepNotice(id) {
  return h(
    "p",
    { class: "notice wrap", role: "status" },
    h("span", {}, h("strong", {}, "This link leads to a step that is not in this run: "), isolated(id)),
  );
}

function errorNotice(error) {
  return h(
    "p",
    { class: "notice wrap" },
    h("span", {}, h("strong", {}, `${error.title}. `), error.message, " ", error.hint),
  );
}
