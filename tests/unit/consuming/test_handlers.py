from __future__ import annotations

import functools
import gc
import json
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, TypedDict
from unittest.mock import Mock
from uuid import UUID

import pytest
from pydantic import BaseModel

from message_hub_sync.consuming.decoded_delivery import DecodedDelivery, Kind
from message_hub_sync.consuming.handlers import handler_for
from message_hub_sync.envelope.decode import decode_payload
from message_hub_sync.envelope.encode import event_properties, message_properties
from message_hub_sync.envelope.values import Event, InvalidMessage, Message
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.transport.base import Delivery

if TYPE_CHECKING:
    from uuid import SafeUUID as Unknown  # a name that is not there when the handler is read

BODY = b'{"character_id": "c-1", "tags": ["a"]}'


class Created(BaseModel):
    character_id: str


class KeepsAll(BaseModel, extra="allow"):
    character_id: str


class CreatedDict(TypedDict):
    character_id: str


def received(kind: Kind, body: bytes = BODY, max_bytes: int = 1_000_000, **changes: Any) -> DecodedDelivery:
    if kind == "event":
        properties = event_properties(source="sender", event_type="character.created")
        exchange, routing_key, queue = "events", "character.created", "me.character.created"
    else:
        properties = message_properties(source="sender", destination="me")
        exchange, routing_key, queue = "", "me.messages", "me.messages"
    for name, value in changes.items():
        setattr(properties, name, value)
    delivery = Delivery(
        body=body,
        properties=properties,
        exchange=exchange,
        routing_key=routing_key,
        queue=queue,
        redelivered=False,
        delivery_tag=1,
        channel_generation=1,
        origin=None,
    )
    return DecodedDelivery(delivery, kind=kind, service="me", max_bytes=max_bytes)


def given(callback: Any, kind: Kind = "event", body: bytes = BODY) -> tuple[Any, ...]:
    return handler_for(callback, kind).arguments(received(kind, body))


# --- what an annotation asks for -----------------------------------------------------------------


def on_anything(event): ...  # type: ignore[no-untyped-def]
def on_any(event: Any) -> None: ...
def on_object(event: object) -> None: ...
def on_text(event: str) -> None: ...
def on_optional_text(event: str | None) -> None: ...
def on_unresolvable_result(event: dict[str, Any]) -> Unknown | None: ...
def on_dict(event: dict) -> None: ...  # type: ignore[type-arg]
def on_mapping(event: Mapping[str, Any]) -> None: ...
def on_typed_dict(event: CreatedDict) -> None: ...
def on_bytes(event: bytes) -> None: ...
def on_model(event: Created) -> None: ...
def on_model_that_keeps_all(event: KeepsAll) -> None: ...
def on_annotated_model(event: Annotated[Created, "note"]) -> None: ...
def on_event(event: Event) -> None: ...
def on_event_of_model(event: Event[Created]) -> None: ...
def on_message(message: Message) -> None: ...
def on_message_of_model(message: Message[Created] | None) -> None: ...


@pytest.mark.parametrize("callback", [on_anything, on_any, on_object, on_text, on_optional_text])
def test_an_event_without_a_telling_annotation_is_its_json_text(callback: Any) -> None:
    assert given(callback) == (BODY.decode(),)


@pytest.mark.parametrize("callback", [on_anything, on_any, on_object, on_message])
def test_a_message_without_a_telling_annotation_is_its_envelope(callback: Any) -> None:
    (message,) = given(callback, "message")
    assert type(message) is Message
    assert message["payload"] == json.loads(BODY)
    assert message["correlation_id"] == message.correlation_id


@pytest.mark.parametrize("kind", ["event", "message"])
@pytest.mark.parametrize("callback", [on_dict, on_mapping, on_typed_dict, on_unresolvable_result])
def test_a_dict_is_the_payload_decoded(callback: Any, kind: Kind) -> None:
    assert given(callback, kind) == (json.loads(BODY),)


@pytest.mark.parametrize("kind", ["event", "message"])
def test_text_and_bytes_are_the_body_as_it_came(kind: Kind) -> None:
    body = b'{ "caf\xc3\xa9" : 1 }'
    assert given(on_text, kind, body) == ('{ "café" : 1 }',)
    assert given(on_bytes, kind, body) == (body,)


