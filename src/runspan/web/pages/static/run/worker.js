// A worker that keeps one document's text, indexes it and searches in it, so that the page goes on answering.

import { indexRun } from "./document.js";
import { findAll } from "./find.js";

let text = "";

const JOBS = {
  index({ text: given }) {
    text = given;
    return indexRun(text);
  },
  find: ({ start, end, needle }) => findAll(text, start, end, needle),
};

self.addEventListener("message", ({ data: { number, job, ...given } }) => {
  try {
    self.postMessage({ number, result: JOBS[job](given) });
  } catch (error) {
    self.postMessage({ number, problem: String(error.message ?? error) });
  }
});
