"""Links to traces: the URLs that Jaeger and Grafana understand."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from runspan.errors import ConfigError
from runspan.web.links import TraceLinks

TRACE = bytes.fromhex("00112233445566778899aabbccddeeff")
SPAN = bytes.fromhex("0123456789abcdef")


def test_jaeger_takes_the_trace_id_in_the_path() -> None:
    """With the base path that the pages have, and the leading zeros."""
    for base in ("https://obs.example/jaeger", "https://obs.example/jaeger/"):
        assert TraceLinks(jaeger=base).for_trace(TRACE) == {"jaeger": f"https://obs.example/jaeger/trace/{TRACE.hex()}"}


def test_grafana_takes_explores_state_in_the_query() -> None:
    """One pane, one TraceQL query that is the trace id, on the data source of that uid."""
    url = urlsplit(TraceLinks(grafana="http://g:3000/sub", datasource='uid "1"&x').for_trace(TRACE)["grafana"])
    assert (url.netloc, url.path) == ("g:3000", "/sub/explore")
    parameters = parse_qs(url.query, strict_parsing=True)
    assert parameters["schemaVersion"] == ["1"]
    (pane,) = json.loads(parameters["panes"][0]).values()
    assert pane["datasource"] == 'uid "1"&x'
    (query,) = pane["queries"]
    assert (query["query"], query["queryType"]) == (TRACE.hex(), "traceql")
    assert query["datasource"] == {"type": "tempo", "uid": 'uid "1"&x'}
    assert set(pane["range"]) == {"from", "to"}


def test_the_template_comes_first() -> None:
    """Then Jaeger, then Grafana; all of them are optional."""
    links = TraceLinks("http://j", "http://g", template="https://x.example/{trace_id}?a={trace_id}")
    found = links.for_trace(TRACE)
    assert list(found) == ["trace", "jaeger", "grafana"]
    assert found["trace"] == f"https://x.example/{TRACE.hex()}?a={TRACE.hex()}"
    assert TraceLinks().for_trace(TRACE) == {}


def test_links_to_a_span_open_it_in_the_trace() -> None:
    """Jaeger finds it by its id, Grafana has it in the state of the pane, a template has a place for it."""
    tools = TraceLinks("http://j", "http://g", template="https://x.example/{trace_id}/{span_id}")
    found = tools.for_trace(TRACE, SPAN)
    assert found["jaeger"] == f"http://j/trace/{TRACE.hex()}?uiFind={SPAN.hex()}"
    assert found["trace"] == f"https://x.example/{TRACE.hex()}/{SPAN.hex()}"
    (pane,) = json.loads(parse_qs(urlsplit(found["grafana"]).query)["panes"][0]).values()
    assert pane["panelsState"] == {"trace": {"spanId": SPAN.hex()}}
    assert [query["query"] for query in pane["queries"]] == [TRACE.hex()]
    assert tools.for_trace(TRACE)["trace"] == f"https://x.example/{TRACE.hex()}/"


@pytest.mark.parametrize(
    ("links", "where"),
    [
        ({"jaeger": "javascript:alert(1)"}, "jaeger url"),
        ({"jaeger": "jaeger:16686"}, "jaeger url"),
        ({"jaeger": "http://user:secret@j"}, "jaeger url"),
        ({"grafana": "http://"}, "grafana url"),
        ({"grafana": "http://g\r\nSet-Cookie: a=b"}, "grafana url"),
        ({"grafana": "http://[::1"}, "grafana url"),
        ({"grafana": "http://g", "datasource": ""}, "grafana datasource"),
        ({"template": "http://x/trace"}, "trace url"),
        ({"template": "/{trace_id}"}, "trace url"),
    ],
)
def test_a_url_that_browsers_cannot_follow_is_refused(links: dict[str, Any], where: str) -> None:
    """The error names the option, and contains no password."""
    with pytest.raises(ConfigError) as refused:
        TraceLinks(**links)
    assert refused.value.where == where
    assert "secret" not in str(refused.value)
