// Parses the timestamps of run documents, to the nanosecond. Pure.

const PATTERN = /^(\d{4}-\d{2}-\d{2})[T ](\d{2}:\d{2})(?::(\d{2})(?:[.,](\d+))?)?\s*(Z|[+-]\d{2}:?\d{2})$/i;

/**
 * Parse a timestamp. Return {seconds, nanos} since 1970, or null if the text is not a timestamp with a time zone.
 * Digits after the ninth decimal place are dropped.
 *
 * @param {any} text - The value of a member such as startedAt.
 */
export function parseInstant(text) {
  const match = typeof text === "string" && text.length < 64 ? PATTERN.exec(text) : null;
  if (!match) return null;
  const [, day, minute, second = "00", fraction = "", zone] = match;
  const offset = zone.length === 5 ? `${zone.slice(0, 3)}:${zone.slice(3)}` : zone.toUpperCase();
  const ms = Date.parse(`${day}T${minute}:${second}${offset}`);
  if (Number.isNaN(ms)) return null;
  return { seconds: ms / 1000, nanos: Number(fraction.slice(0, 9).padEnd(9, "0")) };
}

/**
 * Return the milliseconds from one instant to another. Instants that are close keep their nanoseconds.
 *
 * @param {{seconds: number, nanos: number}} from - The earlier instant.
 * @param {{seconds: number, nanos: number}} to - The later instant.
 */
export function millisecondsBetween(from, to) {
  return (to.seconds - from.seconds) * 1000 + (to.nanos - from.nanos) / 1e6;
}

/**
 * Return an instant in milliseconds since 1970, as Date counts.
 *
 * @param {{seconds: number, nanos: number}} instant - The instant.
 */
export function toEpochMs(instant) {
  return instant.seconds * 1000 + instant.nanos / 1e6;
}

/**
 * Parse a timestamp into milliseconds since 1970. Return null as parseInstant() does.
 *
 * @param {any} text - The value of a member such as startedAt.
 */
export function parseEpochMs(text) {
  const instant = parseInstant(text);
  return instant && toEpochMs(instant);
}
