// The runs of the same workflow around a run, found by lists of ranges of time.

import { getJson } from "../api.js";
import { parseEpochMs } from "../instants.js";

const HOUR = 3_600_000;
const WIDTHS = [HOUR, 24 * HOUR, 30 * 24 * HOUR, Infinity]; // of the ranges that are searched for the next newer run
const MAX_LISTED = 200;

/**
 * Return the ids of the runs around a run; null for those that there are not.
 *
 * @param {object} run - The result of indexRun().
 * @returns {Promise<{older: string|null, newer: string|null, success: string|null}>} success: the last one before it that
 *   completed.
 */
export async function findNeighbours(run) {
  const started = run.startedAt || run.createdAt;
  if (!run.workflowId || parseEpochMs(started) === null) return { older: null, newer: null, success: null };
  const { workflowId } = run;
  const before = (filters) => list({ workflowId, to: started, limit: 1, ...filters }).then(({ ids }) => ids[0] ?? null);
  const [older, success, newer] = await Promise.all([
    before({}),
    before({ status: "completed" }),
    findNewer(run, workflowId, started),
  ]);
  return { older, newer, success };
}

/** Lists begin with the newest run, so ever wider ranges after the run are searched. */
async function findNewer(run, workflowId, started) {
  for (const width of WIDTHS) {
    const end = width === Infinity ? {} : { to: new Date(parseEpochMs(started) + width).toISOString() };
    const { ids, hasMore } = await list({ workflowId, from: started, limit: MAX_LISTED, ...end });
    const newer = ids.filter((id) => id !== run.id);
    if (newer.length) return hasMore ? null : newer.at(-1);
  }
  return null;
}

async function list(parameters) {
  const { body } = await getJson("/api/v1/runs", parameters);
  return { ids: body.data.map((run) => run.id), hasMore: body.meta.hasMore };
}
