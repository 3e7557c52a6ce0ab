"""The events of the image service."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, Field

from message_hub_sync.catalogue.event_type import EventType
from message_hub_sync.catalogue.payload import Identity, Payload

__all__ = [
    "EVENT_TYPES",
    "ImageItemGenerated",
    "ImageMapGenerated",
    "ImagePortraitGenerated",
    "ImageThemeApplied",
]

_ImageId = Annotated[
    Identity,
    Field(validation_alias=AliasChoices("image_id", "id"), description="The image; also accepted as `id`"),
]


class ImagePortraitGenerated(Payload):
    """A portrait is ready."""

    image_id: _ImageId
    url: str | None = Field(default=None, description="Where the image can be fetched")
    character_id: Identity | None = Field(default=None, description="The character that it shows")


class ImageMapGenerated(Payload):
    """A map is ready."""

    image_id: _ImageId
    url: str | None = Field(default=None, description="Where the image can be fetched")
    campaign_id: Identity | None = Field(default=None, description="The campaign to which it belongs")


class ImageItemGenerated(Payload):
    """The image of an item is ready."""

    image_id: _ImageId
    url: str | None = Field(default=None, description="Where the image can be fetched")
    item_id: Identity | None = Field(default=None, description="The item that it shows")


class ImageThemeApplied(Payload):
    """A theme has been applied to an image."""

    image_id: _ImageId
    url: str | None = Field(default=None, description="Where the image can be fetched")
    theme: str | dict[str, Any] | None = Field(default=None, description="The theme: a name or a description")


_SERVICE = "image-service"

EVENT_TYPES = (
    EventType("image.portrait_generated", "Portrait creation complete", _SERVICE, (), ImagePortraitGenerated),
    EventType("image.map_generated", "Map generation complete", _SERVICE, (), ImageMapGenerated),
    EventType("image.item_generated", "Item visualization complete", _SERVICE, (), ImageItemGenerated),
    EventType("image.theme_applied", "Theme application complete", _SERVICE, (), ImageThemeApplied),
)
