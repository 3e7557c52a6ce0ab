"""Which events there are, and whether what is published fits them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast, overload

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, to_jsonable_python

from message_hub_sync.catalogue.event_type import EventType
from message_hub_sync.envelope.decode import validation_reason
from message_hub_sync.envelope.names import event_name, validate_event_pattern, validate_event_type
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.log import SafeLogger

__all__ = ["Catalogue"]

logger = SafeLogger("message_hub_sync.catalogue")

M = TypeVar("M", bound=BaseModel)

#: Unknown names warned about. Beyond, they are most likely made at run time, and remembering them a leak.
_MAX_WARNED = 1_000

#: How alike two names are of which one is most likely a slip of the other (difflib's ratio); ``order.failed`` and
#: ``order.placed`` are 0.75.
_ALIKE = 0.8


class Catalogue:
    """The event types that services agreed upon. Every method may be called from any thread.

    :param event_types: what it knows from the start.
    """

    def __init__(self, event_types: Iterable[EventType] = ()) -> None:
        # Mutable: both maps are written under _lock; single look-ups read them without it (one dict
        # operation each), iterations under it.
        self._by_name: dict[str, EventType] = {}
        self._by_model: dict[type[BaseModel], list[EventType]] = {}
        self._lock = threading.Lock()
        # Mutable, no lock: only ever added to, by setdefault, which also decides who warns. Names published, and
        # patterns subscribed to with a word before them.
        self._warned: dict[str, object] = {}
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
        """Add an event type: ``register("quest.started", QuestStarted)``, or as a decorator on the model.

        :param description: one line; the model's docstring where left out.
        :returns: the event type; as a decorator, the model.
        :raises MessageHubConfigurationError: the name is taken by another model, or by this one with another
            publisher, other subscribers or another description. Repeating a registration changes nothing.
        :raises MessageValidationError: a name is not usable.
        """
        if model is not None:
            description = description or _summary(model)
            services = cast("tuple[str, ...]", subscribers)  # EventType makes it one, or refuses it
            return self._add(EventType(name, description, publisher, services, model))

        def decorate(decorated: type[M]) -> type[M]:
            self.register(name, decorated, publisher=publisher, subscribers=subscribers, description=description)
            return decorated

        return decorate

    def get(self, name: str | EventType) -> EventType | None:
        """The event type of that name, or ``None``."""
        return self._by_name.get(event_name(name))

    def nearest(self, name: str | EventType) -> str | None:
        """What ``name`` was most likely meant to be: a known name (for a pattern, a pattern), or ``None``."""
        from difflib import get_close_matches  # only where somebody mistyped

        text = str(event_name(name))
        known = [event_type.name for event_type in self]
        if "*" in text or "#" in text:
            known = [f"{first}.*" for first in sorted({item.partition(".")[0] for item in known})]
        found = get_close_matches(text, known, n=1, cutoff=_ALIKE)
        return found[0] if found else None

    def of_service(self, service: str) -> tuple[EventType, ...]:
        """What ``service`` publishes or subscribes to, in the catalogue's order."""
        return tuple(event_type for event_type in self if service in event_type.services)

    def services(self) -> tuple[str, ...]:
        """Every service that publishes or subscribes to something, in the catalogue's order."""
        return tuple(dict.fromkeys(service for event_type in self for service in event_type.services))

    def event_type_of(self, model: BaseModel | type[BaseModel]) -> EventType:
        """The event type whose payload is ``model``, an instance or a class; a derived class is its base's.

        :raises MessageValidationError: it belongs to no event type, or to several.
        """
        found = self._of_class(model if isinstance(model, type) else type(model))
        if len(found) == 1:
            return found[0]
        name = (model if isinstance(model, type) else type(model)).__name__
        if found:
            raise MessageValidationError(
                f"{name} is the payload of {', '.join(map(str, found))}: name the event type that is meant"
            )
        raise MessageValidationError(
            f"{name} is not the payload of a known event type: name the event type, "
            f'or register it: catalogue.register("quest.started", {name})'
        )

    def check_publish(self, event_type: str | EventType, payload: Any, service: str, strict: bool = False) -> Any:
        """Let pass what may be published.

        An event that the catalogue does not know passes with one warning per name.

        :param payload: a mapping, a model or a dataclass.
        :param service: the service that publishes.
        :param strict: refuse an unknown event, and one that the catalogue gives to another service.
        :returns: ``payload`` as it was given: what the model does not know is sent too.
        :raises MessageValidationError: it may not be published; the text names the field, never a value.
        """
        name = event_name(event_type)
        known = self._by_name.get(name) if isinstance(name, str) else None
        if known is None:
            self._check_unknown(name, strict)
            return payload
        if strict and known.publisher is not None and known.publisher != service:
            raise MessageValidationError(
                f"event {name} is published by {known.publisher}, not by {service}: "
                "publish an event of this service's own, or switch strict_catalogue off"
            )
        try:
            known.model.__pydantic_validator__.validate_python(payload)
        except ValidationError as error:
            self._check_as_json(known, payload, error)
        return payload

    def check_subscribe(self, pattern: str | EventType) -> None:
        """Warn, once per pattern, when it is, or matches, no event type that the catalogue knows.

        :raises MessageValidationError: it is no pattern at all.
        """
        text = validate_event_pattern(pattern)
        words = text.split(".")
        if not any(_matches(words, event_type.name.split(".")) for event_type in self):
            self._warn_once(f"subscribe {text}", text, "subscribing to %s, which the catalogue does not know%s")

    def __iter__(self) -> Iterator[EventType]:
        with self._lock:
            return iter(list(self._by_name.values()))

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: object) -> bool:
        return event_name(name) in self._by_name

    def _add(self, new: EventType) -> EventType:
        with self._lock:
            known = self._by_name.setdefault(new.name, new)
            if known is new:
                self._by_model.setdefault(new.model, []).append(new)
                return new
        if known.model is not new.model:
            raise MessageHubConfigurationError(
                f"event type {new.name} is registered with the model {_qualified(known.model)}, "
                f"it cannot also have {_qualified(new.model)}: use that model, or another name"
            )
        _refuse_contradiction(known, new)
        return known

    def _of_class(self, cls: type) -> list[EventType]:
        return next((self._by_model[base] for base in cls.__mro__ if base in self._by_model), [])

    def _check_unknown(self, name: Any, strict: bool) -> None:
        if not strict and isinstance(name, str) and name in self._warned:
            return
        name = validate_event_type(name)
        if strict:
            raise MessageValidationError(
                f"event type {name} is not in the catalogue{self._hint(name)}, and strict_catalogue is on: "
                f'register it: catalogue.register("{name}", Model, publisher=...)'
            )
        self._warn_once(name, name, "publishing %s, which the catalogue does not know%s; its payload is not validated")

    def _warn_once(self, key: str, name: str, text: str) -> None:
        mine = object()
        if len(self._warned) < _MAX_WARNED and self._warned.setdefault(key, mine) is mine:
            example = "quest.started" if "*" in name or "#" in name else name
            text += ': an event of your own is made known by catalogue.register("%s", Model)'
            logger.warning(text, name, self._hint(name), example)

    def _check_as_json(self, known: EventType, payload: Any, error: ValidationError) -> None:
        """The slow way: what arrives is JSON, so a payload of any objects fits when its JSON does."""
        if isinstance(payload, BaseModel) and not isinstance(payload, known.model):
            others = self._of_class(type(payload))
            if others and known not in others:
                raise MessageValidationError(
                    f"event {known} cannot have a {type(payload).__name__} as its payload, which is that of "
                    f"{others[0]}: a {known.model.__name__} or a dict is needed"
                )
        plain = dict(payload) if isinstance(payload, Mapping) else payload
        try:
            known.model.__pydantic_validator__.validate_python(to_jsonable_python(plain))
        except ValidationError as as_json:
            # A list, a text: its JSON says no more than the thing itself.
            _refuse_payload(known, as_json)
        except (PydanticSerializationError, ValueError, RecursionError):
            _refuse_payload(known, error)

    def _hint(self, name: str) -> str:
        nearest = self.nearest(name)
        return f" (did you mean {nearest}?)" if nearest else ""


