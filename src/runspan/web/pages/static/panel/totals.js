// Tokens and cost of the rows on the screen, asked for a few at a time as they come into view.

import { getJson } from "../api.js";

const AT_ONCE = 10;
const MOST_CHARACTERS = 4_000; // of a URL: proxies refuse long ones
const MOST_KEPT = 2_000;

export class Totals {
  /** onFound(id): the totals of this run are known, or known not to be. */
  constructor(onFound) {
    this.onFound = onFound;
    this.known = new Map(); // id -> {version, totals}; totals is null for a run that cannot be read
    this.wanted = new Map(); // id -> version
    this.asking = false;
  }

  /** {inputTokens, outputTokens, costUsd, steps}, null where there are none to be had, undefined when not known yet. */
  of(id, version) {
    const found = this.known.get(id);
    return found?.version === version ? found.totals : undefined;
  }

  /** What was known of an earlier version of the run: better than nothing while the new one is asked for. */
  last(id) {
    return this.known.get(id)?.totals;
  }

  want(id, version) {
    if (this.of(id, version) !== undefined) return;
    this.wanted.set(id, version);
    if (!this.asking) {
      this.asking = true;
      setTimeout(() => this.ask(), 50);
    }
  }

  forget(id) {
    this.wanted.delete(id);
  }

  async ask() {
    try {
      while (this.wanted.size) await this.askSome();
    } catch {
      this.wanted.clear(); // the list tells what is wrong; the rows are wanted again with the next one
    } finally {
      this.asking = false;
    }
  }

  async askSome() {
    const some = [];
    let room = MOST_CHARACTERS;
    for (const [id, version] of this.wanted) {
      room -= encodeURIComponent(id).length + 5;
      if (some.length && (room < 0 || some.length === AT_ONCE)) break;
      some.push([id, version]);
    }
    const { body } = await getJson("/pages/totals", { run: some.map(([id]) => id) });
    const left = new Set(body.meta.left);
    for (const [id, version] of some) {
      if (left.has(id)) continue;
      if (this.wanted.get(id) === version) this.wanted.delete(id);
      this.known.delete(id);
      this.known.set(id, { version, totals: Object.hasOwn(body.data, id) ? body.data[id] : null });
      if (this.known.size > MOST_KEPT) this.known.delete(this.known.keys().next().value);
      this.onFound(id);
    }
  }
}
