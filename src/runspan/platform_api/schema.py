"""The responses of the platform's REST dialect: lists, documents cut out verbatim, and error messages; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from runspan.codec.full_text import Match
from runspan.errors import PARSE_ERRORS, BackendRefused
from runspan.model.document import MAX_RUN_ID_BYTES, Summary
from runspan.model.json_scanner import ScanError, elements, json_type, members, skip_space, string_value
from runspan.model.timestamps import parse_ns

_SUMMARY: Final = Summary.__struct_encode_fields__
_SORTED_BY: Final = ("startedAt", "createdAt")
_MAX_SHOWN: Final = 160


class MalformedResponse(BackendRefused):
    """A success whose body is not what was asked for: cut off, or from something else than the platform."""


class RunListItem(NamedTuple):
    """An item of a list."""

    run_id: str
    time: int
    """The sort key of lists, nanoseconds since 1970; 0 if the item has none."""

    fingerprint: bytes
    """Of the members that the platform documents for list items. If it differs, the run has changed."""

    workflow_id: str = ""
    """Empty if the item has none."""


class RunListPage(NamedTuple):
    """A page of a list."""

    items: tuple[RunListItem, ...]
    cursor: str | None
    """The start of the next page, None at the end."""

    partial: tuple[str, ...] = ()
    """What the server could not search, one line each."""

    unusable: tuple[str, ...] = ()
    """The text of items without an id by which a run could be fetched."""


class Meta(msgspec.Struct, rename="camel"):
    """The ``meta`` member of a success."""

    cursor: str | None = None
    has_more: bool | None = None
    partial: list[str] = []
    stuck_after: str | None = None
    to: str | None = None
    ended_from: str | None = None
    ended_to: str | None = None
    trigger_type: str | None = None
    error_code: str | None = None
    min_duration: str | None = None
    model: str | None = None
    step_type: str | None = None
    q: str | None = None
    sort: str | None = None
    matches: dict[str, Match] = {}


class _Success(msgspec.Struct):
    data: msgspec.Raw
    meta: Meta | None = None


class _ErrorDetail(msgspec.Struct):
    field: str = ""
    message: str = ""


class _ErrorInfo(msgspec.Struct):
    code: str = ""
    message: str = ""
    details: list[_ErrorDetail] = []


class _Failure(msgspec.Struct):
    error: _ErrorInfo
    success: bool | None = None


class ApiError(NamedTuple):
    """The error of a response; without a code if the body is not in the platform's form."""

    code: str = ""
    message: str = ""
    """With the details that the platform adds."""

    success: bool | None = None


_decode_success = msgspec.json.Decoder(_Success).decode
_decode_meta = msgspec.json.Decoder(Meta | None).decode
_decode_failure = msgspec.json.Decoder(_Failure).decode


def fingerprint(item: Mapping[str, bytes]) -> bytes:
    """Return 16 bytes over the texts of an item's documented members; an absent and a null member differ."""
    digest = blake2b(digest_size=16)
    for name in _SUMMARY:
        value = item.get(name)
        if value is not None:
            digest.update(b"%b:%d:%b" % (name.encode(), len(value), value))
    return digest.digest()


def fingerprint_of_summary(summary: bytes) -> bytes:
    """Return the fingerprint of a run's own summary, which equals that of its list item if the run has not changed."""
    return fingerprint(_members(summary.decode()))


def read_data(body: bytes, opening: str) -> tuple[bytes, Meta]:
    """Return the text of ``data``, verbatim, and ``meta``. MalformedResponse if the body is not a success.

    opening: The first character of the data: ``{`` or ``[``.
    """
    try:
        body.decode()  # msgspec does not decode what it skips
        success = _decode_success(body)
        data, meta = bytes(success.data), success.meta or Meta()
    except PARSE_ERRORS:
        # msgspec rejects some JSON that the platform sends, such as escaped lone surrogates and very deep nesting.
        data, meta = _scan_data(body)
    if not data.startswith(opening.encode()):
        expected = "a list" if opening == "[" else "a run document"
        raise MalformedResponse(got=f"data is {json_type(data.decode(errors='replace'))}, not {expected}")
    return data, meta


def read_items(body: bytes) -> tuple[list[str], Meta, str | None]:
    """Return the texts of the items of a list, verbatim, ``meta``, and the start of the next page, None at the end.

    MalformedResponse if the body is no list, or the start is missing.
    """
    data, meta = read_data(body, "[")
    if meta.has_more and not meta.cursor:
        raise MalformedResponse(got="meta.hasMore without meta.cursor")
    cursor = None if meta.has_more is False else meta.cursor or None
    try:
        return [element.value_text for element in elements(data.decode(), 0)], meta, cursor
    except ScanError as error:
        raise MalformedResponse(got=str(error)) from None


def read_page(body: bytes) -> RunListPage:
    """Return a page of a list. MalformedResponse if the body is none, or no item has an id."""
    texts, meta, cursor = read_items(body)
    listed = [_list_item(text) for text in texts]
    unusable = [text[:_MAX_SHOWN] for text, found in zip(texts, listed, strict=True) if found is None]
    if unusable and len(unusable) == len(texts):
        raise MalformedResponse(got=f"no item of the list has a usable id; the first is {unusable[0]}")
    usable = tuple(found for found in listed if found is not None)
    return RunListPage(usable, cursor, tuple(meta.partial), tuple(unusable))


def read_error(body: bytes) -> ApiError:
    """Return the error of a response."""
    try:
        failure = _decode_failure(body)
    except PARSE_ERRORS:
        return ApiError()
    details = [f"{detail.field}: {detail.message}" for detail in failure.error.details]
    message = "; ".join(filter(None, [failure.error.message, *details]))
    return ApiError(failure.error.code, message, failure.success)


def _list_item(text: str) -> RunListItem | None:
    """Return the item, None if it has no id that a run can have."""
    try:
        item = _members(text)
    except ScanError:
        return None
    run_id = _text_of(item, "id")
    encoded = run_id.encode(errors="replace")
    if not 0 < len(encoded) <= MAX_RUN_ID_BYTES or run_id != encoded.decode():
        return None
    workflow_id = _text_of(item, "workflowId").encode(errors="replace").decode()
    times = [parse_ns(_text_of(item, name)) for name in _SORTED_BY]
    time = next((time for time in times if time is not None), 0)
    return RunListItem(run_id, time, fingerprint(item), workflow_id)


def _text_of(item: Mapping[str, bytes], name: str) -> str:
    """Return a member that is a string, and "" for any other."""
    text = item.get(name, b"null").decode(errors="replace")
    return string_value(text) if text.startswith('"') else ""


def _scan_data(body: bytes) -> tuple[bytes, Meta]:
    try:
        text = body.decode()
        if not text.startswith("{", skip_space(text, 0)):
            raise MalformedResponse(got="the body is no JSON object")
        found = _members(text)
        if "data" not in found:
            raise MalformedResponse(got="there is no member 'data'")
        return found["data"], _decode_meta(found.get("meta", b"{}")) or Meta()
    except PARSE_ERRORS as error:
        raise MalformedResponse(got=str(error)) from None


def _members(text: str) -> dict[str, bytes]:
    found = members(text, skip_space(text, 0))
    return {member.key: member.value_text.encode("utf-8", "surrogatepass") for member in found}
