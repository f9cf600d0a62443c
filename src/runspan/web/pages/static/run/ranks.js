// Which of several things come after which, by their times: a rank for each, and the lines between them. Pure.
//
// A document has no edges. One thing is after another when it began once the other had ended, and things that overlap
// stand beside each other. The rank is the length of the longest way to a thing. A line goes to a thing from what ended
// last before it, and from whatever has no line to anything yet: so a fork, a join and branches of several steps look
// like what they are, and a pool of workers does not become a web.

/**
 * Gives every item `rank` (from 0), `loose` (no times: placed after what stands before it in the document) and returns
 * the links, as {from: items, to: items, loose}. Items have `from`, null without a time, and `to`, Infinity without an
 * end; they stand in the order of the document.
 */
export function rank(items) {
  const links = rankTimed(items.filter((item) => item.from !== null));
  return [...links, ...rankLoose(items, links)];
}

function rankTimed(timed) {
  const place = new Map(timed.map((item, index) => [item, index]));
  const byOrder = (one, other) => place.get(one) - place.get(other);
  const starts = [...timed].sort((a, b) => a.from - b.from || a.to - b.to || byOrder(a, b));
  const ends = [...timed].sort((a, b) => a.to - b.to || a.from - b.from || byOrder(a, b));
  const links = [];
  const open = new Set(); // ended, and without a line to anything
  let ended = 0;
  let depth = 0;
  let latest = null;
  let group = null;
  for (const item of starts) {
    item.loose = false;
    while (ended < ends.length && ends[ended].to <= item.from && ends[ended].rank !== undefined) {
      latest = ends[ended];
      open.add(latest);
      depth = Math.max(depth, latest.rank + 1);
      ended += 1;
      group = null;
    }
    item.rank = depth;
    if (group) group.to.push(item);
    else if (latest) {
      open.add(latest);
      group = { from: [...open], to: [item], loose: false };
      open.clear();
      links.push(group);
    }
  }
  return links;
}

function rankLoose(items, timedLinks) {
  const deepest = items.reduce((most, item) => Math.max(most, item.rank ?? -1), -1);
  const used = new Set(timedLinks.flatMap((link) => link.from));
  const ends = items.filter((item) => item.from !== null && !used.has(item));
  const links = [];
  let before = null;
  for (const item of items) {
    if (item.from === null) {
      item.loose = true;
      item.rank = before ? before.rank + 1 : 0;
      if (before && before.rank === deepest && !before.loose) {
        links.push({ from: ends, to: [item], loose: true });
      } else if (before) links.push({ from: [before], to: [item], loose: true });
    }
    before = item;
  }
  return links;
}
