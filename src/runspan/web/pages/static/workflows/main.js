// Entry point of the overview of workflows: runs, success, durations, spend and the last failure of each.

import { url, workflowPage } from "../api.js";
import { h } from "../dom.js";
import { cost, duration, number, tokens } from "../format.js";
import { isolated } from "../invisible-characters.js";
import { allBins, binLabel } from "../stats/bins.js";
import { trend } from "../stats/charts.js";
import { FAILED_STATUSES, counted, failures, loadStats, percent, successRate, total } from "../stats/client.js";
import { showStats } from "../stats/page.js";
import { chartSection, failureLink, failureMessage, none, section, tile, titleOf } from "../stats/parts.js";
import { sortableTable } from "../stats/sortable-table.js";
import { coveredTimes } from "../stats/states.js";
import { urlParameters } from "../stats/time-filter.js";
import { USAGE_COLUMNS } from "../stats/usage-columns.js";

const MAX_WORKFLOWS = 500;
const MAX_TREND_GROUPS = 2000;
const SHOWN_WORKFLOWS = 50;

function load(times, bins, signal) {
  return [
    loadStats(times, "workflow", { limit: MAX_WORKFLOWS, signal }),
    loadStats(bins, `workflow,${bins.unit}`, { limit: MAX_TREND_GROUPS, signal }),
    loadStats(times, "model", { signal }),
  ];
}

function sections([workflows, timeline, models], times, bins) {
  return [
    tiles(total(workflows.data), workflows.data.length),
    spendChart(bins, timeline),
    section("By workflow", workflowTable(times, workflows, trendsOf(bins, timeline))),
    models.data.length > 0 && section("By model", modelTable(models.data)),
  ];
}

function tiles(sum, workflows) {
  const failed = failures(sum);
  return h(
    "dl",
    { class: "tiles" },
    tile("Runs", number(sum.runs), counted(workflows, "workflow")),
    tile("Success", percent(successRate(sum)), `${number(failed)} failed`),
    tile("Spend", cost(sum.usage.costUsd), counted(sum.usage.steps, "agent step")),
    tile(
      "Tokens",
      tokens(sum.usage.inputTokens + sum.usage.outputTokens),
      `${tokens(sum.usage.outputTokens)} of them out`,
    ),
  );
}

/** The spend of all workflows over time, with its numbers as a table. */
function spendChart(bins, { data, meta }) {
  if (meta.hasMore) return null; // the newest days are not all there
  const groups = Map.groupBy(data, ({ from }) => from);
  const rows = allBins(meta, bins.unit).map((bin) => ({ ...bin, sum: total(groups.get(bin.key) || []) }));
  if (!rows.some(({ sum }) => sum.usage.costUsd > 0)) return null;
  const bars = rows.map(({ sum, ...bin }) => ({
    label: binLabel(bin, bins.unit),
    parts: [{ value: sum.usage.costUsd, css: "spend", text: cost(sum.usage.costUsd) }],
  }));
  const title = titleOf("Spend", bins);
  const columns = [
    { title: bins.unit === "day" ? "Day" : "Hour", cell: (row) => binLabel(row, bins.unit) },
    { title: "Runs", isNumber: true, cell: ({ sum }) => number(sum.runs) },
    { title: "Tokens in", isNumber: true, cell: ({ sum }) => tokens(sum.usage.inputTokens) },
    { title: "Tokens out", isNumber: true, cell: ({ sum }) => tokens(sum.usage.outputTokens) },
    { title: "Spend", isNumber: true, cell: ({ sum }) => cost(sum.usage.costUsd) },
  ];
  const shown = rows.filter(({ sum }) => sum.runs);
  return chartSection(title, bars, columns, shown);
}

/** Return the counts of each workflow by bin. */
function trendsOf(bins, { data, meta }) {
  if (meta.hasMore) return new Map();
  const all = allBins(meta, bins.unit);
  const trends = new Map();
  for (const [workflowId, groups] of Map.groupBy(data, (group) => group.workflowId)) {
    const byBin = new Map(groups.map((group) => [group.from, group]));
    const counts = all.map(({ key }) => {
      const group = byBin.get(key);
      return { total: group?.runs || 0, failed: group ? failures(group) : 0 };
    });
    trends.set(workflowId, { counts, unit: bins.unit });
  }
  return trends;
}

