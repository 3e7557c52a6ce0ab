"""What can go wrong, as one tree.

::

    MessageHubError
    ├── MessageHubConnectionError       no connection in time; nothing was sent
    ├── MessageHubCircuitBreakerError   the circuit is open; nothing was sent
    ├── MessageHubDeliveryError         rejected (certainly not accepted) or unknown (may have been)
    ├── MessageHubTimeoutError          a request without a reply
    ├── MessageHubRemoteError           the other side of a request failed
    ├── MessageHubAuthorizationError    the broker does not let this user do that
    ├── MessageHubConfigurationError    a setting, or what the broker holds, does not fit
    ├── MessageValidationError          (also a ValueError) the call's own values are wrong
    ├── MessageHubRetryError            raised by a handler: try this message again later
    └── MessageHubRejectError           raised by a handler: never try this message again

No error of pika, ssl, socket or pybreaker leaves the package, and no text here ever holds a
password, a key or a message body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal
from uuid import UUID

__all__ = [
    "DeliveryFailure",
    "MessageHubAuthorizationError",
    "MessageHubCircuitBreakerError",
    "MessageHubConfigurationError",
    "MessageHubConnectionError",
    "MessageHubDeliveryError",
    "MessageHubError",
    "MessageHubRejectError",
    "MessageHubRemoteError",
    "MessageHubRetryError",
    "MessageHubTimeoutError",
    "MessageValidationError",
    "Outcome",
]

#: Seconds a message can wait for its next attempt: the top of the delay ladder.
LONGEST_DELAY = 3600

Outcome = Literal["rejected", "unknown"]


class MessageHubError(Exception):
    """Base of every error this package raises."""


class MessageHubConnectionError(MessageHubError):
    """No connection to the hub in time. Nothing was sent; the call can be repeated safely."""


class MessageHubCircuitBreakerError(MessageHubError):
    """The destination's circuit is open, so nothing was sent.

    ``retry_after`` is the number of seconds after which a trial call is admitted at the latest: a circuit that lost
    connections opened admits one as soon as the connection is back.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class DeliveryFailure:
    """One message of a bulk call that was not confirmed: its place in the call, its id, what became of it."""

    index: int
    message_id: UUID
    outcome: Outcome
    reason: str


class MessageHubDeliveryError(MessageHubError):
    """The hub did not confirm a message.

    ``outcome`` is ``"rejected"`` when the message was certainly not accepted, and ``"unknown"`` when
    it may or may not have been. Repeat an unknown one with ``message_id=error.message_id``, so that
    receivers can drop the duplicate. ``failures`` names each message that failed; it has one entry
    for a single send and any number for a bulk call.
    """

    def __init__(
        self,
        message: str,
        *,
        outcome: Outcome,
        reason: str = "",
        message_id: UUID | None = None,
        failures: Sequence[DeliveryFailure] = (),
    ) -> None:
        super().__init__(message)
        self.outcome: Outcome = outcome
        self.reason = reason or message
        self.message_id = message_id
        if not failures and message_id is not None:
            failures = (DeliveryFailure(0, message_id, outcome, self.reason),)
        self.failures: tuple[DeliveryFailure, ...] = tuple(failures)

    def __reduce__(self) -> tuple[Any, ...]:
        # pickle knows of no keywords; a process pool whose worker raised this would break.
        return partial(type(self), outcome=self.outcome), self.args, vars(self)


class MessageHubTimeoutError(MessageHubError):
    """A request was delivered, and no reply came before its timeout."""


class MessageHubRemoteError(MessageHubError):
    """The handler on the other side of a request raised.

    ``error_type`` is the name of the exception's class there, ``error_message`` its text.
    """

    def __init__(self, message: str, *, error_type: str = "", error_message: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.error_message = error_message


class MessageHubAuthorizationError(MessageHubError):
    """The broker refused the credentials, the vhost or the permission. Not retried: mend it there."""


class MessageHubConfigurationError(MessageHubError):
    """A setting is not usable, or the broker holds something that contradicts it."""


class MessageValidationError(MessageHubError, ValueError):
    """A value given to the call is not allowed; nothing was sent. The text says what is."""


class MessageHubRetryError(MessageHubError):
    """Raise it in a handler to have the message delivered again later.

    ``delay`` is in seconds, at most 3600, and is rounded up to a rung of the delay ladder; ``None`` takes the
    policy's next delay. Any other value is a :class:`MessageValidationError`.
    """

    def __init__(self, message: str = "the handler asked for a retry", *, delay: float | None = None) -> None:
        super().__init__(message)
        usable = isinstance(delay, (int, float)) and not isinstance(delay, bool) and 0 <= delay <= LONGEST_DELAY
        if delay is not None and not usable:
            raise MessageValidationError(
                f"delay {str(delay)[:40]!r} is not usable: seconds from 0 to {LONGEST_DELAY}, or None for the policy's"
            )
        self.delay = delay


class MessageHubRejectError(MessageHubError):
    """Raise it in a handler to have the message dead-lettered at once, with ``reason``."""

    def __init__(self, reason: str = "the handler rejected the message") -> None:
        super().__init__(reason)
        self.reason = reason
