"""Messages that were delivered before: some kill their process, and all others are innocent."""

from __future__ import annotations

from typing import Any

import pika
import pytest
from faults.dead_letters import dead_letters, depth
from faults.judging import judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.processes import Program, Workers
from faults.proxy import Proxy
from faults.raw import raw_channel
from faults.timing import eventually

from message_hub_sync import MessageHubClient
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

pytestmark = [pytest.mark.rabbitmq, pytest.mark.row(30)]


class Loop:
    """Processes of one service that are started again whenever one of them has crashed."""

    def __init__(self, workers: Workers, oracle: Oracle, *arguments: str, processes: int = 1) -> None:
        self._workers = workers
        self._oracle = oracle
        self._arguments = arguments
        self._programs: list[Program] = []
        self._started = 0
        self._processes = processes

    def run(self, until: Any, timeout: float = 90) -> None:
        """Run them until a condition holds."""

        def done() -> bool:
            alive = [program for program in self._programs if program.process.poll() is None]
            assert all(program.process.poll() in (None, 9) for program in self._programs)
            while len(alive) < self._processes:
                alive.append(self._workers.script("crashing", *self._arguments))
                self._started += 1
            self._programs = alive
            return bool(until())

        eventually(done, timeout)

    def stop(self) -> None:
        """End them in order."""
        self._oracle.told("ready", 1)
        for program in self._programs:
            program.stop()


def declared(workers: Workers, oracle: Oracle, names: Names) -> None:
    """Have the queue declared by a process that ends at once."""
    first = workers.script("crashing", names.service, names.event)
    oracle.told("ready")
    assert first.stop() == 0


def send(oracle: Oracle, client: MessageHubClient, names: Names, count: int, deadly: tuple[int, ...]) -> None:
    for number in range(1, count + 1):
        payload = {"number": number, "deadly": number in deadly}
        error = oracle.ledger.call(
            lambda id, payload=payload: client.publish_event(names.event, payload, message_id=id)
        )
        assert error is None


def marks(node: RabbitMQNode, names: Names) -> list[str]:
    """The queues of marks of the service that exist."""
    return [
        name for name in node.ctl("list_queues", "-q", "name").split() if name.startswith(f"{names.service}.started")
    ]


@pytest.mark.parametrize(("attempts", "crashes"), [(4, 4), (2, 2), (1, 2)])
def test_a_message_that_kills_its_process_is_dead_lettered_and_no_other_one(
    attempts: int,
    crashes: int,
    node: RabbitMQNode,
    oracle: Oracle,
    workers: Workers,
    new_client: NewClient,
    names: Names,
) -> None:
    declared(workers, oracle, names)
    send(oracle, new_client(f"{names.service}-sender"), names, 30, deadly=(3,))
    dead = f"{names.event_queue}.dead"

    loop = Loop(workers, oracle, names.service, names.event, "--attempts", str(attempts))
    loop.run(lambda: depth(node, dead) + oracle.counts().handled == 30)
    loop.stop()

    assert oracle.told("crashing") == crashes
    ((properties, _),) = dead_letters(node, names.event_queue, 1, timeout=5)
    oracle.ledger.dead(properties.message_id)
    assert "the process crashed" in properties.headers["x-reason"]
    assert properties.headers["x-crashes"] == crashes - 1  # the first crash left no mark
    assert properties.headers["x-attempts"] == 0
    assert marks(node, names) == []
    judge(oracle, workers)


