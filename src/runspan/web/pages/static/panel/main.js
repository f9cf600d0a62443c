// The runs panel: what the URL asks for, shown, and kept up to date.

import { getJson, toLogin, url } from "../api.js";
import { announce, h, replace } from "../dom.js";
import { number } from "../format.js";
import { shortcut } from "../shell.js";
import { filters } from "./filters.js";
import { RunList } from "./list.js";
import { Live } from "./live.js";
import { Picks } from "./picks.js";
import { Spread } from "./spread.js";
import { empty, failure, missing, stale } from "./states.js";

const PARAMETERS = ["workflowId", "status", "since", "stuckAfter", "limit", "cursor"];
const byId = (id) => document.getElementById(id);

const panel = byId("panel");
const list = new RunList(byId("list"), { onPick: () => picks.show() });
const picks = new Picks(byId("compare-picked"), list);
const spread = new Spread(byId("spread"), { onStatus: (status) => go({ ...filtersOnly(), status }) });
const live = new Live({
  text: byId("live-text"),
  dot: byId("live"),
  pause: byId("live-pause"),
  refresh: () => load({ quiet: true }),
});
const form = filters(byId("filters"), { onChange: go });

let loading = null;
let shown = null; // the page that is on the screen: {asked, runs, cursor}

/** The API's own parameters, as the URL has them. */
function asked() {
  const query = new URLSearchParams(location.search);
  return Object.fromEntries(PARAMETERS.filter((name) => query.get(name)).map((name) => [name, query.get(name)]));
}

function filtersOnly() {
  const { cursor, ...rest } = asked();
  return rest;
}

/** Goes to the list of these parameters. newer: the cursors of the pages before it, newest first. */
function go(parameters, newer = []) {
  const target = url("/", parameters);
  if (target === location.pathname + location.search) return; // Enter in a field is a change and a submission
  history.pushState({ newer }, "", target);
  load();
}

async function load({ quiet = false } = {}) {
  loading?.abort();
  const mine = (loading = new AbortController());
  const parameters = asked();
  form.show(parameters);
  byId("clear").hidden = !["workflowId", "status", "since", "stuckAfter"].some((name) => parameters[name]);
  if (!quiet || !shown) {
    live.loading();
    list.wait();
    spread.load(filtersOnly());
  }
  try {
    const { body } = await getJson("/api/v1/runs", parameters, { signal: mine.signal });
    show(parameters, body, quiet);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (error.status === 401) return toLogin();
    fail(parameters, error, quiet);
  }
}

function show(parameters, { data, meta }, quiet) {
  const before = shown;
  shown = { asked: parameters, runs: data, cursor: meta.hasMore ? meta.cursor : null };
  replace(byId("notices"), missing(meta.partial));
  if (data.length) list.show(data);
  else list.say(nothing(parameters, meta));
  showPager(parameters);
  picks.show();
  if (quiet) spread.refresh(filtersOnly(), { changed: changed(before, shown) });
  else announce(data.length ? `${number(data.length)} runs${meta.hasMore ? ", and older ones" : ""}` : "No runs");
  if (before === null && history.state?.at) list.focus(history.state.at);
  live.next(data);
}

function nothing(parameters, meta) {
  const writes = panel.dataset.writes === "yes";
  return empty({ parameters, writes, more: meta.hasMore, partial: Boolean(meta.partial), clear: () => go({}) });
}

function fail(parameters, error, quiet) {
  const again = () => load();
  if (quiet && shown) replace(byId("notices"), stale(error, again));
  else {
    shown = null;
    replace(byId("notices"));
    byId("pager").hidden = true;
    list.say(failure(error, { again, clear: () => go({}), cursor: parameters.cursor && (() => go(filtersOnly())) }));
  }
  live.failed(error);
}

function changed(before, after) {
  return !before || JSON.stringify(before.runs) !== JSON.stringify(after.runs);
}

function showPager({ cursor }) {
  const first = !cursor;
  byId("pager").hidden = first && !shown.cursor;
  byId("newest").disabled = first;
  byId("newer").disabled = first;
  byId("older").disabled = !shown.cursor;
  replace(byId("page-about"), first ? "Newest runs" : "Older runs");
}

function older() {
  if (!shown?.cursor) return;
  const { cursor } = asked();
  go({ ...filtersOnly(), cursor: shown.cursor }, [cursor || "", ...(history.state?.newer || [])]);
  scrollTo(0, 0);
}

/** One page back; a page that was opened from a link does not know it, and goes to the newest. */
function newer() {
  if (!asked().cursor) return;
  const [cursor, ...rest] = history.state?.newer || [""];
  go({ ...filtersOnly(), cursor: cursor || "" }, rest);
  scrollTo(0, 0);
}

byId("older").addEventListener("click", older);
byId("newer").addEventListener("click", newer);
byId("newest").addEventListener("click", () => go(filtersOnly()));
byId("clear").addEventListener("click", () => go({}));
byId("refresh").addEventListener("click", () => load({ quiet: Boolean(shown) }));
addEventListener("popstate", () => load());
addEventListener("pagehide", () => history.replaceState({ ...history.state, at: list.focused }, "")); // to come back to

shortcut("j", "Next run", () => list.move(1));
shortcut("k", "Previous run", () => list.move(-1));
shortcut("ArrowDown", "", () => list.isFocused && list.move(1));
shortcut("ArrowUp", "", () => list.isFocused && list.move(-1));
shortcut("Enter", "Open the run", () => false);
shortcut("x", "Pick the run to compare it", () => list.toggle());
shortcut("c", "Compare the two picked runs", () => picks.open());
shortcut("f", "Filter", () => form.focus());
shortcut("n", "Older runs", older);
shortcut("p", "Newer runs", newer);
shortcut("r", "Refresh", () => void load({ quiet: Boolean(shown) }));

load();
