"""Publishes messages: asks the circuit breaker, hands them to the transport, waits for confirms, repeats attempts."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Literal
from uuid import UUID

from message_hub_sync.config import ClientConfig
from message_hub_sync.envelope.header_names import DESTINATION
from message_hub_sync.errors import (
    MessageHubCircuitBreakerError,
    MessageHubError,
    MessageHubReentryError,
    MessageValidationError,
)
from message_hub_sync.metrics import ServiceMetrics
from message_hub_sync.publishing.acceptance import Acceptance
from message_hub_sync.publishing.circuit_breaker import CONNECTION, CircuitBreakers, Permit
from message_hub_sync.publishing.publish_attempts import PublishAttempts, Verdict, bulk_error, report_to_circuit
from message_hub_sync.runtime.locks import refuse_where_it_cannot_wait
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.real_time import time
from message_hub_sync.transport.base import ConnectionState, Outgoing, Receipt, Transport
from message_hub_sync.transport.topology import EVENT_EXCHANGE, EVENTS

__all__ = ["BULK_SLICE", "SLICES_UNDER_WAY", "Publisher"]

logger = SafeLogger("message_hub_sync.publisher")

#: Messages of a bulk call that are handed to the transport at a time, and how many such slices may be unconfirmed while
#: the next one is written. RabbitMQ confirms a thousand messages at once: with only two thousand unconfirmed ones it
#: had nothing to do after each confirm.
BULK_SLICE, SLICES_UNDER_WAY = 250, 16


class Publisher:
    """Publishes messages and waits until the broker has confirmed them. Any thread may use it.

    Callers share only the transport, the circuit breakers and the metrics.
    """

    def __init__(
        self, transport: Transport, config: ClientConfig, breakers: CircuitBreakers, metrics: ServiceMetrics
    ) -> None:
        self._transport = transport
        self._config = config
        self._breakers = breakers
        self._metrics = metrics

    def publish(self, outgoing: Outgoing, timeout: float, acceptance: Acceptance | None = None) -> UUID:
        """Publish one message. Returns its id after the broker has confirmed it.

        :param outgoing: the message.
        :param timeout: seconds for all of it: connection, repeated attempts, confirm.
        :param acceptance: of a request: if its reply comes before the confirm, the call returns with the reply.
        :raises MessageHubError: a connection, circuit-breaker, authorization or delivery error.
        """
        refuse_where_it_cannot_wait()  # before the circuit: a call in the wrong place is nobody's failure
        started = time.monotonic()
        attempts = PublishAttempts(outgoing)
        if acceptance is not None:
            attempts.acceptance = acceptance
        try:
            permit = self._breakers.admit(_circuit(outgoing))
        except MessageHubCircuitBreakerError:
            self._count(attempts, time.monotonic() - started)
            raise
        try:
            self._attempt(attempts, started + (self._trial_seconds(timeout) if permit.trial else timeout))
        except BaseException:  # a signal or a gevent timeout: the result is not known, so nothing is counted
            permit.not_counted()
            raise
        if attempts.verdict is Verdict.CONFIRMED:
            permit.succeeded()
        else:
            report_to_circuit(permit, [attempts])
        self._count(attempts, time.monotonic() - started)
        if attempts.verdict is not Verdict.CONFIRMED:
            raise attempts.error()
        return attempts.message_id

    def hand_over(self, outgoing: Outgoing, timeout: float) -> None:
        """Publish a reply, without circuit breaker: it is no call to a destination.

        :param outgoing: the message.
        :param timeout: seconds for all of it.
        :raises MessageHubError: a connection, authorization or delivery error.
        """
        refuse_where_it_cannot_wait()
        attempts = PublishAttempts(outgoing)
        started = time.monotonic()
        self._attempt(attempts, started + timeout)
        self._count(attempts, time.monotonic() - started)
        if attempts.verdict is not Verdict.CONFIRMED:
            raise attempts.error()

    def publish_many(self, batch: Sequence[Outgoing], timeout: float) -> list[UUID]:
        """Publish messages in order, pipelined. Returns their ids after the broker has confirmed all of them.

        :param batch: the messages.
        :param timeout: seconds for the whole call.
        :raises MessageHubDeliveryError: ``failures`` names each message that was not confirmed.
        :raises MessageHubError: no message was sent, all for the same reason: the error of that reason.
        """
        refuse_where_it_cannot_wait()
        started = time.monotonic()
        all_attempts = [PublishAttempts(outgoing) for outgoing in batch]
        by_circuit: dict[str, list[PublishAttempts]] = {}
        for attempts in all_attempts:
            by_circuit.setdefault(_circuit(attempts.outgoing), []).append(attempts)
        permits, circuit_error = self._admit_all(by_circuit)
        try:
            trial = any(permit.trial for permit in permits.values())
            self._attempt_many(all_attempts, started + (self._trial_seconds(timeout) if trial else timeout))
        except BaseException:
            for permit in permits.values():
                permit.not_counted()
            raise
        for key, permit in permits.items():
            report_to_circuit(permit, by_circuit.get(key, all_attempts))
        # The latency of one message is its share of the call, in which all are under way together.
        share = (time.monotonic() - started) / max(1, len(all_attempts))
        unconfirmed = 0
        for group in by_circuit.values():
            kind = _kind(group[0])  # a call has events or messages, not both
            confirmed = [attempts.verdict for attempts in group].count(Verdict.CONFIRMED)
            self._metrics.count(kind, True, share, confirmed)
            self._metrics.count(kind, False, share, len(group) - confirmed)
            unconfirmed += len(group) - confirmed
        if unconfirmed:
            raise bulk_error(all_attempts, circuit_error)
        return [attempts.message_id for attempts in all_attempts]

    def _trial_seconds(self, timeout: float) -> float:
        # While a trial call runs, all other calls to its destination fail, so its time is limited.
        return min(timeout, self._config.circuit_breaker.half_open_timeout, self._config.delivery_timeout)

    # --- attempts ---------------------------------------------------------------------------------

    def _attempt(self, attempts: PublishAttempts, deadline: float) -> MessageHubError | None:
        """Publish until there is a verdict. Raises only what interrupts the thread.

        :returns: the error with which the transport ended the last attempt, if it raised one.
        """
        while attempts.verdict is None:
            if attempts.lost_connection and attempts.ends_between_attempts(deadline):
                break
            try:
                if attempts.exchange_missing:
                    self._declare_exchange(attempts, deadline)
                receipt = self._transport.publish(attempts.outgoing, deadline, own_channel=attempts.own_channel)
            except MessageValidationError as error:
                attempts.end(Verdict.INVALID, str(error))  # a value that only the transport can judge
            except MessageHubReentryError:
                raise  # this call may wait, so a nested call of a signal handler was refused: that handler's exception
            except MessageHubError as error:
                attempts.transport_raised(error)
                return error
            except Exception:
                logger.exception("the transport failed in an unexpected way")
                attempts.transport_failed()
            else:
                # Outside the try: an exception raised while waiting comes from a signal handler, so the caller gets it.
                self._await(attempts, receipt, deadline)
        return None

    def _await(self, attempts: PublishAttempts, receipt: Receipt, deadline: float) -> None:
        if attempts.acceptance is not None:
            attempts.acceptance.watch(receipt)
        try:
            result = receipt.wait(deadline)
        except BaseException:  # a signal handler raised
            receipt.abandoned = True
            raise
        if result is None:
            receipt.abandoned = True
            # The broker tells of an alarm only after the first publish, which it does not confirm.
            attempts.blocked = self._is_blocked()
        attempts.note(result, receipt.reason, receipt.code)

    def _is_blocked(self) -> bool:
        return any(
            connection.role == "publish" and connection.state is ConnectionState.BLOCKED
            for connection in self._transport.status()
        )

    def _declare_exchange(self, attempts: PublishAttempts, deadline: float) -> None:
        logger.info("the exchange %s is missing and is declared", EVENTS)
        attempts.exchange_missing = False
        attempts.exchange_declared = True
        self._transport.declare_exchange(EVENT_EXCHANGE, deadline)

    def _attempt_many(self, all_attempts: list[PublishAttempts], deadline: float) -> None:
        due = [attempts for attempts in all_attempts if attempts.verdict is None]
        while due:
            self._pipelined(due, deadline)
            due = [attempts for attempts in due if attempts.verdict is None]
            for attempts in due:
                if attempts.own_channel:
                    self._attempt(attempts, deadline)
            due = [attempts for attempts in due if attempts.verdict is None]
            if due:
                # Only the first one waits for the connection. If the transport raised, the others end with its error.
                error = self._attempt(due[0], deadline)
                for attempts in due[1:]:
                    if error is not None:
                        attempts.transport_raised(error)
                    else:
                        attempts.ends_between_attempts(deadline)
            due = [attempts for attempts in due if attempts.verdict is None]

    def _pipelined(self, due: list[PublishAttempts], deadline: float) -> None:
        """Make one attempt for each message. Later slices are written while earlier ones are being confirmed."""
        under_way: deque[list[tuple[PublishAttempts, Receipt]]] = deque()
        try:
            for start in range(0, len(due), BULK_SLICE):
                part = due[start : start + BULK_SLICE]
                under_way.append(list(zip(part, self._write_slice(part, deadline), strict=False)))
                if len(under_way) > SLICES_UNDER_WAY:
                    self._await_slice(under_way[0], deadline)
                    under_way.popleft()
            while under_way:
                self._await_slice(under_way[0], deadline)
                under_way.popleft()
        finally:  # interrupted: nobody waits for the others any more
            for _, receipt in itertools.chain.from_iterable(under_way):
                receipt.abandoned = True

    def _write_slice(self, part: list[PublishAttempts], deadline: float) -> list[Receipt]:
        """Hand these messages to the transport. If it takes none of them, each one gets its verdict.

        :returns: a receipt for each message, or nothing.
        """
        try:
            return self._transport.publish_many([attempts.outgoing for attempts in part], deadline)
        except MessageHubError as error:
            for attempts in part:
                attempts.transport_raised(error)
        except Exception:
            logger.exception("the transport failed in an unexpected way")
            for attempts in part:
                attempts.transport_failed()
        return []

    def _await_slice(self, waiting: list[tuple[PublishAttempts, Receipt]], deadline: float) -> None:
        for attempts, receipt in waiting:
            self._await(attempts, receipt, deadline)
            attempts.identify()  # now, while the broker works on the later messages

    # --- circuits and metrics ---------------------------------------------------------------------

    def _admit_all(
        self, by_circuit: dict[str, list[PublishAttempts]]
    ) -> tuple[dict[str, Permit], MessageHubCircuitBreakerError | None]:
        """A permit for each circuit that admits the call. The messages of the others get their verdict now.

        The circuit of the connection is asked once: the call is one trial call, and one failure.

        :returns: the permits, and the error of an open circuit, if any.
        """
        permits: dict[str, Permit] = {}
        circuit_error = None
        try:
            permits[CONNECTION] = self._breakers.admit_to_connection()
        except MessageHubCircuitBreakerError as error:
            circuit_error = error
        for key, group in by_circuit.items():
            try:
                if CONNECTION in permits:
                    permits[key] = self._breakers.admit_to_destination(key)
                    continue
            except MessageHubCircuitBreakerError as error:
                circuit_error = error
            for attempts in group:
                attempts.end(Verdict.CIRCUIT_OPEN, str(circuit_error))
        return permits, circuit_error

    def _count(self, attempts: PublishAttempts, seconds: float) -> None:
        self._metrics.count(_kind(attempts), attempts.verdict is Verdict.CONFIRMED, seconds)


def _circuit(outgoing: Outgoing) -> str:
    if outgoing.exchange == EVENTS:
        return outgoing.routing_key
    destination: str = outgoing.properties.headers[DESTINATION]
    return destination


def _kind(attempts: PublishAttempts) -> Literal["publish", "send"]:
    return "publish" if attempts.outgoing.exchange == EVENTS else "send"