def _refuse_payload(known: EventType, error: ValidationError) -> NoReturn:
    fields = ", ".join(
        f"{name} (required)" if field.is_required() else name for name, field in known.model.model_fields.items()
    )
    raise MessageValidationError(f"event {known}: {validation_reason(error)} (its fields: {fields})") from None


def _refuse_contradiction(known: EventType, new: EventType) -> None:
    for what, before, now in (
        ("publisher", known.publisher, new.publisher),
        ("subscribers", known.subscribers, new.subscribers),
        ("description", known.description, new.description),
    ):
        # What is left out is not contradicted; the model's own summary stands for no description.
        if now and now != before and not (what == "description" and now == _summary(new.model)):
            raise MessageHubConfigurationError(
                f"event type {new.name} is registered with {what} {before!r}, it cannot also have {now!r}: "
                "register it in one place"
            )


def _summary(model: Any) -> str:
    lines = (getattr(model, "__doc__", None) or "").strip().splitlines()
    return lines[0].rstrip(".") if lines else ""


def _qualified(model: type) -> str:
    return f"{model.__module__}.{model.__qualname__}"


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a topic pattern, in words, takes a name: ``*`` one word, ``#`` any number, none included."""
    if not pattern:
        return not words
    if pattern[0] == "#":
        return any(_matches(pattern[1:], words[start:]) for start in range(len(words) + 1))
    return bool(words) and pattern[0] in ("*", words[0]) and _matches(pattern[1:], words[1:])
