"""The four services of the integration guide, and the scenes of the demo."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from message_hub_sync.catalogue import (
    CampaignChapterCreated,
    CampaignCharacterApproved,
    CampaignCreated,
    CampaignEvolved,
    CampaignThemeChanged,
    CampaignValidateCharacter,
    CharacterCreated,
    CharacterDeleted,
    CharacterInventoryChanged,
    CharacterJournalUpdated,
    CharacterLeveledUp,
    CharacterRefined,
    CharacterSpellsChanged,
    CharacterUpdated,
    CharacterValidated,
    ImageItemGenerated,
    ImageMapGenerated,
    ImagePortraitGenerated,
    ImageThemeApplied,
    LlmContentGenerated,
    LlmGeneratePrompt,
    LlmRefinementSuggested,
)
from message_hub_sync.cli.demo.ledger import Ledger
from message_hub_sync.cli.demo.service import Reaction, Service

__all__ = ["SERVICES", "Scene", "scenes"]

CAMPAIGN = "the-hollow-crown"
MIRA = "mira"
BOW = "moonwood-bow"

Data = dict[str, Any]


def _new(kind: str) -> str:
    return f"{kind}-{uuid4().hex[:8]}"


class CharacterService(Service):
    """Manages the characters: Mira, an elf ranger."""

    name = "character-service"

    def on_events(self) -> Mapping[str, Reaction]:
        return {
            "campaign.theme_changed": self._dress,
            "llm.content_generated": self._write_journal,
            "llm.refinement_suggested": self._grow,
        }

    def on_actions(self) -> Mapping[str, Reaction]:
        return {"check_rules": self._check_rules}

    def create_mira(self) -> None:
        self.publish(CharacterCreated(character_id=MIRA, name="Mira", level=1, campaign_id=CAMPAIGN))

    def refine_mira(self) -> None:
        self.publish(CharacterRefined(character_id=MIRA, refinements={"fear": "fire", "creed": "leave no trace"}))

    def dismiss_draft(self) -> None:
        self.publish(CharacterDeleted(character_id="mira-draft", reason="an early draft of Mira"))

    def _check_rules(self, asked: Data) -> Data:
        self.publish(CharacterValidated(character_id=asked["character_id"], valid=True, campaign_id=CAMPAIGN))
        return {"valid": True}

    def _write_journal(self, content: Data) -> None:
        if "character_id" in content:
            self.publish(CharacterJournalUpdated(character_id=content["character_id"], entry_ids=[_new("entry")]))

    def _dress(self, changed: Data) -> None:
        self.publish(CharacterUpdated(character_id=MIRA, changes={"cloak": f"made for {changed['theme']}"}))

    def _grow(self, refinement: Data) -> None:
        self.publish(CharacterLeveledUp(character_id=MIRA, level=2, previous_level=1))
        self.publish(CharacterSpellsChanged(character_id=MIRA, added=[refinement["suggestions"]["spell"]]))
        self.publish(CharacterInventoryChanged(character_id=MIRA, added=[BOW]))
        self.send("image-service", "paint_item", item_id=BOW)


class CampaignService(Service):
    """Manages the campaign The Hollow Crown."""

    name = "campaign-service"

    def on_events(self) -> Mapping[str, Reaction]:
        return {
            "character.created": self._validate,
            "character.validated": self._approve,
            "llm.content_generated": self._evolve,
        }

    def begin(self) -> None:
        self.publish(CampaignCreated(campaign_id=CAMPAIGN, name="The Hollow Crown", theme="autumn forest"))
        chapter = self.ask("llm-service", "name_chapter", theme="autumn forest")
        self.publish(CampaignChapterCreated(campaign_id=CAMPAIGN, chapter_id="chapter-1", title=chapter["title"]))
        self.send("image-service", "draw_map", campaign_id=CAMPAIGN)

    def change_theme(self) -> None:
        self.publish(CampaignThemeChanged(campaign_id=CAMPAIGN, theme="winter siege", previous_theme="autumn forest"))

    def _validate(self, created: Data) -> None:
        character_id = created["character_id"]
        self.publish(CampaignValidateCharacter(campaign_id=CAMPAIGN, character_id=character_id))
        self.ask("character-service", "check_rules", character_id=character_id)

    def _approve(self, validated: Data) -> None:
        if validated["valid"]:
            self.publish(CampaignCharacterApproved(campaign_id=CAMPAIGN, character_id=validated["character_id"]))

    def _evolve(self, content: Data) -> None:
        if "campaign_id" in content:
            self.publish(CampaignEvolved(campaign_id=CAMPAIGN, changes={"prologue": content["content_id"]}))


class ImageService(Service):
    """Generates portraits, items and maps."""

    name = "image-service"

    def on_events(self) -> Mapping[str, Reaction]:
        return {
            "llm.generate_prompt": self._paint_portrait,
            "character.updated": self._paint_portrait,
            "campaign.theme_changed": self._apply_theme,
        }

    def on_actions(self) -> Mapping[str, Reaction]:
        return {"draw_map": self._draw_map, "paint_item": self._paint_item}

    def _paint_portrait(self, about: Data) -> None:
        self.publish(ImagePortraitGenerated(image_id=_new("portrait"), character_id=about["character_id"]))

    def _apply_theme(self, changed: Data) -> None:
        self.publish(ImageThemeApplied(image_id="map-1", theme=changed["theme"]))

    def _draw_map(self, asked: Data) -> None:
        self.publish(ImageMapGenerated(image_id="map-1", campaign_id=asked["campaign_id"]))

    def _paint_item(self, asked: Data) -> None:
        self.publish(ImageItemGenerated(image_id=_new("item"), item_id=asked["item_id"]))


class LlmService(Service):
    """Generates stories, prompts and suggestions."""

    name = "llm-service"

    def on_events(self) -> Mapping[str, Reaction]:
        return {
            "character.created": self._introduce,
            "campaign.theme_changed": self._write_prologue,
            "character.refined": self._suggest,
        }

    def on_actions(self) -> Mapping[str, Reaction]:
        return {"name_chapter": lambda asked: {"title": f"The Road through the {asked['theme'].title()}"}}

    def _introduce(self, created: Data) -> None:
        name, character_id = created["name"], created["character_id"]
        story = f"{name} left the silent woods on the day the crown fell."
        self.publish(LlmContentGenerated(content_id=_new("story"), content=story, character_id=character_id))
        prompt = f"{name}, an elf ranger, hooded, dawn behind her"
        self.publish(LlmGeneratePrompt(prompt_id=_new("prompt"), prompt=prompt, character_id=character_id))

    def _write_prologue(self, changed: Data) -> None:
        text = f"Nobody had packed for a {changed['theme']}."
        self.publish(LlmContentGenerated(content_id=_new("prologue"), content=text, campaign_id=CAMPAIGN))

    def _suggest(self, refined: Data) -> None:
        suggestions = {"spell": "Hunter's Mark", "item": BOW}
        character_id = refined["character_id"]
        self.publish(
            LlmRefinementSuggested(refinement_id=_new("idea"), suggestions=suggestions, character_id=character_id)
        )


SERVICES: tuple[type[Service], ...] = (CharacterService, CampaignService, ImageService, LlmService)


@dataclass(frozen=True)
class Scene:
    """The first calls of one service, in its own thread. Reactions of the services do the rest."""

    title: str
    service: Service
    play: Callable[[], None]


def scenes(url: str, ledger: Ledger, timeout: float) -> tuple[tuple[Service, ...], tuple[Scene, ...]]:
    """Create the services, not started yet, and the scenes in their order.

    :param url: the hub.
    :param ledger: where the services note what they send and handle.
    :param timeout: seconds for each call of a client; values above 5 mean 5.
    """
    characters = CharacterService(url, ledger, timeout)
    campaigns = CampaignService(url, ledger, timeout)
    services = (characters, campaigns, ImageService(url, ledger, timeout), LlmService(url, ledger, timeout))
    return services, (
        Scene("A campaign begins: The Hollow Crown", campaigns, campaigns.begin),
        Scene("Mira is created, an elf ranger", characters, characters.create_mira),
        Scene("Winter comes, and the theme changes", campaigns, campaigns.change_theme),
        Scene("Mira is refined, and grows by it", characters, characters.refine_mira),
        Scene("An early draft of Mira is removed", characters, characters.dismiss_draft),
    )
