"""OpenTelemetry's exporter variables to exporter config: the rules of endpoints, headers and durations."""

from __future__ import annotations

from base64 import b64encode
from typing import Any

import pytest

from runspan.delivery import exporter_config
from runspan.errors import ConfigError
from runspan.http.client import TlsConfig

OTLP = "OTEL_EXPORTER_OTLP_"


def env(**values: str) -> dict[str, str]:
    return {OTLP + name: value for name, value in values.items()}


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ({}, "http://localhost:4318/v1/traces"),
        (env(ENDPOINT="http://collector:4318"), "http://collector:4318/v1/traces"),
        (env(ENDPOINT="http://collector:4318/"), "http://collector:4318/v1/traces"),
        (env(ENDPOINT="https://collector/otlp/"), "https://collector/otlp/v1/traces"),
        (env(TRACES_ENDPOINT="http://collector:4318/custom"), "http://collector:4318/custom"),
        (env(TRACES_ENDPOINT="http://collector:4318"), "http://collector:4318/"),
        (env(TRACES_ENDPOINT="http://a/x", ENDPOINT="http://b"), "http://a/x"),
        (env(TRACES_ENDPOINT="", ENDPOINT="http://b"), "http://b/v1/traces"),
        (env(ENDPOINT="http://[::1]:4318"), "http://[::1]:4318/v1/traces"),
    ],
)
def test_http_endpoints_follow_the_specification(given: dict[str, str], endpoint: str) -> None:
    """The general variable gets the path appended, the one for traces is used as it is, an empty one is unset."""
    assert exporter_config(given).endpoint == endpoint


@pytest.mark.parametrize(
    ("argument", "endpoint"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("http://collector:4318/", "http://collector:4318/v1/traces"),
        ("http://collector:4318/v1/traces", "http://collector:4318/v1/traces"),
        ("https://collector/insert/otlp?tenant=7", "https://collector/insert/otlp?tenant=7"),
    ],
)
def test_an_endpoint_argument_goes_first_and_gets_the_path_when_it_has_none(argument: str, endpoint: str) -> None:
    """What a person types after ``--endpoint`` is a base or the complete URL; its path decides."""
    assert exporter_config(env(TRACES_ENDPOINT="http://other/x"), endpoint=argument).endpoint == endpoint


@pytest.mark.parametrize(
    ("given", "target", "insecure"),
    [
        ({}, "localhost:4317", True),
        (env(ENDPOINT="http://collector:4317"), "collector:4317", True),
        (env(ENDPOINT="https://collector:4317", INSECURE="true"), "collector:4317", False),
        (env(ENDPOINT="https://collector"), "collector:443", False),
        (env(ENDPOINT="collector:4317"), "collector:4317", False),
        (env(ENDPOINT="collector:4317", INSECURE="true"), "collector:4317", True),
        (env(TRACES_ENDPOINT="collector:1", TRACES_INSECURE="TRUE", INSECURE="false"), "collector:1", True),
    ],
)
def test_grpc_endpoints_follow_the_specification(given: dict[str, str], target: str, insecure: bool) -> None:
    """The scheme says whether there is TLS; INSECURE counts only without a scheme."""
    config = exporter_config({**given, OTLP + "PROTOCOL": "grpc"})
    assert (config.endpoint, config.insecure) == (target, insecure)


def test_variables_for_traces_go_before_the_general_ones() -> None:
    """Each variable is looked up by itself."""
    config = exporter_config(
        env(
            PROTOCOL="grpc",
            TRACES_PROTOCOL="http/protobuf",
            HEADERS="a=1",
            TRACES_HEADERS="b=2",
            COMPRESSION="gzip",
            TRACES_COMPRESSION="none",
            CERTIFICATE="ca.pem",
            CLIENT_KEY="key.pem",
            TRACES_CLIENT_KEY="traces.pem",
            CLIENT_CERTIFICATE="cert.pem",
        )
    )
    assert config.protocol == "http/protobuf"
    assert config.headers == (("b", "2"),)
    assert config.compression == "none"
    assert config.tls == TlsConfig("ca.pem", "cert.pem", "traces.pem")


@pytest.mark.parametrize(
    ("exporter", "protocol", "found"),
    [
        ("otlp", "grpc", "grpc"),
        ("console", "", "http/protobuf"),
        ("otlp_proto_http", "grpc", "http/protobuf"),
        ("console, otlp_proto_http", "grpc", "http/protobuf"),
        ("otlp_proto_grpc", "", "grpc"),
    ],
)
def test_an_exporter_of_one_protocol_counts_more_than_the_protocol(exporter: str, protocol: str, found: str) -> None:
    """As for the SDK's own exporters, for which ``opentelemetry-instrument`` sets the protocol to grpc."""
    variables = {**env(PROTOCOL=protocol), "OTEL_TRACES_EXPORTER": exporter}
    assert exporter_config(variables).protocol == found
    assert exporter_config(variables, protocol="grpc").protocol == "grpc"


def test_headers_are_percent_decoded_and_lower_case() -> None:
    """The form is that of the specification, spaces around allowed."""
    config = exporter_config(env(HEADERS=" X-Api-Key = wfk%5F1 ,authorization=Bearer%20a=b,,"))
    assert config.headers == (("x-api-key", "wfk_1"), ("authorization", "Bearer a=b"))


