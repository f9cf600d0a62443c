// When to ask again: soon while runs are going on, rarely otherwise, never while nobody looks, and later after errors.

import { announce } from "../dom.js";
import { status } from "../format.js";

const RUNNING = 3_000;
const WAITING = 10_000; // suspended runs wait for people
const QUIET = 30_000; // new runs may come
const LONGEST = 60_000;

export class Live {
  /** text, dot, pause: elements. refresh: asks again; it ends in a call of next or failed. */
  constructor({ text, dot, pause, refresh }) {
    Object.assign(this, { text, dot, pause, refresh });
    this.timer = 0;
    this.due = null;
    this.errors = 0;
    this.paused = false;
    this.pause.addEventListener("click", () => this.toggle());
    document.addEventListener("visibilitychange", () => this.onVisibility());
  }

  loading() {
    clearTimeout(this.timer);
    this.say("loading", "Loading…");
  }

  /** These runs are on the screen. */
  next(runs) {
    this.errors = 0;
    const open = runs.map((run) => status(run.status)).filter((one) => !one.ended);
    const busy = open.some((one) => one.key !== "suspended");
    this.going = open.length;
    this.plan(busy ? RUNNING : open.length ? WAITING : QUIET);
  }

  /** The last question went wrong. */
  failed(error) {
    this.errors += 1;
    const wait = Math.min(RUNNING * 2 ** this.errors, LONGEST);
    this.plan(Math.max(wait, (error.retryAfter || 0) * 1000), error.passing ? "" : "Stopped");
  }

  plan(wait, stopped = "") {
    clearTimeout(this.timer);
    this.due = stopped ? null : wait;
    if (this.paused) this.say("paused", "Paused");
    else if (stopped) this.say("failed", stopped);
    else {
      if (this.errors) this.say("failed", `Trying again in ${Math.round(wait / 1000)} s`);
      else if (this.going) this.say("live", `Live · ${this.going} unfinished`);
      else this.say("calm", "Up to date");
      if (!document.hidden) this.timer = setTimeout(() => this.refresh(), wait);
    }
  }

  toggle() {
    this.paused = !this.paused;
    this.pause.setAttribute("aria-pressed", String(this.paused));
    this.pause.textContent = this.paused ? "Resume" : "Pause";
    announce(this.paused ? "Updates are paused" : "Updates go on");
    if (this.paused) {
      clearTimeout(this.timer);
      this.say("paused", "Paused");
    } else this.refresh();
  }

  onVisibility() {
    clearTimeout(this.timer);
    if (!document.hidden && !this.paused && this.due !== null) this.refresh();
  }

  say(state, text) {
    this.dot.dataset.state = state;
    this.text.textContent = text;
  }
}
