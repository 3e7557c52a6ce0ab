"""What an operator does about dead letters, from the command line."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import datetime
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result
from collector import Collector
from programs import run

from message_hub_sync import Message, MessageHubClient, MessageHubRejectError, RetryPolicy
from message_hub_sync.cli.app import main
from message_hub_sync.dead_letters import dead_letter_queues
from message_hub_sync.testing import MessageHubTestFramework
from message_hub_sync.transport.topology import inbox_subscription

QUEUE = "campaign-service.messages"


@pytest.fixture
def framework(hub_url: str) -> Iterator[MessageHubTestFramework]:
    """A framework on a hub or virtual host of the test's own: clients that it does not know leave queues behind."""
    with MessageHubTestFramework(hub_url) as framework:
        yield framework


def command(name: str, url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["dead-letters", name, "--url", url, *arguments])


def give_up(framework: MessageHubTestFramework, *numbers: int) -> list[str]:
    """Have campaign-service dead-letter messages, then stop; their ids, the oldest first."""

    def handle(message: Message) -> None:
        raise KeyError(message.payload["number"])

    with MessageHubClient("campaign-service", framework.url, retry=RetryPolicy.none()) as client:
        client.subscribe_messages(handle)
        ids = []
        for number in numbers:
            ids.append(str(client.send_message("campaign-service", {"number": number}, ttl=60)))
            # One after the other: the first one may be returned, because there is no dead-letter queue yet.
            framework.export_dead_letter(QUEUE, message_id=ids[-1])
    return ids


def handled_again(framework: MessageHubTestFramework, count: int) -> list[Message]:
    collected = Collector()

    def handle(message: Message) -> None:
        collected(message)

    with MessageHubClient("campaign-service", framework.url) as client:
        client.subscribe_messages(handle)
        messages: list[Message] = collected.stays(count)
    return messages


def test_list_shows_how_many_since_when_and_why(framework: MessageHubTestFramework) -> None:
    ids = give_up(framework, 1, 2)
    for arguments in (["--service", "campaign-service"], ["--queue", QUEUE], ["--queue", QUEUE + ".dead"]):
        done = command("list", framework.url, *arguments)
        assert done.exit_code == 0, done.output
        heading, row = done.stdout.splitlines()
        assert heading.split("  ")[0] == "Queue"
        assert row.split()[:2] == [QUEUE, "2"]
        assert ids[0] in row
        assert "failed once, at last with KeyError" in row
        # Looking takes nothing out, and asking twice is the same.


def test_list_says_when_there_are_none_and_how_many_queues_exist(framework: MessageHubTestFramework) -> None:
    with framework.client("campaign-service") as client:
        client.subscribe_messages(lambda message: None)
        client.subscribe(["character.created"], lambda event: None)
    looked_at = len(dead_letter_queues("campaign-service"))
    done = command("list", framework.url, "--service", "campaign-service")
    assert (done.exit_code, done.stdout) == (0, ""), done.output
    assert done.stderr.splitlines() == [
        f"of the {looked_at} queues looked at for campaign-service, 2 exist",
        "AMQP cannot list queues: add those of events of your own, as --queue campaign-service.EVENT_TYPE",
        "no dead letters in those that exist (letters that somebody holds are not counted)",
    ]
    done = command("list", framework.url, "--queue", QUEUE)
    assert (done.exit_code, done.stderr) == (
        0,
        "no dead letters in those that exist (letters that somebody holds are not counted)\n",
    )


@pytest.mark.parametrize(
    "where", [["--service", "campain-service"], ["--queue", "campain-service.messages"], ["--queue", QUEUE + "s.dead"]]
)
def test_list_fails_when_no_queue_that_it_looked_at_exists(
    framework: MessageHubTestFramework, where: list[str]
) -> None:
    with framework.client("campaign-service") as client:
        client.subscribe_messages(lambda message: None)
    done = command("list", framework.url, *where)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "none of the queues looked at exists" in done.stderr
    assert ("as --queue campain-service.EVENT_TYPE" in done.stderr) == ("--service" in where)


