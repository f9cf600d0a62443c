// Entry point of a workflow's page: its runs over time, failures, steps, tokens and cost.

import { url, workflowPage } from "../api.js";
import { h, replace } from "../dom.js";
import { cost, duration, number, status, statusIcon, tokens } from "../format.js";
import { isolated } from "../invisible-characters.js";
import { allBins, binLabel } from "../stats/bins.js";
import { FAILED_STATUSES, counted, failures, loadStats, percent, successRate, total } from "../stats/client.js";
import { showStats } from "../stats/page.js";
import { chartSection, failureLink, failureMessage, none, section, tile, titleOf } from "../stats/parts.js";
import { sortableTable } from "../stats/sortable-table.js";
import { coveredTimes } from "../stats/states.js";
import { USAGE_COLUMNS } from "../stats/usage-columns.js";

const MAX_STEPS = 1000;
const MAX_DAYS_AND_MODELS = 2000;
const SHOWN_STEPS = 8;
const SHOWN_ERRORS = 10;
const STATUS_ORDER = ["completed", "other", "cancelled", "pending", "running", "suspended", "timed_out", "failed"];

const byId = (id) => document.getElementById(id);

const workflowId = decodeURIComponent(byId("workflow").dataset.workflowId);

function load(times, bins, signal) {
  byId("runs").href = url("/", { workflowId, ...times });
  const of = (range, groupBy, limit) => loadStats(range, groupBy, { workflowId, limit, signal });
  return [
    of(times, ""),
    of(bins, bins.unit, MAX_STEPS),
    of(times, "error"),
    of(times, "step", MAX_STEPS),
    of(times, "model"),
    of(bins, `${bins.unit},model`, MAX_DAYS_AND_MODELS),
  ];
}

function sections([whole, timeline, errors, steps, models, spend], times, bins) {
  const covered = coveredTimes(whole.meta);
  return [
    tiles(whole.data[0], covered),
    runsChart(bins, timeline),
    failureSection(errors, covered),
    stepSections(steps),
    models.data.length > 0 && spendSection(bins, spend, models),
  ];
}

function tiles(group, covered) {
  const { durationMs, usage, statuses } = group;
  const failed = failures(group);
  const unfinished = ["pending", "running", "suspended"].filter((name) => statuses[name]);
  const unfinishedText = unfinished.map((name) => `${number(statuses[name])} ${status(name).label.toLowerCase()}`);
  const failedLink = h(
    "a",
    { href: url("/", { workflowId, status: FAILED_STATUSES, ...covered }) },
    `${number(failed)} failed`,
  );
  return h(
    "dl",
    { class: "tiles" },
    tile("Runs", number(group.runs), unfinishedText.join(", ") || "all have ended"),
    tile("Success", percent(successRate(group)), failed ? failedLink : "none failed"),
    tile(
      "Duration, p50",
      duration(durationMs.p50),
      `${duration(durationMs.count ? durationMs.mean : null)} on average`,
    ),
    tile("Duration, p95", duration(durationMs.p95), "of the runs that ended"),
    tile("Spend", usage.steps ? cost(usage.costUsd) : none(), usage.steps ? perRun(group) : "no agent steps"),
    tile(
      "Tokens",
      usage.steps ? tokens(usage.inputTokens + usage.outputTokens) : none(),
      usage.steps ? `${tokens(usage.outputTokens)} of them out` : "no agent steps",
    ),
  );
}

const perRun = ({ usage, runs }) => `${cost(usage.costUsd / runs)} per run`;

function runsChart(bins, { data, meta }) {
  const byBin = new Map(data.map((group) => [group.from, group]));
  const all = allBins(meta, bins.unit);
  const bars = all.map((bin) => {
    const statuses = byBin.get(bin.key)?.statuses || {};
    const parts = STATUS_ORDER.filter((name) => statuses[name]).map((name) => ({
      value: statuses[name],
      css: `status-${name}`,
      text: `${number(statuses[name])} ${name === "other" ? "other" : status(name).label.toLowerCase()}`,
    }));
    return { label: binLabel(bin, bins.unit), parts };
  });
  const rows = all.filter(({ key }) => byBin.has(key)).map((bin) => ({ bin, group: byBin.get(bin.key) }));
  const columns = [
    { title: bins.unit === "day" ? "Day" : "Hour", cell: ({ bin }) => listLink(binLabel(bin, bins.unit), bin) },
    { title: "Runs", isNumber: true, cell: ({ group }) => number(group.runs) },
    { title: "Failed", isNumber: true, cell: ({ group }) => number(failures(group)) },
    { title: "Success", isNumber: true, cell: ({ group }) => percent(successRate(group)) },
    { title: "p50", isNumber: true, cell: ({ group }) => duration(group.durationMs.p50) },
    { title: "p95", isNumber: true, cell: ({ group }) => duration(group.durationMs.p95) },
    { title: "Spend", isNumber: true, cell: ({ group }) => (group.usage.steps ? cost(group.usage.costUsd) : none()) },
  ];
  return chartSection(titleOf("Runs", bins), bars, columns, rows, legend(total(data).statuses));
}

/** The statuses of the bars, with their icons and counts. */
function legend(statuses) {
  const shown = STATUS_ORDER.toReversed().filter((name) => statuses[name]);
  return h(
    "ul",
    { class: "legend" },
    shown.map((name) =>
      h(
        "li",
        { class: `status-${name}` },
        statusIcon(name, 14),
        name === "other" ? "Other" : status(name).label,
        h("b", { class: "tabular-nums" }, number(statuses[name])),
      ),
    ),
  );
}

