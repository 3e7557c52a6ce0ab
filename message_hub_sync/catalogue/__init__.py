"""The event catalogue: which events there are, who publishes them to whom, and what they carry.

``catalogue`` is the one of this process; the functions here are its methods, so that
``from message_hub_sync import catalogue`` serves too: ``catalogue.register("quest.started", QuestStarted)``.
"""

from __future__ import annotations

from message_hub_sync.catalogue.action import ActionPayload
from message_hub_sync.catalogue.campaign import (
    CampaignChapterCreated,
    CampaignCharacterApproved,
    CampaignCreated,
    CampaignEvolved,
    CampaignThemeChanged,
    CampaignValidateCharacter,
    CampaignValidated,
)
from message_hub_sync.catalogue.character import (
    CharacterCreated,
    CharacterDeleted,
    CharacterInventoryChanged,
    CharacterJournalUpdated,
    CharacterLeveledUp,
    CharacterRefined,
    CharacterSpellsChanged,
    CharacterUpdated,
    CharacterValidated,
)
from message_hub_sync.catalogue.event_type import EventType
from message_hub_sync.catalogue.image import (
    ImageItemGenerated,
    ImageMapGenerated,
    ImagePortraitGenerated,
    ImageThemeApplied,
)
from message_hub_sync.catalogue.llm import LlmContentGenerated, LlmGeneratePrompt, LlmRefinementSuggested
from message_hub_sync.catalogue.payload import Identity, Payload
from message_hub_sync.catalogue.reference import catalogue
from message_hub_sync.catalogue.registry import Catalogue

__all__ = [
    "ActionPayload",
    "CampaignChapterCreated",
    "CampaignCharacterApproved",
    "CampaignCreated",
    "CampaignEvolved",
    "CampaignThemeChanged",
    "CampaignValidateCharacter",
    "CampaignValidated",
    "Catalogue",
    "CharacterCreated",
    "CharacterDeleted",
    "CharacterInventoryChanged",
    "CharacterJournalUpdated",
    "CharacterLeveledUp",
    "CharacterRefined",
    "CharacterSpellsChanged",
    "CharacterUpdated",
    "CharacterValidated",
    "EventType",
    "Identity",
    "ImageItemGenerated",
    "ImageMapGenerated",
    "ImagePortraitGenerated",
    "ImageThemeApplied",
    "LlmContentGenerated",
    "LlmGeneratePrompt",
    "LlmRefinementSuggested",
    "Payload",
    "catalogue",
    "event_type_of",
    "get",
    "nearest",
    "of_service",
    "register",
]

register = catalogue.register
get = catalogue.get
nearest = catalogue.nearest
of_service = catalogue.of_service
event_type_of = catalogue.event_type_of
