"""Whatever an engine hands over, the document is JSON that every reader reads, and the engine hears nothing of it."""

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
from support.recorder import WAIT, Taken, proved, recording


@pytest.fixture
def taken() -> Iterator[Taken]:
    with recording() as found:
        yield found


def strictly(text: bytes) -> Any:
    """What a reader makes of it that knows UTF-8 and nothing else, as HTTP clients do."""
    return json.loads(text.decode())


# Ready JSON text.


@pytest.mark.parametrize(
    ("ready", "told"),
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
def test_ready_text_that_is_no_json_becomes_a_string(taken: Taken, ready: bytes, told: str) -> None:
    """A byte order mark and UTF-16 are no JSON to who reads the document, whatever Python's own reader takes."""
    with taken.recorder.run("wf", run_id="run_1") as run:
        run.set_output(Raw(ready))
    proved(taken, run)
    assert strictly(run.document().text)["output"] == told
    assert taken.recorder.report().inexact_payloads == 1


@pytest.mark.parametrize("ready", [b"[" * 5000 + b"]" * 5000, b'{"a":' * 3000 + b"1" + b"}" * 3000, b"1" * 5000])
def test_ready_text_is_kept_however_deep_or_long(taken: Taken, ready: bytes) -> None:
    """JSON has no bound, so what is JSON stays verbatim, beside a usage too."""
    with taken.recorder.run("wf", run_id="run_1") as run, run.step("a", type="agent") as step:
        step.set_output(Raw(ready)).set_usage(prompt_tokens=1)
    assert taken.recorder.flush(WAIT)
    text = run.document().text
    assert taken.document("run_1").text == text == Run.from_json(text).text
    assert b'"result":' + ready in text
    assert taken.recorder.report().inexact_payloads == 0


# Keys, which decide where the usage and a child's run id go.


class Lazy(Mapping[str, Any]):
    """Rows of a database session that is closed."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("the row is detached")

    def __iter__(self) -> Iterator[str]:
        return iter(("result", "usage", "runId"))

    def __len__(self) -> int:
        return 3


class Key(str, Enum):  # noqa: UP042  (its own text is another)
    RESULT = "result"
    USAGE = "usage"


def test_a_mapping_that_cannot_be_read_is_text_and_text_has_no_keys(taken: Taken) -> None:
    """What is told of it besides joins it as it joins any other text."""
    with taken.recorder.run("wf", run_id="run_1") as run:
        with run.step("child", type="sub-workflow") as step:
            step.set_output(Lazy()).set_child("run_2")
        with run.step("agent", type="agent") as step:
            step.set_output(Lazy()).set_usage(prompt_tokens=1)
    child, agent = [step["output"] for step in proved(taken, run)["steps"]]
    assert child["runId"] == "run_2"
    assert agent["usage"] == {"promptTokens": 1}
    assert "Lazy" in child["result"]
    assert "Lazy" in agent["result"]


def test_keys_are_those_of_the_text(taken: Taken) -> None:
    """An enum of text is its text in JSON, so a usage that is there already is not told a second time."""
    with taken.recorder.run("wf", run_id="run_1") as run, run.step("a", type="agent") as step:
        step.set_output({Key.RESULT: 1, Key.USAGE: {"promptTokens": 5}}).set_usage(prompt_tokens=7)
    proved(taken, run)
    output = run.document().text.partition(b'"output":')[2]
    assert output.startswith(b'{"result":1,"usage":{"promptTokens":5}}')
    assert to_utf8_text(Key.USAGE) == "usage"
    assert payload({Key.USAGE: float("nan")}).text == b'{"usage":"nan"}'


@pytest.mark.parametrize("extra", [{1: "a", "1": "b"}, {"\ud800": 1, "?": 2}, {Key.USAGE: 1, 3: 3, "3": 3}])
def test_two_extra_members_of_one_name_are_refused(taken: Taken, extra: dict[Any, Any]) -> None:
    """No reader could tell which of them counts, and none takes such a document."""
    with pytest.raises(ValueError, match="two extra members"):
        taken.recorder.run("wf", extra=extra)
    with pytest.raises(ValueError, match="two extra members"):
        taken.recorder.step("a", extra=extra)


def test_an_extra_member_with_a_known_name_is_refused_however_it_is_spelt(taken: Taken) -> None:
    """The name that is written counts, not the object that has it."""

    class Status:
        def __repr__(self) -> str:
            return "status"

    with pytest.raises(ValueError, match="status"):
        taken.recorder.run("wf", extra={Status(): "odd"})  # type: ignore[dict-item]


# Values whose own code raises.


@dataclass
class Upload:
    path: Any


class Broken(Mapping[str, Any]):
    """A mapping of a connection that is closed."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("closed")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("closed")

    def __len__(self) -> int:
        return 1


class Changing(dict[str, Any]):
    """As a dict that another thread changes."""

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("dictionary changed size during iteration")


def proxy() -> Any:
    """As a web framework's ``request`` outside of a request."""

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


ODD: dict[str, Callable[[], Any]] = {
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
    "a number that Python does not write": lambda: {"big": 10**5000},
}


@pytest.mark.parametrize("kind", ODD)
def test_no_value_costs_the_engine_its_result(taken: Taken, kind: str) -> None:
    """Taken, returned, or failed with: the function's own result comes back, and the run is told whole."""
    value = ODD[kind]()

    @taken.recorder.step("work", type="agent")
    def work(given: Any) -> Any:
        taken.recorder.current_step.set_usage(prompt_tokens=1)
        return given

    with taken.recorder.run("wf", run_id="run_1", input=value) as run:
        assert work(value) is value
        run.step("failed", retry=value, extra={"of": value}).start().retry(value).end(value)
        run.set_output(value)
    assert run.status == "completed"
    assert taken.recorder.flush(WAIT)
    text = run.document().text
    assert taken.document("run_1").text == text == Run.from_json(text).text
    strictly(text)


def test_one_number_that_python_does_not_write_costs_only_itself(taken: Taken) -> None:
    """An integer with more digits than Python turns into text is told in hexadecimal, the rest as it is."""
    with taken.recorder.run("wf", run_id="run_1") as run:
        run.set_output({"a": 1, "big": 10**5000})
    assert proved(taken, run)["output"] == {"a": 1, "big": hex(10**5000)}
    assert taken.recorder.report().inexact_payloads == 1


def test_what_cannot_be_read_costs_only_itself() -> None:
    """Its neighbours stay what they are."""
    assert json.loads(payload({"a": 1, "of": [proxy(), 2], "nan": float("nan")}).text) == {
        "a": 1,
        "of": ["<unbound>", 2],
        "nan": "nan",
    }


def test_a_usage_of_no_numbers_is_told_as_it_is(taken: Taken) -> None:
    """What a client library calls tokens may be text, or nothing that can be added."""
    with taken.recorder.run("wf", run_id="run_1") as run, run.step("a", type="agent") as step:
        step.set_usage(prompt_tokens="12", completion_tokens=3)  # type: ignore[arg-type]
    assert proved(taken, run)["steps"][0]["output"] == {"usage": {"promptTokens": "12", "completionTokens": 3}}


class Failure(Exception):
    @property
    def code(self) -> str:
        raise ValueError("no response")

    def __str__(self) -> str:
        raise ValueError("no words")


def test_an_exception_that_cannot_be_asked_goes_its_way(taken: Taken) -> None:
    """The engine gets its own exception, and step and run have ended."""
    with pytest.raises(Failure), taken.recorder.run("wf", run_id="run_1") as run, run.step("a") as step:  # noqa: PT012
        with pytest.raises(Failure), step.attempt():
            raise Failure
        raise Failure
    found = proved(taken, run)
    assert found["status"] == found["steps"][0]["status"] == "failed"
    assert found["error"] == {"code": "Failure", "message": ""}
