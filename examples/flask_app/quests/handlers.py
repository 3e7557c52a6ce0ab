"""The handlers. Each delivery has an app context and a session of its own, which is removed after it."""

from __future__ import annotations

from typing import Any

from message_hub_sync import Message, MessageHubRejectError
from quests.extensions import db, hub
from quests.models import Quest


@hub.on_event("place.reached")
def on_place_reached(event: dict[str, Any]) -> None:
    quest = db.session.get(Quest, event["quest_id"])
    if quest is None:
        raise MessageHubRejectError("there is no such quest")  # trying again would not help
    # An event can come twice, so a place that is there already is not added again.
    if event["place"] not in quest.places:
        quest.places = [*quest.places, event["place"]]
    db.session.commit()


@hub.on_message
def on_message(message: Message) -> dict[str, Any]:
    """Answers requests of other services: which quests are there?"""
    return {"quests": [quest.as_json() for quest in db.session.execute(db.select(Quest)).scalars()]}
