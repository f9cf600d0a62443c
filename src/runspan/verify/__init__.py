"""The verify use case: send runs, read them back from a backend, compare them, and explain differences."""

from __future__ import annotations

from runspan.verify.canary import CANARY, canary
from runspan.verify.verifier import Result, Send, Sent, VerifyResult, verify

__all__ = ["CANARY", "Result", "Send", "Sent", "VerifyResult", "canary", "verify"]
