"""``verify``: send runs, wait until a backend shows them, read them back, compare, and say what went wrong."""

from __future__ import annotations

from runspan.verify.canary import CANARY, canary
from runspan.verify.verifier import Result, Send, Sent, VerifyResult, verify

__all__ = ["CANARY", "Result", "Send", "Sent", "VerifyResult", "canary", "verify"]
