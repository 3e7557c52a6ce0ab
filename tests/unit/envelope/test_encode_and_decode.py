"""What is sent comes back as it was, and what is refused on either side."""

from __future__ import annotations

import dataclasses
import enum
import json
import re
import sys
import typing
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from types import MappingProxyType
from typing import Any
from uuid import RFC_4122, UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, RootModel

from message_hub_sync.catalogue import EventType, catalogue
from message_hub_sync.envelope.correlation import MessageContext, entered
from message_hub_sync.envelope.decode import decode_payload, event_from_wire, message_from_wire
from message_hub_sync.envelope.encode import encode_payload, event_properties, message_properties
from message_hub_sync.envelope.values import Event, InvalidMessage, Message, Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import shown

MAX = 1_000_000
SECRET = "s3cret"


class Alignment(enum.Enum):
    GOOD = "good"
    EVIL = "evil"


@dataclasses.dataclass
class Position:
    x: int
    y: float


class Character(BaseModel):
    """A payload that uses what JSON does not have."""

    model_config = ConfigDict(extra="allow")

    character_id: UUID
    name: str
    born: datetime
    birthday: date
    gold: Decimal
    alignment: Alignment
    position: Position
    friends: list[Character] = []
    note: str | None = None


# --- hypothesis: everything that can be sent ---------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
NUMBERS = st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False)
JSON_VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=15,
)
PAYLOADS = st.dictionaries(TEXT, JSON_VALUES, max_size=6)
SERVICES = st.from_regex(r"[a-z0-9][a-z0-9_-]{0,40}", fullmatch=True)
EVENT_TYPES = st.from_regex(r"[a-z0-9_]{1,15}(\.[a-z0-9_]{1,15}){1,3}", fullmatch=True)
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=60)
CORRELATIONS = st.none() | st.uuids() | PRINTABLE
HEADERS = st.none() | st.dictionaries(
    st.from_regex(r"[a-zA-Z][a-zA-Z0-9-]{0,20}", fullmatch=True).filter(
        lambda name: (
            not name.startswith("x-")
            and name not in {"source", "destination", "event_type", "timestamp", "ttl", "priority"}
        )
    ),
    TEXT | st.integers(-(2**63), 2**63 - 1) | st.booleans() | st.none(),
    max_size=4,
)
COMMON = {
    "source": SERVICES,
    "message_id": st.none() | st.uuids(),
    "correlation_id": CORRELATIONS,
    "headers": HEADERS,
}
TTLS = st.none() | st.integers(1, 4_294_967) | st.floats(0, 4_294_967, exclude_min=True, allow_subnormal=False)
CHARACTERS = st.builds(
    Character,
    character_id=st.uuids(),
    name=TEXT,
    born=st.datetimes(timezones=st.just(timezone.utc)),
    birthday=st.dates(),
    gold=st.decimals(allow_nan=False, allow_infinity=False),
    alignment=st.sampled_from(Alignment),
    position=st.builds(Position, x=st.integers(), y=st.floats(allow_nan=False, allow_infinity=False)),
    friends=st.just([]),
    note=st.none() | TEXT,
)


IDENTITIES = TEXT.filter(bool) | st.uuids()
#: What a field of the catalogue's models may hold, by its annotation.
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "str": TEXT,
    "int": st.integers(-(10**18), 10**18),
    "bool": st.booleans(),
    "dict[str, Any]": PAYLOADS,
    "list[Any]": st.lists(JSON_VALUES, max_size=4),
}


def payloads_of(event_type: EventType) -> st.SearchStrategy[BaseModel]:
    """Every payload of an event: its identities, any choice of its other fields, and fields it does not know."""
    required, optional = {}, {}
    for name, field in event_type.model.model_fields.items():
        if field.is_required():
            required[name] = IDENTITIES
        elif name.endswith("_ids"):
            optional[name] = st.none() | st.lists(IDENTITIES, max_size=3)
        elif name.endswith("_id"):
            optional[name] = st.none() | IDENTITIES
        else:
            kinds = typing.get_args(field.annotation)
            optional[name] = st.one_of(
                st.none(), *(FIELDS[repr_type(kind)] for kind in kinds if kind is not type(None))
            )
    known = st.fixed_dictionaries(required, optional=optional)
    unknown = st.dictionaries(st.from_regex(r"x_[a-z]{1,8}", fullmatch=True), JSON_VALUES, max_size=3)
    return st.tuples(known, unknown).map(lambda both: event_type.model(**both[1], **both[0]))


