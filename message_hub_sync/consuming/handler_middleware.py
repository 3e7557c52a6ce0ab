"""The middleware of a client around its deliveries: ``arrived`` and ``handle``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from message_hub_sync.consuming.decoded_delivery import DecodedDelivery
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.middleware import Middleware, Received
from message_hub_sync.middleware.call_next import CallNext, method_name, refuse_not_run
from message_hub_sync.middleware.checking import overriding
from message_hub_sync.runtime.text import shown

__all__ = ["HandlerMiddleware"]


class HandlerMiddleware:
    """Calls the middleware of a client for one delivery. Immutable, so any thread may use it."""

    def __init__(self, middleware: Sequence[Middleware]) -> None:
        self._arrived: tuple[Callable[[Received], None], ...] = overriding(middleware, "arrived")
        self._handle: tuple[Callable[[Received, Callable[[], Any]], Any], ...] = overriding(middleware, "handle")

    @property
    def overrides_arrived(self) -> bool:
        """Whether any middleware overrides ``arrived``."""
        return bool(self._arrived)

    @property
    def overrides_handle(self) -> bool:
        """Whether any middleware overrides ``handle``."""
        return bool(self._handle)

    def arrived(self, decoded: DecodedDelivery, *, reply: bool = False) -> None:
        """Call each ``arrived`` with a delivery, in the order of the list. Raises what one of them raises.

        :param reply: it came to the queue for the replies of this client.
        """
        received = Received(decoded, is_reply=reply)
        for arrived in self._arrived:
            result: Any = arrived(received)
            if result is not None:
                refuse_not_run(result, arrived)
                # Else a check that returns False would accept what it wants to reject.
                raise MessageHubConfigurationError(
                    f"{method_name(arrived)} must return None, not {shown(result)}: to reject a delivery, raise "
                    "MessageHubRejectError"
                )

    def handle(self, decoded: DecodedDelivery, run: Callable[[], Any]) -> Any:
        """Run ``run`` inside each ``handle``, the first of the list outermost; returns what the outermost returns."""
        return self._step(0, Received(decoded), run)

    def _step(self, index: int, received: Received, run: Callable[[], Any]) -> Any:
        if index == len(self._handle):
            return run()
        method = self._handle[index]
        call_next = CallNext(method, index, partial(self._step, index + 1, received, run))
        try:
            result = method(received, call_next)
            if result is not None:
                refuse_not_run(result, method)
        finally:
            call_next.take_error()
            called = call_next.end()
        if called and not call_next.returned:
            # The handlers still run in another thread, so an error of them would be lost.
            raise MessageHubConfigurationError(f"{method_name(method)} must return after its call_next, not before it")
        return result
