"""What the payload models ask for, and what they leave alone."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
from pydantic import ValidationError
from pydantic_core import to_json

from message_hub_sync.catalogue import (
    ActionPayload,
    CampaignThemeChanged,
    CharacterCreated,
    CharacterUpdated,
    EventType,
    catalogue,
)

CHARACTER = UUID("6f1c1d1e-5a41-4d0b-9d0e-0a3c5f1e2b7d")
#: What a payload is about, by service; the two events that join a character to a campaign need both.
IDENTITIES = {
    "llm.content_generated": {"content_id"},
    "llm.refinement_suggested": {"refinement_id"},
    "llm.generate_prompt": {"prompt_id"},
    "campaign.validate_character": {"campaign_id", "character_id"},
    "campaign.character_approved": {"campaign_id", "character_id"},
}


def identities(event: EventType) -> set[str]:
    return IDENTITIES.get(event.name, {f"{event.name.partition('.')[0]}_id"})


@pytest.mark.parametrize("event", catalogue, ids=str)
def test_a_model_requires_only_the_identity_of_what_it_speaks_of(event: EventType) -> None:
    required = {name for name, field in event.model.model_fields.items() if field.is_required()}

    assert required == identities(event)
    event.model.model_validate(dict.fromkeys(required, "x"))


@pytest.mark.parametrize("event", catalogue, ids=str)
def test_a_single_identity_is_also_accepted_as_id_and_serialised_by_its_field_name(event: EventType) -> None:
    names = identities(event)
    if len(names) == 2:
        with pytest.raises(ValidationError):
            event.model.model_validate({"id": "x"})
        return
    assert json.loads(to_json(event.model.model_validate({"id": "x"}))) == dict.fromkeys(names, "x")


@pytest.mark.parametrize("event", catalogue, ids=str)
@pytest.mark.parametrize("wrong", [None, "", 7, ["x"]])
def test_an_identity_that_is_no_text_is_refused(event: EventType, wrong: Any) -> None:
    with pytest.raises(ValidationError):
        event.model.model_validate(dict.fromkeys(identities(event), wrong))


@pytest.mark.parametrize("event", catalogue, ids=str)
def test_what_a_model_does_not_know_is_kept(event: EventType) -> None:
    payload = {**dict.fromkeys(identities(event), "x"), "class": "wizard", "nested": {"deep": [1]}}

    assert json.loads(to_json(event.model.model_validate(payload))) == payload


@pytest.mark.parametrize("event", catalogue, ids=str)
def test_every_field_is_described(event: EventType) -> None:
    assert all(field.description for field in event.model.model_fields.values())


def test_a_uuid_is_an_identity_and_becomes_its_text() -> None:
    assert CharacterCreated.model_validate({"character_id": CHARACTER}).character_id == str(CHARACTER)
    assert CharacterCreated.model_validate({"id": CHARACTER}).character_id == str(CHARACTER)


def test_an_id_beside_the_identity_is_kept_as_what_it_is() -> None:
    model = CharacterCreated.model_validate({"character_id": "a", "id": "b"})

    assert model.character_id == "a"
    assert model.model_dump() == {"character_id": "a", "id": "b"}


def test_an_optional_field_is_left_out_unless_it_was_given_even_as_none() -> None:
    assert json.loads(to_json(CharacterUpdated(character_id="a"))) == {"character_id": "a"}
    given = CharacterCreated(character_id="a", name=None, level=0)
    assert json.loads(to_json(given)) == {"character_id": "a", "name": None, "level": 0}


def test_a_payload_survives_its_own_json() -> None:
    model = CampaignThemeChanged(campaign_id="c", theme={"name": "gothic"}, season="winter")

    assert CampaignThemeChanged.model_validate_json(to_json(model)) == model


def test_a_payload_cannot_be_changed_after_it_was_made() -> None:
    with pytest.raises(ValidationError):
        CharacterCreated(character_id="a").character_id = "b"  # type: ignore[misc]


def test_an_action_needs_its_name_only_and_is_dated_now_in_utc() -> None:
    before = datetime.now(timezone.utc)
    payload = ActionPayload(action="process_data")

    assert payload.version == "1.0"
    assert before <= payload.timestamp <= before + timedelta(seconds=30)
    assert payload.timestamp.utcoffset() == timedelta(0)
    assert set(json.loads(to_json(payload))) == {"action", "version", "timestamp", "data", "metadata"}


def test_the_guides_good_payload_is_an_action_payload_and_comes_out_as_it_went_in() -> None:
    guide = {
        "action": "process_data",
        "version": "1.0",
        "timestamp": "2025-09-20T10:00:00Z",
        "data": {"id": "uuid-here", "attributes": {"name": "value", "type": "type"}},
        "metadata": {"source": "service-name", "correlation_id": "uuid-here"},
    }

    assert json.loads(to_json(ActionPayload.model_validate(guide))) == guide


def test_an_action_without_a_name_is_refused() -> None:
    with pytest.raises(ValidationError):
        ActionPayload(action="")