def repr_type(kind: Any) -> str:
    """``dict[str, Any]`` as it is written."""
    return kind.__name__ if typing.get_origin(kind) is None else repr(kind).replace("typing.", "")


def same_common(envelope: Any, properties: Properties, given_values: dict[str, Any]) -> None:
    """What messages and events have in common came back as it was given."""
    assert envelope.source == given_values["source"]
    assert envelope.id == UUID(properties.message_id)
    assert given_values["message_id"] in (None, envelope.id)
    assert envelope.correlation_id == properties.correlation_id
    if given_values["correlation_id"] is not None:
        assert envelope.correlation_id == str(given_values["correlation_id"])
    assert envelope.timestamp == datetime.fromisoformat(properties.headers["timestamp"])
    assert envelope.timestamp.utcoffset() == timedelta(0)
    assert int(envelope.timestamp.timestamp()) == properties.timestamp
    for name, value in (given_values["headers"] or {}).items():
        assert envelope.headers[name] == value


@given(payload=PAYLOADS, event_type=EVENT_TYPES, values=st.fixed_dictionaries(COMMON))
def test_every_event_comes_back_as_it_was_published(payload: Any, event_type: str, values: dict[str, Any]) -> None:
    body = encode_payload(payload, MAX)
    properties = event_properties(event_type=event_type, **values)
    found = event_from_wire(properties, event_type, decode_payload(body, MAX))
    assert found.payload == payload
    assert found.event_type == event_type
    assert found.type == properties.type == "event"
    assert properties.expiration is None
    same_common(found, properties, values)


@given(
    payload=PAYLOADS,
    values=st.fixed_dictionaries(
        {
            **COMMON,
            "destination": SERVICES,
            "ttl": TTLS,
            "priority": st.integers(0, 9),
            "reply_to": st.none() | PRINTABLE,
        }
    ),
)
def test_every_message_comes_back_as_it_was_sent(payload: Any, values: dict[str, Any]) -> None:
    body = encode_payload(payload, MAX)
    properties = message_properties(**values)
    found = message_from_wire(properties, "elsewhere", decode_payload(body, MAX))
    assert found.payload == payload
    assert found.type == properties.type == "service_message"
    assert (found.destination, found.ttl, found.priority, found.reply_to) == (
        values["destination"],
        values["ttl"],
        values["priority"],
        values["reply_to"],
    )
    same_common(found, properties, values)


@given(character=CHARACTERS, friend=CHARACTERS)
def test_every_model_comes_back_equal_where_the_handler_asks_for_it(character: Character, friend: Character) -> None:
    payload = character.model_copy(update={"friends": [friend]})
    decoded = decode_payload(encode_payload(payload, MAX), MAX)
    event = event_from_wire(event_properties(source="s", event_type="a.b"), "a.b", decoded, Event[Character])
    message = message_from_wire(message_properties(source="s", destination="d"), "d", decoded, Message[Character])
    assert event.payload == message.payload == payload


@pytest.mark.parametrize("event_type", list(catalogue), ids=str)
@given(data=st.data())
def test_every_payload_of_the_catalogue_comes_back_equal(event_type: EventType, data: st.DataObject) -> None:
    payload = data.draw(payloads_of(event_type))
    catalogue.check_publish(event_type, payload, "anybody", strict=False)
    decoded = decode_payload(encode_payload(payload, MAX), MAX)
    event = event_from_wire(
        event_properties(source="s", event_type=event_type.name), event_type.name, decoded, Event[event_type.model]
    )
    message = message_from_wire(
        message_properties(source="s", destination="d"), "d", decoded, Message[event_type.model]
    )
    assert event.payload == message.payload == payload
    assert type(event.payload) is event_type.model


