from runspan.otlp.bulk_writer import _Details
from runspan.otlp.protobuf_writer import ScopedBytes

class PlainDocuments:
    def __init__(self, run: list[tuple[bytes, str]], step: list[tuple[bytes, str]]) -> None: ...
    def run_id(self, text: bytes) -> str | None: ...

class SpanWriter:
    def __init__(
        self,
        format: dict[str, object],
        run_rows: list[tuple[bytes, bytes, str, bool]],
        step_rows: list[tuple[bytes, bytes, str, bool]],
    ) -> None: ...
    def write(self, text: bytes, details: _Details) -> tuple[ScopedBytes, ScopedBytes] | None: ...
