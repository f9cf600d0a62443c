"""The platform's answers taken apart: pages of a list, documents cut out verbatim, and its words for errors; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from runspan.errors import BackendRefused
from runspan.model.document import Summary
from runspan.model.json_scanner import ScanError, elements, json_type, members, skip_space, string_value
from runspan.model.timestamps import parse_ns

_SUMMARY: Final = Summary.__struct_encode_fields__
NOT_FOUND: Final = "NOT_FOUND"
_SORTED_BY: Final = ("startedAt", "createdAt")
_SHOWN: Final = 160


class ResponseTooLong(BackendRefused):
    """The answer is over the bound, and asking for it again costs as much."""


class MalformedResponse(Exception):
    """A success whose body is not what was asked for: cut off, or not the platform's API at all."""


class RunListItem(NamedTuple):
    """An item of a list. time: what lists are sorted by, nanoseconds since 1970; 0 when the item has none.

    fingerprint: of the members that the platform documents for list items. Another one means that the run changed.
    """

    run_id: str
    time: int
    fingerprint: bytes


class RunListPage(NamedTuple):
    """A page of a list. cursor: where the next one begins, None at the end. partial: what the server could not see.

    odd: items of no use, as text: they have no id by which a run could be asked for.
    """

    items: tuple[RunListItem, ...]
    cursor: str | None
    partial: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


class _Meta(msgspec.Struct, rename="camel"):
    cursor: str | None = None
    has_more: bool | None = None
    partial: list[str] = []


class _Page(msgspec.Struct):
    data: list[dict[str, msgspec.Raw]]
    meta: _Meta | None = None


class _RunBody(msgspec.Struct):
    data: msgspec.Raw


class _ErrorDetail(msgspec.Struct):
    field: str = ""
    message: str = ""


class _ErrorInfo(msgspec.Struct):
    code: str = ""
    message: str = ""
    details: list[_ErrorDetail] = []


class _ErrorBody(msgspec.Struct):
    error: _ErrorInfo
    success: bool | None = None


_page = msgspec.json.Decoder(_Page).decode
_answer = msgspec.json.Decoder(_RunBody).decode
_failure = msgspec.json.Decoder(_ErrorBody).decode


def fingerprint(item: Mapping[str, bytes]) -> bytes:
    """16 bytes over the texts of the documented members of a list item; absent and null differ."""
    digest = blake2b(digest_size=16)
    for name in _SUMMARY:
        value = item.get(name)
        if value is not None:
            digest.update(b"%b:%d:%b" % (name.encode(), len(value), value))
    return digest.digest()


def fingerprint_of_summary(summary: bytes) -> bytes:
    """The fingerprint of a run's own summary, which is what a list says of it when the run does not change."""
    return fingerprint(_members(summary.decode()))


def read_page(body: bytes) -> RunListPage:
    """A page of a list. Damaged when the body is none, or says that there is more and not where."""
    try:
        page = _page(body)
        items, meta = [{key: bytes(value) for key, value in item.items()} for item in page.data], page.meta or _Meta()
    except (msgspec.MsgspecError, UnicodeDecodeError):
        items, meta = _read_carefully(body)
    more = meta.cursor is not None if meta.has_more is None else meta.has_more
    if more and not meta.cursor:
        raise MalformedResponse("meta.hasMore without meta.cursor")
    listed = [_listed(item) for item in items]
    odd = [_shown(item) for item, found in zip(items, listed, strict=True) if found is None]
    if odd and len(odd) == len(items):
        raise MalformedResponse(f"no item of the list has a usable id; the first is {odd[0]}")
    cursor = meta.cursor if more else None
    return RunListPage(tuple(found for found in listed if found is not None), cursor, tuple(meta.partial), tuple(odd))


def read_document(body: bytes) -> bytes:
    """The text of ``data``, verbatim. Damaged when there is none."""
    try:
        text = bytes(_answer(body).data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        text = _member(_outer(body), "data")
    if not text.startswith(b"{"):
        raise MalformedResponse(f"data is {json_type(text.decode(errors='replace'))}, not a run document")
    return text


def read_failure(body: bytes) -> tuple[str, str]:
    """Code and message of an error's body, details included; both empty when it is not in the platform's form."""
    try:
        fault = _failure(body).error
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return "", ""
    details = [f"{detail.field}: {detail.message}" for detail in fault.details]
    return fault.code, "; ".join(filter(None, [fault.message, *details]))


def is_not_found(body: bytes) -> bool:
    """Whether an error's body is the one that the platform documents for a run that it does not have.

    What stands before a platform answers 404 as well, in its own words, and says nothing of the run by that.
    """
    try:
        failure = _failure(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return False
    return failure.success is False and failure.error.code == NOT_FOUND


def _shown(item: Mapping[str, bytes]) -> str:
    pairs = [f"{key}: {value[:40].decode(errors='replace')}" for key, value in item.items()]
    return f"{{{', '.join(pairs)}}}"[:_SHOWN]


def _listed(item: Mapping[str, bytes]) -> RunListItem | None:
    """The item, None when its id is none that a run can have."""
    text = item.get("id", b"null").decode(errors="replace")
    run_id = string_value(text) if text.startswith('"') else ""
    if not run_id or run_id != run_id.encode(errors="replace").decode():
        return None
    for name in _SORTED_BY:
        text = item.get(name, b"null").decode(errors="replace")
        time = parse_ns(string_value(text)) if text.startswith('"') else None
        if time is not None:
            return RunListItem(run_id, time, fingerprint(item))
    return RunListItem(run_id, 0, fingerprint(item))


def _read_carefully(body: bytes) -> tuple[list[dict[str, bytes]], _Meta]:
    """What msgspec does not take, such as escaped lone surrogates inside an error's message."""
    outer = _outer(body)
    data = _member(outer, "data").decode()
    if not data.startswith("["):
        raise MalformedResponse(f"data is {json_type(data)}, not a list")
    try:
        meta = msgspec.json.decode(outer.get("meta", b"{}"), type=_Meta)
        return [_members(element.value_text) for element in elements(data, 0)], meta
    except (ScanError, msgspec.MsgspecError) as error:
        raise MalformedResponse(str(error)) from None


def _outer(body: bytes) -> dict[str, bytes]:
    try:
        text = body.decode()
        if not text.startswith("{", skip_space(text, 0)):
            raise MalformedResponse("the body is no JSON object")
        return _members(text)
    except (ScanError, UnicodeDecodeError) as error:
        raise MalformedResponse(str(error)) from None


def _members(text: str) -> dict[str, bytes]:
    found = members(text, skip_space(text, 0))
    return {member.key: member.value_text.encode("utf-8", "surrogatepass") for member in found}


def _member(outer: Mapping[str, bytes], name: str) -> bytes:
    if name not in outer:
        raise MalformedResponse(f"there is no member {name!r}")
    return outer[name]