@given(PAYLOADS)
def test_a_body_is_json_that_any_service_reads(payload: Any) -> None:
    assert json.loads(encode_payload(payload, MAX).decode("utf-8")) == payload


@given(st.binary(max_size=200))
def test_any_bytes_are_a_payload_or_invalid_and_nothing_else_happens(body: bytes) -> None:
    try:
        assert isinstance(decode_payload(body, MAX), dict)
    except InvalidMessage as error:
        assert str(error).isprintable()  # noqa: PT017  # either outcome is fine


# --- the wire --------------------------------------------------------------------------------------


def test_a_message_on_the_wire_is_as_the_async_services_have_it() -> None:
    identity, correlation = uuid4(), uuid4()
    found = message_properties(
        source="a", destination="b", message_id=identity, correlation_id=correlation, ttl=300, priority=4, reply_to="q"
    )
    stamp = found.headers.pop("timestamp")
    assert datetime.fromisoformat(stamp).utcoffset() == timedelta(0)
    assert found == Properties(
        message_id=str(identity),
        correlation_id=str(correlation),
        type="service_message",
        app_id="a",
        content_type="application/json",
        delivery_mode=2,
        priority=4,
        expiration="300000",
        timestamp=found.timestamp,
        reply_to="q",
        headers={"source": "a", "destination": "b", "ttl": 300, "priority": 4},
    )


def test_an_event_on_the_wire_is_as_the_async_services_have_it() -> None:
    found = event_properties(source="a", event_type="character.created")
    assert UUID(found.message_id or "") != UUID(found.correlation_id or "")
    assert (found.type, found.app_id, found.delivery_mode, found.expiration) == ("event", "a", 2, None)
    assert found.headers == {
        "source": "a",
        "event_type": "character.created",
        "timestamp": found.headers["timestamp"],
    }


def test_a_ttl_below_a_millisecond_is_one() -> None:
    assert message_properties(source="a", destination="b", ttl=0.0001).expiration == "1"
    assert message_properties(source="a", destination="b", ttl=4_294_967).expiration == "4294967000"


@pytest.mark.parametrize("ttl", [5, 5.0, 4_294_967.0], ids=str)
def test_a_whole_ttl_is_a_number_in_its_header(ttl: float) -> None:
    found = message_properties(source="a", destination="b", ttl=ttl).headers["ttl"]
    assert (type(found), found) == (int, ttl)


def test_a_ttl_with_a_fraction_rides_in_its_header_as_text() -> None:
    found = message_properties(source="a", destination="b", ttl=1.5)
    assert (found.headers["ttl"], found.expiration) == ("1.5", "1500")


def test_what_is_sent_while_a_message_is_handled_continues_it() -> None:
    with entered(MessageContext("c-1", message_id="m-1")):
        continued = event_properties(source="a", event_type="b.c")
        own = event_properties(source="a", event_type="b.c", correlation_id="mine")
    assert (continued.correlation_id, continued.headers["x-causation-id"]) == ("c-1", "m-1")
    assert (own.correlation_id, own.headers["x-causation-id"]) == ("mine", "m-1")
    received = event_from_wire(continued, "b.c", {})
    assert (received.correlation_id, received.causation_id) == ("c-1", "m-1")


def test_the_callers_headers_are_not_written_to() -> None:
    mine = {"tenant": "x"}
    event_properties(source="a", event_type="b.c", headers=mine)
    assert mine == {"tenant": "x"}


# --- payloads --------------------------------------------------------------------------------------


def test_mappings_dataclasses_and_models_are_payloads() -> None:
    assert encode_payload(MappingProxyType({"a": 1}), MAX) == b'{"a":1}'
    assert encode_payload(Position(1, 2.5), MAX) == b'{"x":1,"y":2.5}'
    assert encode_payload({"at": Position(1, 2.5), "who": Alignment.GOOD}, MAX) == (
        b'{"at":{"x":1,"y":2.5},"who":"good"}'
    )


