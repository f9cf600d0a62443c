"""Makes run documents in volume: seeded, fast, and shaped like what a busy company's platform writes.

Nothing here reads a clock or the system's randomness. Only `Random.random` and `Random.getrandbits` are used, whose
sequences Python keeps from version to version, so a seed means the same bytes everywhere.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from itertools import accumulate
from random import Random
from typing import Any

from .workflows import Step, Workflow, workflows

_DAY_MS = 86_400_000
_START = datetime(2026, 10, 1, tzinfo=UTC)

# Shares of 100 runs; what is left to 100 is unfinished, or completed where nothing may be unfinished.
_TERMINAL = (("completed", 88), ("failed", 6), ("cancelled", 2), ("timed_out", 1))
_UNFINISHED = (("running", 1), ("suspended", 1), ("pending", 1))

# USD for a million tokens in and out, and the spread of prompt and completion sizes.
_PRICES = {
    "claude-sonnet-4-6": (3.0, 15.0, 1800, 700),
    "claude-opus-4-6": (5.0, 25.0, 14000, 1800),
    "gpt-4o-mini": (0.15, 0.6, 5200, 400),
    "gpt-4.1-mini": (0.4, 1.6, 900, 120),
}

_ERRORS = {
    "quickbooks": ("INTEGRATION_ERROR", "QuickBooks: Customer not found for reference '%(customer)s'"),
    "stripe": ("INTEGRATION_ERROR", "Stripe: Your card was declined (insufficient_funds)"),
    "netsuite": ("INTEGRATION_ERROR", "NetSuite: 503 Service Unavailable"),
    "xero": ("INTEGRATION_ERROR", "Xero: The TaxType code 'OUTPUT2' does not exist"),
    "hubspot": ("RATE_LIMITED", "HubSpot: You have reached your ten_secondly_rolling limit"),
    "salesforce": ("INTEGRATION_ERROR", "Salesforce: UNABLE_TO_LOCK_ROW"),
    "agent": ("AGENT_ERROR", "The model's answer does not match the schema"),
    "approval": ("APPROVAL_EXPIRED", "No approver answered in time"),
    "loop": ("LOOP_FAILED", "An iteration failed"),
    "transform": ("VALIDATION_ERROR", "Field 'reference' is missing"),
}
# A loop stops in its body; the rest is over too soon, or is another run.
_NEVER_STOPS = frozenset({"webhook", "schedule", "event", "condition", "loop", "sub-workflow"})
_OTHER_ERROR = ("STEP_ERROR", "The remote side closed the connection")
_RETRY = ',"retryPolicy":{"maxAttempts":3,"initialDelayMs":1000,"maxDelayMs":30000,"backoffMultiplier":2}'

_CUSTOMERS = (
    ("Harbor & Pine LLC", "harborandpine.example", "US", "USD"),
    ("Castellan Freight", "castellanfreight.example", "US", "USD"),
    ("Brightwater Dental", "brightwaterdental.example", "US", "USD"),
    ("Juniper Robotics", "juniper-robotics.example", "US", "USD"),
    ("Larkspur Analytics", "larkspur.example", "CA", "CAD"),
    ("Quill & Co", "quillandco.example", "GB", "GBP"),
    ("Osprey Logistics", "ospreylogistics.example", "GB", "GBP"),
    ("Nordwerk GmbH", "nordwerk.example", "DE", "EUR"),
    ("Bäckerei Möller", "baeckerei-moeller.example", "DE", "EUR"),
    ("Café Lumière", "cafe-lumiere.example", "FR", "EUR"),
    ("株式会社さくら商事", "sakura-shoji.example", "JP", "JPY"),
    ("Tui Paddles Ltd", "tuipaddles.example", "NZ", "NZD"),
)
_PLANS = ("starter", "growth", "scale", "enterprise")
_MAILBOXES = ("ap", "billing", "office", "finance", "dana.whitlock", "theo.marchetti")
_SKUS = ("PLAT-ENT", "PLAT-PRO", "SUP-PREM", "SEAT-25")


def generate(
    count: int,
    *,
    seed: int = 0,
    start: datetime | None = None,
    span_days: float = 90.0,
    unfinished: bool = False,
) -> Iterator[bytes]:
    """Yield `count` run documents as compact UTF-8 JSON, with runs spread over `span_days` from `start` in no order.

    `start` needs a time zone; without it the span begins on 2026-10-01. With `unfinished`, three runs in a hundred
    are still running, suspended or pending. A parent's sub-workflow run is a document of its own, just before it.
    """
    if count < 0:
        raise ValueError(f"count: expected 0 or more, got {count}")
    if start is not None and start.tzinfo is None:
        raise ValueError(f"start: expected a datetime with a time zone, got {start!r}")
    factory = _Factory(Random(seed), int((start or _START).timestamp() * 1000), span_days, unfinished)  # noqa: S311  # volume, not secrets
    return factory.documents(count)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is to happen in a run, decided before it is written."""

    workflow: Workflow
    status: str
    verdict: bool  # the result of its conditions
    cut: int  # position of the step at which a run that does not complete stops, or -1


