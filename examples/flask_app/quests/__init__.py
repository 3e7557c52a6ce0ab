"""A Flask service with a database: web processes publish, one process runs the handlers."""

from __future__ import annotations

import os
from typing import Any

from flask import Flask

from message_hub_sync.contrib.flask import health_blueprint
from quests import handlers, views
from quests.extensions import db, hub

__all__ = ["create_app", "handlers"]


def create_app(**config: Any) -> Flask:
    app = Flask(__name__)
    app.config.update(
        MESSAGE_HUB_SERVICE_NAME="quest-service",
        SQLALCHEMY_DATABASE_URI=os.environ.get("DATABASE_URL", "sqlite://"),
        # A connection that the database has closed is replaced before it is used.
        SQLALCHEMY_ENGINE_OPTIONS={"pool_pre_ping": True},
    )
    app.config.update(config)
    db.init_app(app)
    hub.init_app(app)
    app.register_blueprint(views.quests)
    app.register_blueprint(health_blueprint)

    @app.cli.command("create-tables")
    def create_tables() -> None:
        """Create the tables."""
        db.create_all()

    return app
