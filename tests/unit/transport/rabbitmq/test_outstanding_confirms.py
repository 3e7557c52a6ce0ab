"""The outstanding of confirms, held to a naive model under random answers of a broker."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from message_hub_sync.envelope.values import Properties
from message_hub_sync.transport.base import Outgoing, PublishResult, Receipt
from message_hub_sync.transport.rabbitmq.outstanding_confirms import OutstandingConfirms


def outgoing(message_id: str, *, mandatory: bool = True) -> Outgoing:
    return Outgoing("", "character-service.messages", b"{}", Properties(message_id=message_id), mandatory)


def result_of(receipt: Receipt) -> PublishResult | None:
    return receipt.wait(time.monotonic())


@dataclass
class Published:
    tag: int
    outgoing: Outgoing
    receipt: Receipt = field(default_factory=Receipt)
    returned: bool = False
    expected: PublishResult | None = None


class Broker(RuleBasedStateMachine):
    """Answers as RabbitMQ may: in any order, one by one or several at once, a return before its own answer."""

    def __init__(self) -> None:
        super().__init__()
        self.outstanding = OutstandingConfirms()
        self.published: list[Published] = []
        self.channel_open = True

    def unanswered(self) -> list[Published]:
        return [one for one in self.published if one.expected is None]

    # Few ids, so that the same message is in flight twice now and then: republished by an impatient caller.
    @precondition(lambda self: self.channel_open)
    @rule(message_id=st.sampled_from("abcd"), mandatory=st.booleans())
    def publish(self, message_id: str, mandatory: bool) -> None:
        one = Published(len(self.published) + 1, outgoing(message_id, mandatory=mandatory))
        # Two of one id in flight are routed alike, as long as nobody changes the bindings in between.
        twin = next((two for two in self.unanswered() if two.outgoing.properties.message_id == message_id), None)
        if twin is not None:
            one.outgoing.mandatory = twin.outgoing.mandatory
        self.published.append(one)
        self.outstanding.add(one.receipt, one.outgoing)
        if twin is not None and twin.returned:
            self.send_back(one)

    def send_back(self, one: Published) -> None:
        one.returned = True
        self.outstanding.returned(one.outgoing.properties.message_id, "", one.outgoing.routing_key, 312, "NO_ROUTE")

    @precondition(lambda self: self.unanswered())
    @rule(data=st.data())
    def return_one(self, data: st.DataObject) -> None:
        one = data.draw(st.sampled_from(self.unanswered()))
        twins = [two for two in self.unanswered() if two.outgoing.properties == one.outgoing.properties]
        for two in twins:
            if two.outgoing.mandatory and not two.returned:
                self.send_back(two)

    @precondition(lambda self: self.unanswered())
    @rule(data=st.data(), ack=st.booleans(), multiple=st.booleans())
    def answer(self, data: st.DataObject, ack: bool, multiple: bool) -> None:
        tag = data.draw(st.sampled_from([one.tag for one in self.unanswered()]))
        for one in self.unanswered():
            if one.tag == tag or (multiple and one.tag < tag):
                one.expected = (
                    (PublishResult.RETURNED if one.returned else PublishResult.CONFIRMED)
                    if ack
                    else PublishResult.NACKED
                )
        (self.outstanding.ack if ack else self.outstanding.nack)(tag, multiple)

    @rule(tag=st.integers(0, 50), ack=st.booleans())
    def answer_what_was_never_published(self, tag: int, ack: bool) -> None:
        (self.outstanding.ack if ack else self.outstanding.nack)(1000 + tag, False)

    @precondition(lambda self: self.channel_open)
    @rule()
    def acknowledge_all(self) -> None:
        for one in self.unanswered():
            one.expected = PublishResult.RETURNED if one.returned else PublishResult.CONFIRMED
        self.outstanding.ack(0, True)

    @rule()
    def close(self) -> None:
        self.channel_open = False
        for one in self.unanswered():
            one.expected = PublishResult.LOST
        self.outstanding.fail(PublishResult.LOST, "gone")

    @invariant()
    def every_receipt_says_what_the_broker_said(self) -> None:
        assert [result_of(one.receipt) for one in self.published] == [one.expected for one in self.published]
        assert len(self.outstanding.in_flight) == len(self.unanswered())


TestOutstandingConfirms = Broker.TestCase
TestOutstandingConfirms.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def test_a_return_is_told_from_a_confirm_although_acknowledgements_overtake() -> None:
    outstanding = OutstandingConfirms()
    receipts = [Receipt() for _ in range(5)]
    for number, receipt in enumerate(receipts, 1):
        outstanding.add(receipt, outgoing(str(number)))
    for number in (2, 4):  # as measured: ret2, ack2, ret4, ack4, ack5 (multiple)
        outstanding.returned(str(number), "", "character-service.messages", 312, "NO_ROUTE")
        outstanding.ack(number, False)
    outstanding.ack(5, True)
    confirmed, returned = PublishResult.CONFIRMED, PublishResult.RETURNED
    assert [result_of(receipt) for receipt in receipts] == [confirmed, returned, confirmed, returned, confirmed]
    assert (receipts[1].code, receipts[1].reason) == (312, "NO_ROUTE")


def test_a_late_answer_settles_nothing_else() -> None:
    outstanding = OutstandingConfirms()
    abandoned, next_one = Receipt(), Receipt()
    outstanding.add(abandoned, outgoing("abandoned"))
    assert result_of(abandoned) is None  # the caller gives up here
    outstanding.add(next_one, outgoing("next"))
    outstanding.ack(1, False)
    assert result_of(next_one) is None
    outstanding.nack(2, False)
    assert result_of(next_one) is PublishResult.NACKED


NO_WRITING = "403 ACCESS_REFUSED - access to exchange 'events' in vhost '/' refused for user 'x'"


def closed_over(*exchanges: str, answered: bool, code: int = 403, text: str = NO_WRITING) -> list[PublishResult | None]:
    """What publishes to these exchanges come to when the channel is closed over one of them."""
    outstanding = OutstandingConfirms()
    if answered:
        outstanding.add(Receipt(), outgoing("before"))
        outstanding.ack(1, False)
    receipts = []
    for exchange in exchanges:
        receipts.append(Receipt())
        outstanding.add(receipts[-1], Outgoing(exchange, "character.created", b"{}", Properties()))
    outstanding.closed(text, code)
    return [result_of(receipt) for receipt in receipts]


def test_the_only_one_in_flight_is_the_one_that_closed_the_channel() -> None:
    for answered in (True, False):
        assert closed_over("events", answered=answered) == [PublishResult.CHANNEL_ERROR]
        assert closed_over("", answered=answered, code=406, text="406 invalid expiration") == [
            PublishResult.CHANNEL_ERROR
        ]


def test_who_may_not_write_to_an_exchange_has_never_written_to_it_on_a_channel_without_an_answer() -> None:
    doubt, refused = PublishResult.CHANNEL_ERROR_SHARED, PublishResult.CHANNEL_ERROR
    assert closed_over("events", "", "events", answered=False) == [refused, doubt, refused]
    assert closed_over("events", "events", answered=True) == [doubt, doubt]
    default = NO_WRITING.replace("events", "amq.default")
    assert closed_over("events", "", answered=False, text=default) == [doubt, refused]
    # A topic is looked up for each message: the one before may have been allowed.
    topic = NO_WRITING.replace("exchange", "topic 'character.created' in exchange")
    assert closed_over("events", "events", answered=False, text=topic) == [doubt, doubt]


def test_an_exchange_may_have_been_there_for_the_first_and_gone_for_the_second() -> None:
    missing = "404 NOT_FOUND - no exchange 'events' in vhost '/'"
    assert (
        closed_over("events", "events", answered=False, code=404, text=missing)
        == [PublishResult.CHANNEL_ERROR_SHARED] * 2
    )
