"""The types of the native part, which ``native/`` is the source of."""

from collections.abc import Sequence
from types import ModuleType

from runspan.otlp.bulk_writer import _Details
from runspan.otlp.protobuf_writer import ScopedBytes

_Row = tuple[str, str, str, str, bool]
_Run = tuple[bytes, bytes, str, str | None, str, str, bytes, bytes, bytes, bool, int, int | None]

def is_document(line: bytes) -> bool: ...

class Reader:
    def __new__(
        cls, names: ModuleType, rules: object, run: Sequence[_Row], step: Sequence[_Row], ignored: Sequence[str]
    ) -> Reader: ...
    def read(self, body: bytes, max_spans: int) -> tuple[int, int, list[bytes], list[tuple[_Run, int]]] | None: ...

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
