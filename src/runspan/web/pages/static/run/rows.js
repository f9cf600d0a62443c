// A text of any length as rows of a fixed width: where each begins. Pure.

const isMark = (code) => (code >= 0x300 && code <= 0x36f) || (code >= 0xfe00 && code <= 0xfe0f) || code === 0x200d;
const isTail = (code) => code >= 0xdc00 && code <= 0xdfff;

/** How many columns of a fixed-width font a character takes; the second half of a pair and marks take none. */
function widthOf(code) {
  if (code < 0x300) return code === 9 ? 2 : 1;
  if (isMark(code) || isTail(code)) return 0;
  return code >= 0x1100 ? 2 : 1;
}

/**
 * The rows of `text` between two places, each at most `columns` wide. A pair of surrogates is not cut, nor a mark from
 * its letter. Rows are worked out as far as they are asked for; `done` says that all are.
 */
export class Rows {
  constructor(text, start, end, columns) {
    Object.assign(this, { text, end, columns, starts: [start], done: start >= end });
  }

  /** How many rows are known. */
  get length() {
    return this.starts.length;
  }

  /** Where a known row begins and ends, its line end included. */
  bounds(row) {
    return [this.starts[row], this.starts[row + 1] ?? this.end];
  }

  /** Works out rows until one begins after this position, or the text ends. */
  extend(position) {
    const { text, end, columns, starts } = this;
    let at = starts.at(-1);
    let width = 0;
    while (at < end) {
      const code = text.charCodeAt(at);
      const wide = widthOf(code);
      if (width + wide > columns && width > 0) {
        starts.push(at);
        width = 0;
        if (at > position) return;
      }
      width += wide;
      at += 1;
      if (code === 10 && at < end) {
        starts.push(at);
        width = 0;
        if (at > position) return;
      }
    }
    this.done = true;
  }

  /** The row that holds a position. */
  rowOf(position) {
    if (!this.done && this.starts.at(-1) <= position) this.extend(position);
    let low = 0;
    let high = this.starts.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.starts[middle] <= position) low = middle;
      else high = middle - 1;
    }
    return low;
  }
}
