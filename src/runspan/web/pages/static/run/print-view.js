// The run on paper: all of its steps with their payloads, as far as there is room.

import { duration, number, status, textSize, time } from "../format.js";
import { h } from "../dom.js";
import { parseEpochMs } from "../instants.js";
import { isolated, textNodes, visible } from "../invisible-characters.js";
import { durationOf } from "./document.js";
import { attemptLabel, errorText, roundLabel, stepTitle } from "./step-labels.js";

const MAX_PAYLOAD = 20_000; // characters of one payload
const MAX_TOTAL = 2_000_000; // characters of all payloads, which are some hundred pages

/** Put the whole run into an element while it is printed. */
export class PrintView {
  /** @param {() => {loaded: object, stats: object}} source - Returns the results of loadRun() and runStats(). */
  constructor(source) {
    this.element = h("div", { class: "print-only" });
    addEventListener("beforeprint", () => this.fill(source()));
    addEventListener("afterprint", () => this.element.replaceChildren());
  }

  fill({ loaded, stats }) {
    const { run } = loaded;
    this.room = MAX_TOTAL;
    this.omitted = 0;
    const sections = [run, ...run.steps].map((item) => this.section(loaded, stats, item));
    const note =
      this.omitted > 0 &&
      h("p", {}, `Payloads that are cut or left out here: ${number(this.omitted)}. The JSON download has them all.`);
    this.element.replaceChildren(...[note, ...sections].filter(Boolean));
  }

  section(loaded, stats, item) {
    const isStep = item !== loaded.run;
    const payloads = item.payloads.filter(({ key, start, end }) => key !== "steps" && !isNull(loaded.text, start, end));
    return h(
      "section",
      {},
      h("h2", {}, isStep ? `${number(item.index + 1)}. ${stepTitle(item)}` : "Run"),
      isStep && h("p", {}, isolated(item.id, { class: "mono" }), ` · ${factsOf(item, stats).join(" · ")}`),
      item.error && h("p", {}, h("strong", {}, errorText(item.error))),
      payloads.map(({ key, start, end }) => [h("h3", {}, visible(key)), this.payload(loaded.text.slice(start, end))]),
    );
  }

  payload(text) {
    const shown = text.slice(0, Math.min(MAX_PAYLOAD, this.room));
    this.room -= shown.length;
    if (shown.length < text.length) this.omitted += 1;
    const rest = shown.length < text.length && h("p", {}, `… ${textSize(text)} in all`);
    return [shown && h("pre", {}, textNodes(shown)), rest];
  }
}

const isNull = (text, start, end) => end - start === 4 && text.startsWith("null", start);

function factsOf(step, stats) {
  const started = parseEpochMs(step.startedAt);
  const ms = durationOf(step);
  return [
    status(step.status).label,
    step.type && visible(step.type),
    roundLabel(step, stats),
    started !== null && `started ${time(started)}`,
    ms !== null && duration(ms),
    attemptLabel(step),
  ].filter(Boolean);
}
