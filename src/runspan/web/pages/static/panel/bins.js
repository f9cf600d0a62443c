// Times sorted into bars of equal, round length, which begin at round times of this browser's zone. Pure.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const STEPS = [
  [MINUTE, "a minute"],
  [5 * MINUTE, "5 minutes"],
  [15 * MINUTE, "15 minutes"],
  [30 * MINUTE, "half an hour"],
  [HOUR, "an hour"],
  [3 * HOUR, "3 hours"],
  [6 * HOUR, "6 hours"],
  [12 * HOUR, "12 hours"],
  [DAY, "a day"],
  [7 * DAY, "a week"],
  [30 * DAY, "30 days"],
  [90 * DAY, "90 days"],
  [360 * DAY, "360 days"],
];
const UNITS = { m: MINUTE, h: HOUR, d: DAY };

/**
 * {bars, step, label, ticks} of {names, times, statuses, whole}. bars: {from, counts: Map of status to number, total},
 * oldest first; step: a bar's length in words; label(ms): a bar's beginning in words; ticks(count): {at: 0 to 1, text}.
 */
export function bin({ names, times, statuses, whole }, since, most, now = Date.now()) {
  if (!times.length) return { bars: [], step: "", label: String, ticks: () => [] };
  let first = Infinity;
  let last = -Infinity;
  for (const time of times) {
    first = Math.min(first, time);
    last = Math.max(last, time);
  }
  if (since && whole) {
    first = Math.min(first, now - lengthOf(since));
    last = Math.max(last, now);
  }
  const [length, step] = STEPS.find(([one]) => (last - first) / one + 2 <= most) || STEPS.at(-1);
  const begin = floor(first, length);
  const count = Math.min(Math.floor((last - begin) / length) + 1, 2000);
  const bars = Array.from({ length: count }, (_, place) => ({
    from: begin + place * length,
    counts: new Map(),
    total: 0,
  }));
  times.forEach((time, place) => {
    const bar = bars[Math.min(Math.floor((time - begin) / length), count - 1)];
    const key = names[statuses[place]];
    bar.counts.set(key, (bar.counts.get(key) || 0) + 1);
    bar.total += 1;
  });
  const label = labeller(length, last - first);
  return { bars, step, label, ticks: (wanted) => ticksOf(bars, wanted, label) };
}

function lengthOf(since) {
  return Number(since.slice(0, -1)) * UNITS[since.at(-1)] || 0;
}

/** The round time at or before, counted in this zone, so that days begin at midnight here. */
function floor(ms, length) {
  const shift = new Date(ms).getTimezoneOffset() * MINUTE;
  return Math.floor((ms - shift) / length) * length + shift;
}

function labeller(length, range) {
  const wide = range > 300 * DAY;
  const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", ...(wide && { year: "numeric" }) });
  if (length >= DAY) return (ms) => date.format(ms);
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  return range > 20 * HOUR ? (ms) => `${date.format(ms)}, ${clock.format(ms)}` : (ms) => clock.format(ms);
}

/** Few enough marks: where a day begins, if bars are shorter than a day and span several, else at every so many bars. */
function ticksOf(bars, wanted, label) {
  const days = bars
    .map((bar, place) => place)
    .filter((place) => place > 0 && dayOf(bars[place]) !== dayOf(bars[place - 1]));
  const length = bars.length > 1 ? bars[1].from - bars[0].from : DAY;
  const byDay = length < DAY && days.length > 1;
  const places = byDay ? days : bars.map((bar, place) => place);
  const every = Math.max(1, Math.ceil(places.length / wanted));
  const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const text = byDay ? (ms) => date.format(ms) : label;
  return places
    .filter((place, number) => number % every === 0)
    .map((place) => ({ at: place / bars.length, text: text(bars[place].from) }));
}

function dayOf({ from }) {
  return new Date(from).toDateString();
}
