// Client of the REST API: builds URLs, fetches JSON or raw text, and turns failures into errors to show to users.

const root = document.documentElement.dataset.root || "";
const assets = document.documentElement.dataset.static || "";

/** A failed request, with a title and a hint for the user. */
export class ApiError extends Error {
  /**
   * @param {object} details
   * @param {number} details.status - HTTP status, or 0 if there was no usable response.
   * @param {string} details.code - Error code of the API.
   * @param {string} details.message - Message of the server.
   * @param {string} details.title - What went wrong, in a few words.
   * @param {string} details.hint - What the user can do about it.
   * @param {string[]} [details.fields] - Names of the invalid query parameters.
   * @param {number|null} [details.retryAfter] - Seconds to wait before the next request.
   */
  constructor({ status, code, message, title, hint, fields = [], retryAfter = null }) {
    super(message);
    this.name = "ApiError";
    Object.assign(this, { status, code, title, hint, fields, retryAfter });
  }

  /** Whether the same request may succeed later. */
  get isRetryable() {
    return this.status === 0 || this.status === 429 || this.status >= 500;
  }
}

/**
 * Return the URL of a path on this server, below the public root.
 *
 * @param {string} path - Absolute path, such as "/compare".
 * @param {object} [parameters] - Query parameters. Arrays repeat a parameter; null, undefined and "" are omitted.
 */
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

/**
 * Return whether there is a run with this id. If that cannot be found out, there may be one.
 *
 * @param {string} id - Run id.
 */
export async function hasRun(id) {
  const path = runApiPath(id);
  if (path === null) return false;
  try {
    const response = await fetch(url(path), { method: "HEAD", cache: "no-store" });
    return response.status !== 404 && response.status !== 400;
  } catch {
    return true;
  }
}

/**
 * Return the URL of a run's page, or null if no URL can hold the id: browsers resolve "." and ".." as directories, and
 * lone surrogates cannot be encoded.
 *
 * @param {string} id - Run id.
 */
export function runPage(id) {
  const segment = pathSegment(id);
  return segment === null ? null : url(`/runs/${segment}`);
}

/**
 * Return the URL of a workflow's page, or null as runPage() does.
 *
 * @param {string} id - Workflow id.
 * @param {object} [parameters] - Query parameters, as for url().
 */
export function workflowPage(id, parameters) {
  const segment = pathSegment(id);
  return segment === null ? null : url(`/workflows/${segment}`, parameters);
}

/**
 * Return the API path of a run for getJson and getText, or null if no URL can hold the id.
 *
 * @param {string} id - Run id.
 * @param {string} [suffix] - Path below the run, such as "/trace".
 */
export function runApiPath(id, suffix = "") {
  const segment = pathSegment(id);
  return segment === null ? null : `/api/v1/runs/${segment}${suffix}`;
}

/**
 * Fetch a JSON resource. Throw an ApiError if that fails.
 *
 * @param {string} path - API path.
 * @param {object} [parameters] - Query parameters, as for url().
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<{body: any, text: string, incomplete: string, observedAt: string}>} The parsed body, and the fields of
 *   getText().
 */
export async function getJson(path, parameters, options) {
  const response = await getText(path, parameters, options);
  try {
    return { ...response, body: JSON.parse(response.text) };
  } catch {
    throw unreadableResponse("The response is not JSON.");
  }
}

/**
 * Fetch a resource as text. Throw an ApiError if that fails.
 *
 * @param {string} path - API path.
 * @param {object} [parameters] - Query parameters, as for url().
 * @param {{signal?: AbortSignal}} [options]
 * @returns {Promise<{text: string, incomplete: string, observedAt: string}>} The unchanged body, and what the headers
 *   of a run say: what is missing from a newer revision, and when an unfinished run was last observed ("" for neither).
 */
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
      message: "The request failed without a response.",
      title: "The server does not respond",
      hint: "Check that runspan serve is running and reachable from this machine.",
    });
  }
  if (!response.ok) throw responseError(response, text);
  const header = (name) => response.headers.get(name) || "";
  return { text, incomplete: header("X-Runspan-Incomplete"), observedAt: header("X-Runspan-Observed-At") };
}

/**
 * Return the error for a successful response whose body cannot be used.
 *
 * @param {string} message - What is wrong with the body.
 */
export function unreadableResponse(message) {
  return new ApiError({
    status: 0,
    code: "UNREADABLE",
    message,
    title: "The response cannot be read",
    hint: "A proxy between this page and the server may have changed it. Try again.",
  });
}

/** Navigate to the login page, which returns to the current page afterwards. */
export function redirectToLogin() {
  const here = (location.pathname + location.search).slice(root.length);
  location.assign(url("/login", { next: here === "/" ? null : here }));
}

/**
 * Start a module worker from a static file.
 *
 * @param {string} name - File name below static/, such as "run/worker.js".
 */
export function startWorker(name) {
  const scriptUrl = `${assets}/${name}`;
  return new Worker(policy ? policy.createScriptURL(scriptUrl) : scriptUrl, { type: "module" });
}

const policy = globalThis.trustedTypes?.createPolicy("runspan", {
  createScriptURL(text) {
    if (!text.startsWith(`${assets}/`)) throw new TypeError("not a script of these pages");
    return text;
  },
});

function pathSegment(id) {
  if (typeof id !== "string" || id === "" || id === "." || id === "..") return null;
  try {
    return encodeURIComponent(id);
  } catch {
    return null;
  }
}

const TEXT_BY_STATUS = {
  400: ["Invalid query", "Change or clear the filters."],
  401: ["You are logged out", "Log in again."],
  403: ["This key is not allowed to read runs", "Log in with a key that has the permission runs:read."],
  404: ["No such run", "Check the id. The run may not have arrived yet, or its retention period may be over."],
  429: ["Too many requests", "This key has reached its rate limit. The page retries automatically."],
  500: ["The server failed", "Find the details in the server's log, under the number in the message."],
  502: ["The backend rejected the request", "Check the server's settings for the backend."],
  503: ["The backend does not respond", "Check that it is running. The page retries automatically."],
  504: ["The backend timed out", "Narrow the time range or the workflow, or try again."],
};

const TEXT_BY_CODE = {
  TRACE_INCOMPLETE: [
    "Part of this run is missing",
    "Some of its spans have not arrived, or the backend lost them. Run runspan verify to find the setting to change.",
  ],
  QUERY_UNSUPPORTED: ["This backend cannot answer that query exactly", "Change or clear the filters."],
};

function responseError(response, text) {
  let error = {};
  try {
    error = JSON.parse(text).error || {};
  } catch {
    // A proxy may respond with an HTML page.
  }
  const [title, hint] = TEXT_BY_CODE[error.code] ||
    TEXT_BY_STATUS[response.status] || [`The server responded with status ${response.status}`, "Try again."];
  const retryAfter = Number(response.headers.get("Retry-After"));
  return new ApiError({
    status: response.status,
    code: error.code || String(response.status),
    message: error.message || response.statusText || title,
    title,
    hint,
    fields: (error.details || []).map((detail) => detail.field),
    retryAfter: Number.isFinite(retryAfter) && retryAfter > 0 ? retryAfter : null,
  });
}
