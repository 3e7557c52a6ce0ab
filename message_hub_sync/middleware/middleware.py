"""What a middleware is: the methods to override."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from message_hub_sync.middleware.received import Received
from message_hub_sync.middleware.sending import Sending

__all__ = ["Middleware"]


class Middleware:
    """Code that runs around each call that sends and each delivery that is handled. Override the methods that you need.

    One object serves all threads of its client at the same time, so it must be thread-safe. A method that is not
    overridden is never called.
    """

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        """Run around one call that sends, on the caller's thread. It must call ``call_next`` once.

        It runs once for each call: a single message is a batch of one, a bulk call is one batch. It also runs for
        replies. It does not run for attempts that the library repeats inside the call, nor for messages that the
        library republishes to retry queues and dead-letter queues. Its time counts against the call's ``timeout``.

        If this method sends a message itself, that message passes only the middleware after this one in the list:
        otherwise it would call itself without end.

        :param batch: what is sent, in order. Headers may be added.
        :param call_next: sends. It returns when the broker has all messages, and raises what the caller would get.
            After that, each ``Sending`` has its ``outcome``. A second call raises
            :class:`MessageHubConfigurationError`.

        What this method raises reaches the caller. If it raises before ``call_next``, nothing was sent. If it returns
        without ``call_next``, nothing was sent and the caller gets a :class:`MessageHubConfigurationError`. An error of
        ``call_next`` that it does not pass on is raised nevertheless.
        """
        call_next()

    def arrived(self, received: Received) -> None:
        """Look at a delivery before anything else is done with it, on the consumer's thread.

        It runs for each delivery, replies included, before the body is decoded, a reply is matched to its request, or
        a duplicate is dropped.

        :raises MessageHubRejectError: the delivery must not be handled. It is moved to the dead-letter queue with the
            reason. If its queue has none, it is dropped and counted. Nobody gets a reply. Any other error counts as an
            error of the handler.
        """

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        """Run around the handling of one delivery, on the consumer's thread, in a context of its own.

        ``call_next`` runs the check for duplicates and all callbacks of the delivery. The reply is sent, and the
        delivery is acknowledged, after the outermost ``handle`` has returned. A reply to a request of this process is
        not handled, so it passes ``arrived`` only.

        :param call_next: runs the callbacks and returns their result; raises what they raise. A second call raises
            :class:`MessageHubConfigurationError`.
        :returns: the result, which is the reply if the delivery is a request. ``None`` sends no reply.

        If it returns without ``call_next``, the delivery counts as handled already: it is acknowledged and counted as
        skipped. What it raises counts as the error of the handler: a retry, then the dead-letter queue.
        """
        return call_next()