function workflowTable(times, { data, meta }, trends) {
  const parameters = urlParameters(times);
  const covered = coveredTimes(meta);
  const columns = [
    {
      title: "Workflow",
      by: ({ workflowId }) => workflowId || "",
      cell: ({ workflowId }) => workflowLink(workflowId, parameters),
    },
    {
      title: "Runs",
      isNumber: true,
      by: ({ runs }) => runs,
      cell: ({ workflowId, runs }) => listLink(number(runs), { workflowId, ...covered }),
    },
    {
      title: "Spend",
      isNumber: true,
      by: ({ usage }) => usage.costUsd,
      cell: ({ usage }) => (usage.steps ? cost(usage.costUsd) : none()),
    },
    {
      title: "Success",
      isNumber: true,
      by: successRate,
      cell: (group) => [
        percent(successRate(group)),
        failures(group) > 0 && [
          " ",
          h(
            "span",
            { class: "bad wide-only" },
            listLink(`${number(failures(group))} failed`, failedRuns(group, covered)),
          ),
        ],
      ],
    },
    {
      title: "p50",
      isNumber: true,
      css: "wide-only",
      by: ({ durationMs }) => durationMs.p50 ?? null,
      cell: ({ durationMs }) => duration(durationMs.p50),
    },
    {
      title: "p95",
      isNumber: true,
      css: "wide-only",
      by: ({ durationMs }) => durationMs.p95 ?? null,
      cell: ({ durationMs }) => duration(durationMs.p95),
    },
    { title: "Last failure", css: "failure wide-only", by: lastFailureMs, isNumber: false, cell: lastFailure },
    { title: "Trend", css: "wide-only", cell: ({ workflowId }) => trendOf(trends.get(workflowId)) },
  ];
  return sortableTable({ caption: "Workflows", columns, rows: data, sortedBy: 2, limit: SHOWN_WORKFLOWS });
}

function workflowLink(workflowId, parameters) {
  if (workflowId === null) return h("span", { class: "muted" }, "No workflow");
  const page = workflowPage(workflowId, parameters);
  if (!page) return h("span", { class: "name", title: "Browsers cannot open this id." }, isolated(workflowId));
  return h("a", { class: "name", href: page }, isolated(workflowId));
}

/** A link to a list of runs; only its text for runs without a workflow, which no list can be filtered by. */
function listLink(text, parameters) {
  return parameters.workflowId === null ? text : h("a", { href: url("/", parameters) }, text);
}

const failedRuns = ({ workflowId }, covered) => ({ workflowId, status: FAILED_STATUSES, ...covered });

const lastFailureMs = ({ newestFailure }) => (newestFailure ? -Date.parse(newestFailure.time) : null);

function lastFailure({ newestFailure }) {
  if (!newestFailure) return none();
  return [failureLink(newestFailure), failureMessage(newestFailure)];
}

function trendOf(found) {
  if (!found) return none();
  const { counts, unit } = found;
  const most = Math.max(...counts.map(({ total }) => total));
  return trend(counts, `Runs by ${unit}, at most ${number(most)}`);
}

function modelTable(data) {
  const columns = [
    { title: "Model", by: ({ model }) => model, cell: ({ model }) => (model ? isolated(model) : "No model named") },
    ...USAGE_COLUMNS,
  ];
  return sortableTable({ caption: "Models", columns, rows: data, sortedBy: 1, limit: SHOWN_WORKFLOWS });
}

showStats({
  address: (parameters) => url("/workflows", parameters),
  list: (times) => times,
  load,
  sections,
  summary: ({ data }) => counted(data.length, "workflow"),
  notes: ({ data, meta }) => (meta.hasMore ? [`only the ${data.length} workflows with the most runs are shown`] : []),
});
