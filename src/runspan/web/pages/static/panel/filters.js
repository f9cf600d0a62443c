// The filter form. It reads and writes the API's own query parameters, which are the page's URL.

import { h } from "../dom.js";
import { RUN_STATUSES, status } from "../format.js";

const FIELDS = ["workflowId", "status", "since"];
const PARAMETERS = [...FIELDS, "stuckAfter", "endedFrom"];
const STUCK_PREFIX = "stuck:"; // options of the status field that set the parameter stuckAfter
const ENDED_PREFIX = "ended:"; // options of the time field that set the parameter endedFrom

/**
 * Return whether any filter is set.
 *
 * @param {object} parameters - Query parameters.
 */
export function hasFilters(parameters) {
  return PARAMETERS.some((name) => parameters[name]);
}

/** Binds the filter form to query parameters. */
export class FilterForm {
  /**
   * @param {HTMLFormElement} form - The form.
   * @param {(parameters: object) => void} onChange - Called with the query parameters when the user changes a filter.
   */
  constructor(form, onChange) {
    Object.assign(this, { fields: form.elements, onChange, limit: undefined });
    const option = (value, label) => this.fields.status.append(h("option", { value }, label));
    for (const value of RUN_STATUSES) option(value, status(value).label);
    option(`${STUCK_PREFIX}15m`, optionLabel("status", `${STUCK_PREFIX}15m`));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.apply();
    });
    for (const name of FIELDS) this.fields[name].addEventListener("change", () => this.apply());
  }

  /**
   * Show query parameters in the form. A value without an option gets one, because a shared URL may contain any value.
   *
   * @param {object} parameters - Query parameters.
   */
  show({ limit, stuckAfter, endedFrom, ...rest }) {
    this.limit = limit;
    const values = {
      ...rest,
      status: rest.status || (stuckAfter ? STUCK_PREFIX + stuckAfter : ""),
      since: rest.since || (endedFrom ? ENDED_PREFIX + endedFrom : ""),
    };
    for (const name of FIELDS) {
      const value = values[name] || "";
      const field = this.fields[name];
      if (field.options && ![...field.options].some((option) => option.value === value)) {
        field.append(h("option", { value }, optionLabel(name, value)));
      }
      if (field.value !== value) field.value = value;
    }
  }

  /** Move the focus to the first field. */
  focus() {
    this.fields.workflowId.focus();
  }

  apply() {
    const [workflowId, choice, time] = FIELDS.map((name) => this.fields[name].value);
    const isStuck = choice.startsWith(STUCK_PREFIX);
    const isEnded = time.startsWith(ENDED_PREFIX);
    this.onChange({
      limit: this.limit,
      workflowId,
      status: isStuck ? "" : choice,
      stuckAfter: isStuck ? choice.slice(STUCK_PREFIX.length) : "",
      since: isEnded ? "" : time,
      endedFrom: isEnded ? time.slice(ENDED_PREFIX.length) : "",
    });
  }
}

function optionLabel(name, value) {
  if (value.startsWith(ENDED_PREFIX)) return `Ended in the last ${value.slice(ENDED_PREFIX.length)}`;
  if (name === "since") return /^\d+[mhd]$/.test(value) ? `Last ${value}` : value;
  return value.startsWith(STUCK_PREFIX) ? `Stuck for ${value.slice(STUCK_PREFIX.length)}` : value;
}
