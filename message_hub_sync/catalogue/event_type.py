"""One event of the catalogue, as a value."""

from __future__ import annotations

from typing import Any, NoReturn

from pydantic import BaseModel

from message_hub_sync.envelope.names import validate_event_type, validate_service_name
from message_hub_sync.errors import MessageValidationError

__all__ = ["EventType"]


# Not a dataclass: pydantic would write one inside a payload as an object, not as the text it is.
class EventType(str):
    """An event's name, what it means, who publishes it, who subscribes to it, and its payload's model.

    It *is* its name, a text that knows more, and stands wherever a text does: in calls, payloads, headers, logs.
    It cannot be changed.

    :param name: for example ``character.created``.
    :param description: one line.
    :param publisher: the service that publishes it, ``None`` where none is known.
    :param subscribers: the services that subscribe to it.
    :param model: the pydantic model of its payload.
    :raises MessageValidationError: which of these is not usable, and what is.
    """

    __slots__ = ("description", "model", "publisher", "subscribers")

    description: str
    publisher: str | None
    subscribers: tuple[str, ...]
    model: type[BaseModel]

    def __new__(
        cls, name: str, description: str, publisher: str | None, subscribers: tuple[str, ...], model: type[BaseModel]
    ) -> EventType:
        self = super().__new__(cls, validate_event_type(name))
        if publisher is not None:
            validate_service_name(publisher, what="publisher")
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            raise MessageValidationError(
                f"the model of {self} is not usable: a class derived from pydantic.BaseModel is"
            )
        for attribute, value in (
            ("description", description),
            ("publisher", publisher),
            ("subscribers", _services(subscribers)),
            ("model", model),
        ):
            object.__setattr__(self, attribute, value)
        return self

    def __setattr__(self, attribute: str, value: Any) -> NoReturn:
        raise AttributeError(f"{attribute} of {self} cannot be changed: an event type is a value")

    def __getnewargs__(self) -> tuple[Any, ...]:  # what copies and pickles are made of
        return self.name, self.description, self.publisher, self.subscribers, self.model

    def __getstate__(self) -> None:
        return None

    @property
    def name(self) -> str:
        """The name alone, a plain text."""
        return str(self)

    @property
    def services(self) -> tuple[str, ...]:
        """Publisher and subscribers, each once."""
        publisher = () if self.publisher is None else (self.publisher,)
        return tuple(dict.fromkeys(publisher + self.subscribers))

    def as_dict(self) -> dict[str, Any]:
        """This event in the catalogue's JSON, its model as a JSON Schema."""
        return {
            "name": self.name,
            "description": self.description,
            "publisher": self.publisher,
            "subscribers": list(self.subscribers),
            "schema": self.model.model_json_schema(),
        }


def _services(names: Any) -> tuple[str, ...]:
    if not isinstance(names, (list, tuple)):
        raise MessageValidationError(
            f"subscribers of type {type(names).__name__} are not usable: a list of service names is"
        )
    return tuple(validate_service_name(name, what="subscriber") for name in names)
