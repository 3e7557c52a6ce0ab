"""Three nodes on loopback: a queue's home node, its leader, or its majority ends."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from faults.judging import CIRCUIT, CONNECTION, DELIVERY, judge, only
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Workers
from faults.raw import raw_channel
from faults.timing import TOLERANCE, eventually

from message_hub_sync import CircuitBreakerConfig, MessageHubDeliveryError
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: Seconds within which a quorum queue must elect a leader, and a client must find another node.
FAILOVER = 3


@pytest.fixture(scope="module")
def _cluster() -> Iterator[list[RabbitMQNode]]:
    first = RabbitMQNode(install=True).start()
    nodes = [first]
    try:
        for _ in range(2):
            node = RabbitMQNode(cookie=first.cookie, epmd_port=first.epmd_port).start()
            nodes.append(node)
            node.ctl("stop_app")
            node.ctl("join_cluster", first.name)
            node.ctl("start_app")
        yield nodes
    finally:
        for node in reversed(nodes):  # all nodes use the first node's epmd: stop it last
            node.stop()


@pytest.fixture
def cluster(_cluster: list[RabbitMQNode]) -> Iterator[list[RabbitMQNode]]:
    """Three nodes. All of them are started again after the test."""
    yield _cluster
    for node in _cluster:
        node.start(120)
    for node in _cluster:
        node.ctl("await_online_nodes", "3", timeout=60)


@pytest.fixture
def node(cluster: list[RabbitMQNode]) -> RabbitMQNode:
    """The first node, for the other fixtures."""
    return cluster[0]


def leader(nodes: list[RabbitMQNode], queue: str) -> RabbitMQNode:
    """The node with the leader of a quorum queue."""
    for line in nodes[0].ctl("list_queues", "name", "leader").splitlines():
        name, *rest = line.split("\t")
        if name == queue:
            return next(node for node in nodes if node.name == rest[0])
    raise AssertionError(f"there is no queue {queue}")


@pytest.mark.row(15)
def test_a_message_to_a_classic_queue_whose_home_is_down_is_never_called_a_success(
    cluster: list[RabbitMQNode], oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    home, other, _ = cluster
    at_home = new_client(names.service, home.url)
    at_home.subscribe_messages(lambda message: None)
    at_home.close()
    client = new_client(f"{names.service}-sender", other.url, circuit_breaker_config=CircuitBreakerConfig(100))
    home.kill()
    for _ in range(10):
        error = oracle.ledger.call(lambda id: client.send_message(names.service, {}, ttl=None, message_id=id))
        assert isinstance(error, MessageHubDeliveryError)
    home.start(120)
    back = new_client(names.service, home.url)
    back.subscribe_messages(lambda message: oracle.ledger.handled(message.id))
    eventually(
        lambda: oracle.ledger.call(lambda id: client.send_message(names.service, {}, ttl=None, message_id=id)) is None,
        20,
    )
    judge(oracle)


@pytest.mark.row(15)
def test_an_event_for_a_classic_queue_whose_home_is_down_is_lost_unseen_and_for_a_quorum_queue_is_not(
    cluster: list[RabbitMQNode], oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    home, other, _ = cluster
    classic = new_client(f"{names.service}-classic", home.url)
    missed: list[object] = []
    classic.subscribe([names.event], lambda event: missed.append(event))
    quorum = new_client(names.service, other.url, queue_type="quorum")
    quorum.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    client = new_client(f"{names.service}-sender", other.url)
    assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    eventually(lambda: len(missed) == 1, 5)
    classic.close()
    home.kill()
    for _ in range(10):
        # The broker confirms although the classic queue gets nothing: while its home node is down, it does not exist
        # for the other nodes. docs/reliability.md warns of this.
        assert oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None
    assert judge(oracle).counts.handled == 11
    home.start(120)
    with raw_channel(home.url) as channel:
        queue = f"{names.service}-classic.{names.event}"
        # At most the first message, if the killed node had not written its acknowledgement to disk.
        assert channel.queue_declare(queue, passive=True).method.message_count <= 1


@pytest.mark.row(16)
@pytest.mark.parametrize("victim", ["leader", "publishers-node", "consumers-node"])
def test_a_quorum_queue_survives_the_death_of_a_node_within_seconds(
    victim: str, cluster: list[RabbitMQNode], oracle: Oracle, workers: Workers, names: Names
) -> None:
    lead, consumes, publishes = cluster
    with raw_channel(lead.url) as channel:  # the leader is on the node that declares the queue
        for queue in (names.event_queue, names.inbox):
            channel.queue_declare(queue, durable=True, arguments={"x-queue-type": "quorum"})
    assert leader(cluster, names.event_queue) is lead

    def urls(first: RabbitMQNode) -> str:
        others = [node for node in cluster if node is not first]
        return "amqp://guest:guest@" + ",".join(f"127.0.0.1:{node.port}" for node in (first, *others))

    consumer = ("--service", names.service, "--event", names.event, "--inbox", "--queue-type", "quorum")
    workers.consumer(*consumer, url=urls(consumes))
    publisher = workers.publisher(
        *("--event", names.event, "--to", names.service, "--threads", "4", "--rate", "30"), url=urls(publishes)
    )
    oracle.wait(lambda counts: counts.handled >= 300, 20)
    {"leader": lead, "publishers-node": publishes, "consumers-node": consumes}[victim].kill()
    killed, before = time.monotonic(), oracle.counts()
    oracle.wait(lambda counts: counts.ok >= before.ok + 40 and counts.handled >= before.handled + 40, 15)
    took = time.monotonic() - killed
    assert publisher.stop() == 0
    judge(oracle, workers)
    only(oracle, DELIVERY, CONNECTION, CIRCUIT)
    assert took <= FAILOVER + TOLERANCE, f"failing over took {took:.1f} s"
    assert oracle.counts().rejected == 0


@pytest.mark.row(17)
def test_a_quorum_queue_without_its_majority_makes_calls_unknown_in_time_and_loses_nothing(
    cluster: list[RabbitMQNode], oracle: Oracle, workers: Workers, names: Names
) -> None:
    first, second, stays = cluster
    consumer = ("--service", names.service, "--event", names.event, "--queue-type", "quorum")
    workers.consumer(*consumer, url=stays.url)
    publisher = workers.publisher(
        *("--event", names.event, "--threads", "4", "--rate", "30", "--reset-timeout", "5"), url=stays.url
    )
    oracle.wait(lambda counts: counts.handled >= 100, 20)
    second.kill()
    first.kill()
    before = len(oracle.calls())
    unknown = oracle.counts().unknown
    oracle.wait(lambda counts: counts.unknown >= unknown + 4, 12)
    assert {call.error for call in oracle.calls(before + 8)} <= {DELIVERY, CIRCUIT}
    first.start(120)
    second.start(120)
    ok, handled = oracle.counts().ok, oracle.counts().handled
    oracle.wait(lambda counts: counts.ok >= ok + 100 and counts.handled >= handled + 100, 60)
    assert publisher.stop() == 0
    judge(oracle, workers, drain=60)
    only(oracle, DELIVERY, CONNECTION, CIRCUIT)
