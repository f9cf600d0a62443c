// Wraps a text of any length into rows of a fixed number of columns. Pure.

const LINE_FEED = 10;
const TAB = 9;
const TAB_COLUMNS = 2;
const FIRST_COMBINING_MARK = 0x300;
const FIRST_WIDE_CHARACTER = 0x1100;

const isCombiningMark = (code) =>
  (code >= FIRST_COMBINING_MARK && code <= 0x36f) || (code >= 0xfe00 && code <= 0xfe0f) || code === 0x200d;
const isLowSurrogate = (code) => code >= 0xdc00 && code <= 0xdfff;

/** The columns of a UTF-16 code unit in a monospaced font. */
function columnsOf(code) {
  if (code < FIRST_COMBINING_MARK) return code === TAB ? TAB_COLUMNS : 1;
  if (isCombiningMark(code) || isLowSurrogate(code)) return 0;
  return code >= FIRST_WIDE_CHARACTER ? 2 : 1;
}

/**
 * The rows of a text. Surrogate pairs are not split, nor are combining marks separated from their letters. Rows are
 * computed on demand; `isComplete` is true once all are known.
 */
export class TextRows {
  /**
   * @param {string} text - The text.
   * @param {number} start - Where to begin.
   * @param {number} end - Where to end.
   * @param {number} columns - Maximum width of a row.
   */
  constructor(text, start, end, columns) {
    Object.assign(this, { text, end, columns, starts: [start], isComplete: start >= end });
  }

  /** The number of known rows. */
  get length() {
    return this.starts.length;
  }

  /**
   * Return where a known row begins and ends, including its line break.
   *
   * @param {number} row - Index of the row.
   */
  bounds(row) {
    return [this.starts[row], this.starts[row + 1] ?? this.end];
  }

  /**
   * Compute rows until one begins after a position, or the text ends.
   *
   * @param {number} position - Position in the text.
   */
  extend(position) {
    const { text, end, columns, starts } = this;
    let at = starts.at(-1);
    let width = 0;
    while (at < end) {
      const code = text.charCodeAt(at);
      const added = columnsOf(code);
      if (width + added > columns && width > 0) {
        starts.push(at);
        width = 0;
        if (at > position) return;
      }
      width += added;
      at += 1;
      if (code === LINE_FEED && at < end) {
        starts.push(at);
        width = 0;
        if (at > position) return;
      }
    }
    this.isComplete = true;
  }

  /**
   * Return the index of the row that contains a position. Rows up to it are computed.
   *
   * @param {number} position - Position in the text.
   */
  rowAt(position) {
    if (!this.isComplete && this.starts.at(-1) <= position) this.extend(position);
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
