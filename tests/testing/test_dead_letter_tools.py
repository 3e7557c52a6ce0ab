"""The tools lose, double and hide no dead letter: over RabbitMQ and over the embedded hub."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from message_hub_sync import MessageHubConnectionError, MessageHubDeliveryError, MessageValidationError
from message_hub_sync.cli.app import main
from message_hub_sync.client.session import _transport
from message_hub_sync.config import ClientConfig, parse_addresses
from message_hub_sync.dead_letters import (
    DeadLetter,
    each_dead_letter,
    fetch_dead_letter,
    load_dead_letter,
    requeue_dead_letters,
    save_dead_letter,
)
from message_hub_sync.dead_letters.queues import requeue_selected, send_again
from message_hub_sync.dead_letters.reading import FULL_PAGE, Patience
from message_hub_sync.dead_letters.selection import Selection
from message_hub_sync.envelope.values import Properties
from message_hub_sync.testing import MessageHubTestFramework
from message_hub_sync.transport.base import Consumer, Outgoing, PublishResult, Transport
from message_hub_sync.transport.topology import QueueSpec, Topology

QUEUE = "quest-service.messages"
HOSTILE = "\x1b[2J\x9b31m\u202eexe.txt\r\n"


@pytest.fixture
def framework(hub_url: str) -> Iterator[MessageHubTestFramework]:
    """A framework on a hub or virtual host of the test's own."""
    with MessageHubTestFramework(hub_url) as framework:
        yield framework


@pytest.fixture
def transport(framework: MessageHubTestFramework) -> Iterator[Transport]:
    transport = _transport(ClientConfig("operator", parse_addresses(framework.url)))
    for name in (QUEUE, f"{QUEUE}.dead"):
        transport.declare_queue(QueueSpec(name), soon())
    yield transport
    transport.close(soon())


def soon() -> float:
    return time.monotonic() + 30


def letter(number: int, **changes: Any) -> Outgoing:
    """A dead letter as its service would move it."""
    headers = {
        "source": "player-service",
        "x-original-exchange": "",
        "x-original-routing-key": QUEUE,
        "x-attempts": 4,
        "x-reason": "failed 4 times",
        "x-error-type": "KeyError",
        "x-error-message": str(number),
        "x-first-failed-at": "2026-01-02T03:04:05+00:00",
        "x-service": "quest-service",
        **changes.pop("headers", {}),
    }
    properties = Properties(message_id=str(uuid4()), type="service_message", headers=headers)
    body = changes.pop("body", json.dumps({"number": number}, separators=(",", ":")).encode())
    return Outgoing("", f"{QUEUE}.dead", body, dataclasses.replace(properties, **changes))


def put(transport: Transport, letters: Sequence[Outgoing]) -> None:
    for receipt in transport.publish_many(letters, soon()):
        assert receipt.wait(soon()) is PublishResult.CONFIRMED, receipt.reason


def content(transport: Transport, queue: str, count: int) -> list[DeadLetter]:
    """All messages of a queue, which are removed."""
    consumer = transport.consume(Topology(QueueSpec(queue)), prefetch=0, deadline=soon())
    try:
        deliveries = [consumer.deliveries.get(timeout=30) for _ in range(count)]
        found = [DeadLetter.of(delivery) for delivery in deliveries if delivery is not None]
        consumer.ack_all([delivery for delivery in deliveries if delivery is not None])
    finally:
        consumer.cancel(soon())
        assert consumer.deliveries.qsize() == 0, "more than expected"
        consumer.close(soon())
    return found


def numbers(letters: Sequence[DeadLetter]) -> list[int]:
    return [one.payload["number"] for one in letters]


def command(name: str, framework: MessageHubTestFramework, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["dead-letters", name, "--url", framework.url, "--queue", QUEUE, *arguments])


# --- reading --------------------------------------------------------------------------------------


