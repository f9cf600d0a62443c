"""Sending runs to a backend over OTLP/HTTP, by the project's own encoder and exporter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conformance.harness import EVER, T0
from runspan import Run, encode
from runspan.codec.fields import RUN_ID
from runspan.contracts import TraceReader
from runspan.delivery import Batch, OtlpExporter, RunSpans, connect, exporter_config
from runspan.model.span import Span
from runspan.otlp.protobuf_writer import Resource, scoped_bytes


@dataclass
class ByOtlp:
    """A backend that accepts OTLP/HTTP, whose reader can read an accepted run at once."""

    reader: TraceReader
    delivery: OtlpExporter
    keeps_all_spans: bool = True
    lists_by_summary = True
    finds: tuple[int, int] = EVER
    hides_seconds: float = 0.0

    def send(self, *runs: Run, tenant: str, observed_at: int = T0) -> None:
        for run in runs:
            self.send_spans(encode(run, tenant=tenant, observed_at=observed_at), tenant)

    def send_spans(self, spans: Sequence[Span], tenant: str) -> None:
        parts = [scoped_bytes(span) for span in spans]
        run = RunSpans.of(str(spans[0].attributes()[RUN_ID]), parts)
        before = self.delivery.report().runs_accepted
        assert self.delivery.submit(Batch(Resource(), (run,)))
        assert self.delivery.flush().runs_accepted == before + 1

    def close(self) -> None:
        self.delivery.close()
        self.reader.close()


def delivery_to(otlp: str) -> OtlpExporter:
    """Return an exporter to the OTLP/HTTP endpoint of a server."""
    return connect(exporter_config({}, endpoint=otlp))
