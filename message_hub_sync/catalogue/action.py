"""The payload of a message as the integration guide recommends it."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Annotated, Any

from pydantic import Field, GetPydanticSchema
from pydantic_core.core_schema import datetime_schema

from message_hub_sync.catalogue.payload import Payload

__all__ = ["ActionPayload"]


# The schema is given, so that pydantic need not know the class. While freezegun has frozen the time, the class is
# another one, and pydantic would refuse it.
_Time = Annotated[datetime, GetPydanticSchema(lambda source, handler: datetime_schema())]


def _now() -> datetime:
    return datetime.now(timezone.utc)


class ActionPayload(Payload):
    """The payload of a message that requests an action.

    For example ``send_message("llm-service", ActionPayload(action="refine"))``. Its use is optional: the payload of a
    message may be any JSON object.
    """

    action: str = Field(min_length=1, description="What the receiver is asked to do")
    version: str = Field(default="1.0", description="Version of this payload's schema")
    timestamp: _Time = Field(default_factory=_now, description="When the action was requested; by default now")
    data: dict[str, Any] = Field(default_factory=dict, description="What the action works on")
    metadata: dict[str, Any] = Field(default_factory=dict, description="Data about the message itself")
