// The filter form. It reads and writes the API's own query parameters, which are the page's URL.

import { h } from "../dom.js";
import { RUN_STATUSES, status } from "../format.js";
import { TIME_PARAMETERS, readTimes, timeParameters } from "./time-range.js";

const MORE = ["triggerType", "errorCode", "stepType", "model", "minDuration", "sort"]; // fields that are behind a button
const FIELDS = ["workflowId", "status", "time", "by", "from", "to", ...MORE];

/** The query parameters that choose runs or sort them, and are kept when one of them changes. */
export const FILTER_PARAMETERS = ["q", "workflowId", "status", ...TIME_PARAMETERS, "stuckAfter", ...MORE, "limit"];

const STUCK_PREFIX = "stuck:"; // options of the status field that set the parameter stuckAfter
const UNFINISHED = "pending,running,suspended";
const SEVERAL = ["failed,timed_out", UNFINISHED];

/**
 * Return whether any filter is set.
 *
 * @param {object} parameters - Query parameters.
 */
export function hasFilters(parameters) {
  return FILTER_PARAMETERS.some((name) => name !== "limit" && parameters[name]);
}

/** Binds the filter form to query parameters. */
export class FilterForm {
  /**
   * @param {HTMLFormElement} form - The form.
   * @param {(parameters: object) => void} onChange - Called with the query parameters when the user changes a filter.
   */
  constructor(form, onChange) {
    Object.assign(this, { form, fields: form.elements, onChange, kept: {} });
    this.more = form.querySelector("#more");
    this.more.addEventListener("click", () => this.showMore(this.more.getAttribute("aria-expanded") !== "true"));
    for (const value of [...RUN_STATUSES, ...SEVERAL, `${STUCK_PREFIX}15m`]) {
      this.fields.status.append(h("option", { value }, optionLabel("status", value)));
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply();
    });
    for (const name of FIELDS) this.fields[name].addEventListener("change", () => this.change(name));
  }

  /**
   * Show query parameters in the form. A value without an option gets one, because a shared URL may contain any value.
   *
   * @param {object} parameters - Query parameters.
   */
  show(parameters) {
    const { limit, q, stuckAfter, workflowId, status: statuses } = parameters;
    this.kept = { limit, q };
    const { choice, by, from, to } = readTimes(parameters, new Date());
    const values = { workflowId, status: statuses || (stuckAfter ? STUCK_PREFIX + stuckAfter : ""), time: choice, by };
    const more = Object.fromEntries(MORE.map((name) => [name, parameters[name]]));
    for (const [name, value = ""] of Object.entries({ ...values, from, to, ...more })) {
      const field = this.fields[name];
      if (field.options && ![...field.options].some((option) => option.value === value)) {
        field.append(h("option", { value }, optionLabel(name, value)));
      }
      if (field.value !== value) field.value = value;
    }
    this.showTimeFields();
    const count = MORE.filter((name) => parameters[name]).length;
    this.more.textContent = count ? `More filters · ${count}` : "More filters";
    if (count) this.showMore(true);
  }

  /** Show or hide the filters that are rarely used. */
  showMore(isShown) {
    this.more.setAttribute("aria-expanded", String(isShown));
    this.form.querySelector("#more-filters").hidden = !isShown;
  }

  /** Move the focus to the first field. */
  focus() {
    this.fields.workflowId.focus();
  }

  change(name) {
    if (name === "time") this.showTimeFields();
    if (name === "time" && this.fields.time.value === "range" && !this.fields.from.value && !this.fields.to.value) {
      this.fields.from.focus();
    } else this.apply();
  }

  /** Show the fields that the chosen time has. */
  showTimeFields() {
    const { time, from, to, by } = this.fields;
    for (const field of [from, to]) field.closest("label").hidden = time.value !== "range";
    by.closest("label").hidden = !time.value;
  }

  apply() {
    const { workflowId, status: choice, time, by, from, to } = this.fields;
    const isStuck = choice.value.startsWith(STUCK_PREFIX);
    const times = { choice: time.value, by: by.value, from: from.value, to: to.value };
    this.onChange({
      ...this.kept,
      workflowId: workflowId.value,
      status: isStuck ? "" : choice.value,
      stuckAfter: isStuck ? choice.value.slice(STUCK_PREFIX.length) : "",
      ...timeParameters(times, new Date()),
      ...Object.fromEntries(MORE.map((name) => [name, this.fields[name].value.trim()])),
    });
  }
}

function optionLabel(name, value) {
  if (name === "time") return `Last ${value}`;
  if (value.startsWith(STUCK_PREFIX)) return `Stuck for ${value.slice(STUCK_PREFIX.length)}`;
  if (name !== "status") return value;
  if (value === UNFINISHED) return "Unfinished";
  const labels = value.split(",").map((each) => status(each).label);
  return labels.map((label, index) => (index ? label.toLowerCase() : label)).join(" or ");
}
