"""The answer to a request that needs the hub while the hub cannot be reached: 503, instead of 500."""

from __future__ import annotations

import math

from flask import Flask
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import ServiceUnavailable

from message_hub_sync.errors import MessageHubCircuitBreakerError, MessageHubConnectionError, MessageHubError
from message_hub_sync.runtime.log import SafeLogger

__all__ = ["answer_unavailable"]

logger = SafeLogger("message_hub_sync.client")


def answer_unavailable(app: Flask) -> None:
    """Answer with 503 if a view raises because there is no connection or a circuit is open: nothing was sent then.

    Other errors of the hub stay errors of the view. A handler of the application has precedence: one for one of these
    classes or for a base class that was registered before, or later for ``MessageHubError``.
    """

    def unavailable(error: MessageHubError) -> ResponseReturnValue:
        if not isinstance(error, (MessageHubConnectionError, MessageHubCircuitBreakerError)):
            raise error
        logger.warning("a request is answered with 503: %s", error)
        # The text of the error is not for the client: it may name hosts.
        retry_after = None
        if isinstance(error, MessageHubCircuitBreakerError):
            retry_after = max(1, math.ceil(error.retry_after))
        # So an error handler of the application for 503 or HTTPException makes the response.
        return app.handle_http_exception(
            ServiceUnavailable("A service that this request needs is not available now.", retry_after=retry_after)
        )

    # For the base class, so that handlers of the application for one of the subclasses have precedence.
    if MessageHubError not in app.error_handler_spec[None][None]:
        app.register_error_handler(MessageHubError, unavailable)