@pytest.mark.parametrize("kind", ["event", "message"])
@pytest.mark.parametrize("callback", [on_model, on_annotated_model])
def test_a_model_is_the_payload_validated(callback: Any, kind: Kind) -> None:
    assert given(callback, kind) == (Created(character_id="c-1"),)


def test_an_envelope_of_a_model_has_its_payload_validated() -> None:
    (event,) = given(on_event_of_model)
    assert isinstance(event, Event)
    assert event.payload == Created(character_id="c-1")
    assert event.event_type == "character.created"
    (message,) = given(on_message_of_model, "message")
    assert isinstance(message, Message)
    assert message.payload == Created(character_id="c-1")


@pytest.mark.parametrize("callback", [on_model, on_event_of_model])
def test_a_payload_that_its_model_refuses_is_invalid_and_the_reason_holds_none_of_its_values(
    callback: Any,
) -> None:
    with pytest.raises(InvalidMessage, match=r"character_id: .*valid string") as caught:
        given(callback, body=b'{"character_id": 987654321}')
    assert "987654321" not in str(caught.value)


def test_a_model_defined_beside_its_handler_in_a_function_is_found() -> None:
    class Local(BaseModel):
        character_id: str

    def handler(event: Local) -> None: ...

    class Service:
        def handle(self, event: Event[Local]) -> None: ...

    assert given(handler) == (Local(character_id="c-1"),)
    assert given(Service().handle)[0].payload == Local(character_id="c-1")


def test_a_local_model_wins_over_one_of_the_same_name_in_the_module() -> None:
    class Created(BaseModel):
        tags: list[str]

    def handler(event: Created) -> None: ...

    assert given(handler) == (Created(tags=["a"]),)


def test_the_envelopes_are_known_where_they_are_imported_for_type_checkers_only() -> None:
    elsewhere: dict[str, Any] = {}
    exec("def handler(event: 'Event'): ...", elsewhere)
    assert type(given(elsewhere["handler"])[0]) is Event


def test_the_names_of_a_wrapped_function_are_looked_up_in_its_own_module() -> None:
    elsewhere: dict[str, Any] = {"Theirs": Created}
    exec("def handler(event: 'Theirs'): ...", elsewhere)

    @functools.wraps(elsewhere["handler"])
    def wrapper(*args: Any) -> None: ...

    assert given(wrapper) == (Created(character_id="c-1"),)


# --- what can be called --------------------------------------------------------------------------


def test_methods_partials_lambdas_callable_objects_and_wrapped_functions_are_read_alike() -> None:
    class Service:
        def handle(self, event: dict[str, Any]) -> None: ...

        def __call__(self, event: Created) -> None: ...

        @classmethod
        def of_class(cls, event: bytes) -> None: ...

        @staticmethod
        def of_none(event: bytes) -> None: ...

    def with_database(database: str, event: Created) -> None: ...

    @functools.wraps(on_model)
    def wrapper(*args: Any, **kwargs: Any) -> None: ...

    created = (Created(character_id="c-1"),)
    assert given(Service().handle) == (json.loads(BODY),)
    assert given(Service()) == created
    assert given(Service.of_class) == given(Service.of_none) == (BODY,)
    assert given(functools.partial(with_database, "db")) == created
    assert given(wrapper) == created
    assert given(functools.partial(Service())) == created
    assert given(lambda event: None) == (BODY.decode(),)
    assert given(functools.lru_cache(on_model)) == created


def test_callables_that_tell_little_get_the_first_thing_by_the_default_rule() -> None:
    def anything(*args: Any, **kwargs: Any) -> None: ...

    def dicts(*events: dict[str, Any]) -> None: ...

    assert given(anything) == given(Mock()) == given([].append) == given(print) == (BODY.decode(),)
    assert given(dicts) == (json.loads(BODY),)


def test_a_second_parameter_gets_the_envelope_if_it_must_or_asks_for_it() -> None:
    def must(event, envelope): ...  # type: ignore[no-untyped-def]
    def asks(event: bytes, envelope: Event[Created] | None = None) -> None: ...
    def must_have_message(message: dict[str, Any], envelope: Message) -> None: ...

    text, envelope = given(must)
    assert text == BODY.decode()
    assert type(envelope) is Event
    assert given(asks)[1].payload == Created(character_id="c-1")
    assert given(must_have_message, "message")[1].destination == "me"


