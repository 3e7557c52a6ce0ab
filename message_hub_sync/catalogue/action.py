"""The guide's shape of a message's payload, ready to use."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from pydantic import Field

from message_hub_sync.catalogue.payload import Payload

__all__ = ["ActionPayload"]


def _now() -> datetime:
    return datetime.now(timezone.utc)


class ActionPayload(Payload):
    """A message that asks for an action: ``send_message("llm-service", ActionPayload(action="refine"))``.

    Optional to use: a message's payload may be any JSON object.
    """

    action: str = Field(min_length=1, description="What the receiver is asked to do")
    version: str = Field(default="1.0", description="Version of this payload's schema")
    timestamp: datetime = Field(default_factory=_now, description="When it was asked; now where left out")
    data: dict[str, Any] = Field(default_factory=dict, description="What the action works on")
    metadata: dict[str, Any] = Field(default_factory=dict, description="What is said about the message itself")
