// What the pages of statistics share: the time filter, loading, and what is there without any runs.

import { announce, replace } from "../dom.js";
import { partialNotice } from "../panel/empty-states.js";
import { shortcut } from "../shell.js";
import { chooseBins } from "./bins.js";
import { coverage, emptyState, errorState, loadingState } from "./states.js";
import { TimeFilter, currentTimes, urlParameters } from "./time-filter.js";

const byId = (id) => document.getElementById(id);

/**
 * Show a page, and load it again when the time is changed.
 *
 * @param {object} page
 * @param {(parameters: object) => string} page.address - Returns the path of the page with these query parameters.
 * @param {(times: object) => object} page.list - Returns the parameters of the list of the runs that are counted.
 * @param {(times: object, bins: object, signal: AbortSignal) => Promise<object>[]} page.load - Loads groups; the
 *   page has no runs if the first have none.
 * @param {(groups: object[], times: object, bins: object) => (Node|false|null)[]} page.sections - Shows the groups.
 * @param {(groups: object) => string} page.summary - Returns what is announced of the first groups.
 * @param {(groups: object) => string[]} [page.notes] - Returns what is left out of the first groups.
 */
export function showStats({ address, list, load, sections, summary, notes = () => [] }) {
  const filter = new TimeFilter(byId("filters"), navigate);
  const content = byId("stats");
  let loading = null; // AbortController of the requests in progress

  function navigate(times) {
    const target = address(urlParameters(times));
    if (target === location.pathname + location.search) return;
    history.pushState(null, "", target);
    reload();
  }

  async function reload() {
    loading?.abort();
    const { signal } = (loading = new AbortController());
    const times = currentTimes();
    filter.show(times);
    if (content.querySelector(".tiles")) content.classList.add("loading");
    else replace(content, loadingState());
    const bins = chooseBins(times, new Date());
    try {
      show(await Promise.all(load(times, bins, signal)), times, bins);
    } catch (error) {
      if (error.name === "AbortError") return;
      replace(byId("notices"));
      byId("coverage").textContent = "";
      replace(content, errorState(error, { listParameters: list(times), onRetry: reload }));
    }
    content.classList.remove("loading");
  }

  function show(groups, times, bins) {
    const [{ data, meta }] = groups;
    replace(byId("notices"), partialNotice([...(meta.partial || []), ...notes(groups[0])]));
    byId("coverage").textContent = coverage(meta);
    if (data.length) {
      replace(content, sections(groups, times, bins));
      announce(summary(groups[0]));
    } else {
      const isAny = !Object.keys(times).length;
      replace(content, emptyState({ onAny: isAny ? null : () => navigate({}) }));
      announce("No runs");
    }
  }

  byId("refresh").addEventListener("click", reload);
  addEventListener("popstate", reload);
  shortcut("r", "Refresh", reload);
  shortcut("f", "Go to the time filter", () => filter.focus());
  reload();
}
