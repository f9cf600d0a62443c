// Worker that keeps the text of one run, indexes it and searches in it, so that large texts do not block the page.

import { findAll, indexRun } from "./document.js";

let text = "";

const METHODS = {
  index(parameters) {
    text = parameters.text;
    return indexRun(text);
  },
  find: ({ start, end, needle }) => findAll(text, start, end, needle),
};

self.addEventListener("message", ({ data: { id, method, parameters } }) => {
  try {
    self.postMessage({ id, result: METHODS[method](parameters) });
  } catch (error) {
    self.postMessage({ id, error: String(error.message ?? error) });
  }
});