def test_parameters_with_a_default_that_do_not_ask_for_the_envelope_are_left_alone() -> None:
    def plain(event, retries=3, *args, verbose=False, **kwargs): ...  # type: ignore[no-untyped-def]
    def typed(event: dict[str, Any], retries: int = 3) -> None: ...
    def third(event, envelope, more=1): ...  # type: ignore[no-untyped-def]
    def unknown(event: dict[str, Any], database: Unknown | None = None) -> None: ...

    assert len(given(plain)) == len(given(typed)) == len(given(unknown)) == 1
    assert len(given(third)) == 2


async def coroutine_function(event: str) -> None: ...


class AsyncObject:
    async def __call__(self, event: str) -> None: ...


def generator(event: str) -> Any:
    yield event


def no_parameter() -> None: ...
def only_keywords(**kwargs: Any) -> None: ...
def needs_keyword(event: str, *, database: str) -> None: ...
def three(a: str, b: Event, c: int) -> None: ...
def on_int(event: int) -> None: ...
def on_list(event: list[int]) -> None: ...
def on_either(event: Created | str) -> None: ...
def on_none(event: None) -> None: ...
def on_unknown(event: Unknown) -> None: ...
def second_is_text(event: str, envelope: str) -> None: ...
def second_is_message(event: str, envelope: Message | None = None) -> None: ...


@pytest.mark.parametrize(
    ("callback", "says"),
    [
        (None, r"callback must be a function of one parameter \(def handler\(event\): \.\.\.\), not None$"),
        (coroutine_function, "coroutine function: this is the synchronous client"),
        (functools.partial(coroutine_function), "coroutine function"),
        (AsyncObject(), "coroutine function"),
        (functools.partial(AsyncObject()), "coroutine function"),
        (generator, "generator function"),
        (no_parameter, "takes no parameter"),
        (only_keywords, "takes no parameter"),
        (needs_keyword, "needs the keyword database"),
        (three, r"needs 3 arguments \(a, b, c\)"),
        (on_int, "cannot get event: 'int'; allowed are no annotation or str"),
        (on_list, "allowed are"),
        (on_either, "allowed are"),
        (on_none, "allowed are"),
        (on_message, r"cannot get message: 'Message'; .* Event\[Model\]"),
        (on_unknown, "'Unknown' is not defined.*: define or import"),
        (second_is_text, "its second parameter envelope: 'str' gets the envelope"),
        (second_is_message, r"may be annotated Event or Event\[Model\]"),
    ],
)
def test_a_callback_that_cannot_be_a_handler_is_refused_at_once(callback: Any, says: str) -> None:
    with pytest.raises(MessageValidationError, match=says):
        handler_for(callback, "event")


def test_an_event_annotation_on_a_message_is_refused() -> None:
    with pytest.raises(MessageValidationError, match=r"allowed are no annotation, Message"):
        handler_for(on_event, "message")


def test_a_synchronous_wrapper_around_a_coroutine_function_is_a_handler() -> None:
    @functools.wraps(coroutine_function)
    def wrapper(event: str) -> str:
        return "ran"

    handler = handler_for(wrapper, "event")
    assert handler(handler.arguments(received("event"))) == "ran"


def test_a_coroutine_that_nobody_awaits_is_an_error_and_not_a_success() -> None:
    handler = handler_for(lambda event: coroutine_function(event), "event")
    with pytest.raises(MessageValidationError, match="returned a coroutine"):
        handler(("{}",))


def test_a_handler_is_named_after_its_function() -> None:
    assert handler_for(functools.partial(on_text), "event").name == "on_text"
    assert handler_for(Mock(), "event").name == "Mock"


# --- the hint ------------------------------------------------------------------------------------


def failure(run: Callable[[Any], Any]) -> Exception:
    try:
        run("text")
    except Exception as error:
        return error
    raise AssertionError("did not fail")


@pytest.mark.parametrize(
    "callback", [lambda e: e["id"], lambda e: e.get("id"), lambda e: e.payload, lambda e: dict(e), lambda e: {**e}]
)
def test_a_handler_without_annotation_that_stumbles_over_the_text_is_told_what_to_annotate(
    callback: Any,
) -> None:
    hint = handler_for(callback, "event").hint(failure(callback))
    assert hint is not None
    assert "annotate event: dict or event: Event" in hint


