"""What is in the database."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, String
from sqlalchemy.orm import Mapped, mapped_column

from quests.extensions import db


class Quest(db.Model):  # type: ignore[name-defined,misc]  # the base class is made at run time
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    places: Mapped[list[str]] = mapped_column(JSON, default=list)

    def as_json(self) -> dict[str, Any]:
        return {"id": self.id, "name": self.name, "places": self.places}
