// The filters: the API's own parameters in a form, which the URL fills and which changes the URL.

import { h } from "../dom.js";
import { RUN_STATUSES, status } from "../format.js";

const NAMES = ["workflowId", "status", "since"];
const STUCK = "stuck:"; // in the choice of the status: an unfinished run that was not seen for this long

/** Binds the form. onChange gets the parameters that are set. */
export function filters(form, { onChange }) {
  const fields = form.elements;
  fields.status.append(...RUN_STATUSES.map((value) => h("option", { value }, status(value).label)));
  fields.status.append(h("option", { value: `${STUCK}15m` }, "Stuck for 15m"));

  const apply = () => {
    const set = Object.fromEntries(NAMES.map((name) => [name, fields[name].value]).filter(([, value]) => value !== ""));
    if (set.status?.startsWith(STUCK)) {
      set.stuckAfter = set.status.slice(STUCK.length);
      delete set.status;
    }
    onChange({ ...kept, ...set });
  };
  let kept = {};
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    apply();
  });
  fields.status.addEventListener("change", apply);
  fields.since.addEventListener("change", apply);
  fields.workflowId.addEventListener("change", apply);

  return {
    /** Shows these parameters. A value that is no choice of the form becomes one: a shared URL may ask for 90m. */
    show(parameters) {
      const { limit, stuckAfter, ...rest } = parameters;
      kept = limit ? { limit } : {};
      const shown = { ...rest, status: rest.status || (stuckAfter ? STUCK + stuckAfter : "") };
      for (const name of NAMES) {
        const value = shown[name] || "";
        const field = fields[name];
        if (field.options && ![...field.options].some((option) => option.value === value)) {
          field.append(h("option", { value }, wordsFor(name, value)));
        }
        if (field.value !== value) field.value = value;
      }
    },
    focus: () => fields.workflowId.focus(),
  };
}

function wordsFor(name, value) {
  if (name === "since") return /^\d+[mhd]$/.test(value) ? `Last ${value}` : value;
  return value.startsWith(STUCK) ? `Stuck for ${value.slice(STUCK.length)}` : value;
}