class _Factory:
    """The state of one generation: the random sequence, the run counter, and the text of the days seen so far."""

    def __init__(self, rng: Random, start_ms: int, span_days: float, unfinished: bool) -> None:
        self.rng = rng
        self._start_ms = start_ms
        self._span_ms = span_days * _DAY_MS
        self._made = 0
        self._days: dict[int, str] = {}
        self._statuses, shares = zip(*(_TERMINAL + _UNFINISHED if unfinished else _TERMINAL), strict=True)
        self._status_sums = list(accumulate(shares))
        self._workflows = workflows()
        self.by_id = {workflow.id: workflow for workflow in self._workflows}
        self._sums = list(accumulate(workflow.weight for workflow in self._workflows))
        # A run is suspended at an approval, so only workflows that have one can be.
        self._approving = [w for w in self._workflows if any(step.block.type == "approval" for step in w.steps)]

    def documents(self, count: int) -> Iterator[bytes]:
        random = self.rng.random
        waiting: list[str] = []
        for _ in range(count):
            if not waiting:
                status = self._statuses[bisect(self._status_sums, random() * self._status_sums[-1])]
                if status == "suspended":
                    workflow = self._approving[int(random() * len(self._approving))]
                else:
                    workflow = self._workflows[bisect(self._sums, random() * self._sums[-1])]
                created = self._start_ms + int(random() * self._span_ms)
                self.run(workflow, self.next_id(), created, status, waiting)
            yield waiting.pop(0).encode()

    def next_id(self) -> str:
        self._made += 1
        return f"run_{self.rng.getrandbits(48):012x}{self._made:08x}"

    def stamp(self, ms: int) -> str:
        day, rest = divmod(ms, _DAY_MS)
        text = self._days.get(day)
        if text is None:
            text = self._days[day] = date.fromordinal(719_163 + day).isoformat()  # 719163: 1970-01-01
        seconds, milli = divmod(rest, 1000)
        minutes, second = divmod(seconds, 60)
        hour, minute = divmod(minutes, 60)
        return f"{text}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z"

    def _facts(self, created: int, verdict: bool) -> dict[str, Any]:
        """Draw what the payload templates of one run speak of."""
        bits = self.rng.getrandbits(96)
        customer, domain, country, currency = _CUSTOMERS[bits % len(_CUSTOMERS)]
        fired = self.stamp(created)
        number = 1000 + (bits >> 8) % 90000
        cents = 900 + (bits >> 24) % 900_000
        return {
            "customer": customer,
            "domain": domain,
            "country": country,
            "currency": currency,
            "email": f"{_MAILBOXES[(bits >> 4) % len(_MAILBOXES)]}@{domain}",
            "plan": _PLANS[(bits >> 6) & 3],
            "sku": _SKUS[(bits >> 10) & 3],
            "people": 2 + (bits >> 12) % 98,
            "number": number,
            "invoice": f"INV-{number}",
            "cents": cents,
            "amount": cents / 100,
            "hex": f"{bits >> 32:016x}",
            "fired": fired,
            "date": fired[:10],
            "rounds": 1 + (bits >> 14) % 5,
            "round": 1,
            "verdict": "true" if verdict else "false",
        }

    def run(self, workflow: Workflow, run_id: str, created: int, status: str, out: list[str]) -> int:
        """Append the run's document to `out`, after those of its sub-workflows, and return when it ended."""
        plan = self._plan(workflow, status)
        facts = self._facts(created, plan.verdict)
        started = created + 4 + int(self.rng.random() * 300)
        steps, last, error = _Steps(self, plan, facts, out).write(started)
        ended = last + 1 + int(self.rng.random() * 12)
        if status == "pending":
            times = '"startedAt":null,"completedAt":null,"durationMs":null'
        elif status in ("running", "suspended"):
            times = f'"startedAt":"{self.stamp(started)}","completedAt":null,"durationMs":null'
        else:
            times = (
                f'"startedAt":"{self.stamp(started)}","completedAt":"{self.stamp(ended)}",'
                f'"durationMs":{ended - started}'
            )
        output = workflow.output % facts if status == "completed" else "null"
        out.append(
            f'{{"id":"{run_id}","workflowId":"{workflow.id}","status":"{status}","triggerType":"{workflow.trigger}",'
            f'{times},"input":{workflow.input % facts},"output":{output},"error":{error},'
            f'"createdAt":"{self.stamp(created)}","steps":[{",".join(steps)}]}}'
        )
        return ended

    def _plan(self, workflow: Workflow, status: str) -> _Plan:
        verdict = self.rng.random() < 0.55
        if status == "completed":
            return _Plan(workflow, status, verdict, -1)
        if status == "pending":
            return _Plan(workflow, status, verdict, 0)
        if status == "suspended":
            stops = [i for i, step in enumerate(workflow.steps) if step.block.type == "approval"]
        else:
            stops = [
                i
                for i, step in enumerate(workflow.steps)
                if step.branch in (None, verdict) and step.block.type not in _NEVER_STOPS
            ]
        cut = stops[int(self.rng.random() * len(stops))]
        branch = workflow.steps[cut].branch
        return _Plan(workflow, status, verdict if branch is None else branch, cut)


