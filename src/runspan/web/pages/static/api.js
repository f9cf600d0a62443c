// The REST API from a page: JSON, raw text, and errors that say what to do.

const root = document.documentElement.dataset.root || "";
const assets = document.documentElement.dataset.static || "";

/**
 * What went wrong. status: HTTP, 0 without an answer. title, todo: for people. fields: the parameters that are wrong.
 * retryAfter: seconds, or null.
 */
export class ApiError extends Error {
  constructor({ status, code, message, title, todo, fields = [], retryAfter = null }) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, title, todo, fields, retryAfter });
  }

  /** Whether asking again later may help. */
  get passing() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/** A path of this server: url("/compare", {a, b}). Parameters that are null, undefined or "" are left out. */
export function url(path, parameters = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") query.append(name, one);
    }
  }
  const text = query.toString();
  return root + path + (text ? `?${text}` : "");
}

/** The page of a run; null for the ids that no URL can hold, "." and "..", which browsers take for folders. */
export function runPage(id) {
  const segment = segmentOf(id);
  return segment === null ? null : url(`/runs/${segment}`);
}

/** The API's path of a run, for getJson and getText; null as above. */
export function runApi(id, rest = "") {
  const segment = segmentOf(id);
  return segment === null ? null : `/api/v1/runs/${segment}${rest}`;
}

/** {body, partial, incomplete}: the parsed answer, and what the headers say is missing ("" when nothing is). */
export async function getJson(path, parameters, options) {
  const answer = await getText(path, parameters, options);
  try {
    return { ...answer, body: JSON.parse(answer.text) };
  } catch {
    throw new ApiError({
      status: 0,
      code: "UNREADABLE",
      message: "The answer is no JSON.",
      title: "The answer cannot be read",
      todo: "Something between this page and the server may have changed it. Try again.",
    });
  }
}

/** {text, partial, incomplete}: the answer as it came. options.signal: an AbortSignal. */
export async function getText(path, parameters, { signal } = {}) {
  let response;
  let text;
  try {
    response = await fetch(url(path, parameters), {
      signal,
      headers: { Accept: "application/json" },
      cache: "no-store",
    });
    text = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({
      status: 0,
      code: "UNREACHABLE",
      message: "The server did not answer.",
      title: "The server does not answer",
      todo: "Check that runspan serve is running and that this machine reaches it.",
    });
  }
  if (!response.ok) throw errorOf(response, text);
  return {
    text,
    partial: response.headers.get("X-Runspan-Partial") || "",
    incomplete: response.headers.get("X-Runspan-Incomplete") || "",
  };
}

/** Sends the browser to log in, and back here. */
export function toLogin() {
  const here = (location.pathname + location.search).slice(root.length);
  location.assign(url("/login", { next: here === "/" ? null : here }));
}

/** A worker from a static file, such as worker("run/worker.js"). */
export function worker(name) {
  return new Worker(trusted(`${assets}/${name}`), { type: "module" });
}

const policy = globalThis.trustedTypes?.createPolicy("runspan", {
  createScriptURL(text) {
    if (!text.startsWith(`${assets}/`)) throw new TypeError("no script of these pages");
    return text;
  },
});

function trusted(text) {
  return policy ? policy.createScriptURL(text) : text;
}

function segmentOf(id) {
  if (typeof id !== "string" || id === "" || id === "." || id === "..") return null;
  try {
    return encodeURIComponent(id);
  } catch {
    return null;
  }
}

const WORDS = {
  400: ["The question is not understood", "Change or clear the filters."],
  401: ["You are logged out", "Log in again."],
  403: ["This key may not read runs", "Log in with a key that has the permission runs:read."],
  404: ["No such run", "Check the id. The run may not have arrived yet, or be past its retention."],
  429: ["Too many requests", "This key asks too often. The page goes on by itself."],
  500: ["The server failed", "Its log has the details under the number in the message."],
  502: ["The backend refuses", "Check the server's settings for the backend."],
  503: ["The backend does not answer", "Check that it is running. The page tries again by itself."],
  504: ["The backend takes too long", "Narrow the time or the workflow, or try again."],
};

const BY_CODE = {
  TRACE_INCOMPLETE: [
    "Part of this run is missing",
    "Some of its spans have not arrived, or the backend lost them: runspan verify tells which setting loses spans.",
  ],
  QUERY_UNSUPPORTED: ["This backend cannot answer that exactly", "Change or clear the filters."],
};

function errorOf(response, text) {
  let error = {};
  try {
    error = JSON.parse(text).error || {};
  } catch {
    // A proxy may answer with a page of its own.
  }
  const [title, todo] = BY_CODE[error.code] ||
    WORDS[response.status] || [`The server answered ${response.status}`, "Try again."];
  const after = Number(response.headers.get("Retry-After"));
  return new ApiError({
    status: response.status,
    code: error.code || String(response.status),
    message: error.message || response.statusText || title,
    title,
    todo,
    fields: (error.details || []).map((detail) => detail.field),
    retryAfter: Number.isFinite(after) && after > 0 ? after : null,
  });
}
