"""The types of the native part, which ``native/`` is the source of."""

from collections.abc import Sequence
from types import ModuleType

_Row = tuple[str, str, str, str, bool]
_Run = tuple[bytes, bytes, str, str | None, str, str, bytes, bytes, bytes, bool, int, int | None]

class Reader:
    def __new__(
        cls, names: ModuleType, rules: object, run: Sequence[_Row], step: Sequence[_Row], ignored: Sequence[str]
    ) -> Reader: ...
    def read(self, body: bytes, max_spans: int) -> tuple[int, int, list[bytes], list[tuple[_Run, int]]] | None: ...
