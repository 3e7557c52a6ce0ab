"""What the attempts to publish one message amount to, and what its caller is told. Pure."""

from __future__ import annotations

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
from message_hub_sync.publishing.circuit_breaker import Permit
from message_hub_sync.runtime.process_kind import uwsgi_hint
from message_hub_sync.runtime.text import printable
from message_hub_sync.transport.base import Outgoing, PublishResult
from message_hub_sync.transport.topology import DEFAULT_EXCHANGE, EVENTS, inbox_name

__all__ = ["PublishAttempts", "Verdict", "bulk_error", "report_to_circuit"]

_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_PRECONDITION_FAILED = 406


class Verdict(Enum):
    """What became of one message in the end."""

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


#: Only these open a circuit: the destination, or the way to it, is in trouble.
_COUNTED = (Verdict.NOT_SENT, Verdict.NACKED, Verdict.UNKNOWN)
#: The broker answered, so that a trial has shown what it was to show.
_ANSWERED = (Verdict.UNROUTABLE, Verdict.CHANNEL_ERROR, Verdict.UNAUTHORIZED)

#: Of a bulk in which all ended so, the caller gets that error and no list: nothing was sent.
_ERRORS_OF_THEIR_OWN = {Verdict.NOT_SENT, Verdict.UNAUTHORIZED, Verdict.MISCONFIGURED, Verdict.INVALID}


