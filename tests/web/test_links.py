"""Links to traces: the URLs that Jaeger and Grafana understand."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from runspan.errors import ConfigError
from runspan.web.config import WebConfig
from runspan.web.links import check_trace_links, trace_links

TRACE = bytes.fromhex("00112233445566778899aabbccddeeff")
SPAN = bytes.fromhex("0123456789abcdef")


def test_jaeger_takes_the_trace_id_in_the_path() -> None:
    """With the base path that the pages have, and the leading zeros."""
    for base in ("https://obs.example/jaeger", "https://obs.example/jaeger/"):
        assert trace_links(WebConfig(jaeger_url=base), TRACE) == {
            "jaeger": f"https://obs.example/jaeger/trace/{TRACE.hex()}"
        }


def test_grafana_takes_explores_state_in_the_query() -> None:
    """One pane, one TraceQL query that is the trace id, on the data source of that uid."""
    config = WebConfig(grafana_url="http://g:3000/sub", grafana_datasource='uid "1"&x')
    url = urlsplit(trace_links(config, TRACE)["grafana"])
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
    url = "https://x.example/{trace_id}?a={trace_id}"
    found = trace_links(WebConfig(jaeger_url="http://j", grafana_url="http://g", trace_url=url), TRACE)
    assert list(found) == ["trace", "jaeger", "grafana"]
    assert found["trace"] == f"https://x.example/{TRACE.hex()}?a={TRACE.hex()}"
    assert trace_links(WebConfig(), TRACE) == {}


def test_links_to_a_span_open_it_in_the_trace() -> None:
    """Jaeger finds it by its id, Grafana has it in the state of the pane, a template has a place for it."""
    url = "https://x.example/{trace_id}/{span_id}"
    config = WebConfig(jaeger_url="http://j", grafana_url="http://g", trace_url=url)
    found = trace_links(config, TRACE, SPAN)
    assert found["jaeger"] == f"http://j/trace/{TRACE.hex()}?uiFind={SPAN.hex()}%20-runspan"
    assert found["trace"] == f"https://x.example/{TRACE.hex()}/{SPAN.hex()}"
    (pane,) = json.loads(parse_qs(urlsplit(found["grafana"]).query)["panes"][0]).values()
    assert pane["panelsState"] == {"trace": {"spanId": SPAN.hex()}}
    assert [query["query"] for query in pane["queries"]] == [TRACE.hex()]
    assert trace_links(config, TRACE)["trace"] == f"https://x.example/{TRACE.hex()}/"


@pytest.mark.parametrize(
    ("links", "where"),
    [
        ({"jaeger_url": "javascript:alert(1)"}, "jaeger url"),
        ({"jaeger_url": "jaeger:16686"}, "jaeger url"),
        ({"jaeger_url": "http://user:secret@j"}, "jaeger url"),
        ({"grafana_url": "http://"}, "grafana url"),
        ({"grafana_url": "http://g\r\nSet-Cookie: a=b"}, "grafana url"),
        ({"grafana_url": "http://[::1"}, "grafana url"),
        ({"grafana_url": "http://g", "grafana_datasource": ""}, "grafana datasource"),
        ({"trace_url": "http://x/trace"}, "trace url"),
        ({"trace_url": "/{trace_id}"}, "trace url"),
    ],
)
def test_a_url_that_browsers_cannot_follow_is_refused(links: dict[str, Any], where: str) -> None:
    """The error names the option, and contains no password."""
    with pytest.raises(ConfigError) as refused:
        check_trace_links(WebConfig(**links))
    assert refused.value.where == where
    assert "secret" not in str(refused.value)
