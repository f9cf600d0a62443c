"""How fast the run page is with many steps, measured in the browser."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

Opening = Callable[..., Page]
Report = Callable[[str], None]

FRAMES = """() => new Promise((done) => {
  const area = document.querySelector(".canvas-area");
  const times = [];
  let last = performance.now();
  const turn = (now) => {
    times.push(now - last);
    last = now;
    if (times.length > 40) return done(times.slice(1).sort((a, b) => a - b));
    area.dispatchEvent(new WheelEvent("wheel", { deltaY: 300, bubbles: true, cancelable: true }));
    requestAnimationFrame(turn);
  };
  requestAnimationFrame(turn);
})"""


def interactive(page: Page) -> float:
    """Milliseconds from the navigation until the page was drawn and answered."""
    page.wait_for_selector(".node, .timeline-row")
    found: float = page.evaluate("""async () => {
      const name = "runspan:interactive";
      while (!performance.getEntriesByName(name).length) await new Promise(requestAnimationFrame);
      return performance.getEntriesByName(name)[0].startTime;
    }""")
    return found


@pytest.mark.parametrize(("run_id", "bound"), [("run_500", 4000), ("run_5000", 8000), ("run_loop", 8000)])
def test_the_page_is_soon_interactive(opened: Opening, report: Report, run_id: str, bound: int) -> None:
    """A run of 500 steps takes well under a second on a quiet machine; the bound is for a busy one."""
    times = [interactive(opened(run_id)) for _ in range(3)]
    report(f"{run_id}: interactive after {', '.join(f'{time:.0f}' for time in times)} ms")
    assert min(times) < bound


@pytest.mark.parametrize("run_id", ["run_two", "run_5000"])
def test_only_what_is_in_sight_is_made_of_elements(opened: Opening, run_id: str) -> None:
    """Five thousand steps need about as many elements as two."""
    page = opened(run_id)
    expect(page.locator(".node").first).to_be_visible()
    assert page.evaluate("document.querySelectorAll('*').length") < 1200
    page.keyboard.press("v")
    expect(page.locator(".timeline-row").first).to_be_visible()
    assert page.locator(".timeline-row").count() < 60
    assert page.evaluate("document.querySelectorAll('*').length") < 1500


def test_moving_over_five_thousand_steps_is_smooth(opened: Opening, report: Report) -> None:
    """Half of the frames of a fast move take no longer than a tenth of a second, on a busy machine too."""
    page = opened("run_5000")
    expect(page.locator(".node").first).to_be_visible()
    times = page.evaluate(FRAMES)
    report(f"5000 steps, moving: median frame {times[len(times) // 2]:.0f} ms, worst {times[-1]:.0f} ms")
    assert times[len(times) // 2] < 100


def test_opening_a_step_is_quick(opened: Opening, report: Report) -> None:
    """A click on one of 5,000 steps shows it within a moment."""
    page = opened("run_5000")
    expect(page.locator(".node").first).to_be_visible()
    took = page.evaluate("""async () => {
      const begun = performance.now();
      document.querySelector(".node-body").click();
      await new Promise(requestAnimationFrame);
      await new Promise(requestAnimationFrame);
      return performance.now() - begun;
    }""")
    report(f"5000 steps: a step opens in {took:.0f} ms")
    assert took < 1000
    expect(page.locator(".detail.of-step")).to_be_visible()
