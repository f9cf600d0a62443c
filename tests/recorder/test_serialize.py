"""Any value becomes JSON that every reader accepts, without an error in the engine."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import pytest
from msgspec import Raw

from runspan import Run
from runspan.recorder.serialize import payload, to_utf8_text
from support.recorder import WAIT, Harness, delivered_document, recording


@pytest.fixture
def harness() -> Iterator[Harness]:
    with recording() as found:
        yield found


def strictly(text: bytes) -> Any:
    """Parse as a reader that knows only UTF-8, as HTTP clients do."""
    return json.loads(text.decode())


# JSON text in ``Raw``.


@pytest.mark.parametrize(
    ("ready", "expected"),
    [
        (b'\xef\xbb\xbf{"total": 1}', '\ufeff{"total": 1}'),
        ('{"a":1}'.encode("utf-16-le"), '{\0"\0a\0"\0:\x001\0}\0'),
        ("[1]".encode("utf-16"), "\ufffd\ufffd[\x001\0]\0"),
        (b'"\xff"', '"\ufffd"'),
        (b"", ""),
        (b'{"a":1}\n{"b":2}', '{"a":1}\n{"b":2}'),
        (b'{"a":Infinity}', '{"a":Infinity}'),
    ],
)
def test_raw_text_that_is_not_json_becomes_a_string(harness: Harness, ready: bytes, expected: str) -> None:
    """A byte order mark and UTF-16 are not JSON for readers of the document, though Python's parser accepts them."""
    with harness.recorder.run("wf", run_id="run_1") as run:
        run.set_output(Raw(ready))
    delivered_document(harness, run)
    assert strictly(run.document().text)["output"] == expected
    assert harness.recorder.report().inexact_payloads == 1


@pytest.mark.parametrize("ready", [b"[" * 5000 + b"]" * 5000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"1" * 5000])
def test_raw_json_is_kept_however_deep_or_long(harness: Harness, ready: bytes) -> None:
    """JSON has no limits, so it stays verbatim, also next to a usage."""
    with harness.recorder.run("wf", run_id="run_1") as run, run.step("a", type="agent") as step:
        step.set_output(Raw(ready)).set_usage(prompt_tokens=1)
    assert harness.recorder.flush(WAIT)
    text = run.document().text
    assert harness.document("run_1").text == text == Run.from_json(text).text
    assert b'"result":' + ready in text
    assert harness.recorder.report().inexact_payloads == 0


# Keys, which decide where the usage and a child's run id are written.


class Lazy(Mapping[str, Any]):
    """A row of a closed database session."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("the row is detached")

    def __iter__(self) -> Iterator[str]:
        return iter(("result", "usage", "runId"))

    def __len__(self) -> int:
        return 3


class Key(str, Enum):  # noqa: UP042  (its own text is another)
    RESULT = "result"
    USAGE = "usage"


def test_a_mapping_that_cannot_be_read_is_text_and_text_has_no_keys(harness: Harness) -> None:
    """Usage and run id are added to it as to any other text."""
    with harness.recorder.run("wf", run_id="run_1") as run:
        with run.step("child", type="sub-workflow") as step:
            step.set_output(Lazy()).set_child("run_2")
        with run.step("agent", type="agent") as step:
            step.set_output(Lazy()).set_usage(prompt_tokens=1)
    child, agent = [step["output"] for step in delivered_document(harness, run)["steps"]]
    assert child["runId"] == "run_2"
    assert agent["usage"] == {"promptTokens": 1}
    assert "Lazy" in child["result"]
    assert "Lazy" in agent["result"]


def test_keys_are_those_of_the_text(harness: Harness) -> None:
    """A string enum is its value in JSON, so an existing usage is not added a second time."""
    with harness.recorder.run("wf", run_id="run_1") as run, run.step("a", type="agent") as step:
        step.set_output({Key.RESULT: 1, Key.USAGE: {"promptTokens": 5}}).set_usage(prompt_tokens=7)
    delivered_document(harness, run)
    output = run.document().text.partition(b'"output":')[2]
    assert output.startswith(b'{"result":1,"usage":{"promptTokens":5}}')
    assert to_utf8_text(Key.USAGE) == "usage"
    assert payload({Key.USAGE: float("nan")}).text == b'{"usage":"nan"}'


@pytest.mark.parametrize("extra", [{1: "a", "1": "b"}, {"\ud800": 1, "?": 2}, {Key.USAGE: 1, 3: 3, "3": 3}])
def test_two_extra_members_of_one_name_are_refused(harness: Harness, extra: dict[Any, Any]) -> None:
    """JSON readers disagree on which of them counts."""
    with pytest.raises(ValueError, match="two extra members"):
        harness.recorder.run("wf", extra=extra)
    with pytest.raises(ValueError, match="two extra members"):
        harness.recorder.step("a", extra=extra)


def test_an_extra_member_with_a_known_name_is_refused_however_it_is_spelt(harness: Harness) -> None:
    """The text of the name counts, not its type."""

    class Status:
        def __repr__(self) -> str:
            return "status"

    with pytest.raises(ValueError, match="status"):
        harness.recorder.run("wf", extra={Status(): "x"})  # type: ignore[dict-item]


# Values whose own code raises errors.


@dataclass
class Upload:
    path: Any


class Broken(Mapping[str, Any]):
    """A mapping of a closed connection."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("closed")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("closed")

    def __len__(self) -> int:
        return 1


