"""The registry of event types, and the checks of published payloads and subscribed patterns against it."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar, cast, overload

from pydantic import BaseModel, ValidationError

from message_hub_sync.catalogue.event_type import EventType
from message_hub_sync.envelope.decode import validated_json, validation_reason
from message_hub_sync.envelope.encode import encode_payload
from message_hub_sync.envelope.names import event_name, validate_event_pattern, validate_event_type
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.fork import call_after_fork_in_child
from message_hub_sync.runtime.locks import Lock, locked
from message_hub_sync.runtime.log import SafeLogger

__all__ = ["Catalogue"]

logger = SafeLogger("message_hub_sync.catalogue")

M = TypeVar("M", bound=BaseModel)

#: Limit of the unknown names that are warned about. More are probably generated at run time: storing them would be a
#: memory leak.
_MAX_WARNED = 1_000

#: A known name is suggested if its similarity to the unknown one (difflib's ratio) is at least this. ``order.failed``
#: and ``order.placed`` have 0.75.
_ALIKE = 0.8


_catalogues: weakref.WeakSet[Catalogue] = weakref.WeakSet()  # without a lock: single operations


class Catalogue:
    """The event types that services agreed upon. All methods are safe from any thread.

    :param event_types: the event types to begin with.
    """

    def __init__(self, event_types: Iterable[EventType] = ()) -> None:
        self._lock = Lock()
        # Single look-ups need no lock: each is one dict operation.
        self._by_name: dict[str, EventType] = {}  # writes and iterations guarded by _lock
        self._by_model: dict[type[BaseModel], list[EventType]] = {}  # writes guarded by _lock
        # Keys: published names, and "subscribe PATTERN". Entries are only added. The thread whose setdefault adds one
        # logs the warning.
        self._warned: dict[str, object] = {}  # no lock: setdefault is atomic
        _catalogues.add(self)
        for event_type in event_types:
            self._add(event_type)

    @overload
    def register(
        self,
        name: str,
        model: type[BaseModel],
        *,
        publisher: str | None = None,
        subscribers: Sequence[str] = (),
        description: str = "",
    ) -> EventType: ...

    @overload
    def register(
        self,
        name: str,
        *,
        publisher: str | None = None,
        subscribers: Sequence[str] = (),
        description: str = "",
    ) -> Callable[[type[M]], type[M]]: ...

    def register(
        self,
        name: str,
        model: type[BaseModel] | None = None,
        *,
        publisher: str | None = None,
        subscribers: Sequence[str] = (),
        description: str = "",
    ) -> EventType | Callable[[type[M]], type[M]]:
        """Add an event type: ``register("quest.started", QuestStarted)``, or as a decorator of the model.

        Repeating a registration changes nothing.

        :param name: name of the event type.
        :param model: the pydantic model of its payload; ``None``: use the result as a decorator of the model.
        :param publisher: name of the service that publishes it; ``None``: any service may.
        :param subscribers: names of the services that subscribe to it.
        :param description: one line; by default, the first line of the model's docstring.
        :returns: the event type, or the decorator, which returns the model.
        :raises MessageHubConfigurationError: the name is registered with another model, or with this model and another
            publisher, other subscribers or another description.
        :raises MessageValidationError: a value is not allowed. The text names the value and the rule.
        """
        if model is not None:
            description = description or _summary(model)
            services = cast("tuple[str, ...]", subscribers)  # EventType checks and converts it
            return self._add(EventType(name, description, publisher, services, model))

        def decorate(decorated: type[M]) -> type[M]:
            self.register(name, decorated, publisher=publisher, subscribers=subscribers, description=description)
            return decorated

        return decorate

    def get(self, name: str | EventType) -> EventType | None:
        """The event type of this name, or ``None``."""
        return self._by_name.get(event_name(name))

    def nearest(self, name: str | EventType) -> str | None:
        """The known name most similar to ``name`` (the pattern, if ``name`` is one), or ``None`` if none is similar."""
        from difflib import get_close_matches  # imported here: needed only for unknown names

        text = str(event_name(name))
        known = [event_type.name for event_type in self]
        if "*" in text or "#" in text:
            known = [f"{first}.*" for first in sorted({item.partition(".")[0] for item in known})]
        found = get_close_matches(text, known, n=1, cutoff=_ALIKE)
        return found[0] if found else None

    def of_service(self, service: str) -> tuple[EventType, ...]:
        """The event types that ``service`` publishes or subscribes to, in the catalogue's order."""
        return tuple(event_type for event_type in self if service in event_type.services)

    def services(self) -> tuple[str, ...]:
        """The names of all publishers and subscribers, in the catalogue's order."""
        return tuple(dict.fromkeys(service for event_type in self for service in event_type.services))

    def event_type_of(self, model: BaseModel | type[BaseModel]) -> EventType:
        """The event type whose payload has the model ``model``.

        :param model: the model or an instance of it. A subclass of a registered model counts as that model.
        :raises MessageValidationError: no event type has this model, or several have it.
        """
        found = self._of_class(model if isinstance(model, type) else type(model))
        if len(found) == 1:
            return found[0]
        name = (model if isinstance(model, type) else type(model)).__name__
        if found:
            raise MessageValidationError(
                f"{name} must be the model of exactly one event type, not of {', '.join(map(str, found))}: "
                "pass the event type by name"
            )
        raise MessageValidationError(
            f"{name} must be the model of an event type: pass the event type by name, or register the model: "
            f'catalogue.register("quest.started", {name})'
        )

    def check_publish(
        self,
        event_type: str | EventType,
        payload: Any,
        service: str,
        strict: bool = False,
        *,
        body: bytes | None = None,
    ) -> Any:
        """Check an event before it is published.

        Unless ``strict``, an event type that is not in the catalogue passes, with one warning per name.

        :param event_type: name of the event type.
        :param payload: a mapping, a model or a dataclass.
        :param service: name of the service that publishes.
        :param strict: raise for an event type that is not in the catalogue, or that has another publisher there.
        :param body: the JSON of ``payload``, if it is already encoded.
        :returns: ``payload``, unchanged: fields that the model does not define are sent too.
        :raises MessageValidationError: the event must not be published. The text names the field, never a value.
        """
        name = event_name(event_type)
        known = self._by_name.get(name) if isinstance(name, str) else None
        if known is None:
            self._check_unknown(name, strict)
            return payload
        if strict and known.publisher is not None and known.publisher != service:
            raise MessageValidationError(
                f"event {name} must be published by {known.publisher}, not by {service}: "
                "publish an event type of this service, or set strict_catalogue=False"
            )
        if isinstance(payload, BaseModel) and not isinstance(payload, known.model):
            self._check_model(known, type(payload))
        # The JSON is validated, not the payload: receivers get JSON. An instance of the model may have become invalid,
        # and its JSON may have other names than the model accepts.
        try:
            encoded = encode_payload(payload, sys.maxsize) if body is None else body
            validated_json(known.model.model_validate_json, known.model.model_validate, encoded)
        except ValidationError as error:
            _raise_payload_error(known, error)
        except MessageValidationError as error:
            raise MessageValidationError(f"event {known}: {error}") from None
        return payload

    def check_subscribe(self, pattern: str | EventType) -> None:
        """Log one warning per pattern that matches no event type of the catalogue.

        :param pattern: an event type or a topic pattern.
        :raises MessageValidationError: ``pattern`` is neither.
        """
        text = validate_event_pattern(pattern)
        words = text.split(".")
        if not any(_matches(words, event_type.name.split(".")) for event_type in self):
            self._warn_once(f"subscribe {text}", text, "subscribing to %s, which matches nothing in the catalogue%s")

    def __iter__(self) -> Iterator[EventType]:
        return iter(self._lock.run(list, self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return event_name(name) in self._by_name

    def _add(self, new: EventType) -> EventType:
        known = self._find_or_keep(new)
        if known is new:
            return new
        if known.model is not new.model:
            raise MessageHubConfigurationError(
                f"event type {new.name} must have the model {_qualified(known.model)}, with which it is registered, "
                f"not {_qualified(new.model)}: use that model, or another name"
            )
        _check_same_facts(known, new)
        return known

    @locked
    def _find_or_keep(self, new: EventType) -> EventType:
        """The event type of this name. ``new``, if there was none."""
        known = self._by_name.get(new.name)
        if known is not None:
            return known
        # The name last: in a child that is forked in between, a repeated registration completes it.
        types = self._by_model.get(new.model, [])
        if new not in types:
            self._by_model[new.model] = [*types, new]
        self._by_name[new.name] = new
        return new

    def _of_class(self, cls: type) -> list[EventType]:
        return next((self._by_model[base] for base in cls.__mro__ if base in self._by_model), [])

    def _check_unknown(self, name: Any, strict: bool) -> None:
        if not strict and isinstance(name, str) and name in self._warned:
            return
        name = validate_event_type(name)
        if strict:
            raise MessageValidationError(
                f"event type {name} must be in the catalogue{self._hint(name)}, because strict_catalogue is on: "
                f'register it with catalogue.register("{name}", Model, publisher=...)'
            )
        self._warn_once(name, name, "publishing %s, which is not in the catalogue%s; its payload is not validated")

    def _warn_once(self, key: str, name: str, text: str) -> None:
        mine = object()
        if len(self._warned) < _MAX_WARNED and self._warned.setdefault(key, mine) is mine:
            example = "quest.started" if "*" in name or "#" in name else name
            text += '. Register your own event types: catalogue.register("%s", Model)'
            logger.warning(text, name, self._hint(name), example)

    def _check_model(self, known: EventType, model: type[BaseModel]) -> None:
        """Refuse the model of another event type, even if its fields would fit."""
        others = self._of_class(model)
        if others and known not in others:
            raise MessageValidationError(
                f"payload of event {known} must be a {known.model.__name__} or a dict, not a "
                f"{model.__name__}, which is the model of {others[0]}"
            )

    def _hint(self, name: str) -> str:
        nearest = self.nearest(name)
        return f" (did you mean {nearest}?)" if nearest else ""


def _raise_payload_error(known: EventType, error: ValidationError) -> NoReturn:
    fields = ", ".join(
        f"{name} (required)" if field.is_required() else name for name, field in known.model.model_fields.items()
    )
    reason = validation_reason(error, known.model.__pydantic_core_schema__)
    raise MessageValidationError(f"event {known}: {reason} (its fields: {fields})") from None


def _check_same_facts(known: EventType, new: EventType) -> None:
    for what, before, now in (
        ("publisher", known.publisher, new.publisher),
        ("subscribers", known.subscribers, new.subscribers),
        ("description", known.description, new.description),
    ):
        # A value that was left out does not contradict. If no description was given, it is the model's summary.
        if now and now != before and not (what == "description" and now == _summary(new.model)):
            raise MessageHubConfigurationError(
                f"event type {new.name} must have the {what} {before!r}, with which it is registered, not {now!r}: "
                "register it in one place"
            )


def _summary(model: Any) -> str:
    lines = (getattr(model, "__doc__", None) or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else ""


def _qualified(model: type) -> str:
    return f"{model.__module__}.{model.__qualname__}"


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a topic pattern matches a name, both split into words (``*``: one word; ``#``: any number, also none)."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])


def _after_fork_in_child() -> None:
    """Replace the locks: a thread that does not exist in the child may have held one at the fork."""
    for catalogue in list(_catalogues):
        catalogue._lock = Lock()


call_after_fork_in_child(_after_fork_in_child)