class Wrapped(RootModel[list[int]]):
    """A model that is a list in JSON."""


NOT_OBJECTS: list[tuple[Any, str]] = [
    (None, "NoneType"),
    (SECRET, "str"),
    (SECRET.encode(), "bytes"),
    ([SECRET], "list"),
    (7, "int"),
    (float("nan"), "float"),
    (Position, "type"),
    (Wrapped([1]), "Wrapped, which is something else in JSON"),
]


@pytest.mark.parametrize(("payload", "expected"), NOT_OBJECTS, ids=[text for _, text in NOT_OBJECTS])
def test_a_payload_that_is_no_json_object_is_refused_by_its_type(payload: Any, expected: str) -> None:
    with pytest.raises(MessageValidationError) as caught:
        encode_payload(payload, MAX)
    assert str(caught.value) == (
        f"payload must be a JSON object (a dict, a pydantic model or a dataclass), not {expected}"
    )


def cyclic() -> dict[str, Any]:
    found: dict[str, Any] = {"secret": SECRET}
    found["self"] = found
    return found


def nested(depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {"secret": SECRET}
    for _ in range(depth):
        found = {"a": found}
    return found


class Opaque:
    def __repr__(self) -> str:
        return SECRET


@pytest.mark.parametrize(
    "payload",
    [{"a": Opaque(), "b": SECRET}, {"a": b"\xff", "b": SECRET}, {"a": SECRET + "\ud800"}, cyclic(), nested(5000)],
    ids=["an object", "bytes", "a lone surrogate", "a cycle", "too deep"],
)
def test_a_payload_that_json_cannot_hold_is_refused_without_being_shown(payload: Any) -> None:
    with pytest.raises(MessageValidationError) as caught:
        encode_payload(payload, MAX)
    text = str(caught.value)
    assert text.startswith("payload must be serialisable as JSON (")
    assert text.endswith("use JSON's types, UUID, datetime, Decimal, enums, dataclasses or pydantic models")
    assert SECRET not in text
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")], ids=str)
@pytest.mark.parametrize("place", [lambda n: {"a": n}, lambda n: {"a": [{"b": n}]}, lambda n: Position(1, n)])
def test_nan_and_the_infinities_are_refused_wherever_they_are(number: float, place: Any) -> None:
    with pytest.raises(MessageValidationError) as caught:
        encode_payload(place(number), MAX)
    assert str(caught.value) == "payload must not contain NaN or an infinity (JSON has none): use None or a str"


def test_a_text_that_reads_like_nan_is_a_text() -> None:
    for payload in ({"a": "NaN"}, {"a": "-Infinity, NaN"}, {"NaN": 1}, {"a": "NaN", "digits": 10**4000}):
        assert b"NaN" in encode_payload(payload, MAX)


def test_a_payload_larger_than_allowed_is_refused_with_both_sizes_and_the_settings_name() -> None:
    assert len(encode_payload({"a": "x" * 92}, 100)) == 100
    with pytest.raises(MessageValidationError) as caught:
        encode_payload({"a": SECRET + "x" * 87}, 100)
    assert str(caught.value) == (
        "payload must be at most 100 bytes as JSON (max_message_bytes), not 101: "
        "store it elsewhere and send a reference"
    )


@pytest.mark.parametrize(
    "payload",
    [{1: "a", "1": "b"}, {"deep": [{"x": ({1: 0, "1": 1},)}]}, {"n": 10**4301}],
    ids=["a key twice", "a key twice, nested", "too many digits"],
)
def test_a_payload_that_no_receiver_could_read_is_refused(payload: dict[Any, Any]) -> None:
    with pytest.raises(MessageValidationError, match="must be decodable by receivers"):
        encode_payload(payload, 10_000)


def test_other_keys_and_long_digits_in_texts_are_fine() -> None:
    assert encode_payload({1: "a", 2: {True: "b"}}, 100) == b'{"1":"a","2":{"true":"b"}}'
    assert len(encode_payload({"text": "9" * 5000}, 10_000)) > 5000


# --- the other values of a call ----------------------------------------------------------------------

BAD_TTLS: list[Any] = [0, -1, 0.0, -0.5, float("nan"), float("inf"), True, "300", 4_294_968, timedelta(seconds=5)]


@pytest.mark.parametrize("ttl", BAD_TTLS, ids=str)
def test_another_ttl_is_refused(ttl: Any) -> None:
    with pytest.raises(MessageValidationError) as caught:
        message_properties(source="a", destination="b", ttl=ttl)
    assert str(caught.value) == (
        "ttl must be a number of seconds greater than 0 and at most 4294967, "
        f"or None for a message that never expires, not {shown(ttl)}"
    )


BAD_PRIORITIES: list[Any] = [-1, 10, 1.0, True, "5", None]


@pytest.mark.parametrize("priority", BAD_PRIORITIES, ids=str)
def test_a_priority_outside_of_0_to_9_is_refused(priority: Any) -> None:
    with pytest.raises(MessageValidationError) as caught:
        message_properties(source="a", destination="b", priority=priority)
    assert str(caught.value) == (
        f"priority must be a whole number from 0 to 9 (9 is the most urgent), not {priority!r}"
    )


@pytest.mark.parametrize("make", [event_properties, message_properties])
def test_ids_of_another_kind_are_refused_by_both(make: Any) -> None:
    target = {"event_type": "a.b"} if make is event_properties else {"destination": "d"}
    with pytest.raises(MessageValidationError, match=r"^message_id must be a uuid\.UUID, not '[-0-9a-f]{36}': to"):
        make(source="a", message_id=str(uuid4()), **target)
    with pytest.raises(MessageValidationError, match=r"^correlation_id must be a UUID or printable .*, not 'a\\nb'$"):
        make(source="a", correlation_id="a\nb", **target)
    with pytest.raises(MessageValidationError, match=r"^headers must be a dict, not list$"):
        make(source="a", headers=["x"], **target)


BAD_HEADERS: list[tuple[Any, str]] = [
    ({1: "a"}, "a header's name must be a text of 1 to 128 bytes, not 1"),
    ({"": "a"}, "a header's name must be a text of 1 to 128 bytes, not ''"),
    ({"n" * 129: "a"}, "a header's name must be a text of 1 to 128 bytes, not '" + "n" * 78 + "…"),
    ({"\ud800": "a"}, r"a header's name must be a text of 1 to 128 bytes, not '\ud800'"),
    (
        {"source": "a"},
        "header 'source' is reserved for the hub: choose a name that does not begin with 'x-' and is none of "
        "destination, event_type, priority, source, timestamp, ttl",
    ),
    (
        {"x-death": "a"},
        "header 'x-death' is reserved for the hub: choose a name that does not begin with 'x-' and is none of "
        "destination, event_type, priority, source, timestamp, ttl",
    ),
    ({"h": 1.5}, "header 'h' must be a text, a 64-bit whole number, a bool or None, not 1.5"),
    ({"h": {SECRET: 1}}, "header 'h' must be a text, a 64-bit whole number, a bool or None, not dict"),
    ({"h": 2**63}, "header 'h' must be a text, a 64-bit whole number, a bool or None, not 9223372036854775808"),
    (
        {"h": SECRET + "\ud800"},
        "header 'h' must be a text, a 64-bit whole number, a bool or None, not a text that UTF-8 cannot encode",
    ),
    (
        {"h": SECRET * 11_000},
        "headers must be at most 64 KiB together, not 66007 bytes (with up to 10 that AMQP adds to each): put such "
        "data into the payload",
    ),
]


@pytest.mark.parametrize(("headers", "expected"), BAD_HEADERS, ids=[ascii(bad)[:20] for bad, _ in BAD_HEADERS])
def test_a_header_the_broker_would_choke_on_or_the_hub_needs_is_refused(headers: Any, expected: str) -> None:
    with pytest.raises(MessageValidationError) as caught:
        event_properties(source="a", event_type="b.c", headers=headers)
    assert str(caught.value) == expected


def test_new_messages_get_random_uuids_of_version_4() -> None:
    found = [event_properties(source="a", event_type="a.b") for _ in range(200)]
    ids = [UUID(each) for properties in found for each in (properties.message_id, properties.correlation_id) if each]
    assert len(set(ids)) == 400
    assert {each.version for each in ids} == {4}
    assert {each.variant for each in ids} == {RFC_4122}
    assert len({str(each)[19] for each in ids}) == 4


@given(st.floats(0, 4e9))
@example(1_764_115_199.9999998)
@example(1_764_115_200.0)
def test_both_forms_of_the_moment_are_of_one_second(now: float) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("message_hub_sync.envelope.encode.time.time", lambda: now)
        found = event_properties(source="a", event_type="a.b")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}\+00:00", found.headers["timestamp"])
    moment = datetime.fromisoformat(found.headers["timestamp"])
    assert int(moment.timestamp()) == found.timestamp == int(now)
    assert abs(moment.timestamp() - now) <= 2e-6


