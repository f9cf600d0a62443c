"""Jaeger in the suite: runs go in through the project's own delivery, and can be read as soon as they are accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from runspan import Run, encode
from runspan.backends.jaeger import JaegerReader
from runspan.backends.remote.settings import settings_from as remote_settings
from runspan.delivery import Batch, Delivery, RunSpans, connect, settings_from
from runspan.fields import RUN_ID
from runspan.otlp.wire import Resource, request_bytes, span_bytes
from runspan.span import Span
from servers.jaeger import Jaeger

from .harness import T0


@dataclass
class JaegerByOtlp:
    """A Jaeger without a batch processor: a success means stored."""

    reader: JaegerReader
    delivery: Delivery

    def send(self, *runs: Run, tenant: str, observed_at: int = T0) -> None:
        for run in runs:
            self.send_spans(encode(run, tenant=tenant, observed_at=observed_at), tenant)

    def send_spans(self, spans: Sequence[Span], tenant: str) -> None:
        parts = [span_bytes(span) for span in spans]
        run = RunSpans(str(spans[0].attributes()[RUN_ID]), parts, sum(map(len, parts)))
        before = self.delivery.report().runs_accepted
        assert self.delivery.submit(Batch(partial(request_bytes, Resource()), (run,)))
        assert self.delivery.flush().runs_accepted == before + 1

    def close(self) -> None:
        self.delivery.close()
        self.reader.close()


def jaeger_by_otlp(server: Jaeger) -> JaegerByOtlp:
    """A Jaeger of a test run."""
    reader = JaegerReader(remote_settings(f"jaeger+{server.url}", {}))
    return JaegerByOtlp(reader, connect(settings_from({}, endpoint=server.otlp)))
