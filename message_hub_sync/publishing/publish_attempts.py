"""The result of the attempts to publish one message, and the error that its caller gets. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from uuid import UUID

from message_hub_sync.envelope.header_names import DESTINATION
from message_hub_sync.envelope.ids import uuid_of
from message_hub_sync.errors import (
    DeliveryFailure,
    MessageHubAuthorizationError,
    MessageHubCircuitBreakerError,
    MessageHubConfigurationError,
    MessageHubConnectionError,
    MessageHubDeliveryError,
    MessageHubError,
    MessageValidationError,
)
from message_hub_sync.publishing.acceptance import Acceptance
from message_hub_sync.publishing.circuit_breaker import Permit
from message_hub_sync.runtime.process_kind import uwsgi_hint
from message_hub_sync.runtime.real_time import time
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Outgoing, PublishResult
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, EVENTS, inbox_name

__all__ = ["PublishAttempts", "Verdict", "bulk_error", "report_to_circuit", "verdicts_of"]

#: The private attribute of a bulk call's error that :func:`verdicts_of` reads.
_VERDICTS = "_verdicts"

_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_PRECONDITION_FAILED = 406
_TOO_LARGE = (
    "send a smaller payload, for example the address of stored data, or raise max_message_size in the broker's "
    "configuration"
)


class Verdict(Enum):
    """The final result of publishing one message."""

    CONFIRMED = "confirmed"
    NOT_SENT = "not sent"
    CIRCUIT_OPEN = "circuit open"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"
    INVALID = "invalid"
    UNROUTABLE = "unroutable"
    NACKED = "nacked"
    CHANNEL_ERROR = "channel error"
    UNKNOWN = "unknown"


#: The broker answered, so a trial call has shown that it is reachable.
_ANSWERED = (Verdict.UNROUTABLE, Verdict.CHANNEL_ERROR, Verdict.UNAUTHORIZED)

#: If all messages of a bulk call have the same one of these verdicts, nothing was sent: the caller gets that error, not
#: a list of failures.
_ERRORS_OF_THEIR_OWN = {Verdict.NOT_SENT, Verdict.UNAUTHORIZED, Verdict.MISCONFIGURED, Verdict.INVALID}


class PublishAttempts:
    """The result of the attempts to publish one message. No lock: only the thread of the call uses it."""

    # Class attributes are the initial values: nearly every message is confirmed at once, which sets only the verdict.
    #: Publish the next attempt on a channel of its own.
    own_channel = False
    #: An attempt was written and may have been accepted: its answer is lost, or does not show that.
    unanswered = False
    #: An attempt on a shared channel ended because the channel was closed, and may have been accepted: the reply code.
    shared_code: int | None = None
    #: Declare the event exchange before the next attempt.
    exchange_missing = False
    exchange_declared = False
    lost_connection = False
    #: The broker accepted no messages at all.
    blocked = False
    #: The result for the caller; ``None``: another attempt is due.
    verdict: Verdict | None = None
    #: The result of the last attempt, which the circuit counts.
    last: Verdict | None = None
    reason = ""
    _message_id: UUID | None = None

    #: Of a request: whether its reply has come.
    acceptance: Acceptance | None = None

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing

    def note(self, result: PublishResult | None, reason: str = "", code: int = 0) -> None:
        """Note the result of one attempt. If there is no verdict afterwards, another attempt is due.

        :param result: ``None``: no confirm came before the deadline.
        :param reason: the reason that the broker gave, if any.
        :param code: the reply code of a channel that the broker closed.
        """
        if result is PublishResult.CONFIRMED:
            self.verdict = Verdict.CONFIRMED
        elif result is PublishResult.RETURNED:
            self.end(Verdict.UNROUTABLE, self._no_queue())
        elif result is PublishResult.BLOCKED:
            # Counts as a failure of the connection: the transport reports the end of an alarm as it reports a new
            # connection, and the circuit then admits a trial call.
            self.blocked = True
            self.end(Verdict.NACKED, reason)
        elif result is PublishResult.NACKED:
            # An exchange routes to any number of queues. A nack means that one queue rejected the event; others may
            # have accepted it.
            self.unanswered = self.unanswered or self.outgoing.exchange != DEFAULT_EXCHANGE
            self.end(Verdict.NACKED, reason or "the broker rejected it (nack)")
        elif result is PublishResult.INVALID:
            self.end(Verdict.INVALID, reason)
        elif result is PublishResult.CHANNEL_ERROR_SHARED and not self.own_channel:
            self.own_channel = True
            self.shared_code = code
        elif result in (PublishResult.CHANNEL_ERROR_SHARED, PublishResult.CHANNEL_ERROR):
            self._channel_closed(reason, code)
        elif result is PublishResult.LOST:
            self.unanswered = self.lost_connection = True
            self.reason = reason
        elif result is PublishResult.NOT_WRITTEN:
            self.lost_connection = True
            self.reason = reason
        else:
            self.unanswered = True
            self.end(Verdict.UNKNOWN, f"no confirm came before the deadline{uwsgi_hint()}")

    def end(self, verdict: Verdict, reason: str) -> None:
        """Set the verdict. If any attempt may have been accepted, it is UNKNOWN."""
        certain = not self.unanswered and self.shared_code is None
        self.last = verdict
        self.verdict = verdict if certain else Verdict.UNKNOWN
        self.reason = reason

    def ends_between_attempts(self, deadline: float) -> bool:
        """Set the verdict if no further attempt is needed, or if there is no time for one. Returns whether it is set.

        :param deadline: monotonic seconds.
        """
        if self.acceptance is not None and self.acceptance.proved:
            self.verdict = Verdict.CONFIRMED
        elif time.monotonic() >= deadline:
            reason = self.reason or "the connection to the hub was lost"
            self.end(Verdict.NOT_SENT, f"{reason}, and the deadline passed{uwsgi_hint()}")
        return self.verdict is not None

    def transport_raised(self, error: MessageHubError) -> None:
        """Set the verdict: the transport raised ``error``, so this attempt was not written."""
        if isinstance(error, MessageHubAuthorizationError):
            self.end(Verdict.UNAUTHORIZED, str(error))
        elif isinstance(error, MessageHubConfigurationError):
            self.end(Verdict.MISCONFIGURED, str(error))
        else:
            self.end(Verdict.NOT_SENT, f"{error}{uwsgi_hint()}")

    def transport_failed(self) -> None:
        """Set the verdict: the transport raised an unexpected exception, so the attempt may have been written."""
        self.unanswered = True
        self.end(Verdict.UNKNOWN, "the transport failed in an unexpected way (see the log)")

    def _channel_closed(self, reason: str, code: int) -> None:
        """The broker closed a channel on which this message was alone."""
        # The cause of a 406 is in the message itself, so an earlier attempt was not accepted either. For a 403 or 404
        # that is not certain: permissions and exchanges change, and the shared channel may have been closed because of
        # another message.
        if self.shared_code == code == _PRECONDITION_FAILED:
            self.shared_code = None
        if code == _NOT_FOUND and self.outgoing.exchange == EVENTS and not self.exchange_declared:
            self.own_channel = True
            self.exchange_missing = True
        elif code == _ACCESS_REFUSED:
            self.end(Verdict.UNAUTHORIZED, f"{reason}; allow it in the broker's permissions of this user")
        else:
            reason = reason or f"the broker closed the channel because of it ({code})"
            too_large = code == _PRECONDITION_FAILED and "message size" in reason
            self.end(Verdict.CHANNEL_ERROR, f"{reason}; {_TOO_LARGE}" if too_large else reason)

    def _no_queue(self) -> str:
        destination = self.outgoing.properties.headers.get(DESTINATION)
        if destination is None or self.outgoing.routing_key != inbox_name(destination):
            return f"there is no queue {self.outgoing.routing_key}"
        return (
            f"{destination} has no inbox: it has never called subscribe_messages(), or its inbox was deleted, or the "
            "node of its inbox is down"
        )

    @property
    def message_id(self) -> UUID:
        """The message's id, the same for every attempt."""
        return self._message_id or self.identify()

    def identify(self) -> UUID:
        """Parse :attr:`message_id` now instead of at its first use, since parsing takes some time."""
        self._message_id = found = uuid_of(self.outgoing.properties.message_id)
        return found

    def error(self) -> MessageHubError:
        """The error that the caller gets for the verdict."""
        reason = printable(self.reason, 500)
        what = _described(self.outgoing)
        if self.verdict is Verdict.NOT_SENT:
            return MessageHubConnectionError(f"{what} was not sent: {reason}")
        if self.verdict is Verdict.UNAUTHORIZED:
            return MessageHubAuthorizationError(f"{what} was not accepted: {reason}")
        if self.verdict is Verdict.INVALID:
            return MessageValidationError(f"{what} was not sent: {reason}")
        if self.verdict is Verdict.MISCONFIGURED:
            return MessageHubConfigurationError(f"{what} was not sent: {reason}")
        if self.verdict is Verdict.UNKNOWN:
            return MessageHubDeliveryError(
                f"whether {what} reached the hub is not known: {reason}; when repeating it, "
                "pass message_id=error.message_id, so that receivers can drop the duplicate",
                outcome="unknown",
                reason=reason,
                message_id=self.message_id,
            )
        return MessageHubDeliveryError(
            f"{what} was rejected: {reason}", outcome="rejected", reason=reason, message_id=self.message_id
        )


