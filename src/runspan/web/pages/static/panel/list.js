// The list of runs: rows that stay in place while what they show changes, so that focus and reading are kept.

import { runPage, url } from "../api.js";
import { h, isolated, replace, visible } from "../dom.js";
import { ago, cost, duration, instant, status, statusBadge, timeElement, tokens, utc } from "../format.js";
import { Totals } from "./totals.js";

const COLUMNS = ["Status", "Workflow", "Run", "Started", "Duration", "Tokens", "Cost"];
const NUMBERS = new Set(["Duration", "Tokens", "Cost"]);
const PICKED = "runspan.picked";

export class RunList {
  /** onPick: the picked runs changed. */
  constructor(place, { onPick }) {
    this.place = place;
    this.onPick = onPick;
    this.rows = new Map();
    this.totals = new Totals((id) => this.fillTotals(this.rows.get(id)));
    this.picked = readPicked();
    this.seen = new IntersectionObserver((entries) => this.onSeen(entries), { rootMargin: "200px" });
    setInterval(() => this.tick(), 1000);
  }

  /** Shows these summaries. */
  show(runs) {
    if (!this.body) this.begin();
    this.place.classList.remove("waiting");
    const kept = new Set(runs.map((run) => run.id));
    for (const [id, row] of this.rows) {
      if (kept.has(id)) continue;
      this.seen.unobserve(row.element);
      this.totals.forget(id);
      this.rows.delete(id);
      row.element.remove();
    }
    let after = null;
    for (const run of runs) {
      const row = this.rows.get(run.id) || this.add(run);
      this.fill(row, run);
      const next = after ? after.nextSibling : this.body.firstChild;
      if (next !== row.element) this.body.insertBefore(row.element, next);
      after = row.element;
    }
  }

  /** Shows an element in place of the list. */
  say(element) {
    this.clear();
    replace(this.place, element);
  }

  /** Shows that the list is on its way. */
  wait() {
    if (this.body) this.place.classList.add("waiting");
    else replace(this.place, skeleton());
  }

  get isFocused() {
    return this.place.contains(document.activeElement);
  }

  /** The id of the run whose row has the focus, or null. */
  get focused() {
    return this.isFocused ? (document.activeElement.closest("tbody tr")?.dataset.run ?? null) : null;
  }

  /** Puts the focus on a run's row, if it is in the list. */
  focus(id) {
    const link = this.rows.get(id)?.element.querySelector(".row-link");
    link?.focus({ preventScroll: true });
    link?.closest("tr").scrollIntoView({ block: "center" });
  }

  /** Puts the focus so many rows further. */
  move(by) {
    const links = [...this.place.querySelectorAll("tbody .row-link")];
    if (!links.length) return false;
    const here = links.indexOf(document.activeElement?.closest("tr")?.querySelector(".row-link"));
    const next = here < 0 ? (by > 0 ? 0 : links.length - 1) : Math.min(Math.max(here + by, 0), links.length - 1);
    links[next].focus();
    links[next].closest("tr").scrollIntoView({ block: "nearest" });
    return true;
  }

  /** Picks the focused row for a comparison, or drops it. */
  toggle() {
    const box = document.activeElement?.closest("tbody tr")?.querySelector("input");
    if (!box) return false;
    box.click();
    return true;
  }

