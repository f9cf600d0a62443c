// Runs over time by status: a small chart of stacked bars, with its counts as buttons and as a table.

import { getJson } from "../api.js";
import { h, replace, s } from "../dom.js";
import { number, status, statusIcon } from "../format.js";
import { bin } from "./bins.js";

const ORDER = ["completed", "other", "cancelled", "pending", "running", "suspended", "timed_out", "failed"]; // upwards
const HEIGHT = 72;
const MOST_BARS = 60;
const SHARE = 20; // counting again may take a twentieth of the time between

export class Spread {
  /** onStatus(status): a status was chosen, or "" to drop the choice. */
  constructor(place, { onStatus }) {
    this.place = place;
    this.onStatus = onStatus;
    this.open = false;
    this.asking = null;
    this.rest = 0; // when counting again is cheap enough
    this.late = false; // whether a change waits for that
    let width = 0;
    new ResizeObserver(([entry]) => {
      if (Math.abs(entry.contentRect.width - width) < 4) return;
      width = entry.contentRect.width;
      if (this.data) this.draw();
    }).observe(place);
  }

  /** Counts again if anything changed, now or earlier, and the last count is long enough ago for what it took. */
  refresh(parameters, { changed }) {
    this.late ||= changed;
    if (this.late && performance.now() >= this.rest) this.load(parameters, { quiet: true });
  }

  async load(parameters, { quiet = false } = {}) {
    this.late = false;
    const begun = performance.now();
    this.asking?.abort();
    const mine = (this.asking = new AbortController());
    this.parameters = parameters;
    if (!quiet && !this.data) {
      this.place.hidden = false;
      replace(this.place, h("div", { class: "spread-wait" }, h("span", { class: "skeleton" })));
    }
    const { limit, ...filters } = parameters;
    try {
      const { body } = await getJson("/pages/spread", filters, { signal: mine.signal });
      this.data = { ...body.data, partial: body.meta.partial.length > 0 };
      this.rest = performance.now() + SHARE * (performance.now() - begun);
      fillWorkflows(body.data.workflows);
      this.draw();
    } catch (error) {
      if (error.name === "AbortError" || error.status === 401) return;
      this.data = null;
      this.place.hidden = error.status === 400; // the list says what is wrong with the question
      replace(this.place, h("p", { class: "quiet" }, `No chart: ${error.title}. ${error.todo}`));
    }
  }

  draw() {
    const { data } = this;
    this.place.hidden = data.times.length + data.undated === 0;
    if (this.place.hidden) return;
    const totals = countAll(data);
    const width = Math.max(this.place.clientWidth - 32, 200);
    const bins = bin(data, this.parameters.since, Math.min(MOST_BARS, Math.floor(width / 9)));
    replace(this.place, this.head(totals), bins.bars.length ? this.chart(bins, width) : null, this.table(bins));
  }

  head(totals) {
    const { data } = this;
    const count = data.times.length + data.undated;
    const runs = `${number(count)} ${count === 1 ? "run" : "runs"}`;
    const what = data.partial ? `${runs} of those that were looked at` : data.whole ? runs : `The newest ${runs}`;
    const chosen = this.parameters.status;
    const chips = [...ORDER]
      .reverse()
      .filter((key) => totals.get(key))
      .map((key) => {
        const inside = [
          statusIcon(key, 14),
          h("span", {}, status(key).key === "other" ? "Other" : status(key).label),
          h("b", { class: "numbers" }, number(totals.get(key))),
        ];
        if (key === "other") return h("span", { class: "chip status-other" }, inside);
        const pressed = chosen === key;
        const act = () => this.onStatus(pressed ? "" : key);
        return h(
          "button",
          {
            class: `chip status-${key}`,
            type: "button",
            "aria-pressed": String(pressed),
            title: pressed ? "Show every status" : `Show only these`,
            onclick: act,
          },
          inside,
        );
      });
    return h("div", { class: "spread-head" }, h("h2", {}, what), h("div", { class: "chips" }, chips));
  }

