// Entry point of the runs panel: loads the list that the URL describes, shows it and keeps it up to date.

import { getJson, redirectToLogin, url, workflowPage } from "../api.js";
import { announce, h, replace } from "../dom.js";
import { number, status } from "../format.js";
import { isolated } from "../invisible-characters.js";
import { Poller } from "../poll.js";
import { shortcut } from "../shell.js";
import { CompareSelection } from "./compare-selection.js";
import { emptyState, errorState, partialNotice, staleNotice } from "./empty-states.js";
import { FILTER_PARAMETERS, FilterForm, hasFilters } from "./filters.js";
import { RunList } from "./list.js";
import { startedBetween } from "./time-range.js";

const PARAMETERS = [...FILTER_PARAMETERS, "cursor"];
const RUNNING_DELAY = 3_000;
const SUSPENDED_DELAY = 10_000; // suspended runs wait for people
const IDLE_DELAY = 30_000; // new runs may arrive
const MAX_RETRY_DELAY = 60_000;

const byId = (id) => document.getElementById(id);
const { searches } = byId("lookup").dataset; // what this server searches for a text, in words

const selection = new CompareSelection(byId("compare-selected"));
const list = new RunList(byId("list"), selection);
/** The chart, or null without its script, which comes after the list: on a slow line it takes a quarter as long. */
const charts = import("./histogram.js").then(
  ({ Histogram }) =>
    new Histogram(byId("histogram"), {
      onStatus: (value) => navigate({ ...currentFilters(), status: value }),
      onRange: (from, to) => navigate({ ...currentFilters(), ...startedBetween(from, to) }),
    }),
  () => {
    replace(byId("histogram"), h("p", { class: "muted" }, "No chart: its script was not loaded. Load the page again."));
    return null;
  },
);
const form = new FilterForm(byId("filters"), (parameters) => navigate(parameters));
const poller = new Poller(() => load({ isRefresh: true }), { minDelay: RUNNING_DELAY, maxDelay: MAX_RETRY_DELAY });

let loading = null; // AbortController of the request in progress
let shown = null; // {runs, cursor} of the page on the screen

/** The query parameters of the page's URL that the API knows. */
function currentParameters() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(PARAMETERS.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
}

function currentFilters() {
  const { cursor, ...filters } = currentParameters();
  return filters;
}

/** The query parameters of the chart, which is the same however the list is sorted. */
function chartFilters() {
  const { sort, ...filters } = currentFilters();
  return filters;
}

/**
 * Show the list for query parameters, as a new entry of the browser's history.
 *
 * @param {object} parameters - Query parameters.
 * @param {string[]} [newerCursors] - Cursors of the newer pages, from the nearest to the first.
 */
function navigate(parameters, newerCursors = []) {
  const target = url("/", parameters);
  if (target === location.pathname + location.search) return; // Enter in a field fires both change and submit
  history.pushState({ newerCursors }, "", target);
  load();
}

async function load({ isRefresh = false } = {}) {
  loading?.abort();
  const controller = (loading = new AbortController());
  const parameters = currentParameters();
  poller.begin();
  form.show(parameters);
  byId("clear").hidden = !hasFilters(parameters);
  showSearch(parameters.q || "");
  showWorkflowPage(parameters);
  if (!isRefresh || !shown) {
    showLive("loading", "Loading…");
    list.showLoading();
    charts.then((chart) => chart?.load(chartFilters()));
  }
  try {
    const { body } = await getJson("/api/v1/runs", parameters, { signal: controller.signal });
    show(parameters, body, isRefresh);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) return redirectToLogin();
    showError(parameters, error, isRefresh);
  }
}

/** Show the link to the page of the only workflow in the list, for the same time. */
function showWorkflowPage({ workflowId, since, from, to }) {
  const page = workflowId ? workflowPage(workflowId, { since, from, to }) : null;
  byId("workflow-page").hidden = !page;
  if (page) byId("workflow-page").href = page;
}

function show(parameters, { data, meta }, isRefresh) {
  const previous = shown;
  shown = { runs: data, cursor: meta.hasMore ? meta.cursor : null };
  replace(byId("notices"), partialNotice(meta.partial));
  if (data.length) list.show(data, meta.matches, parameters.sort);
  else
    list.showMessage(
      emptyState({
        parameters,
        acceptsRuns: byId("panel").dataset.writes === "yes",
        hasMore: meta.hasMore,
        isPartial: Boolean(meta.partial),
        searches,
        onClear: () => navigate({}),
        onSearchAll: () => navigate({ q: parameters.q }),
      }),
    );
  showPager(parameters);
  const hasChanged = !previous || JSON.stringify(previous.runs) !== JSON.stringify(shown.runs);
  if (isRefresh) charts.then((chart) => chart?.refresh(chartFilters(), hasChanged));
  else announce(data.length ? `${number(data.length)} runs${meta.hasMore ? ", and older ones" : ""}` : "No runs");
  if (previous === null && history.state?.focusedId) list.focus(history.state.focusedId);
  scheduleRefresh(data);
}