def test_list_finds_what_an_event_of_a_services_own_left(framework: MessageHubTestFramework) -> None:
    def handle(event: str) -> None:
        raise KeyError("quest")

    with framework.client("quest-service", retry=RetryPolicy.none()) as client:
        client.subscribe(["quest.started"], handle)
        event_id = client.publish_event("quest.started", {"quest_id": "7"})
        framework.export_dead_letter("quest-service.quest.started")
    assert command("list", framework.url, "--service", "quest-service").exit_code == 1
    done = command("list", framework.url, "--service", "quest-service", "--queue", "quest-service.quest.started")
    assert (done.exit_code, str(event_id) in done.stdout) == (0, True), done.output


def test_list_shows_each_message_on_a_line(framework: MessageHubTestFramework) -> None:
    ids = give_up(framework, 1, 2)
    done = command("list", framework.url, "--queue", QUEUE, "--messages")
    assert done.exit_code == 0, done.output
    heading, *rows = done.stdout.splitlines()
    assert heading.split() == ["Queue", "Message", "id", "Key", "First", "failed", "Attempts", "Error"]
    for row, message_id in zip(rows, ids, strict=True):
        queue, found, _, since, attempts, error = row.split(maxsplit=5)
        assert (queue, found, attempts) == (QUEUE, message_id, "1")
        assert error.startswith("KeyError: raised in ")
        assert datetime.fromisoformat(since)
    assert [message.payload["number"] for message in put_back_and_handled(framework)] == [1, 2], "they stayed, in order"


def put_back_and_handled(framework: MessageHubTestFramework) -> list[Message]:
    assert command("requeue", framework.url, "--queue", QUEUE, "--all").exit_code == 0
    return handled_again(framework, 2)


@pytest.mark.parametrize("cells", [20, 60, 80, 120])
@pytest.mark.parametrize("arguments", [[], ["--messages"], ["--group"]])
def test_each_table_fits_the_terminal_and_keeps_its_last_column(
    memory: MessageHubTestFramework, monkeypatch: pytest.MonkeyPatch, cells: int, arguments: list[str]
) -> None:
    give_up(memory, 1, 2)
    monkeypatch.setattr("message_hub_sync.cli.terminal.width", lambda: cells)
    done = command("list", memory.url, "--queue", QUEUE, *arguments)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) > 1
    assert all(len(line) <= cells for line in lines)
    if cells >= 60:
        assert "KeyError" in lines[1] or "failed once" in lines[1], lines


def test_list_writes_json_a_line_each(memory: MessageHubTestFramework) -> None:
    ids = give_up(memory, 1, 2)
    done = command("list", memory.url, "--service", "campaign-service", "--messages", "--json")
    first, second = map(json.loads, done.stdout.splitlines())
    assert [first["message_id"], second["message_id"]] == ids
    assert {key: second[key] for key in ("queue", "attempts", "error_type", "reason")} == {
        "queue": QUEUE,
        "attempts": 1,
        "error_type": "KeyError",
        "reason": "failed once, at last with KeyError",
    }
    assert second["error_message"].endswith("; its text is in the log")
    [overview] = map(json.loads, command("list", memory.url, "--queue", QUEUE, "--json").stdout.splitlines())
    assert (overview["queue"], overview["depth"], overview["message_id"]) == (QUEUE, 2, ids[0])


