// What differs: the runs as a whole, then step by step, each with its payloads member by member on demand.

import { h, isolated, replace, visible } from "../dom.js";
import { bytes, cost, duration, number, statusBadge, tokens } from "../format.js";
import { lengthOf } from "../run/document.js";
import { factsOf } from "../run/facts.js";
import { align, isFar, payloadsThatDiffer } from "./align.js";
import { diff, pathText } from "./diff.js";

const AT_ONCE = 100;
const LONGEST = 400;

/** The whole comparison of two readings. */
export function result(one, other) {
  const pairs = align(one, other);
  const different = pairs.filter((pair) => pair.differs.length || pair.far);
  return [whole(one, other, pairs, different), steps(one, other, pairs, different)];
}

function whole(one, other, pairs, different) {
  const [a, b] = [one.run, other.run];
  const [left, right] = [factsOf(a), factsOf(b)];
  const count = (facts) => facts.usage?.total ?? null;
  const money = (facts) => facts.usage?.cost ?? null;
  const rows = [
    row(
      "Status",
      statusBadge(a.status || null),
      statusBadge(b.status || null),
      a.status === b.status ? same() : changed("differs"),
    ),
    row("Duration", duration(lengthOf(a)), duration(lengthOf(b)), delta(lengthOf(a), lengthOf(b), duration)),
    row("Steps", number(a.steps.length), number(b.steps.length), delta(a.steps.length, b.steps.length, number)),
    row("Tokens", tokens(count(left)), tokens(count(right)), delta(count(left), count(right), tokens)),
    row("Cost", cost(money(left)), cost(money(right)), delta(money(left), money(right), cost)),
    ...["triggerType"]
      .filter((name) => a[name] || b[name])
      .map((name) =>
        row(
          "Trigger",
          isolated(a[name] || "–"),
          isolated(b[name] || "–"),
          a[name] === b[name] ? same() : changed("differs"),
        ),
      ),
  ];
  const names = payloadsThatDiffer(one, a, other, b);
  const known = new Set(["input", "output", "error", ...names]);
  const payloads = [...known]
    .filter((name) => placeOf(a, name) || placeOf(b, name))
    .map((name) => payload(one, a, other, b, name, names.includes(name)));
  const verdict =
    different.length === 0
      ? `All ${number(pairs.length)} steps are the same in status and payloads.`
      : `${number(different.length)} of ${number(pairs.length)} steps differ.`;
  return h(
    "section",
    { class: "card whole", "aria-label": "The runs as a whole" },
    h("h2", {}, verdict),
    a.workflowId !== b.workflowId &&
      h("p", { class: "notice" }, "These are runs of two workflows; steps are paired by their ids."),
    h(
      "div",
      { class: "scroll-x", tabindex: 0, role: "region", "aria-label": "Figures" },
      h(
        "table",
        { class: "figures" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("th", { scope: "col" }, h("span", { class: "unseen" }, "Figure")),
            h("th", { scope: "col" }, "A"),
            h("th", { scope: "col" }, "B"),
            h("th", { scope: "col" }, "Difference"),
          ),
        ),
        h("tbody", {}, rows),
      ),
    ),
    payloads.length > 0 && h("div", { class: "payloads" }, h("h3", {}, "What the run took and gave"), payloads),
  );
}

function steps(one, other, pairs, different) {
  const body = h("tbody", {});
  const more = h("button", { class: "button", type: "button" }, "Show more");
  const about = h("span", { class: "quiet numbers", role: "status" });
  let shown = 0;
  let chosen = [];
  const grow = () => {
    body.append(...chosen.slice(shown, shown + AT_ONCE).flatMap((pair) => stepRows(one, other, pair)));
    shown = Math.min(shown + AT_ONCE, chosen.length);
    more.hidden = shown === chosen.length;
    about.textContent = `${number(shown)} of ${number(chosen.length)}`;
  };
  const choose = (all) => {
    chosen = all ? pairs : different;
    shown = 0;
    replace(body);
    grow();
  };
  more.addEventListener("click", grow);
  const box = h("input", { type: "checkbox", onchange: () => choose(!box.checked) });
  box.checked = different.length > 0 && different.length < pairs.length;
  choose(!box.checked);
  if (!pairs.length) return h("p", { class: "quiet" }, "Neither run has steps.");
  return h(
    "section",
    { class: "card steps", "aria-label": "Step by step" },
    h(
      "header",
      { class: "steps-head" },
      h("h2", {}, "Step by step"),
      h("label", { class: "only" }, box, " Only what differs"),
    ),
    h(
      "div",
      { class: "scroll-x" },
      h(
        "table",
        { class: "pairs", role: "table" },
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            ["Step", "A", "B", "Time", "What differs"].map((name) => h("th", { scope: "col" }, name)),
          ),
        ),
        body,
      ),
    ),
    h("footer", { class: "steps-foot" }, about, more),
  );
}