class _Steps:
    """The steps of one run, written in the order of their graph."""

    def __init__(self, factory: _Factory, plan: _Plan, facts: dict[str, Any], out: list[str]) -> None:
        self._factory = factory
        self._random = factory.rng.random
        self._stamp = factory.stamp
        self._plan = plan
        self._facts = facts
        self._out = out
        self._behind = "skipped" if plan.status in ("failed", "cancelled", "timed_out") else "pending"
        self._error = "null"

    def write(self, started: int) -> tuple[list[str], int, str]:
        """Return the steps' texts, the last moment among them, and the run's error."""
        texts: list[str] = []
        ends: list[int] = []
        blocked: list[bool] = []
        body: list[str] = []
        for position, step in enumerate(self._plan.workflow.steps):
            begin = max((ends[other] for other in step.after), default=started) + 2 + int(self._random() * 9)
            blocking = any(blocked[other] for other in step.after)
            if step.each and body:
                texts.extend(body)
                body, end = [], ends[-1]
            elif blocking:
                texts.append(f'{step.head}{self._behind}"}}')
                end = begin
            elif step.branch not in (None, self._plan.verdict):
                texts.append(f'{step.head}skipped"}}')
                end = begin - 2
            elif step.block.type == "loop":
                body, end = self._loop(position, begin + 1)
                blocking = position + 1 == self._plan.cut
                texts.append(self._text(step, begin, end, stops=blocking))
            else:
                blocking = position == self._plan.cut
                end = self._end(step, begin)
                texts.append(self._text(step, begin, end, stops=blocking))
            ends.append(end)
            blocked.append(blocking)
        return texts, max(ends), self._error

    def _loop(self, position: int, begin: int) -> tuple[list[str], int]:
        """Write the rounds of the loop's body, the step after it; a cut strikes the last round."""
        body = self._plan.workflow.steps[position + 1]
        texts = []
        rounds: int = self._facts["rounds"]
        for number in range(1, rounds + 1):
            self._facts["round"] = number
            end = self._end(body, begin)
            texts.append(self._text(body, begin, end, stops=number == rounds and position + 1 == self._plan.cut))
            begin = end + 1 + int(self._random() * 6)
        return texts, begin

    def _end(self, step: Step, begin: int) -> int:
        """Draw when a step ends: near its typical time, with a long tail; a sub-workflow ends after its run."""
        if step.runs is not None:
            child = self._factory.next_id()
            self._facts["child"], self._facts["childRun"] = step.runs, child
            workflow = self._factory.by_id[step.runs]
            return self._factory.run(workflow, child, begin + 15, "completed", self._out) + 8
        return begin + int(step.block.typical_ms * 0.5 / (1.0 - 0.9 * self._random()))

    def _text(self, step: Step, begin: int, end: int, *, stops: bool) -> str:
        block = step.block
        # Each step speaks of other objects: a payload that repeated one id would compress better than life does.
        self._facts["hex"] = f"{self._factory.rng.getrandbits(64):016x}"
        if block.model is not None:
            self._draw_usage(block.model)
        elif block.type == "approval":
            self._facts["approved"] = self._stamp(end)
        given = f',"input":{block.input % self._facts}' if block.input is not None else ""
        if stops:
            return self._stopped(step, begin, end, given)
        attempt = ',"attempt":2' if self._random() < 0.02 and end - begin > 200 else ""
        return (
            f'{step.head}completed","startedAt":"{self._stamp(begin)}","completedAt":"{self._stamp(end)}",'
            f'"durationMs":{end - begin}{attempt}{given},"output":{block.output % self._facts}}}'
        )

    def _stopped(self, step: Step, begin: int, end: int, given: str) -> str:
        """Write the step at which the run failed, was stopped, or is still at work."""
        if self._plan.status == "pending":
            return f'{step.head}pending"}}'
        code, message = _ERRORS.get(step.block.type, _OTHER_ERROR)
        if self._plan.status == "cancelled":
            code, message = "CANCELLED", "Cancelled by m.okafor@ledgerline.example"
        elif self._plan.status == "timed_out":
            code, message = "TIMEOUT", "The run exceeded its time limit"
        error = f'{{"code":"{code}","message":"{message % self._facts}","step":"{step.id}"}}'
        if self._plan.status in ("running", "suspended"):
            if self._plan.status == "running" and step.block.type != "loop" and self._random() < 0.25:
                return (
                    f'{step.head}retrying","startedAt":"{self._stamp(begin)}","completedAt":null,"attempt":2{given},'
                    f'"error":{error}{_RETRY}}}'
                )
            return f'{step.head}running","startedAt":"{self._stamp(begin)}","completedAt":null{given}}}'
        if step.block.type != "loop":
            self._error = error
        attempt, retry = (',"attempt":3', _RETRY) if code in ("INTEGRATION_ERROR", "RATE_LIMITED") else ("", "")
        return (
            f'{step.head}failed","startedAt":"{self._stamp(begin)}","completedAt":"{self._stamp(end)}",'
            f'"durationMs":{end - begin}{attempt}{given},"error":{error}{retry}}}'
        )

    def _draw_usage(self, model: str) -> None:
        price_in, price_out, prompt_size, completion_size = _PRICES[model]
        prompt = int(prompt_size * (0.4 + self._random()))
        completion = int(completion_size * (0.3 + self._random()))
        cost = round((prompt * price_in + completion * price_out) / 1e6, 8)
        self._facts.update(prompt=prompt, completion=completion, tokens=prompt + completion, model=model, cost=cost)
