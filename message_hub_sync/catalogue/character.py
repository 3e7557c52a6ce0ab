"""The events of the character service."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from message_hub_sync.catalogue.event_type import EventType
from message_hub_sync.catalogue.payload import CharacterId, Identity, Payload

__all__ = [
    "EVENT_TYPES",
    "CharacterCreated",
    "CharacterDeleted",
    "CharacterInventoryChanged",
    "CharacterJournalUpdated",
    "CharacterLeveledUp",
    "CharacterRefined",
    "CharacterSpellsChanged",
    "CharacterUpdated",
    "CharacterValidated",
]


class CharacterCreated(Payload):
    """A character has been created and can be read."""

    character_id: CharacterId
    name: str | None = Field(default=None, description="The character's name")
    level: int | None = Field(default=None, description="The level at which it starts")
    campaign_id: Identity | None = Field(default=None, description="The campaign for which it was created")


class CharacterUpdated(Payload):
    """Details of a character have changed, possibly its appearance."""

    character_id: CharacterId
    changes: dict[str, Any] | list[Any] | None = Field(
        default=None, description="The changes: new values by field, or the names of the fields"
    )


class CharacterDeleted(Payload):
    """A character has been removed; references to it are invalid now."""

    character_id: CharacterId
    reason: str | None = Field(default=None, description="The reason, as text for people")


class CharacterValidated(Payload):
    """A character has been checked against the rules."""

    character_id: CharacterId
    valid: bool | None = Field(default=None, description="Whether it conforms to the rules")
    errors: list[Any] | None = Field(default=None, description="The rules that it breaks")
    campaign_id: Identity | None = Field(default=None, description="The campaign whose rules were applied")


class CharacterLeveledUp(Payload):
    """A character has gained a level."""

    character_id: CharacterId
    level: int | None = Field(default=None, description="The new level")
    previous_level: int | None = Field(default=None, description="The previous level")


class CharacterRefined(Payload):
    """Refinements have been applied to a character; the LLM service may suggest further ones."""

    character_id: CharacterId
    refinements: dict[str, Any] | list[Any] | None = Field(default=None, description="What was refined")


class CharacterJournalUpdated(Payload):
    """Entries of a character's journal have been modified."""

    character_id: CharacterId
    entry_ids: list[Identity] | None = Field(default=None, description="The entries that were modified")


class CharacterInventoryChanged(Payload):
    """Items in a character's inventory have been modified."""

    character_id: CharacterId
    added: list[Any] | None = Field(default=None, description="Items that were added")
    removed: list[Any] | None = Field(default=None, description="Items that were removed")


class CharacterSpellsChanged(Payload):
    """A character's list of spells has been modified."""

    character_id: CharacterId
    added: list[Any] | None = Field(default=None, description="Spells learned")
    removed: list[Any] | None = Field(default=None, description="Spells forgotten")


_SERVICE = "character-service"

EVENT_TYPES = (
    EventType(
        "character.created",
        "Character creation complete",
        _SERVICE,
        ("campaign-service", "llm-service"),
        CharacterCreated,
    ),
    EventType(
        "character.updated",
        "Character details updated",
        _SERVICE,
        ("campaign-service", "image-service"),
        CharacterUpdated,
    ),
    EventType("character.deleted", "Character removed", _SERVICE, (), CharacterDeleted),
    EventType(
        "character.validated",
        "Character validation complete",
        _SERVICE,
        ("campaign-service",),
        CharacterValidated,
    ),
    EventType("character.leveled_up", "Character level increased", _SERVICE, (), CharacterLeveledUp),
    EventType("character.refined", "Character refinements applied", _SERVICE, ("llm-service",), CharacterRefined),
    EventType("character.journal_updated", "Journal entries modified", _SERVICE, (), CharacterJournalUpdated),
    EventType("character.inventory_changed", "Inventory items modified", _SERVICE, (), CharacterInventoryChanged),
    EventType("character.spells_changed", "Spell list modified", _SERVICE, (), CharacterSpellsChanged),
)
