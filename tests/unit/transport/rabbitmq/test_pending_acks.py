"""Acknowledgements, held to a broker that closes the channel over an unknown tag, as RabbitMQ does."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from message_hub_sync.transport.rabbitmq.pending_acks import PendingAcks


class SimulatedBroker:
    """Knows what is unacknowledged on one channel."""

    def __init__(self) -> None:
        self.outstanding: set[int] = set()
        self.delivered = 0
        self.acknowledged: set[int] = set()

    def deliver(self) -> int:
        self.delivered += 1
        self.outstanding.add(self.delivered)
        return self.delivered

    def ack(self, tag: int, multiple: bool) -> None:
        assert tag in self.outstanding, f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"
        covered = {each for each in self.outstanding if each <= tag} if multiple else {tag}
        self.acknowledged |= covered
        self.outstanding -= covered

    def reject(self, tag: int) -> None:
        assert tag in self.outstanding, f"406 PRECONDITION_FAILED - unknown delivery tag {tag}"
        self.outstanding.remove(tag)


class Consumer(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.broker = SimulatedBroker()
        self.pending_acks = PendingAcks()
        self.finished: set[int] = set()
        self.mark_rejected: set[int] = set()

    @rule(count=st.integers(1, 8))
    def deliver(self, count: int) -> None:
        for _ in range(count):
            self.broker.deliver()

    # Any tag, settled ones too: a handler's second settle must do nothing.
    @precondition(lambda self: self.broker.delivered)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        tag = data.draw(st.integers(1, self.broker.delivered))
        waiting = self.pending_acks.mark_handled(tag)
        if tag not in self.mark_rejected:
            self.finished.add(tag)
        assert waiting == len(self.finished - self.broker.acknowledged)

    @precondition(lambda self: self.broker.delivered)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        tag = data.draw(st.integers(1, self.broker.delivered))
        if self.pending_acks.mark_rejected(tag):
            assert tag not in self.finished
            self.mark_rejected.add(tag)
            self.broker.reject(tag)
        else:
            assert tag in self.finished | self.mark_rejected

    @rule()
    def say(self) -> None:
        for tag, multiple in self.pending_acks.take():
            self.broker.ack(tag, multiple)
        assert self.broker.acknowledged == self.finished

    @invariant()
    def nothing_unfinished_is_acknowledged(self) -> None:
        assert self.broker.acknowledged <= self.finished


TestPendingAcks = Consumer.TestCase
TestPendingAcks.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)


def test_a_contiguous_prefix_takes_one_acknowledgement() -> None:
    pending_acks = PendingAcks()
    for tag in (3, 1, 2, 4, 7):
        pending_acks.mark_handled(tag)
    assert pending_acks.take() == [(4, True), (7, False)]
    for tag in (5, 6):
        pending_acks.mark_handled(tag)
    assert pending_acks.take() == [(6, True)]  # 7 was said before, and is unknown to the broker now
