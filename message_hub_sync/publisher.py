"""Publishing: circuit breaker, transport, receipt; and what the attempts at one message amount to."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from uuid import UUID

from message_hub_sync.circuit_breaker import Admission, CircuitBreakers
from message_hub_sync.config import ClientConfig
from message_hub_sync.envelope import printable
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
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.runtime import threads_note
from message_hub_sync.topology import EVENT_EXCHANGE, EVENTS, QueueSpec, Topology, inbox_name
from message_hub_sync.transport.base import Outgoing, Receipt, Result, Transport

__all__ = ["BULK_SLICE", "Attempts", "Publisher", "Verdict"]

logger = logging.getLogger(__name__)

#: Messages of a bulk call handed to the transport at a time; the next ones go out while these are confirmed.
BULK_SLICE = 1_000

_ACCESS_REFUSED = 403
_NOT_FOUND = 404
_CONNECTION_GONE = "the connection to the hub was lost"


class Verdict(Enum):
    """What became of one message in the end."""

    CONFIRMED = "confirmed"
    NOT_SENT = "not sent"
    REFUSED_CIRCUIT = "circuit open"
    UNAUTHORIZED = "unauthorized"
    MISCONFIGURED = "misconfigured"
    UNROUTABLE = "unroutable"
    NACKED = "nacked"
    POISONOUS = "poisonous"
    UNKNOWN = "unknown"


#: Only these open a circuit: the destination, or the way to it, is in trouble.
_COUNTED = (Verdict.NOT_SENT, Verdict.NACKED, Verdict.UNKNOWN)
#: The broker answered, so that a trial has shown what it was to show.
_ANSWERED = (Verdict.UNROUTABLE, Verdict.POISONOUS, Verdict.UNAUTHORIZED)


@dataclass(slots=True)
class Attempts:
    """What the attempts to publish one message amount to. No lock: it belongs to one call.

    ``unanswered``: an attempt was written and no answer can come any more, so that it may have been
    accepted. ``shared_code``: the same of an attempt that ended with a channel it shared with others,
    and the channel's reason; closing a channel of its own for the same reason shows that it was this one.
    """

    outgoing: Outgoing
    alone: bool = False
    unanswered: bool = False
    shared_code: int | None = None
    exchange_missing: bool = False
    exchange_declared: bool = False
    lost_connection: bool = False
    verdict: Verdict | None = None
    reason: str = ""

    def note(self, result: Result | None, reason: str = "", code: int = 0) -> None:
        """Take in what one attempt came to; without a verdict afterwards, the next attempt is due."""
        if result is Result.CONFIRMED:
            self.verdict = Verdict.CONFIRMED
        elif result is Result.RETURNED:
            self.end(Verdict.UNROUTABLE, self._no_queue())
        elif result is Result.NACKED:
            self.end(Verdict.NACKED, reason or "the broker refused it (nack)")
        elif result is Result.CHANNEL_CLOSED:
            self._channel_closed(reason, code)
        elif result is Result.LOST:
            self.unanswered = self.lost_connection = True
        elif result is Result.NOT_WRITTEN:
            self.lost_connection = True
        else:
            self.unanswered = True
            self.end(Verdict.UNKNOWN, f"no confirm came before the deadline{threads_note()}")

    def end(self, verdict: Verdict, reason: str) -> None:
        """Give up. Once an attempt was written and not answered, all that is certain is that nothing is."""
        certain = not self.unanswered and self.shared_code is None
        self.verdict = verdict if certain else Verdict.UNKNOWN
        self.reason = reason

    def out_of_time(self) -> None:
        """The deadline passed between two attempts."""
        self.end(Verdict.NOT_SENT, f"{_CONNECTION_GONE} and did not come back before the deadline{threads_note()}")

    def _channel_closed(self, reason: str, code: int) -> None:
        if not self.alone:
            self.alone = True
            self.shared_code = code
            return
        if self.shared_code == code:
            self.shared_code = None
        if code == _NOT_FOUND and self.outgoing.exchange == EVENTS and not self.exchange_declared:
            self.exchange_missing = True
        elif code == _ACCESS_REFUSED:
            self.end(Verdict.UNAUTHORIZED, reason)
        else:
            self.end(Verdict.POISONOUS, reason or f"the broker closed the channel over it ({code})")

    def _no_queue(self) -> str:
        destination = self.outgoing.properties.headers.get("destination")
        if destination is None or self.outgoing.routing_key != inbox_name(destination):
            return f"there is no queue {self.outgoing.routing_key}"
        return f"{destination} has no inbox: it has never called subscribe_messages()"

    @property
    def message_id(self) -> UUID:
        return UUID(self.outgoing.properties.message_id)

    def error(self) -> MessageHubError:
        """The verdict as the error that the caller sees."""
        reason = printable(self.reason, 500)
        what = _described(self.outgoing)
        if self.verdict is Verdict.NOT_SENT:
            return MessageHubConnectionError(f"{what} was not sent: {reason}")
        if self.verdict is Verdict.UNAUTHORIZED:
            return MessageHubAuthorizationError(
                f"{what} was refused: {reason}; the broker's permissions of this user have to allow it"
            )
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


class Publisher:
    """Hands messages to the transport and waits for what became of them.

    Safe from any thread; callers share nothing but the transport. Mutable: ``_awaited``, the receipts being
    waited for, whose single ``add`` and ``discard`` calls the interpreter makes atomic.
    """

    def __init__(
        self, transport: Transport, config: ClientConfig, breakers: CircuitBreakers, metrics: ServiceMetrics
    ) -> None:
        self._transport = transport
        self._config = config
        self._breakers = breakers
        self._metrics = metrics
        self._awaited: set[Receipt] = set()

    def publish(self, outgoing: Outgoing, timeout: float) -> UUID:
        """Publish one message and return its id once the broker has it.

        :param timeout: seconds for everything: connection, repeated attempts, confirm.
        :raises MessageHubError: a connection, circuit-breaker, authorization or delivery error.
        """
        started = time.monotonic()
        attempts = Attempts(outgoing)
        try:
            admission = self._breakers.admit(_circuit(outgoing))
        except MessageHubCircuitBreakerError:
            self._count(attempts, started)
            raise
        try:
            self._attempt(attempts, started + self._bounded(timeout, [admission]))
        except BaseException:  # a signal or a gevent timeout: nobody knows, so nothing is counted
            admission.ignored()
            raise
        _resolve(admission, [attempts])
        self._count(attempts, started)
        if attempts.verdict is not Verdict.CONFIRMED:
            raise attempts.error()
        return attempts.message_id

    def hand_over(self, outgoing: Outgoing, timeout: float) -> None:
        """Publish what is no user's call to a destination (a reply): past the circuit breakers."""
        attempts = Attempts(outgoing)
        started = time.monotonic()
        self._attempt(attempts, started + timeout)
        self._count(attempts, started)
        if attempts.verdict is not Verdict.CONFIRMED:
            raise attempts.error()

    def publish_many(self, batch: Sequence[Outgoing], timeout: float) -> list[UUID]:
        """Publish messages in order, pipelined, and return their ids once the broker has all of them.

        :param timeout: seconds for the whole call.
        :raises MessageHubDeliveryError: ``failures`` names each that was not confirmed.
        :raises MessageHubError: none was sent, and all for the same reason: that reason's own error.
        """
        started = time.monotonic()
        all_attempts = [Attempts(outgoing) for outgoing in batch]
        admissions, refusal = self._admit_all(all_attempts)
        try:
            self._attempt_many(all_attempts, started + self._bounded(timeout, admissions.values()))
        except BaseException:
            for admission in admissions.values():
                admission.ignored()
            raise
        for key, admission in admissions.items():
            _resolve(admission, [one for one in all_attempts if _circuit(one.outgoing) == key])
        for attempts in all_attempts:
            self._count(attempts, started)
        if any(attempts.verdict is not Verdict.CONFIRMED for attempts in all_attempts):
            raise _bulk_error(all_attempts, refusal)
        return [attempts.message_id for attempts in all_attempts]

    def await_confirms(self, deadline: float) -> None:
        """Wait for the answers to what is under way now; for an orderly close."""
        for receipt in self._awaited.copy():
            receipt.wait(deadline)

    def _bounded(self, timeout: float, admissions: Iterable[Admission]) -> float:
        # Others fail fast while a trial runs, so that it may not take as long as it likes.
        if any(admission.trial for admission in admissions):
            return min(timeout, self._config.circuit_breaker.half_open_timeout, self._config.delivery_timeout)
        return timeout

    # --- attempts ---------------------------------------------------------------------------------

    def _attempt(self, attempts: Attempts, deadline: float) -> None:
        """Publish until there is a verdict. Raises only for an unusable value, or what interrupts the thread."""
        while attempts.verdict is None:
            if attempts.lost_connection and time.monotonic() >= deadline:
                attempts.out_of_time()
                return
            try:
                if attempts.exchange_missing:
                    self._declare_exchange(attempts, deadline)
                receipt = self._transport.publish(attempts.outgoing, deadline, alone=attempts.alone)
                self._await(attempts, receipt, deadline)
            except MessageValidationError:
                raise  # a value that only the transport can judge
            except MessageHubError as error:
                _failed(attempts, error)
            except Exception:
                # Where it broke is not known, and so it is not known what the broker got.
                logger.exception("the transport failed in an unexpected way")
                attempts.unanswered = True
                attempts.end(Verdict.UNKNOWN, "the transport failed in an unexpected way (see the log)")

    def _await(self, attempts: Attempts, receipt: Receipt, deadline: float) -> None:
        self._awaited.add(receipt)
        try:
            result = receipt.wait(deadline)
        finally:
            self._awaited.discard(receipt)
        attempts.note(result, receipt.reason, receipt.code)

    def _declare_exchange(self, attempts: Attempts, deadline: float) -> None:
        logger.info("the exchange %s is missing and is declared", EVENTS)
        attempts.exchange_missing = False
        attempts.exchange_declared = True
        self._transport.declare(_exchange_alone(self._config.service_name), deadline)

    def _attempt_many(self, all_attempts: list[Attempts], deadline: float) -> None:
        due = [attempts for attempts in all_attempts if attempts.verdict is None]
        while due:
            self._pipelined(due, deadline)
            again = [attempts for attempts in due if attempts.verdict is None]
            for attempts in again:
                if attempts.alone:
                    self._attempt(attempts, deadline)
                elif time.monotonic() >= deadline:
                    attempts.out_of_time()
            due = [attempts for attempts in again if attempts.verdict is None]

    def _pipelined(self, due: list[Attempts], deadline: float) -> None:
        """One attempt for each. While a slice is being confirmed, the next one is written already."""
        waiting: list[tuple[Attempts, Receipt]] = []
        for start in range(0, len(due), BULK_SLICE):
            part = due[start : start + BULK_SLICE]
            try:
                receipts = self._transport.publish_many([attempts.outgoing for attempts in part], deadline)
            except MessageValidationError:
                raise
            except MessageHubError as error:
                for attempts in part:
                    _failed(attempts, error)
                receipts = []
            except Exception:
                logger.exception("the transport failed in an unexpected way")
                for attempts in part:
                    attempts.unanswered = True
                    attempts.end(Verdict.UNKNOWN, "the transport failed in an unexpected way (see the log)")
                receipts = []
            self._settled(waiting, deadline)
            waiting = list(zip(part, receipts, strict=False))
        self._settled(waiting, deadline)

    def _settled(self, waiting: list[tuple[Attempts, Receipt]], deadline: float) -> None:
        for attempts, receipt in waiting:
            self._await(attempts, receipt, deadline)

    # --- around them ------------------------------------------------------------------------------

    def _admit_all(
        self, all_attempts: list[Attempts]
    ) -> tuple[dict[str, Admission], MessageHubCircuitBreakerError | None]:
        """One admission per circuit; what an open one bars gets its verdict at once."""
        admissions: dict[str, Admission] = {}
        barred: dict[str, str] = {}
        refusal = None
        for attempts in all_attempts:
            key = _circuit(attempts.outgoing)
            if key not in admissions and key not in barred:
                try:
                    admissions[key] = self._breakers.admit(key)
                except MessageHubCircuitBreakerError as error:
                    refusal = error
                    barred[key] = str(error)
            if key in barred:
                attempts.end(Verdict.REFUSED_CIRCUIT, barred[key])
        return admissions, refusal

    def _count(self, attempts: Attempts, started: float) -> None:
        self._metrics.count(
            "publish" if attempts.outgoing.exchange == EVENTS else "send",
            ok=attempts.verdict is Verdict.CONFIRMED,
            seconds=time.monotonic() - started,
        )