def test_two_messages_that_kill_their_process_are_dead_lettered_by_several_processes_with_several_workers(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    declared(workers, oracle, names)
    send(oracle, new_client(f"{names.service}-sender"), names, 40, deadly=(3, 4))
    dead = f"{names.event_queue}.dead"

    arguments = (names.service, names.event, "--workers", "3", "--seconds", "0.05", "--prefetch", "30")
    loop = Loop(workers, oracle, *arguments, processes=2)
    loop.run(lambda: depth(node, dead) + oracle.counts().handled == 40, 120)
    loop.stop()

    found = dead_letters(node, names.event_queue, 2, timeout=5)
    for properties, _ in found:
        oracle.ledger.dead(properties.message_id)
    assert oracle.counts().handled == 38
    judge(oracle, workers)


def test_a_message_without_an_id_that_kills_its_process_is_dead_lettered(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    declared(workers, oracle, names)
    with raw_channel(node.url) as channel:
        for body in (b'{"n": 1}', b'{"n": 2}'):
            channel.basic_publish("", names.event_queue, body, pika.BasicProperties(delivery_mode=2), mandatory=True)
    send(oracle, new_client(f"{names.service}-sender"), names, 5, deadly=())
    dead = f"{names.event_queue}.dead"

    loop = Loop(workers, oracle, names.service, names.event, "--attempts", "2")
    loop.run(lambda: depth(node, dead) + oracle.counts().handled == 7)
    loop.stop()

    # The second one had been prefetched when the first one crashed: the first crash of each message leaves no mark.
    assert oracle.told("crashing") == 3
    assert oracle.counts().handled == 5
    judge(oracle, workers)


def test_orderly_restarts_under_a_slow_handler_count_nothing_and_keep_the_order(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    declared(workers, oracle, names)
    send(oracle, new_client(f"{names.service}-sender"), names, 14, deadly=())

    arguments = (names.service, names.event, "--seconds", "0.5", "--attempts", "1")
    for restart in range(1, 6):
        program = workers.script("crashing", *arguments)
        oracle.told("ready", 1 + restart)
        oracle.wait(lambda counts, restart=restart: counts.handled >= restart, 20)
        program.terminate()
        assert program.wait(20) == 0
    workers.script("crashing", *arguments)
    judge(oracle, workers, drain=30)

    assert oracle.counts().duplicates == 0
    assert oracle.handled() == oracle.invoked()
    assert depth(node, f"{names.event_queue}.dead") == 0
    eventually(lambda: marks(node, names) == [], 10)


def test_handlers_that_still_run_at_the_end_of_an_orderly_close_count_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names
) -> None:
    declared(workers, oracle, names)
    send(oracle, new_client(f"{names.service}-sender"), names, 2, deadly=())
    arguments = ("--service", names.service, "--event", names.event, "--attempts", "1", "--close-timeout", "0.3")
    for _ in range(3):
        program = workers.consumer(*arguments, "--seconds", "3600", "--run-forever")
        eventually(lambda: unacknowledged(node, names.event_queue) == 2, 20)
        program.terminate()
        program.wait(20)

    workers.consumer(*arguments)
    judge(oracle, workers)
    assert depth(node, f"{names.event_queue}.dead") == 0


def test_connections_cut_again_and_again_count_nothing(
    node: RabbitMQNode, oracle: Oracle, workers: Workers, new_client: NewClient, names: Names, proxy: Proxy
) -> None:
    declared(workers, oracle, names)
    send(oracle, new_client(f"{names.service}-sender"), names, 20, deadly=())
    arguments = ("--service", names.service, "--event", names.event, "--attempts", "2", "--seconds", "1")
    for _ in range(2):
        workers.consumer(*arguments, "--workers", "2", "--settle-each", url=proxy.url)
    handled = 0
    for _ in range(8):
        oracle.wait(lambda counts, handled=handled: counts.handled + counts.duplicates > handled, 30)
        handled = oracle.counts().handled + oracle.counts().duplicates
        proxy.cut()
        if oracle.counts().handled == 20:
            break
    judge(oracle, workers, drain=60)
    assert depth(node, f"{names.event_queue}.dead") == 0


def test_where_marks_may_not_be_declared_nothing_is_dead_lettered_and_health_says_so(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    owner = new_client(names.service)
    owner.subscribe([names.event], lambda event: None)
    user = names.service
    node.ctl("add_user", user, "secret")
    node.ctl("set_permissions", user, "^$", ".*", ".*")
    owner.close()
    send(oracle, new_client(f"{names.service}-sender"), names, 3, deadly=())
    with raw_channel(node.url) as channel:
        for _ in range(3):
            channel.basic_get(names.event_queue)  # each is redelivered when this channel ends
    restricted = new_client(names.service, f"amqp://{user}:secret@127.0.0.1:{node.port}")
    assert restricted.get_health_status()["crash_loops_bounded"] is True

    restricted.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))

    judge(oracle)
    status = restricted.get_health_status()
    assert status["crash_loops_bounded"] is False
    assert depth(node, f"{names.event_queue}.dead") == 0


def unacknowledged(node: RabbitMQNode, queue: str) -> int:
    """The number of messages of a queue that are delivered and not acknowledged."""
    for line in node.ctl("list_queues", "-q", "name", "messages_unacknowledged").splitlines():
        name, _, count = line.partition("\t")
        if name == queue:
            return int(count)
    return 0
