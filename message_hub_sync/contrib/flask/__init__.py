"""The Message Hub in Flask. Needs the extra ``flask``: ``pip install 'message-hub-sync[flask]'``."""

from message_hub_sync.contrib.flask.extension import MessageHub
from message_hub_sync.contrib.flask.health_pages import health_blueprint

__all__ = ["MessageHub", "health_blueprint"]