  begin() {
    this.body = h("tbody", { role: "rowgroup" });
    const head = COLUMNS.map((name) =>
      h("th", { scope: "col", role: "columnheader", class: NUMBERS.has(name) ? "number" : null }, name),
    );
    const pick = h(
      "th",
      { scope: "col", role: "columnheader", class: "pick" },
      h("span", { class: "unseen" }, "Compare"),
    );
    const table = h(
      "table",
      { class: "runs", role: "table" },
      h("caption", { class: "unseen" }, "Runs, newest first"),
      h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, pick, head)),
      this.body,
    );
    replace(this.place, table);
  }

  clear() {
    for (const row of this.rows.values()) this.seen.unobserve(row.element);
    this.rows.clear();
    this.body = null;
    this.place.classList.remove("waiting");
  }

  add(run) {
    const cells = Object.fromEntries(
      COLUMNS.map((name) => [
        name,
        h("td", { role: "cell", class: `cell-${name.toLowerCase()}${NUMBERS.has(name) ? " number" : ""}` }),
      ]),
    );
    const box = h("input", {
      type: "checkbox",
      "aria-label": `Compare run ${visible(run.id)}`,
      onchange: () => this.pick(run.id, box.checked),
    });
    box.checked = this.picked.includes(run.id);
    const element = h(
      "tr",
      { role: "row", dataset: { run: run.id } },
      h("td", { role: "cell", class: "pick" }, box),
      COLUMNS.map((name) => cells[name]),
    );
    const row = { element, cells, box, text: "" };
    this.rows.set(run.id, row);
    this.seen.observe(element);
    return row;
  }

  fill(row, run) {
    const text = JSON.stringify(run);
    if (row.text === text) return;
    const hadFocus = row.element.contains(document.activeElement) && document.activeElement !== row.box;
    Object.assign(row, { text, run, begun: instant(run.startedAt) });
    const { cells } = row;
    replace(cells.Status, statusBadge(run.status));
    replace(cells.Workflow, workflowOf(run));
    replace(cells.Run, linkTo(run), run.error ? faultOf(run.error) : null);
    replace(cells.Started, startedOf(run));
    this.fillDuration(row);
    this.fillTotals(row);
    if (row.inView) this.totals.want(run.id, row.text);
    if (hadFocus) row.element.querySelector(".row-link")?.focus({ preventScroll: true });
  }

  fillDuration({ run, begun, cells }) {
    const ended = instant(run.completedAt);
    const known =
      typeof run.durationMs === "number" ? run.durationMs : begun !== null && ended !== null ? ended - begun : null;
    if (known !== null) replace(cells.Duration, duration(known));
    else if (begun !== null && !status(run.status).ended)
      replace(
        cells.Duration,
        h("span", { class: "so-far", title: "So far" }, duration(Math.max(0, Date.now() - begun))),
      );
    else replace(cells.Duration, h("span", { class: "quiet" }, "–"));
  }

  fillTotals(row) {
    if (!row) return;
    const { run, cells, text } = row;
    const found = this.totals.of(run.id, text);
    const shown = found === undefined ? this.totals.last(run.id) : found;
    if (shown === undefined) {
      replace(cells.Tokens, h("span", { class: "skeleton short" }));
      replace(cells.Cost, h("span", { class: "skeleton short" }));
      return;
    }
    const none = h("span", { class: "quiet" }, "–");
    const { inputTokens: input, outputTokens: output, costUsd } = shown || {};
    const sum = input === undefined ? null : input + output;
    replace(
      cells.Tokens,
      sum === null ? none : h("span", { title: `${tokens(input)} in, ${tokens(output)} out` }, tokens(sum)),
    );
    replace(cells.Cost, costUsd === undefined ? none.cloneNode(true) : cost(costUsd));
  }

  onSeen(entries) {
    for (const { target, isIntersecting } of entries) {
      const row = this.rows.get(target.dataset.run);
      if (!row) continue;
      row.inView = isIntersecting;
      if (isIntersecting && row.run) this.totals.want(row.run.id, row.text);
      else this.totals.forget(target.dataset.run);
    }
  }

  tick() {
    if (document.hidden) return;
    const now = Date.now();
    for (const row of this.rows.values()) {
      if (!row.inView || row.begun === null) continue;
      if (!status(row.run.status).ended) this.fillDuration(row);
      const place = row.cells.Started.querySelector(".ago");
      const text = ago(row.begun, now);
      if (place && place.textContent !== text) place.textContent = text;
    }
  }

  pick(id, isPicked) {
    const others = this.picked.filter((other) => other !== id);
    this.picked = isPicked ? [id, ...others].slice(0, 2) : others;
    for (const [other, row] of this.rows) row.box.checked = this.picked.includes(other);
    try {
      sessionStorage.setItem(PICKED, JSON.stringify(this.picked));
    } catch {
      // Without storage the picks last as long as the page.
    }
    this.onPick();
  }
}

function readPicked() {
  try {
    const found = JSON.parse(sessionStorage.getItem(PICKED) || "[]");
    return Array.isArray(found) ? found.filter((id) => typeof id === "string").slice(0, 2) : [];
  } catch {
    return [];
  }
}

function workflowOf(run) {
  if (run.workflowId === undefined || run.workflowId === null) return h("span", { class: "quiet" }, "–");
  const text = typeof run.workflowId === "string" ? run.workflowId : JSON.stringify(run.workflowId);
  const trigger =
    typeof run.triggerType === "string" ? h("span", { class: "trigger" }, isolated(run.triggerType)) : null;
  const here = new URLSearchParams(location.search);
  const target = url("/", { workflowId: text, status: here.get("status"), since: here.get("since") });
  return [h("a", { class: "workflow", href: target, title: "Only runs of this workflow" }, isolated(text)), trigger];
}

function linkTo(run) {
  const page = runPage(run.id);
  if (page) return h("a", { class: "row-link mono", href: page }, isolated(run.id));
  return h("span", { class: "mono", title: "A browser cannot ask for this id. Use: runspan get" }, isolated(run.id));
}

function faultOf(error) {
  const told = typeof error === "string" ? error : error.message || error.code;
  const text = typeof told === "string" && told ? told : JSON.stringify(error);
  return h("div", { class: "fault", title: visible(text).slice(0, 500) }, isolated(text.slice(0, 200)));
}

function startedOf(run) {
  const own = run.startedAt ?? run.createdAt;
  const ms = instant(own);
  if (ms === null) return timeElement(own);
  return h("div", { title: utc(ms, own) }, timeElement(own), " ", h("span", { class: "quiet ago" }, ago(ms)));
}

function skeleton() {
  const row = () =>
    h(
      "div",
      { class: "skeleton-row" },
      ["6rem", "10rem", "14rem", "7rem", "4rem"].map((width) => h("span", { class: "skeleton", dataset: { width } })),
    );
  return h(
    "div",
    { class: "skeleton-list", "aria-busy": "true" },
    h("span", { class: "unseen" }, "Loading"),
    Array.from({ length: 8 }, row),
  );
}
