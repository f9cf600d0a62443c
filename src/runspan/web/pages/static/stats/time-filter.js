// The time filter of the pages with statistics: the form, the page's URL, and the API's parameters.

import { TIME_PARAMETERS, readTimes, timeParameters } from "../panel/time-range.js";

const DEFAULT_TIMES = { since: "7d" };
const ANY = "any"; // value of the URL's parameter "time", for no bounds at all

/** The query parameters of the page's URL: of the time, as in the list of runs. {} for any time. */
export function currentTimes() {
  const query = new URLSearchParams(location.search);
  const times = Object.fromEntries(
    TIME_PARAMETERS.filter((name) => query.get(name)).map((name) => [name, query.get(name)]),
  );
  return Object.keys(times).length || query.get("time") === ANY ? times : DEFAULT_TIMES;
}

/**
 * Return the parameters of a page's URL for a time.
 *
 * @param {object} times - As currentTimes() returns them.
 */
export function urlParameters(times) {
  return TIME_PARAMETERS.some((name) => times[name]) ? times : { time: ANY };
}

/** Binds the form to times. */
export class TimeFilter {
  /**
   * @param {HTMLFormElement} form - The form.
   * @param {(times: object) => void} onChange - Called with what currentTimes() then shall return.
   */
  constructor(form, onChange) {
    Object.assign(this, { fields: form.elements, onChange });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply();
    });
    for (const name of ["time", "from", "to"]) this.fields[name].addEventListener("change", () => this.change(name));
  }

  /**
   * Show times in the form. A duration without an option gets one, because a shared URL may contain any.
   *
   * @param {object} times - As currentTimes() returns them.
   */
  show(times) {
    const { choice, from, to } = readTimes(times, new Date());
    const { time } = this.fields;
    if (![...time.options].some(({ value }) => value === choice)) time.add(new Option(`Last ${choice}`, choice));
    time.value = choice;
    this.fields.from.value = from;
    this.fields.to.value = to;
    this.showFields();
  }

  /** Move the focus to the form. */
  focus() {
    this.fields.time.focus();
  }

  change(name) {
    const { time, from, to } = this.fields;
    this.showFields();
    if (name === "time" && time.value === "range" && !from.value && !to.value) from.focus();
    else this.apply();
  }

  showFields() {
    const { time, from, to } = this.fields;
    for (const field of [from, to]) field.closest("label").hidden = time.value !== "range";
  }

  apply() {
    const { time, from, to } = this.fields;
    this.onChange(timeParameters({ choice: time.value, by: "start", from: from.value, to: to.value }, new Date()));
  }
}
