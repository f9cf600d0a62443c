"""Run documents: their members, parser and canonical text; no I/O.

Two documents are the same when their canonical texts are the same bytes. The canonical text has the known members in
the order in which the classes below declare them, then the unknown members in their original order, without white
space between members. Payloads, numbers and unknown members keep their text verbatim.

The parser decodes with msgspec and takes the result if the canonical text is as long as the input. Re-encoding never
makes a member longer, so a member that msgspec dropped, a repeated key, an escape or white space makes the canonical
text shorter. Then the strict parser scans the document and keeps every text, or raises an error that names the place.
"""

from __future__ import annotations

import json
import re
from operator import attrgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from runspan.errors import PARSE_ERRORS, DocumentError
from runspan.model import json_scanner as scan
from runspan.model.timestamps import parse_ns

try:
    from runspan._native import PlainDocuments
except ImportError:
    if not TYPE_CHECKING:
        PlainDocuments = None

OptionalText = str | UnsetType | None
"""A member that the platform writes as a string. Any other JSON value is kept as ``Raw``."""

Json = Raw | UnsetType
"""A member whose JSON text is kept verbatim."""

RUN_STATUSES: Final = ("pending", "running", "suspended", "completed", "failed", "cancelled", "timed_out")
TERMINAL_RUN_STATUSES: Final = ("completed", "failed", "cancelled", "timed_out")
LIVE_RUN_STATUSES: Final = ("pending", "running")
"""Statuses that an engine updates frequently. A suspended run is excluded: it may wait for days without a change."""
STEP_STATUSES: Final = ("pending", "running", "completed", "failed", "skipped", "retrying")
TERMINAL_STEP_STATUSES: Final = ("completed", "failed", "skipped")
"""These are tuples, not sets, because a non-canonical status is ``Raw``, which is not hashable."""


