// Exact text to the clipboard, also where the browser's clipboard interface is closed because the page has no TLS.

import { announce } from "../dom.js";
import { bytes } from "../format.js";

/** Copies a text, character for character; false when the browser refuses. */
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByEvent(text);
  }
}

/** The older way: a copy command whose event is given the text, since a form field would change its line ends. */
function copyByEvent(text) {
  let given = false;
  const give = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
    event.stopImmediatePropagation();
    given = true;
  };
  document.addEventListener("copy", give, { capture: true, once: true });
  try {
    return document.execCommand("copy") && given;
  } finally {
    document.removeEventListener("copy", give, { capture: true });
  }
}

/** Lets a button copy what `text()` returns, and say so for a moment. */
export function copyOnClick(button, text, label) {
  let timer = 0;
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const exact = text();
    const done = await copyText(exact);
    announce(done ? `${label} copied, ${bytes(byteLength(exact))}` : "The browser does not allow copying here");
    button.dataset.done = done ? "yes" : "no";
    clearTimeout(timer);
    timer = setTimeout(() => delete button.dataset.done, 1600);
  });
  return button;
}

/** The length of a text in UTF-8; long ones are estimated from their beginning. */
export function byteLength(text) {
  const most = 1 << 20;
  if (text.length <= most) return new TextEncoder().encode(text).length;
  return Math.round((new TextEncoder().encode(text.slice(0, most)).length / most) * text.length);
}
