"""All errors of this package, as one tree.

::

    MessageHubError
    ├── MessageHubConnectionError       no connection in time; nothing was sent
    │   └── MessageHubReentryError      called where the call would wait for itself; nothing was sent
    ├── MessageHubCircuitBreakerError   the circuit is open; nothing was sent
    ├── MessageHubDeliveryError         the hub did not confirm: rejected, or unknown
    ├── MessageHubTimeoutError          no reply to a request in time
    ├── MessageHubRemoteError           the handler of a request raised
    ├── MessageHubAuthorizationError    the login failed, or the user lacks a permission
    ├── MessageHubConfigurationError    a setting is wrong, or the broker's queues contradict it
    ├── MessageValidationError          (also a ValueError) a value given to a call is wrong
    ├── MessageHubRetryError            raised by a handler: deliver this message again later
    └── MessageHubRejectError           raised by a handler: dead-letter this message now

Errors of pika, ssl, socket and pybreaker are translated: none of them leaves the package. No error text contains a
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
    "MessageHubReentryError",
    "MessageHubRejectError",
    "MessageHubRemoteError",
    "MessageHubRetryError",
    "MessageHubTimeoutError",
    "MessageValidationError",
    "Outcome",
]

#: The longest delay before the next attempt, in seconds: that of the last retry queue.
LONGEST_DELAY = 3600

Outcome = Literal["rejected", "unknown"]


class MessageHubError(Exception):
    """Base of every error this package raises."""


class MessageHubConnectionError(MessageHubError):
    """There was no connection to the hub in time; nothing was sent, so the call can be repeated safely."""


class MessageHubReentryError(MessageHubConnectionError):
    """The call was made where it would wait for itself: inside another call of the client on the same thread (by a
    signal handler, or by ``__del__`` in a garbage collection), or on an I/O thread of the client. Nothing was sent, and
    no circuit counts it: make the call in another thread.
    """


class MessageHubCircuitBreakerError(MessageHubError):
    """A circuit is open (or half-open with a trial call in progress), so nothing was sent.

    It is the circuit of the destination, of the event type, or of the connection.

    :ivar retry_after: seconds until the circuit admits a trial call, at the latest. A circuit that was opened by lost
        connections admits one as soon as the connection is back.
    """

    def __init__(self, message: str, *, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class DeliveryFailure:
    """One message that the hub did not confirm.

    :ivar index: position of the message in the call, from 0.
    :ivar message_id: id of the message; repeat the message with this id.
    :ivar outcome: ``"rejected"``: certainly not accepted. ``"unknown"``: it may have been accepted.
    :ivar reason: why, for people.
    """

    index: int
    message_id: UUID
    outcome: Outcome
    reason: str


class MessageHubDeliveryError(MessageHubError):
    """The hub did not confirm a message, or some messages of a bulk call.

    :ivar outcome: ``"rejected"``: certainly not accepted. ``"unknown"``: it may have been accepted; repeat the call
        with ``message_id=error.message_id``, so that receivers can drop the duplicate.
    :ivar reason: why, for people; the error's text if no other reason was given.
    :ivar message_id: id of the message; ``None`` for a bulk call.
    :ivar failures: one :class:`DeliveryFailure` for each message that failed. A single send has one entry.
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
        # By default, pickle calls the class without keyword arguments. ``outcome`` is required, so unpickling would
        # fail: a process pool whose worker raised this error would break.
        return partial(type(self), outcome=self.outcome), self.args, vars(self)


class MessageHubTimeoutError(MessageHubError):
    """The request was delivered, but no reply came before its timeout."""


class MessageHubRemoteError(MessageHubError):
    """The handler of a request raised an exception in the other service.

    :ivar error_type: name of the exception's class there.
    :ivar error_message: what the handler told its caller: the reason of a :class:`MessageHubRejectError`, or what is
        wrong with the request. Empty for any other exception: its text is only in the log of that service.
    """

    def __init__(self, message: str, *, error_type: str = "", error_message: str = "") -> None:
        super().__init__(message)
        self.error_type = error_type
        self.error_message = error_message


class MessageHubAuthorizationError(MessageHubError):
    """The broker rejected the login, the vhost or the operation; it is not retried: change the user's permissions."""


class MessageHubConfigurationError(MessageHubError):
    """A setting has an invalid value, or a queue or exchange at the broker contradicts a setting."""


class MessageValidationError(MessageHubError, ValueError):
    """A value given to a call is not allowed; nothing was sent. The text names the value and the rule."""


class MessageHubRetryError(MessageHubError):
    """Raise this in a handler to have the message delivered again later.

    :param delay: seconds until then, from 0 to 3600, rounded up to the delay of a retry queue (1, 5, 30, 60, 300 or
        3600 s). ``None``: the next delay of the retry policy.
    :raises MessageValidationError: ``delay`` is something else.
    """

    def __init__(self, message: str = "the handler asked for a retry", *, delay: float | None = None) -> None:
        super().__init__(message)
        usable = isinstance(delay, (int, float)) and not isinstance(delay, bool) and 0 <= delay <= LONGEST_DELAY
        if delay is not None and not usable:
            raise MessageValidationError(
                f"delay must be a number of seconds from 0 to {LONGEST_DELAY}, or None for the next delay of the "
                f"retry policy, not {_shown_delay(delay)}"
            )
        self.delay = delay


class MessageHubRejectError(MessageHubError):
    """Raise this in a handler to have the message dead-lettered now, without another attempt.

    :param reason: why, for people; the dead-lettered message has it in the header ``x-reason``.
    """

    def __init__(self, reason: str = "the handler rejected the message") -> None:
        super().__init__(reason)
        self.reason = reason


def _shown_delay(delay: Any) -> str:
    # runtime.text.shown() is in a layer above this one. Python makes no text of an int of more than 4,300 digits.
    if type(delay) in (bool, float) or (type(delay) is int and -(10**15) < delay < 10**15):
        return repr(delay)
    return type(delay).__name__