def test_more_letters_than_a_page_are_all_read_in_order_and_stay(transport: Transport) -> None:
    put(transport, [letter(number) for number in range(2 * FULL_PAGE + 7)])
    for _ in range(3):
        seen: list[DeadLetter] = []
        each_dead_letter(transport, QUEUE, seen.append, soon())
        assert numbers(seen) == list(range(2 * FULL_PAGE + 7))
    last = seen[-1]
    assert fetch_dead_letter(transport, QUEUE, last.message_id, lambda found: None, deadline=soon()) == last


@pytest.mark.parametrize(("size", "most"), [(10, FULL_PAGE), (400_000, 90)])
def test_pages_are_shorter_if_letters_are_larger(
    transport: Transport, monkeypatch: pytest.MonkeyPatch, size: int, most: int
) -> None:
    prefetches: list[int] = []
    consume = transport.consume

    def watched(topology: Topology, *, prefetch: int, deadline: float) -> Consumer:
        prefetches.append(prefetch)
        return consume(topology, prefetch=prefetch, deadline=deadline)

    put(transport, [letter(number, body=b"x" * size) for number in range(200)])
    monkeypatch.setattr(transport, "consume", watched)
    each_dead_letter(transport, QUEUE, lambda found: None, soon())
    assert sum(prefetches) == 200
    assert max(prefetches) <= most


def test_a_letter_that_comes_while_others_are_read_is_not_read(transport: Transport) -> None:
    put(transport, [letter(0), letter(1)])
    seen: list[DeadLetter] = []

    def look(found: DeadLetter) -> None:
        put(transport, [letter(100 + len(seen))])
        seen.append(found)

    each_dead_letter(transport, QUEUE, look, soon())
    assert numbers(seen) == [0, 1]


def test_a_look_over_a_lost_connection_says_so_and_costs_no_letter(transport: Transport) -> None:
    put(transport, [letter(number) for number in range(300)])
    seen: list[DeadLetter] = []

    def look(found: DeadLetter) -> None:
        seen.append(found)
        if len(seen) == 100:
            transport.interrupt()

    with pytest.raises(MessageHubConnectionError, match=r"the connection to the hub was lost after .* all are there"):
        each_dead_letter(transport, QUEUE, look, soon())
    again: list[DeadLetter] = []
    each_dead_letter(transport, QUEUE, again.append, soon())
    assert numbers(again) == list(range(300))


def test_reading_a_queue_that_does_not_exist_does_not_create_it(transport: Transport) -> None:
    with pytest.raises(MessageValidationError, match=r"there is no queue nobody\.messages\.dead"):
        each_dead_letter(transport, "nobody.messages", lambda found: None, soon())
    assert transport.queue_stats(["nobody.messages.dead"], soon()) == {"nobody.messages.dead": None}


def test_a_quorum_queue_that_drops_what_is_read_too_often_is_not_read_without_force(
    framework: MessageHubTestFramework, transport: Transport
) -> None:
    dead = f"{QUEUE}.dead"
    transport.delete(Topology(QueueSpec(dead)), dead, soon())
    limited = {"x-queue-type": "quorum", "x-delivery-limit": 2}
    transport.declare_queue(QueueSpec(dead, arguments=limited), soon())
    put(transport, [letter(number) for number in range(3)])
    for _ in range(4):
        done = command("list", framework)
        assert (done.exit_code, "3" in done.stdout.split()) == (0, True), done.output
        assert "not read: the queue drops a message" in done.stdout
    for name, arguments in (("show", []), ("list", ["--messages"]), ("requeue", ["--all"]), ("purge", ["--yes"])):
        done = command(name, framework, *arguments)
        assert (done.exit_code, "drops a message that returns 2 times" in done.stderr) == (7, True), done.output
    done = command("requeue", framework, "--all", "--force")
    assert (done.exit_code, done.stdout) == (0, f"3 put back into {QUEUE}\n"), done.output
    assert numbers(content(transport, QUEUE, 3)) == [0, 1, 2]


