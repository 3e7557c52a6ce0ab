"""The event catalogue: which events there are, who publishes them to whom, and what they carry.

``catalogue`` is the one of this process; the functions here are its methods, so that
``from message_hub_sync import catalogue`` serves too: ``catalogue.register("quest.started", QuestStarted)``.

All but ``EventType`` is imported when it is first asked for: two dozen pydantic models take their time to make.
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
        # Threads may come here at once. The models are made by imports, which Python itself puts in order;
        # pydantic's own way to make models late (defer_build) is not safe then.
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from message_hub_sync.catalogue import action, campaign, character, image, llm, payload, reference, registry

        homes = (action, campaign, character, image, llm, payload, reference, registry, reference.catalogue)
        found = next(getattr(home, name) for home in homes if hasattr(home, name))
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


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
