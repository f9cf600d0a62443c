from runspan.otlp.bulk_writer import _Details
from runspan.otlp.protobuf_writer import ScopedBytes

class SpanWriter:
    def __init__(
        self,
        format: dict[str, object],
        run_rows: list[tuple[bytes, bytes, str, bool]],
        step_rows: list[tuple[bytes, bytes, str, bool]],
    ) -> None: ...
    def write(self, text: bytes, details: _Details) -> list[ScopedBytes] | None: ...
