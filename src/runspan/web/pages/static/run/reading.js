// A document that was read: its text, its index, and searches in it. Large ones are worked on by a worker.

import { worker } from "../api.js";
import { indexRun } from "./document.js";
import { findAll } from "./find.js";

const LARGE = 1 << 20;

/** `text` is the answer as it came, `run` its index. */
class Reading {
  constructor(text, run, clerk = null) {
    this.text = text;
    this.run = run;
    this.clerk = clerk;
  }

  /** Positions of `needle` between two places of the text. */
  async find(start, end, needle) {
    if (!this.clerk || end - start < LARGE) return findAll(this.text, start, end, needle);
    return this.clerk.ask("find", { start, end, needle });
  }

  /** Ends the worker, if there is one. The text stays readable. */
  close() {
    this.clerk?.close();
    this.clerk = null;
  }
}

/** Indexes a text; SyntaxError when it is no answer with a run. */
export async function readRun(text) {
  if (text.length < LARGE) return new Reading(text, indexRun(text));
  const clerk = new Clerk();
  try {
    return new Reading(text, await clerk.ask("index", { text }), clerk);
  } catch (error) {
    clerk.close();
    throw error;
  }
}

/** The page's side of the worker. */
class Clerk {
  constructor() {
    this.worker = worker("run/worker.js");
    this.waiting = new Map();
    this.count = 0;
    this.worker.addEventListener("message", ({ data: { number, result, problem } }) => {
      const { resolve, reject } = this.waiting.get(number);
      this.waiting.delete(number);
      if (problem === undefined) resolve(result);
      else reject(new SyntaxError(problem));
    });
    this.worker.addEventListener("error", () => this.fail("the worker could not be loaded; load the page again"));
  }

  ask(job, given) {
    return new Promise((resolve, reject) => {
      const number = (this.count += 1);
      this.waiting.set(number, { resolve, reject });
      this.worker.postMessage({ number, job, ...given });
    });
  }

  fail(message) {
    for (const { reject } of this.waiting.values()) reject(new Error(message));
    this.waiting.clear();
  }

  close() {
    this.worker.terminate();
    this.fail("no longer wanted");
  }
}
