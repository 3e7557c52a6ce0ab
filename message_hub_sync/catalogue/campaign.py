"""The events of the campaign service."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from message_hub_sync.catalogue.event_type import EventType
from message_hub_sync.catalogue.payload import CampaignId, Identity, Payload

__all__ = [
    "EVENT_TYPES",
    "CampaignChapterCreated",
    "CampaignCharacterApproved",
    "CampaignCreated",
    "CampaignEvolved",
    "CampaignThemeChanged",
    "CampaignValidateCharacter",
    "CampaignValidated",
]


class CampaignCreated(Payload):
    """A campaign has been created and can be read."""

    campaign_id: CampaignId
    name: str | None = Field(default=None, description="The campaign's name")
    theme: str | dict[str, Any] | None = Field(default=None, description="The theme: a name or a description")


class CampaignEvolved(Payload):
    """A campaign's story has changed."""

    campaign_id: CampaignId
    changes: dict[str, Any] | list[Any] | None = Field(default=None, description="What evolved")


class CampaignChapterCreated(Payload):
    """A campaign has a new chapter."""

    campaign_id: CampaignId
    chapter_id: Identity | None = Field(default=None, description="The new chapter")
    title: str | None = Field(default=None, description="The chapter's title")


class CampaignValidateCharacter(Payload):
    """A request to check a character against the rules of a campaign; both ids are required."""

    campaign_id: Identity = Field(description="The campaign whose rules apply")
    character_id: Identity = Field(description="The character to check")


class CampaignCharacterApproved(Payload):
    """A character may take part in a campaign."""

    campaign_id: Identity = Field(description="The campaign")
    character_id: Identity = Field(description="The character that may take part")


class CampaignThemeChanged(Payload):
    """A campaign has another theme; characters, images and texts are adapted to it."""

    campaign_id: CampaignId
    theme: str | dict[str, Any] | None = Field(default=None, description="The new theme: a name or a description")
    previous_theme: str | dict[str, Any] | None = Field(default=None, description="The theme before the change")


class CampaignValidated(Payload):
    """A campaign has been checked."""

    campaign_id: CampaignId
    valid: bool | None = Field(default=None, description="Whether it passed")
    errors: list[Any] | None = Field(default=None, description="The rules that it breaks")


_SERVICE = "campaign-service"

EVENT_TYPES = (
    EventType("campaign.created", "Campaign creation complete", _SERVICE, (), CampaignCreated),
    EventType("campaign.evolved", "Campaign evolution applied", _SERVICE, (), CampaignEvolved),
    EventType("campaign.chapter_created", "New chapter added", _SERVICE, (), CampaignChapterCreated),
    EventType(
        "campaign.validate_character",
        "Character validation requested",
        _SERVICE,
        (),
        CampaignValidateCharacter,
    ),
    EventType(
        "campaign.character_approved",
        "Character approved for campaign",
        _SERVICE,
        (),
        CampaignCharacterApproved,
    ),
    EventType(
        "campaign.theme_changed",
        "Campaign theme updated",
        _SERVICE,
        ("character-service", "image-service", "llm-service"),
        CampaignThemeChanged,
    ),
    # The guide lists a subscriber of this event, but no publisher.
    EventType(
        "campaign.validated",
        "Campaign validation complete",
        None,
        ("character-service",),
        CampaignValidated,
    ),
)