# --- what arrives ------------------------------------------------------------------------------------


def test_what_is_absent_is_filled_in() -> None:
    identity = uuid4()
    before = datetime.now(timezone.utc)
    bare = Properties(message_id=str(identity), content_type=None, delivery_mode=None)
    event = event_from_wire(bare, "a.b", {"k": 1})
    message = message_from_wire(bare, "me", {"k": 1})
    for found in (event, message):
        assert (found.id, found.source, found.correlation_id) == (identity, "unknown", str(identity))
        assert before <= found.timestamp <= datetime.now(timezone.utc)
    assert event.event_type == "a.b"
    assert (message.destination, message.ttl, message.priority, message.reply_to) == ("me", None, 0, None)
    assert event_from_wire(dataclasses.replace(bare, app_id="peer"), "a.b", {}).source == "peer"


MOMENTS: list[tuple[Any, datetime]] = [
    ("2024-05-06T07:08:09.123456+00:00", datetime(2024, 5, 6, 7, 8, 9, 123456, timezone.utc)),
    ("2024-05-06T07:08:09Z", datetime(2024, 5, 6, 7, 8, 9, 0, timezone.utc)),
    ("2024-05-06T07:08:09", datetime(2024, 5, 6, 7, 8, 9, 0, timezone.utc)),
    ("2024-05-06T09:08:09+02:00", datetime(2024, 5, 6, 7, 8, 9, 0, timezone.utc)),
    (datetime(2024, 5, 6, 7, 8, 9), datetime(2024, 5, 6, 7, 8, 9, 0, timezone.utc)),
]  # fmt: skip


