"""Generates run documents in volume from a seed, shaped like those of a busy company's platform.

No clock is read, and only ``Random.random`` and ``Random.getrandbits`` are used, whose sequences are the same in every
version of Python, so a seed generates the same bytes everywhere.
"""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from random import Random
from typing import Any

from .workflows import Step, Workflow, workflows

_DAY_MS = 86_400_000
_START = datetime(2026, 10, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1)

# Weights: a share of 100 runs if some are unfinished.
_TERMINAL = (("completed", 88), ("failed", 6), ("cancelled", 2), ("timed_out", 1))
_UNFINISHED = (("running", 1), ("suspended", 1), ("pending", 1))

# USD per million prompt and completion tokens, and the typical number of each.
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
# A loop stops in its body; the others are too short, or are another run.
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
    """Yield ``count`` run documents as compact UTF-8 JSON, spread over ``span_days`` from ``start`` in random order.

    A sub-workflow run is a document of its own, just before its parent. Raise ValueError for a negative ``count`` and a
    ``start`` without a time zone.

    - ``start``: 2026-10-01 by default.
    - ``unfinished``: leave three runs in a hundred running, suspended or pending.
    """
    if count < 0:
        raise ValueError(f"count: expected 0 or more, got {count}")
    if start is not None and start.tzinfo is None:
        raise ValueError(f"start: expected a datetime with a time zone, got {start!r}")
    factory = _Factory(Random(seed), int((start or _START).timestamp() * 1000), span_days, unfinished)  # noqa: S311  # volume, not secrets
    return factory.documents(count)


class _Factory:
    """Generates the runs of one seed."""

    def __init__(self, rng: Random, start_ms: int, span_days: float, unfinished: bool) -> None:
        self.rng = rng
        self._start_ms = start_ms
        self._span_ms = span_days * _DAY_MS
        self._made = 0
        self._statuses, shares = zip(*(_TERMINAL + _UNFINISHED if unfinished else _TERMINAL), strict=True)
        self._status_sums = list(accumulate(shares))
        self._workflows = workflows()
        self.by_id = {workflow.id: workflow for workflow in self._workflows}
        self._sums = list(accumulate(workflow.weight for workflow in self._workflows))
        # A run is suspended at an approval, so only workflows that have one can be.
        self._approving = [w for w in self._workflows if any(step.kind.type == "approval" for step in w.steps)]

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
                _Run(self, workflow, self.next_id(), created, status, waiting).write()
            yield waiting.pop(0).encode()

    def next_id(self) -> str:
        self._made += 1
        return f"run_{self.rng.getrandbits(48):012x}{self._made:08x}"


def _stamp(ms: int) -> str:
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds") + "Z"


def _times(begin: int, end: int) -> str:
    """Return the members for when a run or step began and ended."""
    return f'"startedAt":"{_stamp(begin)}","completedAt":"{_stamp(end)}","durationMs":{end - begin}'


