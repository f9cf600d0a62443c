// Loads statistics, and derives what the pages show of them.

import { getJson } from "../api.js";
import { number } from "../format.js";

const TIME_ZONE = Intl.DateTimeFormat().resolvedOptions().timeZone || "UTC";
const FAILURES = ["failed", "timed_out"];

/** The status parameter of the list of runs that has the runs which statistics count as failed. */
export const FAILED_STATUSES = FAILURES.join(",");

/**
 * Load groups of statistics.
 *
 * @param {object} times - Query parameters of the time: since, from, to.
 * @param {string} groupBy - Parameter of the API.
 * @param {{workflowId?: string, limit?: number, signal?: AbortSignal}} [options]
 * @returns {Promise<{data: object[], meta: object}>} The body of GET /api/v1/stats.
 */
export async function loadStats({ since, from, to }, groupBy, { workflowId, limit, signal } = {}) {
  const parameters = { groupBy, from: from || since, to, workflowId, limit, timeZone: TIME_ZONE };
  const { body } = await getJson("/api/v1/stats", parameters, { signal });
  return body;
}

/**
 * Return how many runs of a group failed or timed out.
 *
 * @param {{statuses: object}} group
 */
export function failures({ statuses }) {
  return FAILURES.reduce((sum, status) => sum + (statuses[status] || 0), 0);
}

/**
 * Return the share of the runs that completed, of those that completed, failed or timed out; null without any.
 *
 * @param {{statuses: object}} group
 */
export function successRate(group) {
  const completed = group.statuses.completed || 0;
  const decided = completed + failures(group);
  return decided ? completed / decided : null;
}

/**
 * Format a share: 100 %, 97.3 %. Only all of the runs are 100 %, and only none 0 %.
 *
 * @param {number|null} share - From 0 to 1.
 */
export function percent(share) {
  if (share === null) return "–";
  const value = share * 100;
  const shown = value === 0 || value === 100 ? value : Math.min(Math.max(value, 0.1), 99.9).toFixed(1);
  return `${shown} %`;
}

/**
 * Return the groups by workflow id added up, as one group without percentiles.
 *
 * @param {object[]} groups - Of whole runs.
 */
export function total(groups) {
  const statuses = {};
  const usage = { steps: 0, inputTokens: 0, outputTokens: 0, costUsd: 0 };
  for (const group of groups) {
    for (const [name, count] of Object.entries(group.statuses)) statuses[name] = (statuses[name] || 0) + count;
    for (const name of Object.keys(usage)) usage[name] += group.usage[name];
  }
  return { runs: groups.reduce((sum, { runs }) => sum + runs, 0), statuses, usage };
}

/**
 * Format a count with its noun: "1 run", "2 runs".
 *
 * @param {number} count
 * @param {string} noun - In the singular.
 */
export function counted(count, noun) {
  return `${number(count)} ${noun}${count === 1 ? "" : "s"}`;
}
