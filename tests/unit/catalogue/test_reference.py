"""The guide's events reference and the catalogue are the same, name by name."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from message_hub_sync.catalogue import catalogue

GUIDE = Path(__file__).parents[3] / "docs" / "integration_guide.md"


@dataclass
class Section:
    published: dict[str, str] = field(default_factory=dict)
    subscribed: dict[str, str] = field(default_factory=dict)


def reference() -> dict[str, Section]:
    """Service name to the names and descriptions that the guide lists for it."""
    text = GUIDE.read_text(encoding="utf-8").partition("## Message Hub Events Reference")[2]
    sections: dict[str, Section] = {}
    names: dict[str, str] = {}
    for line in text.splitlines():
        if heading := re.fullmatch(r"### (\w+) Service Events", line):
            section = sections.setdefault(f"{heading[1].lower()}-service", Section())
        elif line in ("Published:", "Subscribed:"):
            names = section.published if line == "Published:" else section.subscribed
        elif entry := re.fullmatch(r"- `([^`]+)`: (.+)", line):
            names[entry[1]] = entry[2]
        else:
            assert not line.strip(), f"a line of the reference that this test cannot read: {line!r}"
    return sections


SECTIONS = reference()


def test_the_guide_lists_22_published_events_of_four_services() -> None:
    assert list(SECTIONS) == ["character-service", "campaign-service", "image-service", "llm-service"]
    assert sum(len(section.published) for section in SECTIONS.values()) == 22


@pytest.mark.parametrize("service", SECTIONS)
def test_a_service_publishes_exactly_what_the_guide_lists_with_its_descriptions(service: str) -> None:
    published = {event.name: event.description for event in catalogue if event.publisher == service}

    assert published == SECTIONS[service].published
    assert list(published) == list(SECTIONS[service].published)


@pytest.mark.parametrize("service", SECTIONS)
def test_a_service_subscribes_to_exactly_what_the_guide_lists(service: str) -> None:
    subscribed = {event.name for event in catalogue if service in event.subscribers}

    assert subscribed == set(SECTIONS[service].subscribed)


def test_the_catalogue_holds_no_other_event_and_no_other_service() -> None:
    named = {name for section in SECTIONS.values() for name in (*section.published, *section.subscribed)}

    assert {event.name for event in catalogue} == named
    assert set(catalogue.services()) == set(SECTIONS)


def test_campaign_validated_is_subscribed_to_and_nobody_is_listed_to_publish_it() -> None:
    event = catalogue.get("campaign.validated")

    assert event is not None
    assert event.publisher is None
    assert event.subscribers == ("character-service",)
    assert event.description == SECTIONS["character-service"].subscribed["campaign.validated"]
    published = {name for section in SECTIONS.values() for name in section.published}
    assert [known.name for known in catalogue if known.name not in published] == ["campaign.validated"]


@pytest.mark.parametrize("event", catalogue, ids=str)
def test_the_model_is_called_as_the_event_in_camel_case_and_says_what_it_is(event: object) -> None:
    known = catalogue.get(str(event))

    assert known is not None
    assert known.model.__name__ == "".join(word.capitalize() for word in re.split(r"[._]", known.name))
    assert known.model.__doc__
    assert catalogue.event_type_of(known.model) is known