  chart({ bars, step, label, ticks }, width) {
    const most = Math.max(...bars.map((bar) => bar.total), 1);
    const slot = width / bars.length;
    const gap = Math.min(2, slot * 0.2);
    const groups = bars.map((bar, place) => {
      let top = HEIGHT;
      const parts = ORDER.filter((key) => bar.counts.get(key)).map((key) => {
        const tall = Math.max((bar.counts.get(key) / most) * (HEIGHT - 4), 1.5);
        top -= tall;
        const box = { x: place * slot + gap / 2, y: Math.max(top, 0), width: Math.max(slot - gap, 1), height: tall };
        return [
          s("rect", { ...box, class: `bar-part status-${key}` }),
          key === "failed" && s("rect", { ...box, class: "hatch" }),
        ];
      });
      const hover = s("rect", { x: place * slot, y: 0, width: slot, height: HEIGHT, class: "bar-hover" });
      return s("g", {}, s("title", {}, `${label(bar.from)}: ${tell(bar)}`), hover, parts);
    });
    const marks = ticks(Math.max(2, Math.floor(width / 110))).map(({ at, text }) =>
      s("text", { x: at * width, y: HEIGHT + 16, class: "tick", "text-anchor": at > 0.94 ? "end" : "start" }, text),
    );
    const hatch = s(
      "pattern",
      { id: "hatch", width: 4, height: 4, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)" },
      s("line", { x1: 0, y1: 0, x2: 0, y2: 4, class: "hatch-line" }),
    );
    const name = `Runs over time, ${bars.length} bars of ${step}; the same as a table below`;
    return s(
      "svg",
      {
        class: "spread-chart",
        width,
        height: HEIGHT + 22,
        viewBox: `0 0 ${width} ${HEIGHT + 22}`,
        role: "img",
        "aria-label": name,
      },
      s("defs", {}, hatch),
      s("line", { x1: 0, x2: width, y1: HEIGHT + 0.5, y2: HEIGHT + 0.5, class: "axis" }),
      groups,
      marks,
    );
  }

  table({ bars, label }) {
    const keys = [...ORDER].reverse().filter((key) => bars.some((bar) => bar.counts.get(key)));
    const rows = bars.filter((bar) => bar.total).reverse();
    const undated = this.data.undated
      ? h("p", { class: "quiet" }, `${number(this.data.undated)} runs tell no time and are not in the chart.`)
      : null;
    const table = h(
      "table",
      { class: "counts" },
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          h("th", { scope: "col" }, "From"),
          keys.map((key) => h("th", { scope: "col", class: "number" }, key === "other" ? "Other" : status(key).label)),
        ),
      ),
      h(
        "tbody",
        {},
        rows.map((bar) =>
          h(
            "tr",
            {},
            h("th", { scope: "row" }, label(bar.from)),
            keys.map((key) => h("td", { class: "number" }, number(bar.counts.get(key) || 0))),
          ),
        ),
      ),
    );
    const onToggle = (event) => (this.open = event.target.open);
    return h(
      "details",
      { class: "spread-table", open: this.open, ontoggle: onToggle },
      h("summary", {}, "As a table"),
      undated,
      h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Counts" }, table),
    );
  }
}

function tell(bar) {
  const parts = ORDER.filter((key) => bar.counts.get(key)).map(
    (key) => `${number(bar.counts.get(key))} ${key === "other" ? "other" : status(key).label.toLowerCase()}`,
  );
  return parts.reverse().join(", ") || "no runs";
}

function countAll({ names, statuses }) {
  const totals = new Map();
  for (const index of statuses) totals.set(names[index], (totals.get(names[index]) || 0) + 1);
  return totals;
}

function fillWorkflows(workflows) {
  const place = document.getElementById("workflows");
  if (place)
    replace(
      place,
      workflows.map((value) => h("option", { value })),
    );
}
