"""One event type of the catalogue, as a value."""

from __future__ import annotations

from typing import Any, NoReturn

from pydantic import BaseModel, PydanticUserError
from pydantic_core import PydanticOmit

from message_hub_sync.envelope.names import validate_event_type, validate_service_name
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import printable, shown

__all__ = ["EventType", "model_schema"]


# Not a dataclass: pydantic would serialise a dataclass in a payload as an object, not as its name.
class EventType(str):
    """An event type: its name, description, publisher, subscribers and the model of its payload.

    It is a ``str``, equal to its name, so it can be used wherever a name can: in calls, payloads, headers and logs. It
    cannot be changed.

    :param name: for example ``character.created``.
    :param description: one line.
    :param publisher: name of the service that publishes it; ``None``: any service may.
    :param subscribers: names of the services that subscribe to it.
    :param model: the pydantic model of its payload.
    :raises MessageValidationError: a value is not allowed. The text names the value and the rule.
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
            raise MessageValidationError(f"model of {self} must be a class derived from BaseModel, not {shown(model)}")
        for attribute, value in (
            ("description", description),
            ("publisher", publisher),
            ("subscribers", _services(subscribers)),
            ("model", model),
        ):
            object.__setattr__(self, attribute, value)
        return self

    def __setattr__(self, attribute: str, value: Any) -> NoReturn:
        raise AttributeError(f"{attribute} of {self} cannot be changed: create another EventType")

    def __getnewargs__(self) -> tuple[Any, ...]:  # the arguments of __new__ for copies and pickles
        return self.name, self.description, self.publisher, self.subscribers, self.model

    def __getstate__(self) -> None:
        return None

    @property
    def name(self) -> str:
        """The name as a plain ``str``."""
        return str(self)

    @property
    def services(self) -> tuple[str, ...]:
        """The publisher, if there is one, and the subscribers; each service once."""
        publisher = () if self.publisher is None else (self.publisher,)
        return tuple(dict.fromkeys(publisher + self.subscribers))

    def as_dict(self) -> dict[str, Any]:
        """This event type for the catalogue's JSON, with the model as a JSON Schema."""
        return {
            "name": self.name,
            "description": self.description,
            "publisher": self.publisher,
            "subscribers": list(self.subscribers),
            "schema": model_schema(self.model),
        }


def model_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a model. A model that has none is described by its name; pydantic's text says why."""
    try:
        return model.model_json_schema()
    except (PydanticUserError, PydanticOmit) as error:  # a Callable, a custom type: what JSON Schema cannot describe
        why = printable(str(error).split("\n", 1)[0]) or type(error).__name__
        return {"title": model.__name__, "description": f"{model.__name__} has no JSON Schema: {why}"}


def _services(names: Any) -> tuple[str, ...]:
    if not isinstance(names, (list, tuple)):
        raise MessageValidationError(f"subscribers must be a list of service names, not {shown(names)}")
    return tuple(validate_service_name(name, what="subscriber") for name in names)