/** A link to the list of the runs of a bin. */
function listLink(text, { from, to }) {
  const iso = (ms) => new Date(ms).toISOString();
  return h("a", { href: url("/", { workflowId, from: iso(from), to: iso(to) }) }, text);
}

function failureSection({ data, meta }, covered) {
  if (!data.length) return null;
  const columns = [
    {
      title: "Error",
      by: ({ errorCode }) => errorCode,
      cell: ({ errorCode, newestFailure }) => [
        errorCode ? h("span", { class: "name" }, isolated(errorCode)) : h("span", { class: "muted" }, "Without a code"),
        newestFailure && failureMessage(newestFailure),
      ],
      css: "failure",
    },
    {
      title: "Failed step",
      css: "wide-only",
      by: ({ failedStep }) => failedStep,
      cell: ({ failedStep }) => (failedStep ? isolated(failedStep) : none()),
    },
    { title: "Runs", isNumber: true, by: ({ runs }) => runs, cell: (group) => errorList(group, covered) },
    {
      title: "Newest run",
      by: ({ newestFailure }) => (newestFailure ? -Date.parse(newestFailure.time) : null),
      cell: ({ newestFailure }) => (newestFailure ? failureLink(newestFailure) : none()),
    },
  ];
  const title = meta.hasMore ? `Failures by error, the ${data.length} most frequent` : "Failures by error";
  return section(title, sortableTable({ caption: title, columns, rows: data, sortedBy: 2, limit: SHOWN_ERRORS }));
}

function errorList({ errorCode, runs }, covered) {
  if (!errorCode) return number(runs);
  return h("a", { href: url("/", { workflowId, status: FAILED_STATUSES, errorCode, ...covered }) }, number(runs));
}

function stepSections({ data, meta }) {
  const timed = data.filter(({ durationMs }) => durationMs.count);
  const failing = data.filter(({ failed }) => failed);
  const share = ({ failed, executions }) => failed / executions;
  const name = {
    title: "Step",
    by: ({ step }) => step,
    cell: ({ step, stepType }) => [
      h("span", { class: "name" }, isolated(step)),
      " ",
      h("span", { class: "muted" }, isolated(stepType)),
    ],
  };
  const executions = {
    title: "Executions",
    isNumber: true,
    css: "wide-only",
    by: (step) => step.executions,
    cell: (step) => number(step.executions),
  };
  const sum = ({ durationMs }) => durationMs.mean * durationMs.count;
  const slowColumns = [
    name,
    executions,
    {
      title: "Mean",
      isNumber: true,
      by: ({ durationMs }) => durationMs.mean,
      cell: ({ durationMs }) => duration(durationMs.mean),
    },
    { title: "Total", isNumber: true, by: sum, cell: (step) => duration(sum(step)) },
  ];
  const failingColumns = [
    name,
    executions,
    { title: "Failed", isNumber: true, by: ({ failed }) => failed, cell: ({ failed }) => number(failed) },
    { title: "Share", isNumber: true, by: share, cell: (step) => percent(share(step)) },
  ];
  const note =
    meta.hasMore && h("p", { class: "muted" }, `Of the ${data.length} steps that took the longest in total.`);
  return h(
    "div",
    { class: "pair" },
    timed.length > 0 &&
      section(
        "Slowest steps",
        note,
        sortableTable({ caption: "Slowest steps", columns: slowColumns, rows: timed, sortedBy: 2, limit: SHOWN_STEPS }),
      ),
    failing.length > 0 &&
      section(
        "Failing steps",
        note?.cloneNode?.(true),
        sortableTable({
          caption: "Failing steps",
          columns: failingColumns,
          rows: failing,
          sortedBy: 2,
          limit: SHOWN_STEPS,
        }),
      ),
  );
}

const modelColumn = {
  title: "Model",
  by: ({ model }) => model,
  cell: ({ model }) => (model ? isolated(model) : h("span", { class: "muted" }, "No model named")),
};

function spendSection(bins, { data, meta }, models) {
  const all = new Map(allBins(meta, bins.unit).map((bin) => [bin.key, bin]));
  const byBin = Map.groupBy(data, ({ from }) => from);
  const bars = [...all.values()].map((bin) => {
    const groups = byBin.get(bin.key) || [];
    const spent = groups.reduce((sum, { usage }) => sum + usage.costUsd, 0);
    return { label: binLabel(bin, bins.unit), parts: [{ value: spent, css: "spend", text: cost(spent) }] };
  });
  const rows = data.filter(({ from }) => all.has(from));
  const time = {
    title: bins.unit === "day" ? "Day" : "Hour",
    cell: ({ from }) => binLabel(all.get(from), bins.unit),
  };
  return [
    !meta.hasMore && chartSection(titleOf("Tokens and spend", bins), bars, [time, modelColumn, ...USAGE_COLUMNS], rows),
    section(
      "By model",
      sortableTable({
        caption: "Models",
        columns: [modelColumn, ...USAGE_COLUMNS],
        rows: models.data,
        sortedBy: 1,
        limit: SHOWN_STEPS,
      }),
    ),
  ];
}

replace(byId("title"), isolated(workflowId));
showStats({
  address: (parameters) => workflowPage(workflowId, parameters),
  list: (times) => ({ workflowId, ...times }),
  load,
  sections,
  summary: ({ data }) => counted(data[0].runs, "run"),
});
