"""The views. If the hub cannot be reached, the answer is 503, and nothing was stored."""

from __future__ import annotations

from typing import Any

from flask import Blueprint, request

from quests.extensions import db, hub
from quests.models import Quest

quests = Blueprint("quests", __name__)


@quests.post("/quests")
def start() -> tuple[dict[str, Any], int]:
    quest = Quest(name=request.get_json()["name"], places=[])
    db.session.add(quest)
    db.session.flush()  # it has an id now
    hub.publish_event("quest.started", {"quest_id": quest.id, "name": quest.name})
    # After the event: if publishing raises, nothing is stored. If the commit fails, an event was sent for nothing.
    db.session.commit()
    return quest.as_json(), 201


@quests.get("/quests/<int:quest_id>")
def show(quest_id: int) -> dict[str, Any]:
    quest: Quest = db.get_or_404(Quest, quest_id)
    return quest.as_json()
