"""Whether `verify` says that lists over a Jaeger fail."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from runspan.cli import verify
from runspan.errors import BackendBusy, BackendError, BackendRefused

REFUSED, BUSY = BackendRefused("HTTP 500: all shards failed"), BackendBusy("HTTP 503")


def problem(monkeypatch: pytest.MonkeyPatch, answers: list[BackendError | None]) -> tuple[object, list[float]]:
    """Return what a check says whose requests have these answers, and how long it waited between them."""
    slept: list[float] = []
    answer: Iterator[BackendError | None] = iter(answers)

    class Reader:
        def check(self) -> None:
            error = next(answer)
            if error is not None:
                raise error

        def close(self) -> None:
            pass

    monkeypatch.setattr(verify.time, "sleep", slept.append)
    options: Any = SimpleNamespace(kind=verify.JAEGER, open_reader=Reader)
    return verify._services_problem(options), slept


def test_what_is_refused_for_a_while_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    """A storage that starts or is overloaded answers as one with wrong settings does."""
    assert problem(monkeypatch, [REFUSED, REFUSED, None]) == (None, [1.0, 3.0])
    assert problem(monkeypatch, [REFUSED, BUSY]) == (None, [1.0])


def test_what_is_refused_again_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is reported, and what is busy is not."""
    assert problem(monkeypatch, [REFUSED] * 3) == (REFUSED, [1.0, 3.0])
    assert problem(monkeypatch, [BUSY]) == (None, [])