def _exchange_alone(service: str) -> Topology:
    """The seam declares an exchange along with a queue; this one expires after a second, unused."""
    queue = QueueSpec(
        f"{service}.probe",
        durable=False,
        exclusive=True,
        auto_delete=True,
        arguments={"x-expires": 1_000},
        random_suffix=True,
    )
    return Topology(queue, EVENT_EXCHANGE)


def _circuit(outgoing: Outgoing) -> str:
    if outgoing.exchange == EVENTS:
        return EVENTS
    destination: str = outgoing.properties.headers["destination"]
    return destination


def _described(outgoing: Outgoing) -> str:
    if outgoing.exchange == EVENTS:
        return f"event {outgoing.routing_key}"
    return f"message to {outgoing.properties.headers.get('destination', outgoing.routing_key)}"


def _failed(attempts: Attempts, error: MessageHubError) -> None:
    """The transport raised: this attempt was not written."""
    if isinstance(error, MessageHubAuthorizationError):
        attempts.end(Verdict.UNAUTHORIZED, str(error))
    elif isinstance(error, MessageHubConfigurationError):
        attempts.end(Verdict.MISCONFIGURED, str(error))
    else:
        attempts.end(Verdict.NOT_SENT, f"{error}{threads_note()}")


def _resolve(admission: Admission, all_attempts: list[Attempts]) -> None:
    """Tell a circuit what its call came to; of many messages the worst counts, once."""
    verdicts = {attempts.verdict for attempts in all_attempts}
    if verdicts.intersection(_COUNTED):
        lost = any(attempts.lost_connection for attempts in all_attempts)
        admission.failed(connection=lost or Verdict.NOT_SENT in verdicts)
    elif Verdict.CONFIRMED in verdicts:
        admission.succeeded()
    else:
        admission.ignored(answered=bool(verdicts.intersection(_ANSWERED)))


def _bulk_error(all_attempts: list[Attempts], refusal: MessageHubCircuitBreakerError | None) -> MessageHubError:
    verdicts = {attempts.verdict for attempts in all_attempts}
    if refusal is not None and verdicts == {Verdict.REFUSED_CIRCUIT}:
        return refusal
    if len(verdicts) == 1 and verdicts <= {Verdict.NOT_SENT, Verdict.MISCONFIGURED}:
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
