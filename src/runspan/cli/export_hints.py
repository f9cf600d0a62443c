"""What to do when a receiver does not take runs, by the words in its reason."""

from __future__ import annotations

from typing import Final

HINTS: Final = (
    (
        "Txn is too big",
        "a span of that run is over the 9 to 10 MB that Jaeger's Badger takes; another storage takes it, or Tempo",
    ),
    ("no org id", "name the tenant: OTEL_EXPORTER_OTLP_HEADERS=X-Scope-OrgID=NAME"),
    ("HTTP 401", "set RUNSPAN_API_KEY, or --api-key-file, to a key of the server"),
    ("answers to no other name", "call it by 127.0.0.1, or start it with: runspan serve --allow-host NAME"),
    ("HTTP 403", "use an API key with the permission runs:write"),
    ("HTTP 404", "is this the address of an OTLP receiver? a path in the URL is used as it is"),
    ("ConnectError", "is a receiver listening there? start one with: runspan serve"),
    ("UNAVAILABLE", "is a gRPC receiver listening there? `runspan serve` takes http/protobuf only"),
)
"""What stands in the reason why runs were not taken, and what to do then."""


def hint_on(reason: str) -> str:
    """What to do about a receiver's refusal, or ""."""
    return next((hint for words, hint in HINTS if words in reason), "")