class Changing(dict[str, Any]):
    """A dict that another thread changes."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("dictionary changed size during iteration")


def proxy() -> Any:
    """Return an object like a web framework's ``request`` outside of a request."""

    class Proxy:
        @property
        def __class__(self) -> Any:
            raise RuntimeError("working outside of request context")

        def __repr__(self) -> str:
            return "<unbound>"

    return Proxy()


class Model:
    def model_dump(self, mode: str) -> Any:
        raise RuntimeError("no such field")


UNSERIALIZABLE: dict[str, Callable[[], Any]] = {
    "a path that is no text": lambda: Upload(os.fsdecode(b"report-\xff.pdf")),
    "a key that is no text": lambda: Upload({"\udcff": 1}),
    "a plain key that is no text": lambda: {"\udcff": 1},
    "a closed mapping": Broken,
    "a closed mapping inside": lambda: {"of": Broken()},
    "a dict that changes": lambda: Changing(a=1),
    "a dict that changes, with NaN": lambda: Changing(a=float("nan")),
    "a proxy": proxy,
    "a proxy inside": lambda: [proxy()],
    "a model": Model,
    "a number that Python does not convert": lambda: {"big": 10**5000},
}


@pytest.mark.parametrize("kind", UNSERIALIZABLE)
def test_no_value_raises_in_the_engine(harness: Harness, kind: str) -> None:
    """As argument, result or error: the function's result is returned, and the run is recorded completely."""
    value = UNSERIALIZABLE[kind]()

    @harness.recorder.step("work", type="agent")
    def work(given: Any) -> Any:
        harness.recorder.current_step.set_usage(prompt_tokens=1)
        return given

    with harness.recorder.run("wf", run_id="run_1", input=value) as run:
        assert work(value) is value
        run.step("failed", retry=value, extra={"of": value}).start().retry(value).end(value)
        run.set_output(value)
    assert run.status == "completed"
    assert harness.recorder.flush(WAIT)
    text = run.document().text
    assert harness.document("run_1").text == text == Run.from_json(text).text
    strictly(text)


def test_a_number_that_python_does_not_convert_affects_only_itself(harness: Harness) -> None:
    """An integer with more digits than Python converts to text is written in hexadecimal, the rest unchanged."""
    with harness.recorder.run("wf", run_id="run_1") as run:
        run.set_output({"a": 1, "big": 10**5000})
    assert delivered_document(harness, run)["output"] == {"a": 1, "big": hex(10**5000)}
    assert harness.recorder.report().inexact_payloads == 1


def test_a_value_that_raises_affects_only_itself() -> None:
    """The other members are unchanged."""
    assert json.loads(payload({"a": 1, "of": [proxy(), 2], "nan": float("nan")}).text) == {
        "a": 1,
        "of": ["<unbound>", 2],
        "nan": "nan",
    }


def test_a_usage_without_numbers_is_recorded_unchanged(harness: Harness) -> None:
    """A client library may pass tokens as text, which cannot be added."""
    with harness.recorder.run("wf", run_id="run_1") as run, run.step("a", type="agent") as step:
        step.set_usage(prompt_tokens="12", completion_tokens=3)  # type: ignore[arg-type]
    assert delivered_document(harness, run)["steps"][0]["output"] == {
        "usage": {"promptTokens": "12", "completionTokens": 3}
    }


class Failure(Exception):
    @property
    def code(self) -> str:
        raise ValueError("no response")

    def __str__(self) -> str:
        raise ValueError("no message")


def test_an_exception_whose_own_code_raises(harness: Harness) -> None:
    """The engine gets its exception, and step and run have ended."""
    with pytest.raises(Failure), harness.recorder.run("wf", run_id="run_1") as run, run.step("a") as step:  # noqa: PT012
        with pytest.raises(Failure), step.attempt():
            raise Failure
        raise Failure
    found = delivered_document(harness, run)
    assert found["status"] == found["steps"][0]["status"] == "failed"
    assert found["error"] == {"code": "Failure", "message": "", "step": "a"}
