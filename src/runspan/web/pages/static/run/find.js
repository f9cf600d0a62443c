// Where a text stands in another. Pure.

/** More matches than these are not listed. */
export const MOST = 10_000;

/**
 * The positions in `text` between `start` and `end` at which `needle` stands, whatever its case, at most MOST.
 * An empty needle stands nowhere.
 */
export function findAll(text, start, end, needle) {
  const found = [];
  if (!needle) return found;
  const part = text.slice(start, end);
  const pattern = new RegExp(needle.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&"), "gi");
  for (const match of part.matchAll(pattern)) {
    if (found.push(start + match.index) === MOST) break;
  }
  return found;
}
