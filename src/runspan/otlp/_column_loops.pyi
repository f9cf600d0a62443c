from collections.abc import Sequence

from runspan.otlp.column_loops import Column

def nanoseconds(values: Sequence[object], /) -> list[int]: ...
def join_span_columns(
    columns: list[Column], count: int, max_bytes: int, absent: object, /
) -> tuple[list[bytes], list[int]]: ...
