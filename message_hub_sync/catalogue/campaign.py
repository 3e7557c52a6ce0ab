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
    """A campaign has been created and can be looked at."""

    campaign_id: CampaignId
    name: str | None = Field(default=None, description="The campaign's name")
    theme: str | dict[str, Any] | None = Field(default=None, description="Its theme, named or described")


class CampaignEvolved(Payload):
    """A campaign's story has moved on."""

    campaign_id: CampaignId
    changes: dict[str, Any] | list[Any] | None = Field(default=None, description="What evolved")


class CampaignChapterCreated(Payload):
    """A campaign has a new chapter."""

    campaign_id: CampaignId
    chapter_id: Identity | None = Field(default=None, description="The new chapter")
    title: str | None = Field(default=None, description="The chapter's title")


class CampaignValidateCharacter(Payload):
    """Somebody is asked to check a character against a campaign; without both, there is nothing to check."""

    campaign_id: Identity = Field(description="The campaign whose rules apply")
    character_id: Identity = Field(description="The character to check")


class CampaignCharacterApproved(Payload):
    """A character may take part in a campaign."""

    campaign_id: Identity = Field(description="The campaign")
    character_id: Identity = Field(description="The character that may take part")


class CampaignThemeChanged(Payload):
    """A campaign has another theme; characters, pictures and texts follow it."""

    campaign_id: CampaignId
    theme: str | dict[str, Any] | None = Field(default=None, description="The new theme, named or described")
    previous_theme: str | dict[str, Any] | None = Field(default=None, description="The theme before")


class CampaignValidated(Payload):
    """A campaign has been checked."""

    campaign_id: CampaignId
    valid: bool | None = Field(default=None, description="Whether it passed")
    errors: list[Any] | None = Field(default=None, description="What it failed on")


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
    # The guide lists a subscriber of this one, and no service that publishes it.
    EventType(
        "campaign.validated",
        "Campaign validation complete",
        None,
        ("character-service",),
        CampaignValidated,
    ),
)
