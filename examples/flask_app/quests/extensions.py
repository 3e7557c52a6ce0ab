"""The extensions, at module level. They connect to nothing until they are used."""

from __future__ import annotations

from flask_sqlalchemy import SQLAlchemy

from message_hub_sync.contrib.flask import MessageHub

db = SQLAlchemy()
hub = MessageHub()
