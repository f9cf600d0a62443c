// Instants and lengths of time in a run document, exact to the nanosecond. Pure.

const PATTERN = /^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2}:\d{2})(?:\.(\d+))?(Z|[+-]\d{2}:?\d{2})$/i;

/** An instant as {seconds, nanos} since 1970, or null when the text tells none. Digits past the ninth are dropped. */
export function parseInstant(text) {
  const match = typeof text === "string" && text.length < 64 ? PATTERN.exec(text) : null;
  if (!match) return null;
  const [, day, time, fraction = "", zone] = match;
  const offset = zone.length === 5 ? `${zone.slice(0, 3)}:${zone.slice(3)}` : zone.toUpperCase();
  const ms = Date.parse(`${day}T${time}${offset}`);
  if (Number.isNaN(ms)) return null;
  return { seconds: ms / 1000, nanos: Number(fraction.slice(0, 9).padEnd(9, "0")) };
}

/** Milliseconds from one instant to another; near instants keep their nanoseconds. */
export function between(from, to) {
  return (to.seconds - from.seconds) * 1000 + (to.nanos - from.nanos) / 1e6;
}

/** The instant in milliseconds since 1970, as `Date` takes it. */
export function epoch(instant) {
  return instant.seconds * 1000 + instant.nanos / 1e6;
}

const STEPS = [1, 2, 5];
const CLOCK = [1e3, 2e3, 5e3, 1e4, 1.5e4, 3e4, 6e4, 1.2e5, 3e5, 6e5, 9e5, 1.8e6, 3.6e6, 7.2e6, 1.08e7, 2.16e7, 4.32e7];
const DAY = 8.64e7;

/** A step between ticks of a time axis, in milliseconds: at least `least`, and round in a unit that people use. */
export function tickStep(least) {
  const round = (unit) => {
    const power = 10 ** Math.floor(Math.log10(Math.max(least / unit, 1e-9)));
    const step = STEPS.find((factor) => factor * power * unit >= least) ?? 10;
    return step * power * unit;
  };
  if (!(least > 0)) return 1;
  if (least <= 500) return round(1);
  return CLOCK.find((step) => step >= least) ?? round(DAY);
}
