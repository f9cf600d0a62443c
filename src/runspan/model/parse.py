"""The parser of run documents, with a verified fast path and a strict path for everything else; no I/O.

The fast path decodes with msgspec and is taken when the canonical text is as long as the input. Re-encoding never makes
a member longer, so a member that msgspec dropped, a repeated key, an escape or white space makes the canonical text
shorter. The strict path then scans the document and keeps every text, or raises an error that names the place.
"""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Raw

from runspan.errors import DocumentError
from runspan.model.document import Envelope, Step, run_text, with_extra_run, with_extra_step
from runspan.model.json_scanner import (
    Member,
    ScanError,
    elements,
    end_of_value,
    json_type,
    line_and_column,
    members,
    path_at,
    skip_space,
    string_value,
)

MAX_RUN_ID_BYTES = 512
"""A run id has to fit one attribute, so that backends can search for it."""

_decode = msgspec.json.Decoder(Envelope).decode
_encode = msgspec.json.Encoder().encode
_RAW_MEMBERS = {"duration_ms", "attempt", "input", "output", "error", "retry_policy"}
_RUN_NAMES = dict(zip(Envelope.__struct_encode_fields__, Envelope.__struct_fields__, strict=True))
_STEP_NAMES = dict(zip(Step.__struct_encode_fields__, Step.__struct_fields__, strict=True))


def parse_document(data: bytes | str, *, where: str = "") -> tuple[Envelope, bytes, bool]:
    """Return the members of a document, its canonical text, and whether the document is plain.

    A plain document has no unknown members and no members of another type than the platform writes.

    ``where`` is the name of the source in errors, for example ``runs.ndjson:12``.

    Raises DocumentError for a document that cannot be carried exactly: text that is not JSON, invalid UTF-8, a repeated
    key in the run or in a step, a missing or invalid id, a step that is not an object.
    """
    if isinstance(data, str):
        data = _utf8(data, where)
    data = data.strip(b" \t\r\n")
    try:
        data.isascii() or data.decode()
        envelope = _decode(data)
        text = _encode(envelope)
        if len(text) == len(data) and 0 < len(envelope.id) <= MAX_RUN_ID_BYTES // 4:
            return envelope, text, True
    except (ValueError, msgspec.MsgspecError, RecursionError):
        pass  # the strict path accepts the document or raises an error with its position
    return _StrictParser(data, where).document()


def document_text(document: dict[str, Any]) -> bytes:
    """Return the JSON text of a dict. Raises DocumentError for a value that JSON cannot represent."""
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
            "utf-8", "surrogatepass"
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise DocumentError(
            where="document", expected="JSON values", got=str(error), hint="convert the value first"
        ) from None


def _utf8(text: str, where: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            where=f"{where} character {error.start}".strip(),
            expected="Unicode text",
            got=f"a lone surrogate {text[error.start]!r}",
            hint="write it as a JSON escape, which is kept verbatim",
        ) from None


class _StrictParser:
    """Parses one document member by member."""

    def __init__(self, data: bytes, where: str) -> None:
        self.where = where
        try:
            self.text = data.decode()
        except UnicodeDecodeError as error:
            raise self._error(
                f"byte {error.start}", "UTF-8", f"byte 0x{data[error.start]:02x}", "convert the file to UTF-8"
            ) from None

    def document(self) -> tuple[Envelope, bytes, bool]:
        text = self.text
        if not text:
            raise self._error("", "a run document", "nothing")
        start = skip_space(text, 0)
        try:
            end = skip_space(text, end_of_value(text, start))
        except ScanError as error:
            path = f"{path_at(text, error.position)} {self._position(error.position)}".strip()
            raise self._error(path, error.expected, error.got) from None
        if end != len(text):
            raise self._error(self._position(end), "the end of the document", repr(text[end : end + 20]))
        if text[start] != "{":
            raise self._error("", "a run document, a JSON object", json_type(text[start:]))
        values, extra = self._members("", start, _RUN_NAMES)
        if "id" not in values and "data" in extra and "success" in extra:
            hint = "this is a response of the REST API: use the document in its 'data'"
            raise self._error("id", "a string", "nothing", hint)
        run_id = self._id("id", values)
        if not 0 < len(run_id.encode()) <= MAX_RUN_ID_BYTES:
            raise self._error("id", f"1 to {MAX_RUN_ID_BYTES} bytes", f"{len(run_id.encode())} bytes")
        if "steps" in values:
            values["steps"] = self._steps(values["steps"])
        values["id"] = run_id
        envelope = with_extra_run(Envelope(**values), _joined(extra))
        return envelope, run_text(envelope), False

    def _members(self, path: str, position: int, names: dict[str, str]) -> tuple[dict[str, Any], dict[str, Member]]:
        known: dict[str, Any] = {}
        extra: dict[str, Member] = {}
        for member in members(self.text, position):
            name = names.get(member.key)
            if (name in known) or (member.key in extra):
                raise self._error(
                    f"{path}.{member.key}".removeprefix("."),
                    "one member of that name",
                    "two",
                    "remove the repeated key: which value is meant is ambiguous",
                )
            if name is None:
                extra[member.key] = member
            else:
                known[name] = self._value(name, member)
        return known, extra

    def _value(self, name: str, member: Member) -> Any:
        if name == "steps":
            return member
        if name in _RAW_MEMBERS:
            return Raw(member.value_text.encode())
        if member.value_text == "null":
            return None if name != "id" else Raw(b"null")
        if member.value_text.startswith('"'):
            value = string_value(member.value_text)
            if value.isascii() or _encodable(value):
                return value
        return Raw(member.value_text.encode())

    def _steps(self, member: Member) -> list[Step] | None:
        if member.value_text == "null":
            return None
        if not member.value_text.startswith("["):
            raise self._error("steps", "an array", json_type(member.value_text))
        steps = []
        for index, element in enumerate(elements(self.text, member.position)):
            path = f"steps[{index}]"
            if not element.value_text.startswith("{"):
                raise self._error(path, "an object", json_type(element.value_text))
            values, extra = self._members(path, element.position, _STEP_NAMES)
            if type(values.get("id")) is not str and not isinstance(values.get("id"), Raw):
                raise self._error(f"{path}.id", "a string", "nothing")
            if isinstance(values["id"], Raw) and not bytes(values["id"]).startswith(b'"'):
                raise self._error(f"{path}.id", "a string", json_type(bytes(values["id"]).decode()))
            steps.append(with_extra_step(Step(**values), _joined(extra)))
        return steps

    def _id(self, path: str, values: dict[str, Any]) -> str:
        value = values.get("id")
        if value is None:
            raise self._error(path, "a string", "nothing")
        if isinstance(value, Raw):
            text = bytes(value).decode()
            got = "a lone surrogate" if text.startswith('"') else json_type(text)
            raise self._error(path, "a string of Unicode characters", got)
        return str(value)

    def _position(self, position: int) -> str:
        line, column = line_and_column(self.text, position)
        return f"line {line} column {column}" if line > 1 else f"column {column}"

    def _error(self, path: str, expected: str, got: str, hint: str = "") -> DocumentError:
        return DocumentError(where=f"{self.where} {path}".strip(), expected=expected, got=got, hint=hint)


def _encodable(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _joined(extra: dict[str, Member]) -> bytes:
    return b",".join([f"{member.key_text}:{member.value_text}".encode() for member in extra.values()])
