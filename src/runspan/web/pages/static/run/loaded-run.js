// A loaded run: the text of the response, its index, and search in the text. A worker handles large texts.

import { startWorker, unreadableResponse } from "../api.js";
import { findAll, indexRun } from "./document.js";

const WORKER_THRESHOLD = 1 << 20; // characters

/** A run that is ready to be shown. */
class LoadedRun {
  /**
   * @param {string} text - The response body.
   * @param {object} run - The result of indexRun().
   * @param {WorkerClient|null} worker - The worker that has the text.
   */
  constructor(text, run, worker = null) {
    Object.assign(this, { text, run, worker });
  }

  /**
   * Return the positions of matches, as findAll() does.
   *
   * @param {number} start - Where to begin.
   * @param {number} end - Where to end.
   * @param {string} needle - The text to find.
   */
  async find(start, end, needle) {
    if (!this.worker || end - start < WORKER_THRESHOLD) return findAll(this.text, start, end, needle);
    return this.worker.call("find", { start, end, needle });
  }

  /** Terminate the worker. The text and the index stay usable. */
  close() {
    this.worker?.close();
    this.worker = null;
  }
}

/**
 * Index the response of GET /api/v1/runs/{id}. Throw an ApiError if it is not such a response.
 *
 * @param {string} text - The response body.
 * @returns {Promise<LoadedRun>} Call its close() when it is no longer needed.
 */
export async function loadRun(text) {
  const worker = text.length < WORKER_THRESHOLD ? null : new WorkerClient();
  try {
    return new LoadedRun(text, worker ? await worker.call("index", { text }) : indexRun(text), worker);
  } catch (error) {
    worker?.close();
    throw unreadableResponse(error.message);
  }
}

/** Calls the functions of worker.js. */
class WorkerClient {
  constructor() {
    this.worker = startWorker("run/worker.js");
    this.pending = new Map();
    this.lastId = 0;
    this.worker.addEventListener("message", ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.pending.get(id);
      this.pending.delete(id);
      if (error === undefined) resolve(result);
      else reject(new Error(error));
    });
    this.worker.addEventListener("error", () => this.rejectAll("the worker could not be loaded; reload the page"));
  }

  call(method, parameters) {
    return new Promise((resolve, reject) => {
      const id = (this.lastId += 1);
      this.pending.set(id, { resolve, reject });
      this.worker.postMessage({ id, method, parameters });
    });
  }

  rejectAll(message) {
    for (const { reject } of this.pending.values()) reject(new Error(message));
    this.pending.clear();
  }

  close() {
    this.worker.terminate();
    this.rejectAll("the run was closed");
  }
}