class PublishAttempts:
    """What the attempts to publish one message amount to. No lock: it belongs to one call.

    ``unanswered``: an attempt was written and no answer can come any more, or none that says enough, so that it
    may have been accepted. ``shared_code``: the same of an attempt that ended with a channel it shared with others,
    and the channel's reason.
    ``verdict`` is what the caller is told; ``last``, what the last attempt came to, is what its circuit goes by.
    """

    # Of the class until they change: nearly every message is confirmed at once, and changes the verdict alone.
    own_channel = False
    unanswered = False
    shared_code: int | None = None
    exchange_missing = False
    exchange_declared = False
    lost_connection = False
    verdict: Verdict | None = None
    last: Verdict | None = None
    reason = ""
    _message_id: UUID | None = None

    def __init__(self, outgoing: Outgoing) -> None:
        self.outgoing = outgoing

    def note(self, result: PublishResult | None, reason: str = "", code: int = 0) -> None:
        """Take in what one attempt came to; without a verdict afterwards, the next attempt is due."""
        if result is PublishResult.CONFIRMED:
            self.verdict = Verdict.CONFIRMED
        elif result is PublishResult.RETURNED:
            self.end(Verdict.UNROUTABLE, self._no_queue())
        elif result is PublishResult.BLOCKED:
            self.lost_connection = True  # there will be news of it, as of a connection
            self.end(Verdict.NACKED, reason)
        elif result is PublishResult.NACKED:
            # An exchange hands on to any number of queues: one that refuses is enough, and the others have it.
            self.unanswered = self.unanswered or self.outgoing.exchange != DEFAULT_EXCHANGE
            self.end(Verdict.NACKED, reason or "the broker refused it (nack)")
        elif result is PublishResult.INVALID:
            self.end(Verdict.INVALID, reason)
        elif result is PublishResult.CHANNEL_ERROR_SHARED and not self.own_channel:
            self.own_channel = True
            self.shared_code = code
        elif result in (PublishResult.CHANNEL_ERROR_SHARED, PublishResult.CHANNEL_ERROR):
            self._refused(reason, code)
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
        """Give up. Once an attempt was written and not answered, all that is certain is that nothing is."""
        certain = not self.unanswered and self.shared_code is None
        self.last = verdict
        self.verdict = verdict if certain else Verdict.UNKNOWN
        self.reason = reason

    def out_of_time(self) -> None:
        """The deadline passed between two attempts."""
        reason = self.reason or "the connection to the hub was lost"
        self.end(Verdict.NOT_SENT, f"{reason}, and the deadline passed{uwsgi_hint()}")

    def refused(self, error: MessageHubError) -> None:
        """The transport raised: this attempt was not written, and no other will be."""
        if isinstance(error, MessageHubAuthorizationError):
            self.end(Verdict.UNAUTHORIZED, str(error))
        elif isinstance(error, MessageHubConfigurationError):
            self.end(Verdict.MISCONFIGURED, str(error))
        else:
            self.end(Verdict.NOT_SENT, f"{error}{uwsgi_hint()}")

    def broken(self) -> None:
        """The transport failed somewhere, so that it is not known what the broker got."""
        self.unanswered = True
        self.end(Verdict.UNKNOWN, "the transport failed in an unexpected way (see the log)")

    def _refused(self, reason: str, code: int) -> None:
        # What a 406 complains of is in the message, so that an earlier attempt met the same. Permissions and exchanges
        # come and go: that attempt may have been accepted before, its channel closed over another one.
        if self.shared_code == code == _PRECONDITION_FAILED:
            self.shared_code = None
        if code == _NOT_FOUND and self.outgoing.exchange == EVENTS and not self.exchange_declared:
            self.own_channel = True
            self.exchange_missing = True
        elif code == _ACCESS_REFUSED:
            self.end(Verdict.UNAUTHORIZED, f"{reason}; the broker's permissions of this user have to allow it")
        else:
            self.end(Verdict.CHANNEL_ERROR, reason or f"the broker closed the channel over it ({code})")

    def _no_queue(self) -> str:
        destination = self.outgoing.properties.headers.get(DESTINATION)
        if destination is None or self.outgoing.routing_key != inbox_name(destination):
            return f"there is no queue {self.outgoing.routing_key}"
        return f"{destination} has no inbox: it has never called subscribe_messages()"

    @property
    def message_id(self) -> UUID:
        """The message's id, the same for every attempt."""
        return self._message_id or self.identify()

    def identify(self) -> UUID:
        """Make :attr:`message_id` of its text, which takes some time, now and not when it is asked for."""
        self._message_id = found = uuid_of(self.outgoing.properties.message_id)
        return found

    def error(self) -> MessageHubError:
        """The verdict as the error that the caller sees."""
        reason = printable(self.reason, 500)
        what = _described(self.outgoing)
        if self.verdict is Verdict.NOT_SENT:
            return MessageHubConnectionError(f"{what} was not sent: {reason}")
        if self.verdict is Verdict.UNAUTHORIZED:
            return MessageHubAuthorizationError(f"{what} was refused: {reason}")
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
    """Tell a circuit what its call came to; of many messages the worst counts, once."""
    verdicts = {attempts.last or attempts.verdict for attempts in all_attempts}
    if verdicts.intersection(_COUNTED):
        # A silent network is noticed by the callers' deadlines first, and by the connection only later.
        silent = verdicts.intersection((Verdict.NOT_SENT, Verdict.UNKNOWN))
        permit.failed(connection=bool(silent) or any(attempts.lost_connection for attempts in all_attempts))
    elif Verdict.CONFIRMED in verdicts:
        permit.succeeded()
    else:
        permit.not_counted(answered=bool(verdicts.intersection(_ANSWERED)))


def bulk_error(all_attempts: list[PublishAttempts], refusal: MessageHubCircuitBreakerError | None) -> MessageHubError:
    """What the caller of a bulk call is told; ``refusal`` is that of an open circuit."""
    verdicts = {attempts.verdict for attempts in all_attempts}
    if refusal is not None and verdicts == {Verdict.CIRCUIT_OPEN}:
        return refusal
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
    return MessageHubDeliveryError(
        f"{len(failures)} of {len(all_attempts)} messages were not confirmed ({unknown} of them unknown); "
        f"error.failures names each, the first: {failures[0].reason}",
        outcome="unknown" if unknown else "rejected",
        reason=failures[0].reason,
        message_id=failures[0].message_id,
        failures=failures,
    )