def test_a_quorum_queue_of_ours_is_read_without_force_and_without_a_warning(
    framework: MessageHubTestFramework, transport: Transport, caplog: pytest.LogCaptureFixture
) -> None:
    dead = f"{QUEUE}.dead"
    transport.delete(Topology(QueueSpec(dead)), dead, soon())
    ours = {"x-queue-type": "quorum", "x-delivery-limit": 100_000}
    transport.declare_queue(QueueSpec(dead, arguments=ours), soon())
    put(transport, [letter(number) for number in range(3)])
    for _ in range(3):
        done = command("list", framework, "--messages")
        assert (done.exit_code, len(done.stdout.splitlines())) == (0, 4), done.output
    assert "exists with other arguments" not in caplog.text


# --- requeueing -----------------------------------------------------------------------------------


def test_all_are_put_back_in_order_each_once(transport: Transport) -> None:
    put(transport, [letter(number) for number in range(2 * FULL_PAGE + 7)])
    done: list[DeadLetter] = []
    count = requeue_dead_letters(transport, QUEUE, None, done.append, every=True, deadline=soon())
    assert (count, len(done)) == (2 * FULL_PAGE + 7, count)
    assert numbers(content(transport, QUEUE, count)) == list(range(count))
    assert transport.queue_stats([f"{QUEUE}.dead"], soon())[f"{QUEUE}.dead"].depth == 0  # type: ignore[union-attr]


def test_a_lost_connection_does_not_end_the_work_and_what_may_be_double_is_named(transport: Transport) -> None:
    put(transport, [letter(number) for number in range(3_000)])
    done = 0

    def count(found: DeadLetter) -> None:
        nonlocal done
        done += 1
        if done in (10, 1_500):
            transport.interrupt()

    result = requeue_selected(transport, QUEUE, Patience(step=10), only=Selection(), done=count)
    assert (result.error, result.left, result.missed) == (None, [], 0)
    stats = transport.queue_stats([QUEUE, f"{QUEUE}.dead"], soon())
    back, dead = stats[QUEUE], stats[f"{QUEUE}.dead"]
    assert back is not None
    assert (result.count, dead.depth if dead else None) == (3_000, 0)
    found = content(transport, QUEUE, back.depth)
    assert set(numbers(found)) == set(range(3_000)), "none is lost"
    ids = [one.message_id for one in found]
    doubled = {one for one in ids if ids.count(one) > 1} if len(ids) > 3_000 else set()
    assert doubled <= {one.message_id for one in result.doubtful}, "each that is there twice is named"


@pytest.mark.parametrize("alike", [False, True], ids=["different letters", "letters that are alike"])
def test_letters_without_an_id_are_not_lost_with_a_connection(transport: Transport, alike: bool) -> None:
    put(transport, [letter(7 if alike else number, message_id=None) for number in range(1_500)])
    done = 0

    def count(found: DeadLetter) -> None:
        nonlocal done
        done += 1
        if done == 1_200:
            transport.interrupt()

    result = requeue_selected(transport, QUEUE, Patience(step=10), only=Selection(), done=count)
    stats = transport.queue_stats([QUEUE, f"{QUEUE}.dead"], soon())
    back, dead = stats[QUEUE], stats[f"{QUEUE}.dead"]
    assert back is not None
    assert dead is not None
    assert dead.depth == 0
    assert 1_500 <= back.depth <= 1_500 + len(result.doubtful) + 1_000
    if alike:  # nobody can tell those that came again from others, so those of a page may not be counted
        assert 500 <= result.count == done <= 1_500
    else:
        assert (result.count, done) == (1_500, 1_500), "one that is put back twice counts once"


@pytest.mark.parametrize("with_id", [True, False], ids=["with ids", "without ids"])
@pytest.mark.parametrize("cut_at", [(1,), (800,), (70, 300, 799)])
def test_as_many_as_asked_for_are_put_back_over_lost_connections_and_leave_the_dead_letter_queue(
    transport: Transport, with_id: bool, cut_at: tuple[int, ...]
) -> None:
    put(transport, [letter(number) if with_id else letter(number, message_id=None) for number in range(1_500)])
    done: list[DeadLetter] = []

    def count(found: DeadLetter) -> None:
        done.append(found)
        if len(done) in cut_at:
            transport.interrupt()

    result = requeue_selected(transport, QUEUE, Patience(step=30), only=Selection(), most=800, done=count)
    assert (result.error, result.left, result.count, len(done)) == (None, [], 800, 800)
    assert {found.payload["number"] for found in done} == set(range(800)), "none counts twice"
    assert numbers(content(transport, f"{QUEUE}.dead", 700)) == list(range(800, 1_500))


