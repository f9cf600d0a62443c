// Copies exact text to the clipboard, also on pages without TLS, where browsers disable the Clipboard API.

import { announce } from "./dom.js";
import { textSize } from "./format.js";

const FEEDBACK_MS = 1600;

/**
 * Make a button copy a text on click and show the outcome for a moment. Return the button.
 *
 * @param {HTMLButtonElement} button - The button.
 * @param {() => string} getText - Returns the text to copy.
 * @param {string} label - What is copied, for screen readers.
 */
export function copyOnClick(button, getText, label) {
  let timer = 0;
  button.addEventListener("click", async (event) => {
    event.stopPropagation();
    const text = getText();
    const isCopied = await copyText(text);
    announce(isCopied ? `${label} copied, ${textSize(text)}` : "The browser does not allow copying here");
    button.dataset.copied = isCopied ? "yes" : "no";
    clearTimeout(timer);
    timer = setTimeout(() => delete button.dataset.copied, FEEDBACK_MS);
  });
  return button;
}

async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copyByCommand(text);
  }
}

/** Copy with the deprecated copy command. Set the data in the event, because a form field would change line breaks. */
function copyByCommand(text) {
  let isSet = false;
  const onCopy = (event) => {
    event.clipboardData.setData("text/plain", text);
    event.preventDefault();
    event.stopImmediatePropagation();
    isSet = true;
  };
  document.addEventListener("copy", onCopy, { capture: true, once: true });
  try {
    return document.execCommand("copy") && isSet;
  } finally {
    document.removeEventListener("copy", onCopy, { capture: true });
  }
}
