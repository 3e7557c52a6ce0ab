"""Why a payload does not fit is told by places and kinds, never by what the payload contains."""

from __future__ import annotations

import enum
from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from pydantic_core import PydanticCustomError, to_json

from message_hub_sync.catalogue import Catalogue
from message_hub_sync.dead_letters.letter import DeadLetter
from message_hub_sync.envelope import encode
from message_hub_sync.envelope.decode import event_from_wire, message_from_wire
from message_hub_sync.envelope.encode import encode_payload, message_properties
from message_hub_sync.envelope.values import Event, InvalidMessage, Message, Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import error_text
from message_hub_sync.testing import RecordingMiddleware
from message_hub_sync.testing.recording_middleware import RecordedDelivery, RecordedSending
from message_hub_sync.transport.base import Outgoing

SECRET = "S3CRET"


def refuse(value: Any) -> Any:
    raise ValueError(f"{value} is not allowed")


def refuse_in_own_words(value: Any) -> Any:
    raise PydanticCustomError("not_allowed", "{value} is not allowed", {"value": value})


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog"]


class Colour(enum.Enum):
    RED = "red"


class Everything(BaseModel):
    """One field for each kind of error."""

    model_config = ConfigDict(extra="forbid")

    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    by_name: dict[str, int] = {}
    by_identity: dict[UUID, int] = {}
    mixed: list[int] | dict[str, date] = []
    own: Annotated[str, AfterValidator(refuse)] = ""
    custom: Annotated[str, AfterValidator(refuse_in_own_words)] = ""
    identity: UUID | None = None
    born: datetime | None = None
    colour: Colour = Colour.RED
    short: str = Field(default="", max_length=3)
    shaped: str = Field(default="", pattern="^a$")


class Whole(BaseModel):
    a: Any

    @model_validator(mode="after")
    def _refuse(self) -> Whole:
        raise AssertionError(f"{self.a} is wrong")


CASES: list[tuple[dict[str, Any], str]] = [
    ({"pet": {"kind": SECRET}}, "pet: union_tag_invalid"),
    ({"pet": {"kind": "cat", "lives": SECRET}}, "pet.cat.lives: Input should be a valid integer"),
    ({"by_name": {SECRET: "x"}}, "by_name.*: Input should be a valid integer"),
    ({"by_name": {f"list[{SECRET}]": "x"}}, "by_name.*: Input should be a valid integer"),
    ({"by_identity": {SECRET: 1}}, "by_identity.*.*: uuid_parsing"),
    ({"mixed": {SECRET: SECRET}}, "mixed.*"),
    ({"own": SECRET}, "own: value_error"),
    ({"custom": SECRET}, "custom: not_allowed"),
    ({"identity": SECRET}, "identity: uuid_parsing"),
    ({"born": SECRET}, "born: datetime_from_date_parsing"),
    ({"colour": SECRET}, "colour: Input should be 'red'"),
    ({"short": SECRET}, "short: String should have at most 3 characters"),
    ({"shaped": SECRET}, "shaped: String should match pattern '^a$'"),
    ({SECRET: 1}, "*: Extra inputs are not permitted"),
]


@pytest.mark.parametrize(("payload", "reason"), CASES, ids=[case[1] for case in CASES])
@pytest.mark.parametrize("build", [event_from_wire, message_from_wire], ids=["event", "message"])
def test_a_reason_shows_nothing_of_the_payload(build: Any, payload: dict[str, Any], reason: str) -> None:
    envelope: Any = Event[Everything] if build is event_from_wire else Message[Everything]

    with pytest.raises(InvalidMessage) as caught:
        build(Properties(message_id=str(uuid4())), "a.b", payload, envelope, body=to_json(payload))

    assert reason in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__suppress_context__


@pytest.mark.parametrize("payload", [case[0] for case in CASES], ids=[case[1] for case in CASES])
def test_neither_does_that_of_a_publish(payload: dict[str, Any]) -> None:
    catalogue = Catalogue()
    catalogue.register("a.b", Everything)

    with pytest.raises(MessageValidationError, match=r"event a\.b: the payload does not fit Everything") as caught:
        catalogue.check_publish("a.b", payload, "a")

    assert SECRET not in str(caught.value)


def test_a_validator_of_the_whole_model_is_told_by_its_kind() -> None:
    with pytest.raises(InvalidMessage, match=r"does not fit Whole: payload: assertion_error$"):
        event_from_wire(Properties(message_id=str(uuid4())), "a.b", {}, Event[Whole], body=to_json({"a": SECRET}))


def test_a_validation_error_of_a_handler_is_told_by_its_kinds() -> None:
    with pytest.raises(ValidationError) as caught:
        Everything.model_validate({SECRET: 1, "by_name": {"a": SECRET}, "own": SECRET})

    assert error_text(caught.value) == "3 validation errors for Everything: extra_forbidden, int_parsing, value_error"


def test_a_serializer_that_fails_is_told_by_its_kind() -> None:
    class Failing(BaseModel):
        @model_serializer
        def _fail(self) -> dict[str, Any]:
            raise ValueError(f"{SECRET} cannot be sent")

    with pytest.raises(MessageValidationError, match="must be serialisable as JSON") as caught:
        encode_payload({"a": Failing()}, 1000)

    assert SECRET not in str(caught.value)


def test_no_repr_shows_a_body_or_headers() -> None:
    properties = Properties(message_id=str(uuid4()), headers={"token": SECRET})
    body = to_json({"a": SECRET})
    common: dict[str, Any] = {"message_id": uuid4(), "correlation_id": "c", "body": body, "headers": {"a": SECRET}}
    values: list[Any] = [
        properties,
        Outgoing("", "q", body, properties),
        DeadLetter("q", "", "q", body, properties, {"error_message": SECRET}),
        event_from_wire(properties, "a.b", {"a": SECRET}),
        message_from_wire(properties, "a", {"a": SECRET}),
        event_from_wire(properties, "a.b", {}, Event[dict[str, Any]], body=body),
        RecordedSending(call=1, kind="message", destination="a", event_type=None, outcome=None, error=None, **common),
        RecordedDelivery(
            kind="message", queue="q", event_type=None, attempt=1, redelivered=False, result={"a": SECRET}, **common
        ),
        RecordingMiddleware(),
    ]
    for value in values:
        assert SECRET not in f"{value!r} {value} {[value]}", type(value)


def test_long_destinations_are_not_remembered() -> None:
    before = encode._remembered_headers.cache_info().currsize

    for number in range(20):
        properties = message_properties(source="a", destination=f"{number}" + "x" * 100_000, ttl=float(number + 1))
        assert properties.headers["ttl"] is not None

    assert encode._remembered_headers.cache_info().currsize == before