def test_one_letter_that_cannot_be_put_back_stays_alone_and_is_named(
    framework: MessageHubTestFramework, transport: Transport
) -> None:
    unreadable = letter(1, headers={"x-undecodable": "a table that is nested too deeply"})
    put(transport, [letter(0), unreadable, letter(2)])
    done = command("requeue", framework, "--all")
    assert done.exit_code == 5, done.output
    assert f"2 put back into {QUEUE}" in done.stdout
    assert f"message {unreadable.properties.message_id}" in done.stderr
    assert "its headers cannot be read" in done.stderr
    assert numbers(content(transport, QUEUE, 2)) == [0, 2]
    put(transport, [letter(3)])
    with pytest.raises(MessageHubDeliveryError, match=r"1 dead letters stay in .* 1 were put back") as caught:
        requeue_dead_letters(transport, QUEUE, None, lambda found: None, every=True, deadline=soon())
    assert caught.value.outcome == "rejected"
    assert numbers(content(transport, f"{QUEUE}.dead", 1)) == [1]


def test_a_letter_whose_body_was_too_large_is_not_put_back_without_it(
    framework: MessageHubTestFramework, transport: Transport, tmp_path: Path
) -> None:
    empty = letter(1, body=b"", headers={"x-body-bytes": 60_000_000})
    put(transport, [letter(0), empty])
    shown = command("show", framework, "--message-id", str(empty.properties.message_id))
    assert json.loads(shown.stdout)["headers"]["x-body-bytes"] == 60_000_000
    done = command("requeue", framework, "--all")
    assert (done.exit_code, f"1 put back into {QUEUE}" in done.stdout) == (5, True), done.output
    assert "its body of 60000000 bytes was larger than max_message_bytes, and was not kept" in done.stderr
    command("export", framework, "--file", str(tmp_path / "letter.json"))
    loaded = load_dead_letter(tmp_path / "letter.json")
    for refused in (
        lambda: loaded.replay(lambda message: None),
        lambda: send_again(transport, loaded, soon()),
        lambda: loaded.payload,
    ):
        with pytest.raises(MessageValidationError, match="its body of 60000000 bytes"):
            refused()
    assert [one.message_id for one in content(transport, f"{QUEUE}.dead", 1)] == [empty.properties.message_id]


def test_a_letter_that_is_larger_than_what_a_service_takes_is_read_with_its_body(
    framework: MessageHubTestFramework, transport: Transport
) -> None:
    # Its service had a larger limit, or was older.
    large = b'{"n": "' + b"x" * 17 * 1024 * 1024 + b'"}'
    put(transport, [letter(0, body=large)])
    done = command("requeue", framework, "--all")
    assert (done.exit_code, f"1 put back into {QUEUE}" in done.stdout) == (0, True), done.output


@pytest.mark.rabbitmq
def test_headers_that_just_fitted_do_not_block_the_letters_behind(rabbitmq_url: str) -> None:
    with MessageHubTestFramework(rabbitmq_url) as framework:
        operator = _transport(ClientConfig("operator", parse_addresses(framework.url)))
        for name in (QUEUE, f"{QUEUE}.dead"):
            operator.declare_queue(QueueSpec(name), soon())
        # They fill a frame. With those that say where the message was published first, they do not fit.
        large = letter(1)
        large.properties.headers = {"note": "x" * 130_930}
        put(operator, [letter(0), large, letter(2)])
        done = command("requeue", framework, "--all")
        assert (done.exit_code, "must fit into one frame" in done.stderr) == (5, True), done.output
        assert numbers(content(operator, QUEUE, 2)) == [0, 2]
        assert [one.message_id for one in content(operator, f"{QUEUE}.dead", 1)] == [large.properties.message_id]
        operator.close(soon())


