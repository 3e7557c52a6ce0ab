"""The service as others see it: over HTTP, and over the hub."""

from __future__ import annotations

import pytest
from flask import Flask
from quests.handlers import on_place_reached

from message_hub_sync import MessageHubRejectError
from message_hub_sync.testing import MessageHubTestFramework


def test_a_quest_is_announced(app: Flask, framework: MessageHubTestFramework) -> None:
    maps = framework.create_mock_service("map-service")
    maps.subscribe_to_events(["quest.started"])

    response = app.test_client().post("/quests", json={"name": "the ring"}, headers={"X-Request-ID": "abc"})

    assert response.status_code == 201
    event = maps.expect_event("quest.started")
    assert (event.payload, event.correlation_id) == ({"quest_id": 1, "name": "the ring"}, "abc")


def test_a_place_that_is_reached_is_shown_once(app: Flask, framework: MessageHubTestFramework) -> None:
    client = app.test_client()
    client.post("/quests", json={"name": "the ring"})
    maps = framework.create_mock_service("map-service")
    for place in ("Bree", "Bree", "Rivendell"):
        maps.publish_event("place.reached", {"quest_id": 1, "place": place})

    assert client.get("/quests/1").json == {"id": 1, "name": "the ring", "places": ["Bree", "Rivendell"]}


def test_other_services_can_ask(app: Flask, framework: MessageHubTestFramework) -> None:
    app.test_client().post("/quests", json={"name": "the ring"})
    reply = framework.client("map-service").request("quest-service", {"action": "list"})
    assert [quest["name"] for quest in reply.payload["quests"]] == ["the ring"]


def test_a_place_of_no_quest_is_rejected(app: Flask) -> None:
    with app.app_context(), pytest.raises(MessageHubRejectError):
        on_place_reached({"quest_id": 7, "place": "Bree"})