@pytest.mark.parametrize(("header", "moment"), MOMENTS, ids=str)
def test_a_timestamp_header_is_read_as_utc_where_it_does_not_say(header: Any, moment: datetime) -> None:
    properties = Properties(message_id=str(uuid4()), timestamp=5, headers={"timestamp": header})
    found = event_from_wire(properties, "a.b", {}).timestamp
    assert found == moment
    assert found.tzinfo is not None


@pytest.mark.parametrize("header", ["yesterday", "", None, 7, b"2024", "Z", ["x"], "9999-99-99T00:00:00"], ids=ascii)
def test_an_unparsable_timestamp_gives_way_to_the_property_and_then_to_now(header: Any) -> None:
    identity = str(uuid4())
    second = Properties(message_id=identity, timestamp=1_700_000_000, headers={"timestamp": header})
    assert event_from_wire(second, "a.b", {}).timestamp == datetime.fromtimestamp(1_700_000_000, timezone.utc)
    for bad in (None, 2**63):
        third = Properties(message_id=identity, timestamp=bad, headers={"timestamp": header})
        before = datetime.now(timezone.utc)
        assert before <= event_from_wire(third, "a.b", {}).timestamp <= datetime.now(timezone.utc)


@pytest.mark.parametrize(
    ("header", "ttl"),
    [(300, 300), ("300", 300), ("1.5", 1.5), (0, None), (-5, None), ("x", None), ("nan", None), ("inf", None),
     (None, None), ([], None), (10**400, None)],
    ids=lambda value: ascii(value)[:10],
)  # fmt: skip
def test_a_ttl_header_of_any_kind_is_read_or_left_out(header: Any, ttl: float | None) -> None:
    found = message_from_wire(Properties(message_id=str(uuid4()), headers={"ttl": header}), "me", {})
    assert found.ttl == ttl


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body must be a JSON object, not empty"),
        (b"x" * 101, "the body must be at most 100 bytes (max_message_bytes), not 101"),
        (b'{"a":"\xff"}', "the body is not UTF-8"),
        (b"{", "the body is not JSON: Expecting property name enclosed in double quotes at character 1"),
        (SECRET.encode(), "the body is not JSON: Expecting value at character 0"),
        (b"\xef\xbb\xbf{}", "the body is not JSON"),
        (f'["{SECRET}"]'.encode(), "the body must be a JSON object, not a JSON array"),
        (f'"{SECRET}"'.encode(), "the body must be a JSON object, not a JSON string"),
        (b"7", "the body must be a JSON object, not a JSON number"),
        (b"true", "the body must be a JSON object, not a JSON boolean"),
        (b"null", "the body must be a JSON object, not a JSON null"),
        (b'{"a":NaN}', "the body contains NaN, which is not JSON"),
        (b'{"a":[-Infinity]}', "the body contains -Infinity, which is not JSON"),
        (f'{{"{SECRET}":1,"{SECRET}":2}}'.encode(), "the body contains an object with a duplicate key"),
        (f'{{"a":{{"{SECRET}":1,"{SECRET}":2}}}}'.encode(), "the body contains an object with a duplicate key"),
    ],
)
def test_a_body_that_is_no_json_object_is_invalid_for_a_reason_without_its_bytes(body: bytes, reason: str) -> None:
    with pytest.raises(InvalidMessage) as caught:
        decode_payload(body, 100)
    assert str(caught.value).startswith(reason)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("bomb", [b"[" * 500_000, b'{"a":' * 200_000], ids=["arrays", "objects"])