def test_only_what_was_the_senders_is_put_back(transport: Transport) -> None:
    transport.declare_queue(QueueSpec("elsewhere.messages"), soon())
    sent = letter(0, headers={"tenant": "n", "x-death": [], "x-delivery-count": 3}, delivery_mode=1, expiration=None)
    put(transport, [sent])
    requeue_dead_letters(transport, QUEUE, None, lambda found: None, deadline=soon())
    [found] = content(transport, QUEUE, 1)
    assert found.properties.delivery_mode == 2
    assert found.properties.headers == {"source": "player-service", "tenant": "n"}
    assert found.failure == {}


@pytest.mark.rabbitmq
def test_a_copy_header_sends_a_letter_nowhere_else(rabbitmq_url: str) -> None:
    with MessageHubTestFramework(rabbitmq_url) as framework:
        operator = _transport(ClientConfig("operator", parse_addresses(framework.url)))
        for name in (QUEUE, f"{QUEUE}.dead", "elsewhere.messages"):
            operator.declare_queue(QueueSpec(name), soon())
        put(operator, [letter(0, headers={"CC": ["elsewhere.messages"]})])
        content(operator, "elsewhere.messages", 1)
        requeue_dead_letters(operator, QUEUE, None, lambda found: None, deadline=soon())
        assert "CC" not in content(operator, QUEUE, 1)[0].properties.headers
        assert operator.queue_stats(["elsewhere.messages"], soon())["elsewhere.messages"].depth == 0  # type: ignore[union-attr]
        operator.close(soon())


def test_nothing_is_touched_if_the_queue_to_go_back_to_was_deleted(
    framework: MessageHubTestFramework, transport: Transport
) -> None:
    put(transport, [letter(number) for number in range(3)])
    transport.delete(Topology(QueueSpec(QUEUE)), QUEUE, soon())
    done = command("requeue", framework, "--all")
    assert (done.exit_code, f"there is no queue {QUEUE}" in done.stderr) == (1, True), done.output
    assert numbers(content(transport, f"{QUEUE}.dead", 3)) == [0, 1, 2]


def test_a_request_goes_back_with_what_its_reply_needs(transport: Transport) -> None:
    put(transport, [letter(0, reply_to="player-service.replies.1", correlation_id="c-7", priority=3)])
    requeue_dead_letters(transport, QUEUE, None, lambda found: None, deadline=soon())
    properties = content(transport, QUEUE, 1)[0].properties
    assert (properties.reply_to, properties.correlation_id, properties.priority) == (
        "player-service.replies.1",
        "c-7",
        3,
    )


def test_an_event_goes_back_as_what_it_was(transport: Transport) -> None:
    origin = {"x-original-exchange": "events", "x-original-routing-key": "quest.started"}
    put(transport, [letter(0, type="event", headers=origin)])
    requeue_dead_letters(transport, QUEUE, None, lambda found: None, deadline=soon())
    [found] = content(transport, QUEUE, 1)
    assert (found.exchange, found.routing_key, found.kind) == ("events", "quest.started", "event")


# --- which letters --------------------------------------------------------------------------------


def test_letters_that_share_an_id_or_have_none_are_addressed_by_their_key(
    framework: MessageHubTestFramework, transport: Transport
) -> None:
    put(transport, [letter(0, message_id="same"), letter(1, message_id="same"), letter(2, message_id=None)])
    listed = [json.loads(line) for line in command("list", framework, "--messages", "--json").stdout.splitlines()]
    assert len({one["key"] for one in listed}) == 3
    for number in (1, 2):
        shown = command("show", framework, "--key", listed[number]["key"])
        assert json.loads(shown.stdout)["payload"] == {"number": number}
    assert command("requeue", framework, "--key", listed[2]["key"]).exit_code == 0
    assert command("requeue", framework, "--message-id", "same", "--all").exit_code == 0
    assert sorted(numbers(content(transport, QUEUE, 3))) == [0, 1, 2]
    assert command("show", framework, "--key", "nokey").exit_code == 2