function showError(parameters, error, isRefresh) {
  const onRetry = () => load();
  if (isRefresh && shown) replace(byId("notices"), staleNotice(error, onRetry));
  else {
    shown = null;
    replace(byId("notices"));
    byId("pager").hidden = true;
    const onNewest = parameters.cursor ? () => navigate(currentFilters()) : null;
    list.showMessage(errorState(error, { onRetry, onClear: () => navigate({}), onNewest }));
  }
  const delay = poller.fail(error);
  showLive("failed", delay === null ? "Stopped" : `Trying again in ${Math.round(delay / 1000)} s`);
}

function scheduleRefresh(runs) {
  const unfinished = runs.map((run) => status(run.status)).filter(({ isFinal }) => !isFinal);
  const isRunning = unfinished.some(({ key }) => key !== "suspended");
  poller.schedule(isRunning ? RUNNING_DELAY : unfinished.length ? SUSPENDED_DELAY : IDLE_DELAY);
  if (unfinished.length) showLive("live", `Live · ${unfinished.length} unfinished`);
  else showLive("idle", "Up to date");
}

/** Show the state of the automatic refresh. */
function showLive(state, text) {
  const isPaused = poller.isPaused && state !== "loading";
  byId("live").dataset.state = isPaused ? "paused" : state;
  byId("live-text").textContent = isPaused ? "Paused" : text;
}

function togglePaused() {
  const isPaused = !poller.isPaused;
  byId("live-pause").setAttribute("aria-pressed", String(isPaused));
  byId("live-pause").textContent = isPaused ? "Resume" : "Pause";
  announce(isPaused ? "Updates paused" : "Updates resumed");
  poller.setPaused(isPaused);
  if (isPaused) showLive("paused", "Paused");
}

/** Show what is searched for: in the field at the top, and above the list. */
function showSearch(text) {
  const field = byId("lookup-id");
  if (document.activeElement !== field) field.value = text;
  byId("search-note").hidden = !text;
  if (!text) return;
  const clear = h("button", { class: "link-button", type: "button", onclick: clearSearch }, "Clear the search");
  replace(byId("search-note"), "Runs that contain “", isolated(text), `” in ${searches || "their documents"}. `, clear);
}

function clearSearch() {
  const { q, ...filters } = currentFilters();
  navigate(filters);
}

function showPager({ cursor, sort }) {
  const isFirst = !cursor;
  byId("pager").hidden = isFirst && !shown.cursor;
  byId("newest").disabled = isFirst;
  byId("newer").disabled = isFirst;
  byId("older").disabled = !shown.cursor;
  replace(byId("newest"), sort ? "First" : "Newest");
  replace(byId("newer"), sort ? "Previous" : "Newer");
  replace(byId("older"), sort ? "Next" : "Older");
  replace(byId("page-label"), isFirst ? (sort ? "First runs" : "Newest runs") : sort ? "Further runs" : "Older runs");
}

function showOlder() {
  if (!shown?.cursor) return;
  const { cursor } = currentParameters();
  navigate({ ...currentFilters(), cursor: shown.cursor }, [cursor || "", ...(history.state?.newerCursors || [])]);
  scrollTo(0, 0);
}

/** Go back one page. A page opened from a link has no newer cursors and goes to the newest runs. */
function showNewer() {
  if (!currentParameters().cursor) return;
  const [cursor, ...rest] = history.state?.newerCursors || [""];
  navigate({ ...currentFilters(), cursor: cursor || "" }, rest);
  scrollTo(0, 0);
}

const refresh = () => void load({ isRefresh: Boolean(shown) });

byId("older").addEventListener("click", showOlder);
byId("newer").addEventListener("click", showNewer);
byId("newest").addEventListener("click", () => navigate(currentFilters()));
byId("clear").addEventListener("click", () => navigate({}));
byId("refresh").addEventListener("click", refresh);
byId("live-pause").addEventListener("click", togglePaused);
addEventListener("popstate", () => load());
// Remember the focused row for when the user comes back.
addEventListener("pagehide", () => history.replaceState({ ...history.state, focusedId: list.focusedId }, ""));

shortcut("j", "Next run", () => list.moveFocus(1));
shortcut("k", "Previous run", () => list.moveFocus(-1));
shortcut("ArrowDown", "", () => list.isFocused && list.moveFocus(1));
shortcut("ArrowUp", "", () => list.isFocused && list.moveFocus(-1));
shortcut("Enter", "Open the run", () => false);
shortcut("x", "Select the run for comparison", () => list.toggleFocused());
shortcut("c", "Compare the two selected runs", () => selection.open());
shortcut("f", "Go to the filters", () => form.focus());
shortcut("n", "Older runs", showOlder);
shortcut("p", "Newer runs", showNewer);
shortcut("r", "Refresh", refresh);

load();