def test_a_nesting_bomb_is_invalid(bomb: bytes) -> None:
    with pytest.raises(InvalidMessage, match=r"^the body is nested too deeply$"):
        decode_payload(bomb, 2_000_000)


def test_a_number_of_too_many_digits_is_invalid() -> None:
    digits = b"9" * (sys.get_int_max_str_digits() + 1)
    with pytest.raises(InvalidMessage, match=r"^the body contains a number of too many digits$"):
        decode_payload(b'{"a":' + digits + b"}", MAX)


@pytest.mark.parametrize("read", [event_from_wire, message_from_wire])
def test_with_another_message_id_or_of_another_type_it_is_invalid(read: Any) -> None:
    wanted, other = "service_message", "event"
    if read is event_from_wire:
        wanted, other = other, wanted
    for properties, reason in (
        (Properties(message_id=SECRET), "its message_id is not a UUID"),
        (Properties(message_id=str(uuid4()), type=other), f"its type must be '{wanted}', not '{other}'"),
        (
            Properties(message_id=str(uuid4()), type="a\r\n\x1b[31mb"),
            rf"its type must be '{wanted}', not 'a\r\n\x1b[31mb'",
        ),
    ):
        with pytest.raises(InvalidMessage) as caught:
            read(properties, "a.b", {})
        assert str(caught.value).startswith(reason)
        assert str(caught.value).isprintable()


def test_a_payload_the_model_refuses_is_invalid_saying_where_but_not_what() -> None:
    properties = event_properties(source="s", event_type="a.b")
    with pytest.raises(InvalidMessage) as caught:
        event_from_wire(properties, "a.b", {"character_id": SECRET, "name": 7}, Event[Character])
    text = str(caught.value)
    assert "payload.character_id: " in text
    assert "payload.name: Input should be a valid string" in text
    assert "payload.born: Field required" in text
    assert SECRET not in text
    assert "input" not in text.replace("Input should", "")
