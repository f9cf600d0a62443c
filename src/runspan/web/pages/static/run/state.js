// What the page shows, as the part of its address after "#": the view, the selected step, the payload, all shareable.

const VIEWS = ["canvas", "timeline"];

/** {view, step, round, tab} from an address's "#…"; `step` is a step id or null, `round` its execution from 1. */
export function readState(hash) {
  const query = new URLSearchParams(hash.replace(/^#/, ""));
  const round = Number(query.get("round"));
  return {
    view: VIEWS.includes(query.get("view")) ? query.get("view") : "canvas",
    step: query.get("step"),
    round: Number.isSafeInteger(round) && round > 0 ? round : 1,
    tab: query.get("tab"),
  };
}

/** The "#…" of a state, "" for the page as it opens. */
export function writeState({ view, step, round, tab }) {
  const query = new URLSearchParams();
  if (view !== "canvas") query.set("view", view);
  if (step !== null) {
    query.set("step", step);
    if (round > 1) query.set("round", String(round));
  }
  if (tab !== null) query.set("tab", tab);
  const text = query.toString();
  return text && `#${text}`;
}

/** The state in the address bar. `listener` hears of what the browser changes in it: back, forward, a typed address. */
export class AddressState {
  constructor(listener) {
    this.value = readState(location.hash);
    window.addEventListener("hashchange", () => {
      this.value = readState(location.hash);
      listener(this.value);
    });
  }

  /** Changes some of it, without an entry of its own in the browser's history. */
  set(changes) {
    this.value = { ...this.value, ...changes };
    history.replaceState(history.state, "", writeState(this.value) || location.pathname + location.search);
  }
}
