// Loads the tokens and cost of the rows that are in view, a few runs per request.

import { getJson } from "../api.js";

const BATCH_SIZE = 10;
const BATCH_DELAY_MS = 50;
const MAX_URL_CHARACTERS = 4_000; // proxies reject longer URLs
const MAX_CACHED = 2_000;

/** A cache of totals by run. A run's version is any text that changes with the run. */
export class Totals {
  /**
   * @param {(id: string) => void} onLoaded - Called when the totals of a run are in the cache.
   */
  constructor(onLoaded) {
    this.onLoaded = onLoaded;
    this.cache = new Map(); // id -> {version, totals}
    this.pending = new Map(); // id -> version
    this.isLoading = false;
  }

  /**
   * Return {inputTokens, outputTokens, costUsd, steps} of a run, null if the run cannot be read, or undefined if this
   * version is not loaded yet.
   *
   * @param {string} id - Run id.
   * @param {string} version - Version of the run.
   */
  get(id, version) {
    const entry = this.cache.get(id);
    return entry?.version === version ? entry.totals : undefined;
  }

  /**
   * Return the totals of the last loaded version of a run, to show while the current version loads.
   *
   * @param {string} id - Run id.
   */
  getAnyVersion(id) {
    return this.cache.get(id)?.totals;
  }

  /**
   * Load the totals of a run unless they are cached.
   *
   * @param {string} id - Run id.
   * @param {string} version - Version of the run.
   */
  request(id, version) {
    if (this.get(id, version) !== undefined) return;
    this.pending.set(id, version);
    if (!this.isLoading) {
      this.isLoading = true;
      setTimeout(() => this.load(), BATCH_DELAY_MS);
    }
  }

  /**
   * Cancel the request for a run.
   *
   * @param {string} id - Run id.
   */
  cancel(id) {
    this.pending.delete(id);
  }

  async load() {
    try {
      while (this.pending.size) await this.loadBatch();
    } catch {
      this.pending.clear(); // the list reports the error, and its next refresh requests the totals again
    } finally {
      this.isLoading = false;
    }
  }

  async loadBatch() {
    const batch = [];
    let room = MAX_URL_CHARACTERS;
    for (const [id, version] of this.pending) {
      room -= encodeURIComponent(id).length + 5;
      if (batch.length && (room < 0 || batch.length === BATCH_SIZE)) break;
      batch.push([id, version]);
    }
    const { body } = await getJson("/pages/totals", { run: batch.map(([id]) => id) });
    const left = new Set(body.meta.left); // the server ran out of time for these
    for (const [id, version] of batch) {
      if (left.has(id)) continue;
      if (this.pending.get(id) === version) this.pending.delete(id);
      this.cache.delete(id);
      this.cache.set(id, { version, totals: Object.hasOwn(body.data, id) ? body.data[id] : null });
      if (this.cache.size > MAX_CACHED) this.cache.delete(this.cache.keys().next().value);
      this.onLoaded(id);
    }
  }
}