function stepRows(one, other, pair) {
  const { a, b } = pair;
  const times = [a && lengthOf(a), b && lengthOf(b)];
  const names = pair.differs.filter((name) => name !== "status" && name !== "missing");
  const title = h(
    "th",
    { scope: "row" },
    h("span", { class: "step-name" }, isolated(pair.name || pair.id)),
    h("span", { class: "quiet mono step-id" }, isolated(pair.id), pair.of > 1 && ` #${number(pair.occurrence)}`),
  );
  const side = (step, ms) =>
    h(
      "td",
      {},
      step
        ? [
            statusBadge(step.status || null),
            " ",
            h("span", { class: "quiet numbers nowrap" }, ms === null ? "" : duration(ms)),
          ]
        : h("span", { class: "quiet" }, "not there"),
    );
  const what = h("td", {}, whatDiffers(pair));
  const main = h(
    "tr",
    { class: pair.differs.length ? "differs" : null },
    title,
    side(a, times[0]),
    side(b, times[1]),
    h("td", { class: "numbers nowrap" }, a && b ? delta(times[0], times[1], duration, pair.far) : ""),
    what,
  );
  if (!names.length || !a || !b) return [main];
  const inside = h("td", { colspan: 5 });
  const detail = h("tr", { class: "detail", hidden: true }, inside);
  const button = h("button", { class: "button small", type: "button", "aria-expanded": "false" }, "Show");
  button.addEventListener("click", () => {
    detail.hidden = !detail.hidden;
    button.setAttribute("aria-expanded", String(!detail.hidden));
    button.textContent = detail.hidden ? "Show" : "Hide";
    if (!inside.firstChild)
      replace(
        inside,
        names.map((name) =>
          h("div", { class: "payload" }, h("h4", {}, visible(name)), changesOf(one, a, other, b, name)),
        ),
      );
  });
  what.append(" ", button);
  return [main, detail];
}

function whatDiffers(pair) {
  if (!pair.differs.length) return pair.far ? tag("time") : h("span", { class: "quiet" }, "nothing");
  if (pair.differs.includes("missing")) return tag(pair.a ? "only in A" : "only in B");
  return pair.differs.map((name) => tag(visible(name)));
}

function payload(one, a, other, b, name, differs) {
  if (!differs) return h("p", { class: "payload-same" }, h("strong", {}, visible(name)), " ", same());
  const place = h("div", {});
  const details = h(
    "details",
    { class: "payload" },
    h("summary", {}, h("strong", {}, visible(name)), " ", changed("differs")),
    place,
  );
  details.addEventListener("toggle", () => {
    if (details.open && !place.firstChild) replace(place, changesOf(one, a, other, b, name));
  });
  return details;
}

function changesOf(one, a, other, b, name) {
  const { changes, more } = diff(one.text, placeOf(a, name), other.text, placeOf(b, name));
  if (!changes.length) return h("p", { class: "quiet" }, "The same values; only the white space between them differs.");
  const rows = changes.map((change) =>
    h(
      "tr",
      {},
      h("th", { scope: "row", class: "mono wrap" }, isolated(pathText(change.path))),
      valueCell(one.text, change.a),
      valueCell(other.text, change.b),
    ),
  );
  return h(
    "div",
    { class: "scroll-x" },
    h(
      "table",
      { class: "changes" },
      h(
        "thead",
        {},
        h("tr", {}, h("th", { scope: "col" }, "Where"), h("th", { scope: "col" }, "A"), h("th", { scope: "col" }, "B")),
      ),
      h("tbody", {}, rows),
    ),
    more && h("p", { class: "quiet" }, `The first ${number(changes.length)} differences; there are more.`),
  );
}

function valueCell(text, place) {
  if (!place) return h("td", { class: "quiet" }, "not there");
  const length = place.end - place.start;
  const own = text.slice(place.start, Math.min(place.end, place.start + LONGEST));
  return h(
    "td",
    { class: "mono wrap" },
    isolated(own),
    length > LONGEST && h("span", { class: "quiet" }, `… ${bytes(length)}`),
  );
}

function placeOf(item, name) {
  return item.payloads.find((payload) => payload.key === name) || null;
}

function row(name, a, b, difference) {
  return h(
    "tr",
    {},
    h("th", { scope: "row" }, name),
    h("td", { class: "numbers" }, a),
    h("td", { class: "numbers" }, b),
    h("td", { class: "numbers" }, difference),
  );
}

function delta(a, b, format, far = isFar(a, b)) {
  if (a === null || b === null || a === undefined || b === undefined)
    return a === b || (a ?? b) === null ? same() : changed("one only");
  if (a === b) return same();
  const sign = b > a ? "+" : "−";
  const text = `${sign}${format(Math.abs(b - a)).replace(/^−/, "")}`;
  const times = a > 0 && b > 0 ? ` (×${(b / a).toPrecision(2)})` : "";
  return h("span", { class: far ? "changed" : "" }, text + times);
}

function same() {
  return h("span", { class: "quiet" }, "same");
}

function changed(text) {
  return h("span", { class: "changed" }, text);
}

function tag(text) {
  return h("span", { class: "tag" }, text);
}
