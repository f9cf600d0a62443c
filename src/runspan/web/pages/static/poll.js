// Polling: repeats a request after a delay, never while the page is hidden, paused or still waiting for a response.

/** Calls a function again and again, at the delays that the function schedules itself. */
export class Poller {
  /**
   * @param {() => void} request - Sends one request. It calls begin() first, and schedule(), fail() or stop() last.
   * @param {object} limits
   * @param {number} limits.minDelay - Milliseconds before backoff begins: the first retry waits twice as long.
   * @param {number} limits.maxDelay - Longest backoff in milliseconds. Retry-After may exceed it.
   */
  constructor(request, { minDelay, maxDelay }) {
    Object.assign(this, { request, minDelay, maxDelay, timer: 0, delay: null, errors: 0, isPaused: false });
    document.addEventListener("visibilitychange", () => this.onVisibilityChange());
    window.addEventListener("online", () => this.requestNow());
  }

  /** Record that a request was sent: send no other one until it has ended. */
  begin() {
    clearTimeout(this.timer);
    this.delay = null;
  }

  /**
   * Record a success and send the next request after a delay.
   *
   * @param {number} delay - Milliseconds.
   */
  schedule(delay) {
    this.errors = 0;
    this.setDelay(delay);
  }

  /**
   * Record a failure and retry with exponential backoff, not before the error's retryAfter. Return the delay in
   * milliseconds, or null if there is no retry.
   *
   * @param {import("./api.js").ApiError} error - The failure.
   * @param {boolean} [isRetryable] - Whether to retry.
   */
  fail(error, isRetryable = error.isRetryable) {
    if (!isRetryable) {
      this.stop();
      return null;
    }
    this.errors += 1;
    const backoff = Math.min(this.minDelay * 2 ** this.errors, this.maxDelay);
    this.setDelay(Math.max(backoff, (error.retryAfter ?? 0) * 1000));
    return this.delay;
  }

  /** Send no further requests until the next call of schedule(). */
  stop() {
    this.begin();
  }

  /**
   * Pause, or resume with a request.
   *
   * @param {boolean} isPaused - Whether to pause.
   */
  setPaused(isPaused) {
    this.isPaused = isPaused;
    clearTimeout(this.timer);
    if (!isPaused) this.request();
  }

  setDelay(delay) {
    clearTimeout(this.timer);
    this.delay = delay;
    if (!document.hidden && !this.isPaused) this.timer = setTimeout(() => this.request(), delay);
  }

  requestNow() {
    if (this.delay !== null && !document.hidden && !this.isPaused) this.request();
  }

  onVisibilityChange() {
    clearTimeout(this.timer);
    this.requestNow();
  }
}