def test_an_argument_goes_before_every_variable() -> None:
    """Flags win over the environment."""
    config = exporter_config(
        env(TIMEOUT="20", HEADERS="a=1", COMPRESSION="gzip"), timeout=3.0, headers={"B": "2"}, compression="none"
    )
    assert (config.timeout, config.headers, config.compression) == (3.0, (("b", "2"),), "none")


@pytest.mark.parametrize(("text", "seconds"), [("10", 10.0), ("2.5", 2.5), ("10000", 10.0), ("1000", 1.0)])
def test_a_timeout_is_milliseconds_or_seconds_where_it_can_only_be_one(text: str, seconds: float) -> None:
    """The specification writes milliseconds, OpenTelemetry's Python packages read seconds."""
    assert exporter_config(env(TIMEOUT=text)).timeout == seconds


def test_defaults_are_gzip_over_http_and_none_over_grpc() -> None:
    """gzip is nearly free over HTTP and dear in grpc's own implementation."""
    assert exporter_config({}).compression == "gzip"
    assert exporter_config({}, protocol="grpc").compression == "none"
    assert exporter_config({}).timeout == 10.0


def test_a_login_in_the_url_becomes_a_header() -> None:
    """So that the endpoint can be shown."""
    config = exporter_config(env(ENDPOINT="https://ann:s%40cret@collector"))
    assert config.endpoint == "https://collector/v1/traces"
    assert config.headers == (("authorization", "Basic " + b64encode(b"ann:s@cret").decode()),)
    assert "s@cret" not in repr(config)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        (env(PROTOCOL="http/json"), "PROTOCOL"),
        (env(COMPRESSION="zstd"), "COMPRESSION"),
        (env(TIMEOUT="500"), "OTEL_EXPORTER_OTLP_TIMEOUT"),
        (env(TIMEOUT="-1"), "OTEL_EXPORTER_OTLP_TIMEOUT"),
        (env(TRACES_TIMEOUT="soon"), "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"),
        (env(TIMEOUT="nan"), "OTEL_EXPORTER_OTLP_TIMEOUT"),
        (env(INSECURE="yes"), "OTEL_EXPORTER_OTLP_INSECURE"),
        (env(ENDPOINT="collector:4318"), "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (env(ENDPOINT="ftp://collector"), "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (env(ENDPOINT="http://collector:port"), "OTEL_EXPORTER_OTLP_ENDPOINT"),
        (env(ENDPOINT="ftp://collector", PROTOCOL="grpc"), "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_a_wrong_value_names_its_variable(given: dict[str, str], named: str) -> None:
    """The error says which variable it is."""
    with pytest.raises(ConfigError, match=named):
        exporter_config(given)


@pytest.mark.parametrize(
    "arguments",
    [
        {"env": env(HEADERS="a=1,s3cret-value")},
        {"env": env(HEADERS="s3cret name=1")},
        {"env": env(HEADERS="key=s3cret%0Avalue")},
        {"env": {}, "headers": {"key": "s3cret\r\nx: y"}},
        {"env": env(ENDPOINT="ftp://ann:s3cret@collector")},
    ],
)
def test_an_error_about_a_secret_does_not_quote_it(arguments: dict[str, Any]) -> None:
    """Headers and logins are refused without being quoted."""
    given = arguments.pop("env")
    with pytest.raises(ConfigError) as caught:
        exporter_config(given, **arguments)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
@pytest.mark.parametrize(
    "endpoint",
    [
        "http://ann:s3cret@collector:4318",
        " https://ann:s3cret@collector/v1/traces",
        "http://s3cret@collector",
        "http://@collector",
        "ann:s3cret@collector:4317",
        "http://ann:s3cret@[::1",
    ],
)
def test_an_endpoint_argument_holds_no_login(endpoint: str, protocol: str) -> None:
    """A command line is seen by others; the error says where a login belongs, without quoting it."""
    with pytest.raises(ConfigError, match="expected a URL without a login") as caught:
        exporter_config({}, endpoint=endpoint, protocol=protocol)
    assert "s3cret" not in str(caught.value)
    assert "OTEL_EXPORTER_OTLP_ENDPOINT" in caught.value.hint


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_an_endpoint_argument_that_cannot_be_parsed_is_refused(protocol: str) -> None:
    """An unclosed bracket is a wrong option, not a defect of ours."""
    with pytest.raises(ConfigError, match=r"endpoint: expected .*host.*, got a URL that cannot be read"):
        exporter_config({}, endpoint="http://[::1", protocol=protocol)


@pytest.mark.parametrize("given", [{}, env(HEADERS="x-runspan-replay=no,x-a=b"), env(HEADERS="X-Runspan-Replay=1")])
def test_a_replay_has_its_header_once(given: dict[str, str]) -> None:
    """It is added to the others. Its value is no secret, else messages would lose a word of every day."""
    before = exporter_config(given)
    config = before.as_replay()
    assert config.headers.count(("x-runspan-replay", "true")) == 1
    assert len(dict(config.headers)) == len(config.headers)
    assert set(config.headers) - {("x-runspan-replay", "true")} == {h for h in before.headers if h[0] == "x-a"}
    assert "true" not in config.secrets
    assert config.as_replay() == config


def test_an_at_sign_in_a_path_is_no_login() -> None:
    """Only one before the host is."""
    assert exporter_config({}, endpoint="http://collector/a@b").endpoint == "http://collector/a@b"