class Step(Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """One step of a run."""

    extra: ClassVar[bytes] = b""
    """The text of the unknown members, ``"key":value`` pairs joined by commas."""

    id: str
    name: OptionalText = UNSET
    type: OptionalText = UNSET
    status: OptionalText = UNSET
    started_at: OptionalText = UNSET
    completed_at: OptionalText = UNSET
    duration_ms: Json = UNSET
    attempt: Json = UNSET
    input: Json = UNSET
    output: Json = UNSET
    error: Json = UNSET
    retry_policy: Json = UNSET


class Envelope(Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename="camel"):
    """The members of a run."""

    extra: ClassVar[bytes] = b""
    """The text of the unknown members, ``"key":value`` pairs joined by commas."""

    id: str
    workflow_id: OptionalText = UNSET
    status: OptionalText = UNSET
    trigger_type: OptionalText = UNSET
    started_at: OptionalText = UNSET
    completed_at: OptionalText = UNSET
    duration_ms: Json = UNSET
    input: Json = UNSET
    output: Json = UNSET
    error: Json = UNSET
    created_at: OptionalText = UNSET
    steps: list[Step] | UnsetType | None = UNSET


class ExtendedStep(Step, frozen=True, gc=True, dict=True, rename="camel"):
    """A step with unknown members. A class of its own, so that other steps need no ``__dict__``."""


class ExtendedEnvelope(Envelope, frozen=True, gc=True, dict=True, rename="camel"):
    """A run with unknown members."""


class Summary(Struct, frozen=True, gc=False, rename="camel"):
    """The members of a list item."""

    id: str
    workflow_id: OptionalText = UNSET
    status: OptionalText = UNSET
    trigger_type: OptionalText = UNSET
    started_at: OptionalText = UNSET
    completed_at: OptionalText = UNSET
    duration_ms: Json = UNSET
    error: Json = UNSET
    created_at: OptionalText = UNSET


SUMMARY_MEMBERS: Final = Summary.__struct_fields__
"""The members of a list item in documented order."""

_encode = msgspec.json.Encoder().encode
_Document = TypeVar("_Document", Step, Envelope)


def with_extra_step(step: Step, extra: bytes) -> Step:
    """Return the step with the text of its unknown members."""
    return _extended(ExtendedStep, step, extra) if extra else step


def with_extra_run(envelope: Envelope, extra: bytes) -> Envelope:
    """Return the envelope with the text of its unknown members."""
    return _extended(ExtendedEnvelope, envelope, extra) if extra else envelope


def _extended(kind: type[_Document], document: _Document, extra: bytes) -> _Document:
    extended = kind(**msgspec.structs.asdict(document))
    extended.__dict__["extra"] = extra
    return extended


def step_text(step: Step) -> bytes:
    """Return the canonical text of a step."""
    text = _encode(step)
    return text[:-1] + b"," + step.extra + b"}" if step.extra else text


_extra_of = attrgetter("extra")


def run_text(envelope: Envelope) -> bytes:
    """Return the canonical text of a run."""
    steps = envelope.steps
    if type(steps) is list and any(map(_extra_of, steps)):
        without_steps = _encode(msgspec.structs.replace(envelope, steps=UNSET))
        step_texts = b",".join([step_text(step) for step in steps])
        text = without_steps[:-1] + b',"steps":[' + step_texts + b"]}"
    else:
        text = _encode(envelope)
    return text[:-1] + b"," + envelope.extra + b"}" if envelope.extra else text


def summary_text(envelope: Envelope) -> bytes:
    """Return the list item of a run: canonical JSON of ``SUMMARY_MEMBERS``, without absent members."""
    return _encode(Summary(*[getattr(envelope, name) for name in SUMMARY_MEMBERS]))


def sort_time(envelope: Envelope) -> int:
    """Return where a run lies in time, in nanoseconds since 1970: the sort key of lists and the start of its spans.

    The first that is usable of the run's start, its creation, its earliest step and its completion; 0 if none is.
    """
    for value in (envelope.started_at, envelope.created_at):
        ns = time_ns(value)
        if ns:
            return ns
    times = [time_ns(value) for value in _step_times(envelope)]
    return min([ns for ns in times if ns], default=0) or time_ns(envelope.completed_at) or 0


def end_time(envelope: Envelope, time: int) -> int | None:
    """Return when a run ended, in nanoseconds since 1970: its completion, or where it lies in time without one.

    Return None for a run that has not ended. ``time``: where it lies in time.
    """
    if str_or_none(envelope.status) not in TERMINAL_RUN_STATUSES:
        return None
    return time_ns(envelope.completed_at) or time


def latest_time(envelope: Envelope) -> int:
    """Return the latest time in a document in nanoseconds since 1970, 0 if it has none."""
    values = [envelope.started_at, envelope.completed_at, *_step_times(envelope)]
    return max([time_ns(value) or 0 for value in values])


def _step_times(envelope: Envelope) -> list[OptionalText]:
    steps = envelope.steps if type(envelope.steps) is list else ()
    return [value for step in steps for value in (step.started_at, step.completed_at)]


def time_ns(value: object) -> int | None:
    """Return the nanoseconds since 1970 of a timestamp member, or None if it is absent or unusable."""
    return parse_ns(value) if type(value) is str else None


def by_content(value: object) -> object:
    """Return a member in a form whose hash and ``repr`` follow from its content: those of ``Raw`` are not.

    Strings stay strings, so a member that is ``Raw`` never equals one that is not.
    """
    return bytes(value) if type(value) is Raw else value


def str_or_none(value: object) -> str | None:
    """Return the value if it is a string, else None."""
    return value if type(value) is str else None


MAX_RUN_ID_BYTES = 512
"""A run id has to fit one attribute, so that backends can search for it."""
MAX_PLAIN_ID_BYTES = MAX_RUN_ID_BYTES // 4
"""The length of an id that is not encoded to find that it is short enough: characters, each of up to four bytes."""

_decode = msgspec.json.Decoder(Envelope).decode
_SURROGATE = re.compile("[\ud800-\udfff]")
"""A lone surrogate, which JSON can represent and UTF-8 cannot."""
_RAW_MEMBERS = {"duration_ms", "attempt", "input", "output", "error", "retry_policy"}
_RUN_NAMES = dict(zip(Envelope.__struct_encode_fields__, Envelope.__struct_fields__, strict=True))
_STEP_NAMES = dict(zip(Step.__struct_encode_fields__, Step.__struct_fields__, strict=True))


def _members(document: type[Envelope | Step]) -> list[tuple[bytes, str]]:
    """Return name and kind of the members in order, for ``PlainDocuments``."""
    kinds = dict.fromkeys(_RAW_MEMBERS, "raw") | {"id": "id", "steps": "steps"}
    names = zip(document.__struct_encode_fields__, document.__struct_fields__, strict=True)
    return [(f'"{encoded}":'.encode(), kinds.get(name, "text")) for encoded, name in names]


_plain_documents = None if PlainDocuments is None else PlainDocuments(_members(Envelope), _members(Step))
"""Recognizes most plain documents several times as fast as they are parsed; None without the native part."""


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
        if len(text) == len(data) and 0 < len(envelope.id) <= MAX_PLAIN_ID_BYTES:
            return envelope, text, True
    except PARSE_ERRORS:
        pass  # the strict path accepts the document or raises an error with its position
    return _StrictParser(data, where).document()


def document_text(document: dict[str, Any]) -> bytes:
    """Return the JSON text of a dict. Raises DocumentError for a value that JSON cannot represent."""
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode(
            "utf-8", "surrogatepass"
        )
    except (TypeError, *PARSE_ERRORS) as error:
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
        start = scan.skip_space(text, 0)
        try:
            end = scan.skip_space(text, scan.end_of_value(text, start))
        except scan.ScanError as error:
            path = f"{scan.path_at(text, error.position)} {self._position(error.position)}".strip()
            raise self._error(path, error.expected, error.got) from None
        if end != len(text):
            raise self._error(self._position(end), "the end of the document", repr(text[end : end + 20]))
        if text[start] != "{":
            raise self._error("", "a run document, a JSON object", scan.json_type(text[start:]))
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

    def _members(
        self, path: str, position: int, names: dict[str, str]
    ) -> tuple[dict[str, Any], dict[str, scan.Member]]:
        known: dict[str, Any] = {}
        extra: dict[str, scan.Member] = {}
        for member in scan.members(self.text, position):
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

    def _value(self, name: str, member: scan.Member) -> Any:
        if name == "steps":
            return member
        if name in _RAW_MEMBERS:
            return Raw(member.value_text.encode())
        if member.value_text == "null":
            return None if name != "id" else Raw(b"null")
        if member.value_text.startswith('"'):
            value = scan.string_value(member.value_text)
            if value.isascii() or not _SURROGATE.search(value):
                return value
        return Raw(member.value_text.encode())

    def _steps(self, member: scan.Member) -> list[Step] | None:
        if member.value_text == "null":
            return None
        if not member.value_text.startswith("["):
            raise self._error("steps", "an array", scan.json_type(member.value_text))
        steps = []
        for index, element in enumerate(scan.elements(self.text, member.position)):
            path = f"steps[{index}]"
            if not element.value_text.startswith("{"):
                raise self._error(path, "an object", scan.json_type(element.value_text))
            values, extra = self._members(path, element.position, _STEP_NAMES)
            if type(values.get("id")) is not str and not isinstance(values.get("id"), Raw):
                raise self._error(f"{path}.id", "a string", "nothing")
            if isinstance(values["id"], Raw) and not bytes(values["id"]).startswith(b'"'):
                raise self._error(f"{path}.id", "a string", scan.json_type(bytes(values["id"]).decode()))
            steps.append(with_extra_step(Step(**values), _joined(extra)))
        return steps

    def _id(self, path: str, values: dict[str, Any]) -> str:
        value = values.get("id")
        if value is None:
            raise self._error(path, "a string", "nothing")
        if isinstance(value, Raw):
            text = bytes(value).decode()
            got = "a lone surrogate" if text.startswith('"') else scan.json_type(text)
            raise self._error(path, "a string of Unicode characters", got)
        return str(value)

    def _position(self, position: int) -> str:
        line, column = scan.line_and_column(self.text, position)
        return f"line {line} column {column}" if line > 1 else f"column {column}"

    def _error(self, path: str, expected: str, got: str, hint: str = "") -> DocumentError:
        return DocumentError(where=f"{self.where} {path}".strip(), expected=expected, got=got, hint=hint)


def _joined(extra: dict[str, scan.Member]) -> bytes:
    return b",".join([f"{member.key_text}:{member.value_text}".encode() for member in extra.values()])


class Run:
    """A run document. Create one with ``Run.from_json`` or ``Run.from_dict``."""

    __slots__ = ("_envelope", "id", "plain", "text")

    def __init__(self, envelope: Envelope, text: bytes, plain: bool = False) -> None:
        self.id = envelope.id
        self._envelope: Envelope | None = envelope
        self.text = text
        """The canonical text in UTF-8."""
        self.plain = plain
        """True if the document has no unknown members and no members of another type than the platform writes."""

    @classmethod
    def from_json(cls, data: bytes | str, *, where: str = "") -> Run:
        """Parse one document. Raises DocumentError, with the place, if it cannot be carried exactly."""
        run_id = _plain_documents.run_id(data) if _plain_documents is not None and type(data) is bytes else None
        if run_id is None:
            return cls(*parse_document(data, where=where))
        run = cls.__new__(cls)
        run.id, run.text, run.plain, run._envelope = run_id, data, True, None  # type: ignore[assignment]
        return run

    @classmethod
    def from_dict(cls, document: dict[str, Any]) -> Run:
        """Return the run of a dict. Raises DocumentError for NaN and other values that JSON cannot represent."""
        return cls(*parse_document(document_text(document)))

    def to_json(self) -> bytes:
        """Return the canonical text in UTF-8."""
        return self.text

    def to_dict(self) -> dict[str, Any]:
        """Return the document as Python values. Numbers beyond a float's precision are rounded; ``text`` keeps them.

        Raises DocumentError for a document that is nested deeper than Python's parser reads.
        """
        try:
            document: dict[str, Any] = json.loads(self.text)
        except PARSE_ERRORS as error:
            hint = "use the member text, which has every document as it is"
            raise DocumentError(where=f"run {self.id}", expected="Python values", got=str(error), hint=hint) from None
        return document

    @property
    def envelope(self) -> Envelope:
        """The members; ``envelope.steps`` are ``Step`` objects. Parsed when they are first needed."""
        if self._envelope is None:
            self._envelope = _decode(self.text)
        return self._envelope

    @property
    def workflow_id(self) -> str | None:
        return str_or_none(self.envelope.workflow_id)

    @property
    def status(self) -> str | None:
        return str_or_none(self.envelope.status)

    @property
    def finished(self) -> bool:
        """Whether the status is terminal."""
        return self.status in TERMINAL_RUN_STATUSES

    @property
    def steps(self) -> tuple[Step, ...]:
        steps = self.envelope.steps
        return tuple(steps) if type(steps) is list else ()

    def summary(self) -> bytes:
        """Return the list item of this run: JSON without steps, payloads and absent members."""
        return summary_text(self.envelope)

    def __eq__(self, other: object) -> bool:
        return self.text == other.text if isinstance(other, Run) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"<Run {self.id!r} {self.status} {len(self.steps)} steps {len(self.text)} bytes>"
