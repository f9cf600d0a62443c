"""JSON that is nested too deep for any parser, at every door where a run, a server's answer or a file is read."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runspan.backends.jaeger.responses import (
    MalformedResponse,
    find_legacy_traces,
    find_traces,
    read_error,
    read_services,
    read_trace,
)
from runspan.delivery.config import ExporterConfig
from runspan.delivery.http_transport import HttpTransport
from runspan.delivery.transport import Rejected
from runspan.errors import BackendRefused, DocumentError, PayloadError
from runspan.model.document import Run, document_text
from runspan.otlp import json as otlp_json
from runspan.platform_api import schema as platform
from runspan.recorder.checkpoint import restore
from runspan.sources.archive import read_manifest
from support.receivers import Answer, http_receiver

DEEP = b"[" * 20_000 + b"]" * 20_000


def within(start: bytes) -> bytes:
    """Return an object whose first member is the deep array."""
    return b"{" + start + b":" + DEEP + b"}"


def nested_list() -> list[object]:
    found: list[object] = []
    for _ in range(20_000):
        found = [found]
    return found


@pytest.mark.parametrize(
    ("error", "read"),
    [
        (MalformedResponse, lambda: find_traces(within(b'"other"'))),
        (MalformedResponse, lambda: read_trace(within(b'"result"'))),
        (MalformedResponse, lambda: find_legacy_traces(within(b'"other"'))),
        (MalformedResponse, lambda: read_services(within(b'"other"'))),
        (BackendRefused, lambda: platform.read_page(b'{"success":true,"data":[{"id":5,"x":' + DEEP + b"}]}")),
        (BackendRefused, lambda: platform.read_data(b'{"data":{},"meta":' + within(b'"other"') + b"}", "{")),
        (PayloadError, lambda: otlp_json.read_json(within(b'"resourceSpans"'))),
        (PayloadError, lambda: otlp_json.read_spans(within(b'"resourceSpans"'))),
        (DocumentError, lambda: read_manifest(within(b'"other"'), where="manifest.json")),
        (DocumentError, lambda: document_text({"id": "run_1", "input": nested_list()})),
        (DocumentError, lambda: Run.from_json(b'{"id":"run_1","input":' + DEEP + b"}").to_dict()),
        (ValueError, lambda: restore(b'{"other":' + DEEP + b',"document":{"id":"a"}}', lambda *_: None)),  # type: ignore[arg-type, return-value]
    ],
)
def test_deep_nesting_is_an_error_of_its_door(error: type[Exception], read: Callable[[], object]) -> None:
    """The error is what the door raises for any other text that it cannot read."""
    with pytest.raises(error):
        read()


def test_a_deep_error_body_is_no_crash() -> None:
    """The message of an error is a courtesy: without one the status remains."""
    assert read_error(within(b'"other"')) is None
    assert platform.read_error(within(b'"error"')).code == ""


def test_a_deep_response_of_a_receiver_is_not_otlp() -> None:
    """It can say nothing of the spans, like any other response that is not OTLP."""
    answer = Answer(200, within(b'"other"'), content_type="application/json")
    with http_receiver(lambda _: answer) as receiver:
        transport = HttpTransport(ExporterConfig(receiver.url))
        assert isinstance(transport.send(b""), Rejected)
        transport.close()
