// The state of the page in the fragment of its URL: view, selected step and payload tab, so that links restore it.

const VIEWS = ["canvas", "timeline"];

/**
 * Parse a fragment. Invalid values are replaced by defaults.
 *
 * @param {string} fragment - location.hash.
 * @returns {{view: string, step: string|null, execution: number, tab: string|null}} step: a step id. execution: which
 *   execution of that step, counted from 1. tab: key of the payload tab.
 */
export function parseUrlState(fragment) {
  const query = new URLSearchParams(fragment.replace(/^#/, ""));
  const execution = Number(query.get("execution"));
  return {
    view: VIEWS.includes(query.get("view")) ? query.get("view") : "canvas",
    step: query.get("step"),
    execution: Number.isSafeInteger(execution) && execution > 0 ? execution : 1,
    tab: query.get("tab"),
  };
}

/**
 * Return the fragment of a state, "" for the default state.
 *
 * @param {{view: string, step: string|null, execution: number, tab: string|null}} state - As from parseUrlState().
 */
export function formatUrlState({ view, step, execution, tab }) {
  const query = new URLSearchParams();
  if (view !== "canvas") query.set("view", view);
  if (step !== null) {
    query.set("step", step);
    if (execution > 1) query.set("execution", String(execution));
  }
  if (tab !== null) query.set("tab", tab);
  const text = query.toString();
  return text && `#${text}`;
}

/** The state in the address bar. */
export class UrlState {
  /**
   * @param {() => void} onNavigate - Called when the user changes the state by navigating: back, forward or a new URL.
   */
  constructor(onNavigate) {
    this.value = parseUrlState(location.hash);
    window.addEventListener("hashchange", () => {
      this.value = parseUrlState(location.hash);
      onNavigate();
    });
  }

  /**
   * Change parts of the state without adding an entry to the browser's history.
   *
   * @param {object} changes - The parts to change.
   */
  set(changes) {
    this.value = { ...this.value, ...changes };
    history.replaceState(history.state, "", this.address);
  }

  /**
   * Change parts of the state as a new entry of the browser's history, so that Back undoes it.
   *
   * @param {object} changes - The parts to change.
   */
  open(changes) {
    this.value = { ...this.value, ...changes };
    history.pushState({ ...history.state, isOpened: true }, "", this.address);
  }

  /**
   * Undo open(), and change parts of the state.
   *
   * @param {object} changes - The parts to change.
   */
  close(changes) {
    const { view } = this.value;
    this.value = { ...this.value, ...changes };
    if (!history.state?.isOpened) return this.set({});
    // The entry below may have another view.
    addEventListener("popstate", () => this.set({ ...changes, view }), { once: true });
    history.back();
  }

  get address() {
    return formatUrlState(this.value) || location.pathname + location.search;
  }
}