def test_letters_are_chosen_by_error_source_and_age(framework: MessageHubTestFramework, transport: Transport) -> None:
    put(
        transport,
        [
            letter(0),
            letter(1, headers={"x-error-type": "TimeoutError"}),
            letter(2, headers={"source": "shop-service"}),
            letter(3, headers={"x-first-failed-at": "2999-01-01T00:00:00+00:00"}),
        ],
    )
    for arguments, count in (
        (["--error", "timeout"], 1),
        (["--source", "shop-service"], 1),
        (["--newer-than", "1h"], 1),
        (["--older-than", "1h"], 3),
        (["--source", "player-service", "--older-than", "1h"], 2),
    ):
        listed = command("list", framework, "--messages", "--json", *arguments)
        assert len(listed.stdout.splitlines()) == count, arguments
        done = command("requeue", framework, "--all", "--dry-run", *arguments)
        assert (done.exit_code, done.stdout) == (0, f"{count} would be put back\n"), done.output
    assert command("list", framework, "--error", "timeout").exit_code == 2
    done = command("requeue", framework, "--all", "--error", "timeout")
    assert numbers(content(transport, QUEUE, 1)) == [1], done.output
    assert numbers(content(transport, f"{QUEUE}.dead", 3)) == [0, 2, 3], "the others stay, in order"


def test_groups_are_counted(framework: MessageHubTestFramework, transport: Transport) -> None:
    put(transport, [letter(number, headers={"x-error-type": f"Error{number % 2}"}) for number in range(5)])
    done = command("list", framework, "--group", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["count"], row["error"], row["source"]) for row in rows] == [
        (3, "Error0", "player-service"),
        (2, "Error1", "player-service"),
    ]


def test_purge_deletes_what_is_chosen_and_asks_first(framework: MessageHubTestFramework, transport: Transport) -> None:
    put(transport, [letter(0), letter(1, headers={"x-error-type": "TimeoutError"}), letter(2)])
    assert command("purge", framework, "--all").exit_code == 2
    assert command("purge", framework, "--all", "--dry-run").stdout == "3 would be deleted\n"
    done = command("purge", framework, "--all", "--error", "timeout", "--yes")
    assert (done.exit_code, done.stdout) == (0, f"1 deleted from {QUEUE}.dead\n"), done.output
    assert numbers(content(transport, f"{QUEUE}.dead", 2)) == [0, 2]


# --- what cannot be seen, and what must not be shown ------------------------------------------------


def test_list_says_that_another_consumer_may_hold_letters(
    framework: MessageHubTestFramework, transport: Transport
) -> None:
    put(transport, [letter(0)])
    holder = transport.consume(Topology(QueueSpec(f"{QUEUE}.dead")), prefetch=10, deadline=soon())
    holder.deliveries.get(timeout=30)
    done = command("list", framework, "--json")
    assert f"{QUEUE}.dead has 1 consumer, another command or a program" in done.stderr
    assert json.loads(done.stdout) == {
        "queue": QUEUE,
        "depth": 0,
        "consumers": 1,
        "first_failed_at": None,
        "message_id": None,
        "key": None,
        "reason": None,
    }
    holder.cancel(soon())
    holder.close(soon())


def test_a_reader_is_a_consumer_that_others_see(framework: MessageHubTestFramework, transport: Transport) -> None:
    put(transport, [letter(number) for number in range(200)])
    seen: list[str] = []

    def look(found: DeadLetter) -> None:
        if found.payload["number"] in (0, 150):
            seen.append(command("list", framework).stderr)

    each_dead_letter(transport, QUEUE, look, soon())
    assert all("consumer" in text for text in seen), seen
    assert len(seen) == 2


