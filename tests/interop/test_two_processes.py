"""A service of two processes of ours and one of aio-pika's talk to each other, both ways."""

from __future__ import annotations

import pytest
from interop.conftest import Process, Start
from programs import eventually

pytestmark = pytest.mark.rabbitmq

EVENT = "character.created"
COUNT = 200

Pair = tuple[Process, Process]


@pytest.fixture
def peer(theirs: Start) -> Process:
    """The peer, with an inbox."""
    peer = theirs("character-service")
    peer.do("inbox")
    return peer


@pytest.fixture
def pair(ours: Start) -> Pair:
    """Two processes of one service, consuming the same two queues."""
    pair = ours("llm-service"), ours("llm-service")
    for process in pair:
        assert process.do("inbox", prefetch=8) == ["llm-service.messages"]
        assert process.do("subscribe", event_types=[EVENT], prefetch=8) == [f"llm-service.{EVENT}"]
    return pair


def assert_shared(pair: Pair, sent: list[str]) -> None:
    """The two got all that was sent, each message one of them, and both a part."""
    assert eventually(lambda: sum(len(process.so_far()) for process in pair) >= len(sent))
    first, second = ([one["id"] for one in process.so_far()] for process in pair)
    assert sorted(first + second) == sorted(sent)
    assert first
    assert second


def test_two_processes_share_the_peers_events(peer: Process, pair: Pair) -> None:
    assert_shared(pair, peer.do("publish_many", event_type=EVENT, count=COUNT))


def test_two_processes_share_the_peers_messages(peer: Process, pair: Pair) -> None:
    assert_shared(pair, peer.do("send_many", destination="llm-service", count=COUNT))


def test_the_peer_gets_the_events_and_messages_of_both_processes(peer: Process, pair: Pair) -> None:
    peer.do("subscribe", event_type="llm.content_generated")
    sent = []
    for process in pair:
        sent += process.do("send_many", destination="character-service", count=COUNT)
        for number in range(3):
            payload = {"content_id": str(number)}
            sent.append(process.do("publish", event_type="llm.content_generated", payload=payload))
    got = peer.got(len(sent))
    assert sorted(one["message_id"] for one in got) == sorted(sent)
    assert {one["headers"]["source"] for one in got} == {"llm-service"}
    assert peer.so_far() == got


def test_a_peer_in_one_service_with_ours_shares_its_queues(ours: Start, theirs: Start) -> None:
    """While a service moves from one library to the other, replicas of both consume the same queues."""
    replica, colleague = ours("campaign-service"), theirs("campaign-service")
    replica.do("inbox", prefetch=8)
    replica.do("subscribe", event_types=[EVENT], prefetch=8)
    assert colleague.do("inbox") == "campaign-service.messages"
    assert colleague.do("subscribe", event_type=EVENT) == f"campaign-service.{EVENT}"
    publisher = ours("character-service")
    sent = publisher.do("send_many", destination="campaign-service", count=COUNT)
    sent += publisher.do("publish_many", event_type=EVENT, count=COUNT)
    assert eventually(lambda: len(replica.so_far()) + len(colleague.so_far()) >= 2 * COUNT)
    of_ours = [one["id"] for one in replica.so_far()]
    of_theirs = [one["message_id"] for one in colleague.so_far()]
    assert sorted(of_ours + of_theirs) == sorted(sent)
    assert of_ours
    assert of_theirs


def test_the_peer_answers_our_request_as_the_guide_does(ours: Start, peer: Process) -> None:
    """With a message to the sender's inbox under the same correlation id, which finds the waiting caller."""
    caller = ours("campaign-service")
    caller.do("inbox")
    reply = caller.do("request", destination="character-service", payload={"action": "answer as the guide does"})
    assert (reply["source"], reply["payload"]) == ("character-service", {"data": "from the peer"})
    [request] = peer.got(1)
    assert reply["correlation_id"] == request["correlation_id"]
    assert caller.so_far() == [], "the reply is the caller's, not the inbox's"


def test_the_peer_answers_our_request_in_its_reply_queue(ours: Start, peer: Process) -> None:
    caller = ours("campaign-service")
    reply = caller.do("request", destination="character-service", payload={"action": "answer to reply_to"})
    assert (reply["source"], reply["payload"]) == ("character-service", {"data": "from the peer"})


def test_we_answer_the_peers_request(ours: Start, peer: Process) -> None:
    answering = ours("campaign-service")
    answering.do("inbox")
    request = peer.do("ask", destination="campaign-service", payload={"action": "count players"})
    [asked], [answer] = answering.got(1), peer.got(1)
    assert asked["id"] == request
    assert answer["body"] == '{"answer_to":{"action":"count players"}}'
    assert answer["correlation_id"] == asked["correlation_id"]
    assert answer["headers"]["source"] == "campaign-service"