def test_other_failures_and_other_handlers_get_no_hint() -> None:
    stumbled = failure(lambda e: e["id"])
    assert handler_for(on_anything, "event").hint(ValueError("no such character")) is None
    assert handler_for(on_anything, "event").hint(KeyError("id")) is None
    assert handler_for(on_text, "event").hint(stumbled) is None
    assert handler_for(on_anything, "message").hint(stumbled) is None


# --- what was received ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "changes"),
    [
        (b"", {}),
        (b"[]", {}),
        (b"{", {}),
        (b'{"a": NaN}', {}),
        (b"\xff{}", {}),
        (BODY, {"message_id": "7"}),
        (BODY, {"type": "something.else"}),
        (b'{"a": "' + b"x" * 2_000_000 + b'"}', {}),
    ],
)
def test_what_is_no_message_of_the_hub_is_invalid_whatever_a_handler_asks_for(
    body: bytes, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidMessage):
        received("event", body, **changes).check()


def test_text_is_only_handed_over_when_it_is_a_json_object() -> None:
    with pytest.raises(InvalidMessage, match="array"):
        given(on_text, body=b"[1]")


def test_a_good_delivery_passes_the_check_without_a_type_and_correlation_id() -> None:
    event = received("event", type=None, correlation_id=None)
    event.check()
    assert event.correlation_id == event.message_id == str(UUID(event.message_id))


def test_the_event_type_survives_the_way_through_a_retry_queue() -> None:
    event = received("event", headers={"x-original-routing-key": "character.created"})
    event.delivery.exchange, event.delivery.routing_key = "", "me.character.created"
    assert event.event_type == event.event().event_type == "character.created"
    event = received("event", headers={"event_type": 7})
    assert event.event_type == "character.created"


def test_only_a_message_with_a_reply_queue_is_a_request() -> None:
    assert received("message", app_id="sender", reply_to="sender.replies.1").is_request
    assert not received("message").is_request
    assert not received("event", reply_to="sender.replies.1").is_request


@pytest.mark.parametrize("other", [on_event, on_model_that_keeps_all, on_dict, on_text])
@pytest.mark.parametrize("dict_first", [True, False])
def test_what_one_handler_does_to_its_dict_no_other_handler_sees(other: Any, dict_first: bool) -> None:
    shared = received("event")
    handlers = [handler_for(on_dict, "event"), handler_for(other, "event")]
    given = [handler.arguments(shared)[0] for handler in (handlers if dict_first else reversed(handlers))]
    payload, seen = given if dict_first else reversed(given)
    payload["tags"].append("b")
    payload["character_id"] = "changed"
    later = handlers[1].arguments(shared)[0]
    for value in (seen, later):
        assert "changed" not in str(value)
        assert "'b'" not in str(value)


def test_a_lone_dict_handler_costs_one_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    decodings = Mock(side_effect=decode_payload)
    monkeypatch.setattr("message_hub_sync.consuming.decoded_delivery.decode_payload", decodings)
    event = received("event")
    event.check()
    handler_for(on_dict, "event").arguments(event)
    assert decodings.call_count == 1
    event = received("event")
    event.check()
    for callback in (on_event, on_event_of_model, on_model, on_text, on_event):
        handler_for(callback, "event").arguments(event)
    assert decodings.call_count == 2


def test_several_handlers_share_one_envelope() -> None:
    event = received("event")
    assert handler_for(on_event, "event").arguments(event)[0] is event.event()
    assert handler_for(on_event_of_model, "event").arguments(event)[0] is not event.event()


def test_reply_reaches_whoever_sends_replies_with_the_message() -> None:
    sent = Mock(return_value=UUID(int=1))
    (message,) = handler_for(on_message, "message", reply=sent).arguments(received("message"))
    assert message.reply({"ok": True}) == UUID(int=1)
    sent.assert_called_once_with(message, {"ok": True})


def test_a_message_that_can_be_replied_to_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        (message,) = handler_for(on_message, "message", reply=Mock()).arguments(received("message"))
        alive = weakref.ref(message)
        del message
        assert alive() is None
    finally:
        gc.enable()
