"""One event of the catalogue, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.naming import validate_event_type, validate_service_name

__all__ = ["EventType"]


@dataclass(frozen=True, slots=True, eq=False)
class EventType:
    """An event's name, what it means, who publishes it, who subscribes to it, and its payload's model.

    It stands wherever its name does: ``str(event_type)`` is the name, and it equals and hashes as that text.

    :param name: for example ``character.created``.
    :param description: one line.
    :param publisher: the service that publishes it, ``None`` where none is known.
    :param subscribers: the services that subscribe to it.
    :param model: the pydantic model of its payload.
    :raises MessageValidationError: which of these is not usable, and what is.
    """

    name: str
    description: str
    publisher: str | None
    subscribers: tuple[str, ...]
    model: type[BaseModel]

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", validate_event_type(self.name))
        if self.publisher is not None:
            validate_service_name(self.publisher, what="publisher")
        object.__setattr__(self, "subscribers", _services(self.subscribers))
        if not (isinstance(self.model, type) and issubclass(self.model, BaseModel)):
            raise MessageValidationError(
                f"the model of {self.name} is not usable: a class derived from pydantic.BaseModel is"
            )

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (str, EventType)):
            return self.name == str(other)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.name)

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