@pytest.mark.parametrize("arguments", [["list"], ["list", "--messages"], ["list", "--messages", "--json"], ["show"]])
def test_no_control_character_of_a_letter_reaches_the_terminal(
    framework: MessageHubTestFramework, transport: Transport, arguments: list[str]
) -> None:
    hostile = {"x-reason": HOSTILE, "x-error-type": HOSTILE, "x-error-message": HOSTILE, "source": HOSTILE}
    put(transport, [letter(0, message_id=HOSTILE, headers=hostile)])
    name, *others = arguments
    done = command(name, framework, *others)
    assert done.exit_code == 0, done.output
    assert all(line.isprintable() for line in done.output.split("\n")), done.output


def test_no_control_character_reaches_the_terminal_when_letters_are_moved_or_exported(
    framework: MessageHubTestFramework, transport: Transport, tmp_path: Path
) -> None:
    hostile = {"x-reason": HOSTILE, "source": HOSTILE}
    large = letter(1, message_id=HOSTILE + "1")
    large.properties.headers = {"note": "x" * 130_930}
    put(transport, [letter(0, message_id=HOSTILE, headers=hostile), large])
    for name, *arguments in (
        ["export", "--file", str(tmp_path / "a.json")],
        ["export", "--directory", str(tmp_path)],
        ["show", "--message-id", HOSTILE + "no"],
        ["requeue"],
        ["requeue", "--all"],
    ):
        done = command(name, framework, *arguments)
        assert all(line.isprintable() for line in done.output.split("\n")), done.output
    for file in tmp_path.iterdir():
        assert all(line.isprintable() for line in file.read_text().split("\n"))
        assert load_dead_letter(file).message_id in (HOSTILE, HOSTILE + "1")


# --- files ----------------------------------------------------------------------------------------


def test_all_chosen_letters_are_exported_and_an_interrupted_export_can_be_repeated(
    framework: MessageHubTestFramework, transport: Transport, tmp_path: Path
) -> None:
    put(transport, [letter(number, message_id=None if number == 2 else str(number)) for number in range(4)])
    put(transport, [letter(2, message_id=None)])
    for _ in range(2):
        done = command("export", framework, "--directory", str(tmp_path))
        assert (done.exit_code, "5 messages written" in done.stderr) == (0, True), done.output
    done = command("export", framework, "--directory", str(tmp_path), "--remove")
    assert done.exit_code == 0, done.output
    assert sorted(load_dead_letter(file).payload["number"] for file in tmp_path.iterdir()) == [0, 1, 2, 2, 3]
    assert command("show", framework).exit_code == 1, "all are removed"
    assert command("export", framework).exit_code == 2


def test_a_lone_surrogate_is_shown_exported_and_loaded(
    framework: MessageHubTestFramework, transport: Transport, tmp_path: Path
) -> None:
    body = b'{"name":"\\ud800"}'
    put(transport, [letter(0, body=body)])
    shown = command("show", framework)
    assert (shown.exit_code, json.loads(shown.stdout)["payload"]) == (0, {"name": "\ud800"}), shown.output
    file = tmp_path / "letter.json"
    file.write_text("mine")
    assert command("export", framework, "--file", str(file), "--force").exit_code == 0
    assert load_dead_letter(file).body == body


def test_a_body_of_another_form_is_loaded_byte_by_byte(tmp_path: Path) -> None:
    for body in (b'{ "a" : 1.0e2 }', b'{"a":"\\u00e9"}', b"\xff", b"", b"[" * 100_000, b'{"a":' * 50_000):
        saved = DeadLetter(QUEUE, "", QUEUE, body, Properties(message_id="1"))
        assert load_dead_letter(save_dead_letter(saved, tmp_path / "letter.json")).body == body


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "letter.json"
    file.write_text("mine")
    saved = DeadLetter(QUEUE, "", QUEUE, b"{}", Properties(message_id="1"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_dead_letter(saved, file)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.json"]
    assert file.read_text() == "mine"


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": "message-hub-dead-letter/1", "headers": ' + "[" * 100_000])
def test_a_file_that_is_nested_too_deeply_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "letter.json").write_text(text)
    with pytest.raises(MessageValidationError, match="nested too deeply"):
        load_dead_letter(tmp_path / "letter.json")
