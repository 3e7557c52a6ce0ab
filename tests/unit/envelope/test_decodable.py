"""Whether a body can be decoded is mostly seen without decoding it, and never missed."""

from __future__ import annotations

import base64
import dataclasses
import json
import random
import time
from collections import Counter, OrderedDict
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from message_hub_sync.envelope import decodable
from message_hub_sync.envelope.decodable import MAX_DIGITS, check_decodable
from message_hub_sync.envelope.encode import encode_payload
from message_hub_sync.errors import MessageValidationError

MAX = 64 * 1024 * 1024
SIZE = 256 * 1024
TOO_MANY = 10**MAX_DIGITS  # one digit more than allowed


class Scores(BaseModel):
    model_config = ConfigDict(extra="allow")

    by_round: dict[Any, Any]
    parent: Any = Field(default=None, exclude=True)


@dataclasses.dataclass
class Round:
    scores: dict[Any, int]


@dataclasses.dataclass(slots=True)
class Slotted:
    scores: dict[Any, int]


PLAIN: dict[str, dict[str, Any]] = {
    "digits in runs": {"text": ("1" * MAX_DIGITS + " ") * (SIZE // MAX_DIGITS)},
    "digits in runs with commas": {"text": ("1" * MAX_DIGITS + ",") * (SIZE // MAX_DIGITS)},
    "digits in one run": {"text": "7" * SIZE},
    "digits after a colon": {"text": ":" + "7" * MAX_DIGITS},
    "unicode": {"text": "Größe 日本 " * (SIZE // 16)},
    "escapes": {"text": 'a"\\\n\x01' * (SIZE // 10)},
    "base64": {"text": base64.b64encode(random.Random(1).randbytes(SIZE)).decode()},
    "words": {"text": "NaN Infinity -Infinity NaN" * (SIZE // 26)},
    "nested": {"items": [{"id": n, "tags": ["a"], "at": {"x": 1.5}} for n in range(SIZE // 40)]},
    "numbers": {"items": [-(10**n) for n in range(300)], "floats": [n / 7 for n in range(300)]},
    "a number of many digits": {"n": TOO_MANY // 10, "m": [-TOO_MANY // 10]},
    "braces": {"text": "{" * 99, "more": {"text": "}"}},
    "a model": Scores(by_round={"1": {"x": 1}}, more=[{"y": 2}]),  # type: ignore[dict-item, call-arg]
    "tuples and sets": {"a": ({"b": {1, 2}}, [{"c": 3}], frozenset({4}))},
}

REFUSED: dict[str, Any] = {
    "counter": {"inside": Counter({1: 2, "1": 3})},
    "ordered": OrderedDict({1: 1, "1": 1}),
    "ordered, nested": {"a": OrderedDict({"b": {None: 1, "None": 1}})},
    "tuple": {"a": ({"b": {1: 1, "1": 1}},)},
    "model": Scores(by_round={1: 1, "1": 2}),
    "model in a list": {"a": [Scores(by_round={1: 1, "1": 2})]},
    "extra field of a model": Scores(by_round={}, more={1: 1, "1": 2}),  # type: ignore[call-arg]
    "dataclass": {"a": Round({1: 1, "1": 2})},
    "dataclass as payload": Round({1: 1, "1": 2}),
    "dataclass with slots": {"a": Slotted({1: 1, "1": 2})},
    "generator": {"a": (each for each in [{"x": {1: 1, "1": 2}}])},
    "NaN": {"a": [float("nan")]},
    "NaN alone": {"a": float("nan"), "b": "NaN"},
    "minus infinity": {"a": [1, -float("inf")]},
    "infinity": {"a": {"b": float("inf")}},
    "too many digits": {"a": TOO_MANY},
    "too many digits, negative": {"a": [1, -TOO_MANY]},
    "many more digits": {"a": [10**20_000]},
    "too many digits after a long text": {"text": "7" * 10_000, "a": [[TOO_MANY]]},
    "two numbers": {"a": [TOO_MANY // 10] * 50 + [TOO_MANY] + [TOO_MANY // 10] * 50},
}


@pytest.mark.parametrize("name", PLAIN)
def test_an_ordinary_body_is_not_decoded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*_: Any, **__: Any) -> None:
        raise AssertionError("the body was decoded")

    monkeypatch.setattr(decodable, "decode_payload", decoded)
    monkeypatch.setattr(decodable.json, "loads", decoded)

    assert encode_payload(PLAIN[name], MAX) == to_json(PLAIN[name])


@pytest.mark.parametrize("name", REFUSED)
def test_what_receivers_cannot_decode_is_refused_wherever_it_is(name: str) -> None:
    with pytest.raises(MessageValidationError, match=r"must be decodable by receivers|must not contain NaN"):
        encode_payload(REFUSED[name], MAX)


def test_a_number_of_too_many_digits_is_seen_wherever_it_begins() -> None:
    for start in range(0, MAX_DIGITS + 100, 7):
        body = b'{"a":"' + b"x" * start + b'","b":' + b"1" * (MAX_DIGITS + 1) + b"}"

        with pytest.raises(MessageValidationError, match="too many digits"):
            check_decodable({}, body, MAX)


@given(
    st.recursive(
        st.floats() | st.sampled_from(["NaN", ":NaN", ",-Infinity", 'a"[Infinity']) | st.integers(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([1, "1", 2, "NaN"]), inner),
        max_leaves=6,
    )
)
def test_what_is_let_through_is_decoded(value: Any) -> None:
    try:
        body = encode_payload({"value": value}, MAX)
    except MessageValidationError:
        return
    assert decodable.decode_payload(body, MAX) == json.loads(body)


def test_a_field_that_is_excluded_may_refer_back() -> None:
    scores = Scores(by_round={"a": {"b": 1}})
    scores.parent = [scores]

    assert encode_payload({"inside": scores}, MAX) == b'{"inside":{"by_round":{"a":{"b":1}}}}'


def test_many_megabytes_of_digits_take_no_minute() -> None:
    text = ("1" * MAX_DIGITS + " ") * (16 * 1024 * 1024 // MAX_DIGITS)
    began = time.monotonic()

    encode_payload({"text": text}, MAX)

    assert time.monotonic() - began < 30, "it took over a minute on an idle machine when each byte was searched anew"
