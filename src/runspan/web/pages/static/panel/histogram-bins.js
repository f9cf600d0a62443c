// Counts runs in bins of a round length that begin at round times of the browser's time zone. Pure.

const MINUTE = 60_000;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;
const BIN_LENGTHS = [
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
const MAX_BINS = 2000;
const OLDEST_SHARE = 0.02; // of the runs, which the chart leaves out
const SQUEEZED = 5; // if they would make it so many times as long

/**
 * Count runs by time and status.
 *
 * @param {object} runs
 * @param {string[]} runs.names - Statuses.
 * @param {number[]} runs.times - Start of each run in milliseconds since 1970.
 * @param {number[]} runs.statuses - Status of each run, as an index into names.
 * @param {boolean} runs.whole - Whether these are all runs of the time range.
 * @param {{from: number|null, to: number|null}} range - The range of the filter in milliseconds since 1970.
 * @param {number} maxBins - Upper limit of the number of bins.
 * @param {number} [now] - The current time in milliseconds since 1970.
 * @returns {{bins: {from: number, to: number, counts: Map<string, number>, total: number}[], before: number,
 *   length: string, label: (ms: number) => string, ticks: (count: number) => {at: number, text: string}[]}}
 *   bins: oldest first.
 *   before: how many runs are older than the first bin.
 *   length: the length of a bin in words.
 *   label: formats the start of a bin.
 *   ticks: returns about so many tick labels, with their positions from 0 to 1.
 */
export function binRuns({ names, times, statuses, whole }, range, maxBins, now = Date.now()) {
  if (!times.length) return { bins: [], before: 0, length: "", label: String, ticks: () => [] };
  const sorted = times.toSorted((one, other) => one - other);
  let last = sorted.at(-1);
  const before = range.from === null ? countFarOlder(sorted, last) : 0;
  let first = sorted[before];
  if (range.from !== null && whole) {
    first = Math.min(first, range.from);
    last = Math.max(last, range.to === null ? now : Math.min(now, range.to - 1));
  }
  const [length, lengthText] = BIN_LENGTHS.find(([ms]) => (last - first) / ms + 2 <= maxBins) || BIN_LENGTHS.at(-1);
  const start = roundDown(first, length);
  const count = Math.min(Math.floor((last - start) / length) + 1, MAX_BINS);
  const bins = Array.from({ length: count }, (_, index) => ({
    from: start + index * length,
    to: start + (index + 1) * length,
    counts: new Map(),
    total: 0,
  }));
  times.forEach((time, index) => {
    if (time < first) return;
    const bin = bins[Math.min(Math.floor((time - start) / length), count - 1)];
    const name = names[statuses[index]];
    bin.counts.set(name, (bin.counts.get(name) || 0) + 1);
    bin.total += 1;
  });
  const label = labelFormat(length, last - first);
  return { bins, before, length: lengthText, label, ticks: (wanted) => ticksOf(bins, wanted, label) };
}

/** Return how many of the oldest runs lie so far from the others that these would be squeezed into a few bars. */
function countFarOlder(sorted, last) {
  const most = Math.max(1, Math.floor(sorted.length * OLDEST_SHARE));
  for (let count = Math.min(most, sorted.length - 2); count > 0; count--) {
    const isFar = last - sorted[0] > SQUEEZED * (last - sorted[count]);
    if (isFar && sorted[count] - sorted[count - 1] > last - sorted[count]) return count;
  }
  return 0;
}

/** Round down to a multiple of the length, counted in the local time zone so that days begin at midnight. */
function roundDown(ms, length) {
  const offset = new Date(ms).getTimezoneOffset() * MINUTE;
  return Math.floor((ms - offset) / length) * length + offset;
}

const dayFormat = (options = {}) => new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", ...options });

function labelFormat(length, range) {
  const date = dayFormat(range > 300 * DAY ? { year: "numeric" } : {});
  if (length >= DAY) return (ms) => date.format(ms);
  const timeOfDay = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  return range > 20 * HOUR ? (ms) => `${date.format(ms)}, ${timeOfDay.format(ms)}` : (ms) => timeOfDay.format(ms);
}

/** Place ticks where days begin, if bins are shorter than a day and span several days, else at every n-th bin. */
function ticksOf(bins, wanted, label) {
  const all = bins.map((bin, index) => index);
  const dayOf = ({ from }) => new Date(from).toDateString();
  const dayStarts = all.filter((index) => index > 0 && dayOf(bins[index]) !== dayOf(bins[index - 1]));
  const length = bins.length > 1 ? bins[1].from - bins[0].from : DAY;
  const isByDay = length < DAY && dayStarts.length > 1;
  const candidates = isByDay ? dayStarts : all;
  const interval = Math.max(1, Math.ceil(candidates.length / wanted));
  const date = dayFormat();
  return candidates
    .filter((_, position) => position % interval === 0)
    .map((index) => ({
      at: index / bins.length,
      text: isByDay ? date.format(bins[index].from) : label(bins[index].from),
    }));
}