def test_list_cuts_lines_where_the_terminal_ends_and_lets_no_control_character_through(
    memory: MessageHubTestFramework, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handle(message: Message) -> None:
        raise MessageHubRejectError("\x1b[2Jthe library is closed " * 9)

    with memory.client("campaign-service", retry=RetryPolicy.none()) as client:
        client.subscribe_messages(handle)
        client.send_message("campaign-service", {})
        memory.export_dead_letter(QUEUE)
    arguments = ["--queue", QUEUE, "--messages"]
    whole = command("list", memory.url, *arguments).stdout.splitlines()[1]
    assert len(whole) > 200
    assert "\x1b" not in whole
    monkeypatch.setattr("message_hub_sync.cli.terminal.width", lambda: 100)
    heading, cut = command("list", memory.url, *arguments).stdout.splitlines()
    assert (len(cut), cut[-1]) == (100, "…")
    assert heading.split() == ["Message", "id", "Key", "First", "failed", "Error"], (
        "columns that do not fit are left out"
    )


def test_list_wants_to_know_where_to_look() -> None:
    assert "name a service with --service" in command("list", "memory://").output
    done = command("list", "memory://", "--service", "No Service")
    assert (done.exit_code, done.output.startswith("Error: ")) == (1, True)


def test_show_writes_the_letter_and_leaves_it(memory: MessageHubTestFramework) -> None:
    ids = give_up(memory, 1, 2)
    done = command("show", memory.url, "--queue", QUEUE, "--message-id", ids[1])
    assert json.loads(done.stdout)["payload"] == {"number": 2}
    assert json.loads(command("show", memory.url, "--queue", QUEUE).stdout)["payload"] == {"number": 1}


def test_requeue_puts_back_the_oldest(framework: MessageHubTestFramework) -> None:
    ids = give_up(framework, 1, 2)
    done = command("requeue", framework.url, "--queue", QUEUE)
    assert done.exit_code == 0, done.output
    assert f"message {ids[0]} (failed once" in done.stdout
    assert done.stdout.endswith(f"1 put back into {QUEUE}\n")
    assert [str(message.id) for message in handled_again(framework, 1)] == [ids[0]]
    assert ids[1] in command("list", framework.url, "--queue", QUEUE).stdout


def test_requeue_puts_back_one_or_all_in_their_order(framework: MessageHubTestFramework) -> None:
    ids = give_up(framework, 1, 2, 3)
    assert command("requeue", framework.url, "--queue", QUEUE, "--message-id", ids[1]).exit_code == 0
    done = command("requeue", framework.url, "--queue", QUEUE, "--all")
    assert done.stdout.endswith(f"2 put back into {QUEUE}\n"), done.output
    assert [str(message.id) for message in handled_again(framework, 3)] == [ids[1], ids[0], ids[2]]
    assert "is empty" in command("requeue", framework.url, "--queue", QUEUE, "--all").output


def test_what_is_put_back_has_all_its_attempts_and_no_ttl(framework: MessageHubTestFramework) -> None:
    give_up(framework, 1)
    assert framework.export_dead_letter(QUEUE).properties.expiration == "60000"
    assert command("requeue", framework.url, "--queue", QUEUE).exit_code == 0

    def handle(message: Message) -> None:
        raise ValueError("still")

    with MessageHubClient("campaign-service", framework.url, retry=RetryPolicy.none()) as client:
        client.subscribe_messages(handle)
        letter = framework.export_dead_letter(QUEUE)
    assert (letter.failure["attempts"], letter.failure["error_type"]) == (1, "ValueError")
    assert letter.properties.expiration is None


@pytest.mark.rabbitmq
def test_what_has_no_queue_to_go_back_to_stays(rabbitmq_url: str) -> None:
    with MessageHubTestFramework(rabbitmq_url, isolated=False) as framework:
        [message_id] = give_up(framework, 1)
        transport = framework._started().transport()
        transport.delete(inbox_subscription("campaign-service"), QUEUE, time.monotonic() + 5)
        done = command("requeue", framework.url, "--queue", QUEUE)
        assert (done.exit_code, f"there is no queue {QUEUE}" in done.output) == (1, True), done.output
        assert message_id in command("list", framework.url, "--queue", QUEUE).stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["requeue", "--queue", ""], "must be a queue name, not empty"),
        (["requeue", "--queue", ".dead"], "must be a queue name, not empty"),
        (["requeue", "--queue", QUEUE, "--timeout", "nan"], "must be a number of seconds from 0.1 to 86400, not nan"),
        (["export", "--queue", QUEUE, "--file", ""], "is a directory: name a file in it"),
        (["export", "--queue", QUEUE, "--file", __file__], f"there is no queue {QUEUE}.dead"),
        (["show", "--queue", QUEUE], "a memory:// hub lives inside one process"),
    ],
)
def test_what_cannot_be_is_said(arguments: list[str], says: str) -> None:
    done = command(arguments[0], f"memory://nothing-{uuid4().hex}", *arguments[1:])
    assert done.exit_code in (1, 2)
    assert says in done.output


@pytest.mark.rabbitmq
def test_a_wrong_password_is_told_once(rabbitmq_url: str) -> None:
    host = rabbitmq_url.rpartition("@")[2]
    done = run(
        ["-m", "message_hub_sync.cli", "dead-letters", "show", "--queue", QUEUE],
        MESSAGE_HUB_URL=f"amqp://guest:no@{host}",
    )
    assert done.returncode == 4
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