class _Run:
    """Draws one run and writes its steps in the order of their graph."""

    def __init__(
        self, factory: _Factory, workflow: Workflow, run_id: str, created: int, status: str, out: list[str]
    ) -> None:
        self._factory = factory
        self._id = run_id
        self._random = factory.rng.random
        self._workflow = workflow
        self._created = created
        self._status = status
        self._out = out
        self._status_after_cut = "skipped" if status in ("failed", "cancelled", "timed_out") else "pending"
        self._error = "null"
        self._condition = self._random() < 0.55
        """The result of its conditions."""
        self._cut = self._draw_cut()
        self._values = self._draw_values()

    def _draw_cut(self) -> int:
        """Draw the position of the step at which the run stops; -1 if it completes."""
        steps = self._workflow.steps
        if self._status == "completed":
            return -1
        if self._status == "pending":
            return 0
        if self._status == "suspended":
            stops = [i for i, step in enumerate(steps) if step.kind.type == "approval"]
        else:
            stops = [
                i
                for i, step in enumerate(steps)
                if step.branch in (None, self._condition) and step.kind.type not in _NEVER_STOPS
            ]
        cut = stops[int(self._random() * len(stops))]
        branch = steps[cut].branch
        self._condition = self._condition if branch is None else branch
        return cut

    def _draw_values(self) -> dict[str, Any]:
        """Draw the values for the payload templates."""
        bits = self._factory.rng.getrandbits(96)
        customer, domain, country, currency = _CUSTOMERS[bits % len(_CUSTOMERS)]
        fired = _stamp(self._created)
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
            "condition": "true" if self._condition else "false",
        }

    def write(self) -> int:
        """Append the run's document to ``out``, after those of its sub-workflows, and return when it ended."""
        workflow, status, values = self._workflow, self._status, self._values
        started = self._created + 4 + int(self._random() * 300)
        steps, last = self._steps(started)
        ended = last + 1 + int(self._random() * 12)
        if status == "pending":
            times = '"startedAt":null,"completedAt":null,"durationMs":null'
        elif status in ("running", "suspended"):
            times = f'"startedAt":"{_stamp(started)}","completedAt":null,"durationMs":null'
        else:
            times = _times(started, ended)
        output = workflow.output % values if status == "completed" else "null"
        self._out.append(
            f'{{"id":"{self._id}","workflowId":"{workflow.id}","status":"{status}","triggerType":"{workflow.trigger}",'
            f'{times},"input":{workflow.input % values},"output":{output},"error":{self._error},'
            f'"createdAt":"{_stamp(self._created)}","steps":[{",".join(steps)}]}}'
        )
        return ended

    def _steps(self, started: int) -> tuple[list[str], int]:
        """Return the texts of the steps, and the end of the last one."""
        texts: list[str] = []
        ends: list[int] = []
        blocked: list[bool] = []
        body: list[str] = []
        for position, step in enumerate(self._workflow.steps):
            begin = max((ends[other] for other in step.after), default=started) + 2 + int(self._random() * 9)
            is_blocked = any(blocked[other] for other in step.after)
            if step.each and body:
                texts.extend(body)
                body, end = [], ends[-1]
            elif is_blocked:
                texts.append(f'{step.prefix}{self._status_after_cut}"}}')
                end = begin
            elif step.branch not in (None, self._condition):
                texts.append(f'{step.prefix}skipped"}}')
                end = begin - 2
            elif step.kind.type == "loop":
                body, end = self._loop(position, begin + 1)
                is_blocked = position + 1 == self._cut
                texts.append(self._text(step, begin, end, stops=is_blocked))
            else:
                is_blocked = position == self._cut
                end = self._end(step, begin)
                texts.append(self._text(step, begin, end, stops=is_blocked))
            ends.append(end)
            blocked.append(is_blocked)
        return texts, max(ends)

    def _loop(self, position: int, begin: int) -> tuple[list[str], int]:
        """Return the texts of the loop's body, the step after it, for each round, and when the loop ends."""
        body = self._workflow.steps[position + 1]
        texts = []
        rounds: int = self._values["rounds"]
        for number in range(1, rounds + 1):
            self._values["round"] = number
            end = self._end(body, begin)
            texts.append(self._text(body, begin, end, stops=number == rounds and position + 1 == self._cut))
            begin = end + 1 + int(self._random() * 6)
        return texts, begin

    def _end(self, step: Step, begin: int) -> int:
        """Draw when a step ends: about its typical duration later, with a long tail; a sub-workflow after its run."""
        if step.runs is not None:
            child = self._factory.next_id()
            self._values["child"], self._values["childRun"] = step.runs, child
            workflow = self._factory.by_id[step.runs]
            return _Run(self._factory, workflow, child, begin + 15, "completed", self._out).write() + 8
        return begin + int(step.kind.typical_ms * 0.5 / (1.0 - 0.9 * self._random()))

    def _text(self, step: Step, begin: int, end: int, *, stops: bool) -> str:
        kind = step.kind
        # Each step has another id: payloads that repeated one would compress better than real ones.
        self._values["hex"] = f"{self._factory.rng.getrandbits(64):016x}"
        if kind.model is not None:
            self._draw_usage(kind.model)
        elif kind.type == "approval":
            self._values["approved"] = _stamp(end)
        input_member = f',"input":{kind.input % self._values}' if kind.input is not None else ""
        if stops:
            return self._stopped(step, begin, end, input_member)
        attempt = ',"attempt":2' if self._random() < 0.02 and end - begin > 200 else ""
        output = kind.output % self._values
        return f'{step.prefix}completed",{_times(begin, end)}{attempt}{input_member},"output":{output}}}'

    def _stopped(self, step: Step, begin: int, end: int, input_member: str) -> str:
        """Return the text of the step at which the run failed, was stopped, or is still running."""
        if self._status == "pending":
            return f'{step.prefix}pending"}}'
        code, message = _ERRORS.get(step.kind.type, _OTHER_ERROR)
        if self._status == "cancelled":
            code, message = "CANCELLED", "Cancelled by m.okafor@ledgerline.example"
        elif self._status == "timed_out":
            code, message = "TIMEOUT", "The run exceeded its time limit"
        error = f'{{"code":"{code}","message":"{message % self._values}","step":"{step.id}"}}'
        if self._status in ("running", "suspended"):
            if self._status == "running" and step.kind.type != "loop" and self._random() < 0.25:
                return (
                    f'{step.prefix}retrying","startedAt":"{_stamp(begin)}","completedAt":null,"attempt":2{input_member},'
                    f'"error":{error}{_RETRY}}}'
                )
            return f'{step.prefix}running","startedAt":"{_stamp(begin)}","completedAt":null{input_member}}}'
        if step.kind.type != "loop":
            self._error = error
        attempt, retry = (',"attempt":3', _RETRY) if code in ("INTEGRATION_ERROR", "RATE_LIMITED") else ("", "")
        return f'{step.prefix}failed",{_times(begin, end)}{attempt}{input_member},"error":{error}{retry}}}'

    def _draw_usage(self, model: str) -> None:
        price_in, price_out, prompt_size, completion_size = _PRICES[model]
        prompt = int(prompt_size * (0.4 + self._random()))
        completion = int(completion_size * (0.3 + self._random()))
        cost = round((prompt * price_in + completion * price_out) / 1e6, 8)
        self._values.update(prompt=prompt, completion=completion, tokens=prompt + completion, model=model, cost=cost)
