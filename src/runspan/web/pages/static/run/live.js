// Follows a run to its end: asks again and again, politely, and only while somebody looks.

import { getText, runApi, toLogin } from "../api.js";

const SOONEST = 2_000;
const LATEST = 20_000;
const SHARE = 10;

/**
 * Asks for the run `id` until `isEnded()`. `changed(answer)` gets each answer, {text, incomplete}, and `trouble(error)`
 * an ApiError, or null when it is over. Waits longer the longer nothing changes, and ten times as long as an answer
 * took.
 */
export class Follower {
  constructor({ id, isEnded, changed, trouble }) {
    Object.assign(this, { id, isEnded, changed, trouble, wait: SOONEST, timer: 0, last: "", isAsking: false });
    document.addEventListener("visibilitychange", () => this.plan(document.hidden ? null : 0));
    window.addEventListener("online", () => this.plan(0));
  }

  /** Goes on from an answer that is shown already. */
  start(text) {
    this.last = text;
    this.plan(this.wait);
  }

  plan(wait) {
    clearTimeout(this.timer);
    this.timer = 0;
    if (wait === null || document.hidden || this.isAsking || this.isEnded()) return;
    this.timer = setTimeout(() => this.ask(), wait);
  }

  async ask() {
    this.isAsking = true;
    const begun = performance.now();
    try {
      const answer = await getText(runApi(this.id));
      this.trouble(null);
      const isNew = answer.text !== this.last;
      this.wait = isNew ? SOONEST : Math.min(this.wait * 1.4, LATEST);
      this.wait = Math.max(this.wait, (performance.now() - begun) * SHARE);
      this.last = answer.text;
      if (isNew) await this.changed(answer);
    } catch (error) {
      if (error.status === 401) return toLogin();
      this.wait = Math.max((error.retryAfter ?? 0) * 1000, Math.min(this.wait * 2, LATEST));
      this.trouble(error);
      if (error.passing === false && error.status !== 404) return;
    } finally {
      this.isAsking = false;
    }
    this.plan(this.wait);
  }
}