def _described(outgoing: Outgoing) -> str:
    if outgoing.exchange == EVENTS:
        return f"event {outgoing.routing_key}"
    return f"message to {outgoing.properties.headers.get('destination', outgoing.routing_key)}"


def report_to_circuit(permit: Permit, all_attempts: list[PublishAttempts]) -> None:
    """Report the result of a call to its circuits. Of several messages the worst result counts, once."""
    verdicts = {attempts.last or attempts.verdict for attempts in all_attempts}
    if Verdict.NOT_SENT in verdicts or any(attempts.blocked for attempts in all_attempts):
        permit.failed(connection=True)
    elif Verdict.UNKNOWN in verdicts:
        permit.failed(silent=True)
    elif Verdict.NACKED in verdicts:
        permit.failed()
    elif Verdict.CONFIRMED in verdicts:
        permit.succeeded()
    else:
        permit.not_counted(answered=bool(verdicts.intersection(_ANSWERED)))


def bulk_error(
    all_attempts: list[PublishAttempts], circuit_error: MessageHubCircuitBreakerError | None
) -> MessageHubError:
    """The error that the caller of a bulk call gets; ``circuit_error``: that of an open circuit, if any."""
    verdicts = {attempts.verdict for attempts in all_attempts}
    if circuit_error is not None and verdicts == {Verdict.CIRCUIT_OPEN}:
        return circuit_error
    if len(verdicts) == 1 and verdicts <= _ERRORS_OF_THEIR_OWN:
        return all_attempts[0].error()
    failures = [
        DeliveryFailure(
            index,
            attempts.message_id,
            "unknown" if attempts.verdict is Verdict.UNKNOWN else "rejected",
            printable(attempts.reason, 500),
        )
        for index, attempts in enumerate(all_attempts)
        if attempts.verdict is not Verdict.CONFIRMED
    ]
    unknown = sum(failure.outcome == "unknown" for failure in failures)
    error = MessageHubDeliveryError(
        f"{len(failures)} of {len(all_attempts)} messages were not confirmed ({unknown} of them unknown); "
        f"error.failures names each, the first: {failures[0].reason}",
        outcome="unknown" if unknown else "rejected",
        reason=failures[0].reason,
        message_id=failures[0].message_id,
        failures=failures,
    )
    # For middleware: the caller sees ``rejected`` for several verdicts, middleware sees which one.
    setattr(error, _VERDICTS, {index: attempts.verdict for index, attempts in enumerate(all_attempts)})
    return error


def verdicts_of(error: BaseException) -> Mapping[int, Verdict | None]:
    """The verdict of each message of a bulk call that raised ``error``, by its index; empty for other errors."""
    found: Mapping[int, Verdict | None] = getattr(error, _VERDICTS, {})
    return found
