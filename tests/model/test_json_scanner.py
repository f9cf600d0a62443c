"""The scanner accepts exactly JSON, and no text makes it slow."""

from __future__ import annotations

import json
import random
import time

import pytest

from runspan import Run
from runspan.errors import DocumentError
from runspan.model.json_scanner import ScanError, end_of_value, path_at

MANY = 1 << 18
HOSTILE = {
    "brackets": b"[" * (2 * MANY) + b"]" * (2 * MANY),
    "brackets that stay open": b"[" * (4 * MANY),
    "brackets with spaces": b"[ " * MANY + b" ]" * MANY,
    "objects": b'{"a":' * MANY + b"1" + b"}" * MANY,
    "objects and brackets": b'[{"a":' * MANY + b"1" + b"}]" * MANY,
    "empty arrays": b"[" + b"[]," * MANY + b"1]",
    "numbers": b"[" + b"1," * (2 * MANY) + b"1]",
    "a number on each level": b"[1," * (MANY // 4) + b"1" + b",1]" * (MANY // 4),
    "a deep end after each stretch": (b"[" + b"1," * 1000) * 1000 + b"1" + b"]" * 1000,
    "quotes that stay open": b'["' + b"a" * (4 * MANY),
}
IN_A_STEP = '"steps":[{"id":"a","input"'
BOUND_SECONDS = 60.0
"""Processor time: ten times what the slowest case takes on a slow machine. Quadratic time takes many minutes."""


@pytest.mark.parametrize(
    "place", ['"input"', *(pytest.param(one, marks=pytest.mark.campaign) for one in ('"unknown"', IN_A_STEP))]
)
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_bounded_time(name: str, place: str) -> None:
    """Megabytes of hostile text are kept verbatim or refused with their place in a bounded time."""
    text = b'{"id":"r",' + place.encode() + b":" + HOSTILE[name] + (b"}]}" if "steps" in place else b"}")
    began = time.process_time()
    if "stay open" in name:
        with pytest.raises(DocumentError, match=r"input|unknown"):
            Run.from_json(text)
    else:
        assert len(Run.from_json(text).text) == len(text)
    assert time.process_time() - began < BOUND_SECONDS


def value(chance: random.Random, depth: int) -> str:
    """Return a random JSON text with white space between its tokens."""
    space = ["", "", " ", "\n\t", "\r"]
    kind = chance.random()
    if depth <= 0 or kind < 0.35:
        return chance.choice(["1", "-0.0", "1e5", '"a"', '"\\u00e9\\n"', '""', "true", "null", '"[{"', '"\\"}"', "0"])
    inner = [
        chance.choice(space) + value(chance, depth - 1) + chance.choice(space) for _ in range(chance.randint(0, 3))
    ]
    if kind < 0.7:
        return "[" + (",".join(inner) or chance.choice(space)) + "]"
    keys = [chance.choice(space) + chance.choice(['"a"', '"{"', '"\\""']) + chance.choice(space) for _ in inner]
    return "{" + (",".join(map(":".join, zip(keys, inner, strict=True))) or chance.choice(space)) + "}"


def is_scanned(text: str) -> bool:
    try:
        return end_of_value(text, 0) == len(text.rstrip(" \n\t\r"))
    except ScanError:
        return False


def is_json(text: str) -> bool:
    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        json.loads(text, parse_constant=refuse)
    except ValueError:
        return False
    return True


def test_it_accepts_what_the_standard_library_accepts() -> None:
    """Of thousands of texts, valid and damaged at one place, exactly those that are JSON are accepted."""
    chance = random.Random(11)
    accepted_count = 0
    for _ in range(8000):
        text = value(chance, chance.randint(0, 8)).strip(" \n\t\r")
        place = chance.randrange(len(text) + 1)
        if chance.random() < 0.6:
            text = text[:place] + chance.choice([*'[]{},:"1 \\\nx-', ""]) + text[place + chance.randint(0, 1) :]
        accepted = is_scanned(text)
        assert accepted == is_json(text), text
        accepted_count += accepted
    assert 2000 < accepted_count < 7000


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1,"b" 2}', "b"),
        ('{"a":1,}', ""),
        ('{"a":1 2', "a"),
        ('{"steps":[1,{"input":{"x":[}', "steps[1].input"),
        ('{"steps":{"a":{"b":}', "steps.a.b"),
        ('{"input":{"a":{"b":}', "input"),
        ('{"steps":[{"":[}', "steps[0]"),
        ("[1,x", "[1]"),
        ('{"a":"no end', "a"),
    ],
)
def test_the_path_of_an_error(text: str, expected: str) -> None:
    """The path names the member of the run or step, however deep in a payload the error is."""
    with pytest.raises(ScanError) as caught:
        end_of_value(text, 0)
    assert path_at(text, caught.value.position) == expected
