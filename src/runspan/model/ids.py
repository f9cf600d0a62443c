"""Trace and span ids that follow from what they name; no I/O.

SHA-256 over a domain tag and length-prefixed parts (RFC 9162 does the same for its leaves), so that run ``1`` attempt
``23`` and run ``12`` attempt ``3`` never meet; for steps, of which there are many, XXH3 under a seed made so. An id is
never all zero: OpenTelemetry calls that one invalid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256
from typing import NamedTuple

from xxhash import xxh3_64_digest

_DOMAIN = b"runspan/1"
_ZERO = bytes(8)


class RunIds(NamedTuple):
    """What follows from a run's identity alone."""

    trace_id: bytes
    root_id: bytes
    seed: int


def _prefixed(role: bytes, *parts: bytes) -> bytes:
    pieces = [_DOMAIN]
    for part in (role, *parts):
        pieces.append(len(part).to_bytes(8, "big"))
        pieces.append(part)
    return b"".join(pieces)


def _digest(role: bytes, *parts: bytes) -> bytes:
    return sha256(_prefixed(role, *parts)).digest()


def _nonzero(value: bytes) -> bytes:
    return value if value.strip(b"\0") else b"\x01" + value[1:]


def run_ids(run_id: str, tenant: str = "") -> RunIds:
    """The trace id (16 bytes), root span id (8 bytes) and step seed (64 bits) of a run of a tenant."""
    digest = run_digests([run_id.encode()], tenant)[0]
    return RunIds(_nonzero(digest[:16]), _nonzero(digest[16:24]), int.from_bytes(digest[24:], "big"))


def run_digests(identities: Sequence[bytes], tenant: str) -> list[bytes]:
    """For many runs, the digests that ``run_ids`` cuts: 16 bytes of trace id, 8 of root span id, 8 of step seed."""
    prefix = _run_prefix(tenant)
    return [sha256(prefix + len(text).to_bytes(8, "big") + text).digest() for text in identities]


@lru_cache(maxsize=1024)
def _run_prefix(tenant: str) -> bytes:
    return _prefixed(b"run", tenant.encode())


def hash_parts(*parts: bytes) -> int:
    """64 bits of a digest, to be mixed into a run's step seed."""
    return int.from_bytes(_digest(b"salt", *parts)[:8], "big")


def step_span_id(text: bytes, seed: int, taken: dict[bytes, bytes]) -> bytes:
    """The id of a finished step's span: a digest of the step's canonical text under the seed.

    seed: 64 bits over everything else that the span carries, so that nothing can change under an id. One content has
    one id, a changed step gets another; equal steps of one run are told apart by counting them.
    taken: the ids of the run so far, each with the last that was given out for its content; the new one is added.

    XXH3, since 64 bits of any digest withstand chance and no forger; that a document is right, its own digest proves.
    """
    first = step_digest(text, seed)
    span_id = taken.get(first, first)
    while span_id in taken or span_id == _ZERO:
        span_id = child_span_id(seed.to_bytes(8, "big") + span_id, "again", 1)
    taken[first] = taken[span_id] = span_id
    return span_id


step_digest: Callable[[bytes, int], bytes] = xxh3_64_digest
"""What ``step_span_id`` gives to a text that no other step of the run has: 8 bytes."""


def revision_span_id(trace_id: bytes, text: bytes, revision: int, context: bytes) -> bytes:
    """The id of a snapshot span: of this document, at this revision."""
    return _nonzero(_digest(b"snapshot", trace_id, text, str(revision).encode(), context)[:8])


def child_span_id(parent_id: bytes, role: str, number: int) -> bytes:
    """The id of a span below a step: attempt 2 of a step, say."""
    return _nonzero(_digest(role.encode(), parent_id, str(number).encode())[:8])
