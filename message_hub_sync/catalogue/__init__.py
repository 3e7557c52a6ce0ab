"""The event catalogue: the event types, their publishers and subscribers, and the models of their payloads.

``catalogue`` is the catalogue of this process. The functions of this package are its methods, so this works too:
``from message_hub_sync import catalogue``, then ``catalogue.register("quest.started", QuestStarted)``.

Except for ``EventType``, names are imported on first access: defining two dozen pydantic models takes time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from message_hub_sync.catalogue.event_type import EventType

if TYPE_CHECKING:
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

    check_publish = catalogue.check_publish
    check_subscribe = catalogue.check_subscribe
    event_type_of = catalogue.event_type_of
    get = catalogue.get
    nearest = catalogue.nearest
    of_service = catalogue.of_service
    register = catalogue.register
else:

    def __getattr__(name: str) -> Any:
        # Several threads may call this at once. Imports define the models, and Python's import lock makes that safe.
        # pydantic's own way to define models late (defer_build) is not thread-safe.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from message_hub_sync.catalogue import action, campaign, character, image, llm, payload, reference, registry

        homes = (action, campaign, character, image, llm, payload, reference, registry, reference.catalogue)
        found = next(getattr(home, name) for home in homes if hasattr(home, name))
        globals()[name] = found
        return found

    # There is no __dir__, for the reason given in message_hub_sync/__init__.py.


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
    "check_publish",
    "check_subscribe",
    "event_type_of",
    "get",
    "nearest",
    "of_service",
    "register",
]
