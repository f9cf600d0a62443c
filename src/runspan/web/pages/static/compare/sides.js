// The two runs to compare: what each is, and how to choose another one.

import { getJson, runPage } from "../api.js";
import { h, isolated, replace } from "../dom.js";
import { ago, duration, instant, statusBadge, timeElement } from "../format.js";

const OFFERED = 20;

/** The card of a side. side: {letter, id, reading, error}. onChoose(id): another run was chosen. */
export function card(side, { onChoose, offer }) {
  const place = h("section", { class: "card side", "aria-label": `Run ${side.letter}` });
  replace(
    place,
    h("span", { class: "side-letter", "aria-hidden": "true" }, side.letter),
    content(side),
    chooser(side, { onChoose, offer }),
  );
  return place;
}

function content({ id, reading, error }) {
  if (error) {
    return h(
      "div",
      { class: "side-text", role: "alert" },
      h("strong", { class: "bad" }, error.title),
      h("p", { class: "mono wrap" }, isolated(id)),
      h("p", { class: "quiet wrap" }, error.todo),
    );
  }
  if (!id)
    return h(
      "div",
      { class: "side-text" },
      h("strong", {}, "No run chosen"),
      h("p", { class: "quiet" }, "Take one of the list, or type an id. In the runs panel, x picks a run."),
    );
  if (!reading)
    return h(
      "div",
      { class: "side-text", "aria-busy": "true" },
      h("span", { class: "skeleton" }),
      h("span", { class: "skeleton" }),
    );
  const { run } = reading;
  const page = runPage(id);
  return h(
    "div",
    { class: "side-text" },
    h("p", {}, statusBadge(run.status || null), " ", h("strong", {}, isolated(run.workflowId || "No workflow"))),
    h("p", { class: "mono wrap" }, page ? h("a", { href: page }, isolated(id)) : isolated(id)),
    h("p", { class: "quiet" }, timeElement(run.startedAt || run.createdAt || null)),
  );
}

function chooser(side, { onChoose, offer }) {
  const input = h("input", {
    name: "id",
    type: "search",
    value: "",
    placeholder: "Run id",
    "aria-label": `Id of run ${side.letter}`,
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: false,
    required: true,
  });
  const form = h(
    "form",
    {
      class: "side-form",
      onsubmit: (event) => {
        event.preventDefault();
        if (input.value.trim()) onChoose(input.value.trim());
      },
    },
    input,
    h("button", { class: "button", type: "submit" }, "Take"),
  );
  const list = h("div", { class: "offers" });
  const details = h(
    "details",
    { class: "side-change", open: !side.id || Boolean(side.error) },
    h("summary", {}, side.id ? "Another run" : "Choose a run"),
    form,
    list,
  );
  let asked = false;
  const ask = () => {
    if (asked || !details.open) return;
    asked = true;
    showOffers(list, offer, onChoose);
  };
  details.addEventListener("toggle", ask);
  ask();
  return details;
}

/** The newest runs that may stand on this side. offer: {workflowId, not: the id that stands on the other side}. */
async function showOffers(place, { workflowId, not }, onChoose) {
  try {
    const { body } = await getJson("/api/v1/runs", { workflowId, limit: OFFERED });
    const runs = body.data.filter((run) => run.id !== not);
    const title = workflowId ? ["Newest runs of ", isolated(workflowId)] : "Newest runs";
    if (!runs.length)
      replace(
        place,
        h("p", { class: "quiet" }, workflowId ? "There is no other run of this workflow." : "There are no runs."),
      );
    else
      replace(
        place,
        h("p", { class: "quiet" }, title),
        h(
          "ul",
          {},
          runs.map((run) => h("li", {}, offerOf(run, onChoose))),
        ),
      );
  } catch (error) {
    replace(place, h("p", { class: "quiet" }, `No list: ${error.title}. ${error.todo}`));
  }
}

function offerOf(run, onChoose) {
  const begun = instant(run.startedAt ?? run.createdAt);
  return h(
    "button",
    { class: "offer", type: "button", onclick: () => onChoose(run.id) },
    statusBadge(run.status),
    h("span", { class: "mono offer-id" }, isolated(run.id)),
    h("span", { class: "quiet numbers" }, typeof run.durationMs === "number" ? duration(run.durationMs) : ""),
    h("span", { class: "quiet numbers offer-ago" }, begun === null ? "" : ago(begun)),
  );
}
