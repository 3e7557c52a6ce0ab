"""Middleware: code that is called around each message that is sent or handled (tracing, signing, frameworks, an inbox).

A client gets its middleware once, ``MessageHubClient(middleware=[…])``. The first of the list is the outermost. A
client without middleware uses other entry points, so middleware costs it nothing.
"""

from __future__ import annotations

from message_hub_sync.middleware.middleware import Middleware
from message_hub_sync.middleware.received import Received
from message_hub_sync.middleware.sending import Sending

__all__ = ["Middleware", "Received", "Sending"]
