"""Two workflows for the example engine: one that uses every feature of the Recorder, and one that fails.

The clients and the language model are simulated: they sleep and return constants.
"""

from __future__ import annotations

from typing import Any

from engine import Approvals, Block, Retry, Task, Workflow


class IntegrationError(Exception):
    """The error of an integration; ``code`` becomes the code of the step's error."""

    code = "INTEGRATION_ERROR"


def fetch_invoices(task: Task) -> dict[str, Any]:
    """Make two calls with an instrumented client, whose spans nest below the step."""
    with task.span("GET /v1/invoices", **{"http.request.method": "GET"}):
        task.pause(0.08)
        with task.span("TLS handshake"):
            task.pause(0.01)
    return {"invoices": ["in_1", "in_2", "in_3"], "count": 3}


def fetch_customer(task: Task) -> dict[str, Any]:
    """Run at the same time as ``fetch_invoices``."""
    task.step.set_input({"id": task.input["customer"]})
    with task.span("GET /v1/customers/{id}", **{"http.request.method": "GET"}):
        task.pause(0.12)
    return {"id": task.input["customer"], "name": "Fern Hill Studio", "country": "DE"}


def assess(task: Task) -> str:
    """Simulate an agent, its model and its tokens."""
    task.step.set_input({"question": "Will they pay?", "customer": task.results["fetch-customer"]})
    with task.span("chat claude-sonnet-4-6", **{"gen_ai.operation.name": "chat"}):
        task.pause(0.2)
    task.step.set_usage(prompt_tokens=1250, completion_tokens=340, model="claude-sonnet-4-6", cost_usd=0.0095)
    return "They pay when reminded."


def charge(task: Task) -> dict[str, Any]:
    """Succeed at the third attempt."""
    with task.span("POST /v1/charges", **{"http.request.method": "POST"}):
        task.pause(0.04)
        if task.attempt < 3:
            raise IntegrationError("Stripe: lock_timeout, the object is being accessed by another request")
    return {"charge": "ch_1", "amount": 4900, "currency": "eur"}


def remind(task: Task) -> dict[str, Any]:
    """Execute the same step in a loop, once for each invoice."""
    invoices = task.results["fetch-invoices"]["invoices"]
    for invoice in invoices:
        with task.run.step("send-reminder", name="Send reminder", type="email", input={"invoice": invoice}) as step:
            task.pause(0.03)
            step.set_output({"messageId": f"msg_{invoice}"})
        task.engine.wait_for_delivery(task.run, "send-reminder")
    return {"iterations": len(invoices)}


def approve(task: Task) -> dict[str, Any]:
    """Suspend the run until a person approves; a timer simulates the person."""
    task.step.set_input({"approvers": ["cfo@example.com"], "timeoutHours": 72})
    with task.run.suspended():
        return Approvals().ask(0.4 * task.engine.slowness)


def book(task: Task) -> dict[str, Any]:
    """Execute a sub-workflow: a run of its own, linked with this step in both directions."""
    task.step.set_input({"workflow": LEDGER.id})
    amount = task.results["charge-card"]["amount"]
    result = task.engine.execute(
        LEDGER, {"amount": amount}, trigger="api", on_start=lambda run: task.step.set_child(run.id)
    )
    return {"status": "completed", "output": result}


def post_entry(task: Task) -> dict[str, Any]:
    """Post one side of a booking."""
    task.pause(0.05)
    return {"amount": task.input["amount"]}


LEDGER = Workflow(
    "wf_ledger",
    (
        Block("debit", "Debit receivables", "action", post_entry),
        Block("credit", "Credit bank", "action", post_entry),
        Block("balance", "Check balance", "transform", lambda task: {"balanced": True}, ("debit", "credit")),
    ),
    output=lambda results: results["balance"],
)

ORDER = Workflow(
    "wf_order_to_cash",
    (
        Block("fetch-invoices", "Fetch overdue invoices", "action", fetch_invoices),
        Block("fetch-customer", "Fetch customer", "salesforce", fetch_customer),
        Block("assess", "Assess customer", "agent", assess, ("fetch-invoices", "fetch-customer")),
        Block("charge-card", "Charge card", "stripe", charge, ("assess",), retry=Retry()),
        Block("remind", "For each invoice", "loop", remind, ("assess",)),
        Block(
            "dunning",
            "Hand over to collection",
            "action",
            lambda task: {"handedOver": True},
            ("charge-card",),
            when=lambda results: results["charge-card"] is None,
        ),
        Block("approve", "Approval by CFO", "approval", approve, ("charge-card", "remind")),
        Block("book", "Book the payment", "sub-workflow", book, ("approve",)),
    ),
    output=lambda results: {"paid": True, **results["charge-card"]},
)


def payout(task: Task) -> dict[str, Any]:
    """Always fail."""
    with task.span("POST /v1/payouts", **{"http.request.method": "POST"}):
        task.pause(0.03)
        raise IntegrationError("NetSuite: period is closed")


PAYOUT = Workflow(
    "wf_payout",
    (
        Block("match", "Match statement", "netsuite", lambda task: {"matched": 7}),
        Block("payout", "Pay out", "netsuite", payout, ("match",), retry=Retry(maxAttempts=2, initialDelayMs=50)),
        Block("notify", "Notify the vendor", "email", lambda task: None, ("payout",)),
    ),
)
