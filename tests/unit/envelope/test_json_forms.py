"""Values of frameworks are sent as the text or JSON that they stand for."""

from __future__ import annotations

import dataclasses
import json
from collections import UserDict, UserList, UserString
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict

from message_hub_sync import MessageHubClient, MessageHubConfigurationError, MessageValidationError
from message_hub_sync.config import ClientConfig, MemoryAddress
from message_hub_sync.envelope.encode import encode_payload
from message_hub_sync.envelope.json_forms import json_form

SECRET = "S3CRET"


class LazyText:
    """As Django's and Flask-Babel's lazy texts: the methods of str, found when they are asked for."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __str__(self) -> str:
        return self._text

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._text, name)


class Scalar:
    """As a scalar of numpy."""

    dtype = "int64"

    def tolist(self) -> int:
        return 7


class Money:
    def __init__(self, amount: int) -> None:
        self.amount = amount


class Jsonable:
    def __init__(self, value: Any) -> None:
        self.value = value

    def __json__(self) -> Any:
        return self.value


class Order(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)

    title: Any


@pytest.mark.parametrize(
    ("value", "form"),
    [
        (LazyText("Grüße"), "Grüße"),
        ({"inside": [LazyText("a")]}, {"inside": ["a"]}),
        ({LazyText("key"): 1}, {"key": 1}),
        (Order(title=LazyText("a")), {"title": "a"}),
        (UserString("a"), "a"),
        (UserDict({"a": LazyText("b")}), {"a": "b"}),
        (UserList([1]), [1]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Scalar(), 7),
        (Jsonable({"a": Jsonable([1])}), {"a": [1]}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_is_sent_in_the_form_that_its_framework_gives_it(value: Any, form: Any) -> None:
    assert json.loads(encode_payload({"value": value}, 1000)) == {"value": form}


def test_a_value_without_a_form_is_refused_by_its_type() -> None:
    with pytest.raises(
        MessageValidationError, match=r"unknown type: Money\): give the client a json_encoder="
    ) as caught:
        encode_payload({"a": Money(1)}, 1000)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("value", [Jsonable({1: 1, "1": 2}), UserDict({1: 1, "1": 2})])
def test_what_it_makes_is_checked_as_any_payload(value: Any) -> None:
    with pytest.raises(MessageValidationError, match="must be decodable by receivers"):
        encode_payload({"a": value}, 1000)


def test_a_client_may_have_an_encoder_of_its_own() -> None:
    received: list[Any] = []

    def encoder(value: Any) -> Any:
        if isinstance(value, Money):
            return {"amount": value.amount}
        raise TypeError

    with MessageHubClient("shop", "memory://json-forms", json_encoder=encoder) as client:

        def answer(message: dict[str, Any]) -> Any:
            received.append(message)
            return {"back": Money(3)}

        client.subscribe_messages(answer)
        reply = client.request("shop", {"price": Money(2), "title": LazyText("a")}, timeout=20)

    assert received == [{"price": {"amount": 2}, "title": "a"}]
    assert reply.payload == {"back": {"amount": 3}}


def test_an_encoder_that_fails_is_told_without_its_text() -> None:
    def encoder(value: Any) -> Any:
        raise KeyError(SECRET)

    with MessageHubClient("shop", "memory://json-forms", json_encoder=encoder) as client:
        for call in (client.send_message, client.publish_event):
            with pytest.raises(MessageValidationError, match="must be serialisable as JSON") as caught:
                call("shop" if call == client.send_message else "price.changed", {"a": Money(1)})
            assert SECRET not in str(caught.value)
        with pytest.raises(MessageValidationError, match="item 0: payload must be serialisable"):
            client.send_messages([("shop", {"a": Money(1)})])


def test_an_encoder_must_be_a_function() -> None:
    with pytest.raises(MessageHubConfigurationError, match="json_encoder must be a function of one value, not 'json'"):
        MessageHubClient("shop", "memory://json-forms", json_encoder="json")  # type: ignore[arg-type]


def test_the_encoder_is_chosen_once_when_the_settings_are_made() -> None:
    """Choosing it for each message would cost every message."""
    plain = ClientConfig("shop", MemoryAddress("json-forms"))
    own = ClientConfig("shop", MemoryAddress("json-forms"), json_encoder=str)

    assert plain.json_fallback is json_form
    assert own.json_fallback(Opaque()) == "opaque"
    assert dataclasses.replace(own, json_encoder=None).json_fallback is json_form


class Opaque:
    def __str__(self) -> str:
        return "opaque"
