// The time filter: what the form shows, and the API's query parameters. Days are those of the browser's time zone. Pure.

/** Parameters of the start and of the end of runs. */
const NAMES = { start: { from: "from", to: "to" }, end: { from: "endedFrom", to: "endedTo" } };
const DURATION = /^\d+[smhd]$/;
const DAY = /^\d{4}-\d{2}-\d{2}$/;

/** The query parameters of this filter. */
export const TIME_PARAMETERS = ["since", "from", "to", "endedFrom", "endedTo"];

/**
 * Return what the form shows for query parameters.
 *
 * @param {object} parameters - Query parameters.
 * @param {Date} now
 * @returns {{choice: string, by: "start"|"end", from: string, to: string}}
 *   choice: a duration before now such as "24h", "today", "yesterday", "range", or "" for any time.
 *   from, to: of a range, as fields of type datetime-local have them; "" for none.
 */
export function readTimes(parameters, now) {
  const by = !parameters.since && !parameters.from && !parameters.to && hasEnd(parameters) ? "end" : "start";
  const from = parameters[NAMES[by].from] || (by === "start" && parameters.since) || "";
  const to = parameters[NAMES[by].to] || "";
  if (!from && !to) return { choice: "", by, from, to };
  if (DURATION.test(from) && !to) return { choice: from, by, from: "", to: "" };
  const day = ["today", "yesterday"].find((name) => {
    const known = dayRange(name, now);
    return known.from === isoOf(from, now) && known.to === isoOf(to, now);
  });
  return { choice: day || "range", by, from: localOf(from, now), to: localOf(to, now) };
}

/**
 * Return the query parameters of what the form shows; those without a value are "".
 *
 * @param {{choice: string, by: "start"|"end", from: string, to: string}} shown - See readTimes.
 * @param {Date} now
 */
export function timeParameters({ choice, by, from, to }, now) {
  const parameters = Object.fromEntries(TIME_PARAMETERS.map((name) => [name, ""]));
  if (DURATION.test(choice)) return { ...parameters, [by === "start" ? "since" : "endedFrom"]: choice };
  const range = choice === "range" ? { from: isoOf(from, now), to: isoOf(to, now) } : dayRange(choice, now);
  return { ...parameters, [NAMES[by].from]: range.from, [NAMES[by].to]: range.to };
}

/**
 * Return the query parameters of the runs that started in a range.
 *
 * @param {number} from - Milliseconds since 1970.
 * @param {number} to - Milliseconds since 1970, excluded.
 */
export function startedBetween(from, to) {
  const parameters = Object.fromEntries(TIME_PARAMETERS.map((name) => [name, ""]));
  return { ...parameters, from: isoSeconds(from), to: isoSeconds(to) };
}

/**
 * Return the range of the start of runs in milliseconds since 1970; null where it is open.
 *
 * @param {object} parameters - Query parameters.
 * @param {Date} now
 */
export function startRange(parameters, now) {
  const from = isoOf(parameters.from || parameters.since || "", now);
  const to = isoOf(parameters.to || "", now);
  return { from: from ? Date.parse(from) : null, to: to ? Date.parse(to) : null };
}

function hasEnd({ endedFrom, endedTo }) {
  return Boolean(endedFrom || endedTo);
}

function dayRange(name, now) {
  if (name !== "today" && name !== "yesterday") return { from: "", to: "" };
  const midnight = (days) => new Date(now.getFullYear(), now.getMonth(), now.getDate() + days).getTime();
  if (name === "today") return { from: isoSeconds(midnight(0)), to: "" };
  return { from: isoSeconds(midnight(-1)), to: isoSeconds(midnight(0)) };
}

const UNITS = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/** Return a time of the API or of a field as a UTC timestamp, "" if it is none. */
function isoOf(text, now) {
  if (DURATION.test(text)) return isoSeconds(now.getTime() - Number(text.slice(0, -1)) * UNITS[text.at(-1)]);
  const ms = Date.parse(DAY.test(text) ? `${text}T00:00:00Z` : text);
  return Number.isNaN(ms) ? "" : isoSeconds(ms);
}

function isoSeconds(ms) {
  return new Date(ms).toISOString().replace(/\.000Z$/, "Z");
}

/** Return a time as a field of type datetime-local has it. */
function localOf(text, now) {
  const iso = isoOf(text, now);
  if (!iso) return "";
  const at = new Date(iso);
  const two = (part) => String(part).padStart(2, "0");
  const day = `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())}`;
  return `${day}T${two(at.getHours())}:${two(at.getMinutes())}`;
}
