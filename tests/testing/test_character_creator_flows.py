"""The character creator's flows: its character service is under test, the test plays the other three.

Every flow runs over the embedded hub and over RabbitMQ.
"""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from message_hub_sync import Event, Message, MessageHubClient
from message_hub_sync.catalogue import (
    CampaignCharacterApproved,
    CampaignThemeChanged,
    CampaignValidateCharacter,
    CharacterCreated,
    CharacterDeleted,
    CharacterRefined,
    CharacterUpdated,
    CharacterValidated,
    ImageThemeApplied,
    LlmContentGenerated,
)
from message_hub_sync.testing import MessageHubTestFramework, MockService


class CharacterService:
    """What is tested: it keeps characters, has them validated, and follows what the others say.

    Mutable, guarded by ``_lock``: the characters, by id.
    """

    def __init__(self, client: MessageHubClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._numbers = itertools.count(1)
        self.characters: dict[str, dict[str, object]] = {}
        client.subscribe(["campaign.validate_character"], self.validate)
        client.subscribe(["campaign.character_approved"], self.approve)
        client.subscribe(["campaign.theme_changed"], self.change_theme)
        client.subscribe(["llm.content_generated"], self.add_content)

    def create(self, name: str, level: int = 1, campaign_id: str = "moria") -> str:
        """A new character, which the campaign has yet to approve."""
        with self._lock:
            character_id = f"character-{next(self._numbers)}"
            self.characters[character_id] = {"name": name, "level": level, "campaign": campaign_id, "approved": False}
        self._client.publish_event(
            CharacterCreated(character_id=character_id, name=name, level=level, campaign_id=campaign_id)
        )
        return character_id

    def update(self, character_id: str, **changes: object) -> None:
        with self._lock:
            self.characters[character_id].update(changes)
        self._client.publish_event(CharacterUpdated(character_id=character_id, changes=changes))

    def delete(self, character_id: str, reason: str | None = None) -> None:
        with self._lock:
            del self.characters[character_id]
        self._client.publish_event(CharacterDeleted(character_id=character_id, reason=reason))

    def validate(self, event: Event[CampaignValidateCharacter]) -> None:
        character_id = str(event.payload.character_id)
        errors = [] if self.characters[character_id]["level"] in range(1, 21) else ["level must be 1 to 20"]
        self._client.publish_event(
            CharacterValidated(
                character_id=character_id,
                campaign_id=event.payload.campaign_id,
                valid=not errors,
                errors=errors,
            )
        )
        if errors:
            self.delete(character_id, reason=errors[0])

    def approve(self, approved: CampaignCharacterApproved) -> None:
        self.update(str(approved.character_id), approved=True)

    def add_content(self, generated: LlmContentGenerated) -> None:
        self.update(str(generated.character_id), backstory=generated.content)

    def change_theme(self, changed: CampaignThemeChanged) -> None:
        for character_id, character in list(self.characters.items()):
            if character["campaign"] == changed.campaign_id:
                character["theme"] = changed.theme
                self._client.publish_event(CharacterRefined(character_id=character_id, refinements=["theme"]))


@pytest.fixture
def campaign(framework: MessageHubTestFramework) -> MockService:
    service = framework.create_mock_service("campaign-service")
    service.subscribe_to_events(["character.created", "character.updated", "character.validated", "character.deleted"])
    return service


@pytest.fixture
def llm(framework: MessageHubTestFramework) -> MockService:
    service = framework.create_mock_service("llm-service")
    service.subscribe_to_events(["character.created", "campaign.theme_changed", "character.refined"])
    return service


@pytest.fixture
def image(framework: MessageHubTestFramework) -> MockService:
    service = framework.create_mock_service("image-service")
    service.subscribe_to_events(["campaign.theme_changed", "llm.generate_prompt"])
    return service


@pytest.fixture
def characters(framework: MessageHubTestFramework) -> CharacterService:
    return CharacterService(framework.client("character-service"))


def test_a_character_is_created_validated_approved_and_written_about(
    framework: MessageHubTestFramework, characters: CharacterService, campaign: MockService, llm: MockService
) -> None:
    character_id = characters.create("Frodo", level=3)
    created = campaign.expect_event(CharacterCreated, where={"character_id": character_id})
    assert created.payload.name == "Frodo"
    llm.expect_event(CharacterCreated, where={"character_id": character_id})

    flow = created.correlation_id
    campaign.publish_event(
        CampaignValidateCharacter(campaign_id="moria", character_id=character_id), correlation_id=flow
    )
    validated = campaign.expect_event(CharacterValidated)
    assert (validated.payload.valid, validated.correlation_id) == (True, flow)

    campaign.publish_event(
        CampaignCharacterApproved(campaign_id="moria", character_id=character_id), correlation_id=flow
    )
    approved = campaign.expect_event(CharacterUpdated, where={"changes": {"approved": True}})
    assert approved.correlation_id == flow

    llm.publish_event(LlmContentGenerated(content_id="1", character_id=character_id, content="Born in the Shire"))
    campaign.expect_event(CharacterUpdated, where={"changes": {"backstory": "Born in the Shire"}})
    assert characters.characters[character_id] == {
        "name": "Frodo",
        "level": 3,
        "campaign": "moria",
        "approved": True,
        "backstory": "Born in the Shire",
    }


def test_a_change_of_theme_reaches_three_services(
    framework: MessageHubTestFramework,
    characters: CharacterService,
    campaign: MockService,
    llm: MockService,
    image: MockService,
) -> None:
    here, there = characters.create("Frodo"), characters.create("Aragorn", campaign_id="gondor")
    with framework.intercept(framework.client("character-service")) as traffic:
        event_id = campaign.publish_event(CampaignThemeChanged(campaign_id="moria", theme="dark"))
        delivered = framework.verify_event_delivery(
            "campaign-service", "campaign.theme_changed", event_id, ["image-service", "llm-service"]
        )
        assert delivered == (True, ["image-service", "llm-service"])
        assert traffic.received(CampaignThemeChanged).id == event_id
        assert [event.payload["character_id"] for event in traffic.events_published] == [here]
    assert llm.expect_event(CharacterRefined).payload.refinements == ["theme"]
    assert (characters.characters[here]["theme"], characters.characters[there].get("theme")) == ("dark", None)

    campaign.subscribe_to_events("image.theme_applied")
    image.publish_event(ImageThemeApplied(image_id="portrait-1", theme="dark"))
    campaign.expect_event(ImageThemeApplied, where={"theme": "dark"})


def test_a_failed_validation_is_rolled_back(
    framework: MessageHubTestFramework, characters: CharacterService, campaign: MockService
) -> None:
    character_id = characters.create("Sauron", level=99)
    campaign.expect_event(CharacterCreated)
    campaign.publish_event(CampaignValidateCharacter(campaign_id="moria", character_id=character_id))
    validated = campaign.expect_event(CharacterValidated)
    assert (validated.payload.valid, validated.payload.errors) == (False, ["level must be 1 to 20"])
    deleted = campaign.expect_event(CharacterDeleted, where={"character_id": character_id})
    assert deleted.payload.reason == "level must be 1 to 20"
    assert deleted.correlation_id == validated.correlation_id
    assert characters.characters == {}
    assert framework.verify_no_cross_talk(["campaign-service"])
    assert "character.updated" not in [event.event_type for event in campaign.events_received]


def test_create_update_and_delete_arrive_in_order(framework: MessageHubTestFramework) -> None:
    watcher = framework.create_mock_service("audit-service")
    # One queue for all of them: across queues there is no order.
    watcher.subscribe_to_events("character.*")
    characters = CharacterService(framework.client("character-service"))
    for _ in range(10):
        character_id = characters.create("Frodo")
        characters.update(character_id, level=2)
        characters.delete(character_id)
    received = [watcher.expect_event() for _ in range(30)]
    assert [event.event_type for event in received] == [
        "character.created",
        "character.updated",
        "character.deleted",
    ] * 10
    assert [event.payload["character_id"] for event in received[::3]] == [f"character-{n}" for n in range(1, 11)]


def test_many_concurrent_operations_all_arrive_once(
    framework: MessageHubTestFramework, campaign: MockService, llm: MockService
) -> None:
    characters = CharacterService(framework.client("character-service"))
    llm.reply_with(lambda message: {"backstory": f"of {message.payload['name']}"})
    client = framework.client("character-service")

    def play(number: int) -> Message:
        character_id = characters.create(f"hobbit-{number}", level=number % 20 + 1)
        characters.update(character_id, number=number)
        return client.request("llm-service", {"name": f"hobbit-{number}"})

    with ThreadPoolExecutor(8) as players:
        answers = list(players.map(play, range(100)))
    assert [answer.payload["backstory"] for answer in answers] == [f"of hobbit-{number}" for number in range(100)]
    for _ in range(100):
        campaign.expect_event(CharacterCreated)
        campaign.expect_event(CharacterUpdated)
        llm.expect_event(CharacterCreated)
    assert framework.verify_no_cross_talk(["campaign-service", "llm-service"])
    ids = [event.id for event in campaign.events_received]
    assert len(ids) == len(set(ids)) == 200
    assert {event.payload["name"] for event in campaign.events_received if "name" in event.payload} == {
        f"hobbit-{number}" for number in range(100)
    }
    assert len(llm.messages_received) == 100
    assert len(characters.characters) == 100


def test_a_flow_survives_a_lost_connection_at_every_step(
    framework: MessageHubTestFramework, characters: CharacterService, campaign: MockService
) -> None:
    faults = framework.faults(framework.client("character-service"))
    faults.cut_before(where=lambda event: event.event_type == "character.created")
    faults.cut_after(where=lambda event: event.event_type == "character.validated")
    character_id = characters.create("Frodo")
    campaign.expect_event(CharacterCreated, where={"character_id": character_id})
    campaign.publish_event(CampaignValidateCharacter(campaign_id="moria", character_id=character_id))
    first, again = (campaign.expect_event(CharacterValidated) for _ in range(2))
    assert faults.pending == []
    assert first.id == again.id
