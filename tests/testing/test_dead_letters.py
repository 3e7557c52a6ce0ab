"""What was given up becomes a file, and the file a regression test."""

from __future__ import annotations

import json
import time
from pathlib import Path
from uuid import uuid4

import pytest
from click.testing import CliRunner, Result

from message_hub_sync import Event, Message, MessageHubDeliveryError, MessageValidationError, RetryPolicy
from message_hub_sync.catalogue import CharacterCreated
from message_hub_sync.cli.app import main
from message_hub_sync.envelope.correlation import current_correlation_id
from message_hub_sync.testing import MessageHubTestFramework, load_dead_letter
from message_hub_sync.transport.base import Outgoing


def give_up(framework: MessageHubTestFramework, payload: dict[str, object]) -> str:
    """Have campaign-service dead-letter an event; its id."""
    client = framework.client("campaign-service", retry=RetryPolicy.none())

    def handle(event: Event) -> None:
        raise KeyError("race")

    client.subscribe(["character.created"], handle)
    publisher = framework.client("character-service")
    return str(publisher.publish_event("character.created", payload, correlation_id="order-7", headers={"tenant": "n"}))


def export(url: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["dead-letters", "export", "--url", url, *arguments])


def test_a_dead_letter_is_exported_and_loaded_as_it_was(framework: MessageHubTestFramework, tmp_path: Path) -> None:
    event_id = give_up(framework, {"character_id": "42", "name": "Éowyn"})
    exported = framework.export_dead_letter("campaign-service.character.created", tmp_path / "letter.json")
    letter = load_dead_letter(tmp_path / "letter.json")
    assert letter == exported
    assert (letter.message_id, letter.kind) == (event_id, "event")
    assert (letter.queue, letter.exchange, letter.routing_key) == (
        "campaign-service.character.created",
        "events",
        "character.created",
    )
    assert letter.payload == {"character_id": "42", "name": "Éowyn"}
    assert letter.properties.correlation_id == "order-7"
    assert letter.properties.headers["tenant"] == "n"
    assert not [name for name in letter.properties.headers if name.startswith("x-")]
    assert letter.failure["error_type"] == "KeyError"
    assert letter.failure["service"] == "campaign-service"
    assert letter.failure["attempts"] == 1
    assert letter.failure["error_traceback"].endswith("KeyError")


def test_a_dead_letter_is_replayed_into_a_handler(memory: MessageHubTestFramework) -> None:
    event_id = give_up(memory, {"character_id": "42", "name": "Frodo"})
    letter = memory.export_dead_letter("campaign-service.character.created")

    def as_model(created: CharacterCreated, event: Event) -> tuple[object, ...]:
        return created.name, str(event.id), event.event_type, current_correlation_id()

    assert letter.replay(as_model) == ("Frodo", event_id, "character.created", "order-7")
    assert letter.replay(json.loads) == letter.payload

    def broken(event: dict) -> None:  # type: ignore[type-arg]
        raise KeyError(event["race"])

    with pytest.raises(KeyError, match="race"):
        letter.replay(broken)
    with pytest.raises(MessageValidationError, match="a handler of events cannot get message: 'Message'"):
        letter.replay(lambda_for_messages)


def lambda_for_messages(message: Message) -> None: ...


def test_a_dead_letter_is_sent_again_to_its_service(framework: MessageHubTestFramework) -> None:
    give_up(framework, {"character_id": "42"})
    letter = framework.export_dead_letter("campaign-service.character.created", remove=True)
    framework.client("campaign-service").close()
    mock = framework.create_mock_service("campaign-service")
    mock.subscribe_to_events("character.created")
    framework.replay(letter)
    event = mock.expect_event("character.created")
    assert (str(event.id), event.payload, event.redelivered) == (letter.message_id, {"character_id": "42"}, False)
    with pytest.raises(MessageValidationError, match="has no message"):
        framework.export_dead_letter("campaign-service.character.created", timeout=0.2)


def test_a_dead_letter_without_a_queue_is_not_sent_again(framework: MessageHubTestFramework, tmp_path: Path) -> None:
    document = written(tmp_path, queue=f"nobody-{uuid4().hex[:6]}.messages")
    with pytest.raises(MessageHubDeliveryError, match="there is no queue nobody-"):
        framework.replay(load_dead_letter(document))


def test_a_body_that_is_no_json_object_goes_along(memory: MessageHubTestFramework, tmp_path: Path) -> None:
    mock = memory.create_mock_service("service-a", retry=RetryPolicy.none())
    mock.send_message("service-a", {})
    transport = mock.client._lifecycle.session().transport
    given = mock.expect_message()
    properties = load_dead_letter(written(tmp_path)).properties
    properties.message_id = str(uuid4())
    transport.publish(Outgoing("", "service-a.messages", b"\xff[NaN", properties), time.monotonic() + 5)
    memory.export_dead_letter("service-a.messages", tmp_path / "letter.json")
    letter = load_dead_letter(tmp_path / "letter.json")
    assert letter.body == b"\xff[NaN"
    assert letter.kind == "message"
    assert given.id != letter.message_id
    with pytest.raises(MessageValidationError, match="has no payload: the body is not UTF-8"):
        _ = letter.payload
    with pytest.raises(MessageValidationError, match="does not get"):
        letter.replay(lambda message: None)


def written(tmp_path: Path, **changes: object) -> Path:
    """A file as it might be written by hand."""
    document = {
        "format": "message-hub-dead-letter/1",
        "queue": "service-a.messages",
        "exchange": "",
        "routing_key": "service-a.messages",
        "failure": {},
        "properties": {"message_id": str(uuid4()), "type": "service_message"},
        "headers": {"source": "service-b", "destination": "service-a"},
        "payload": {"number": 1},
        **changes,
    }
    path = tmp_path / "by-hand.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def test_a_message_by_hand_is_replayed(tmp_path: Path) -> None:
    letter = load_dead_letter(written(tmp_path))
    assert letter.replay(lambda message: (message.payload, message.source)) == ({"number": 1}, "service-b")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[]", "is not a dead letter: format must be 'message-hub-dead-letter/1', not None"),
        ('{"format": "other/1"}', "format must be 'message-hub-dead-letter/1', not 'other/1'"),
        ('{"format": "message-hub-dead-letter/1", "payload": {}}', "'properties' is missing"),
        ('{"format": "message-hub-dead-letter/1", "body": 7}', "wrong type"),
        ('{"format": "message-hub-dead-letter/1", "payload": {}, "properties": [], "headers": {}}', "wrong type"),
    ],
)
def test_another_file_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(MessageValidationError, match=says):
        load_dead_letter(tmp_path / "file.json")


# --- the command ----------------------------------------------------------------------------------


def test_the_command_exports_one_and_leaves_it(framework: MessageHubTestFramework, tmp_path: Path) -> None:
    event_id = give_up(framework, {"character_id": "42"})
    queue, file = "campaign-service.character.created", tmp_path / "letter.json"
    framework.export_dead_letter(queue)  # waits until it is there
    for arguments in ([], ["--force", "--message-id", event_id], ["--force", "--remove"]):
        done = export(framework.url, "--queue", queue, "--file", str(file), *arguments)
        assert (done.exit_code, event_id in done.output) == (0, True), done.output
        assert load_dead_letter(file).message_id == event_id
        assert "KeyError" in done.output
    done = export(framework.url, "--queue", queue, "--file", str(file), "--force")
    assert (done.exit_code, "is empty" in done.output) == (1, True), done.output
    assert load_dead_letter(file).message_id == event_id


def test_the_command_says_what_is_not_there(framework: MessageHubTestFramework, tmp_path: Path) -> None:
    file = tmp_path / "letter.json"
    done = export(framework.url, "--queue", "nobody.messages", "--file", str(file))
    assert (done.exit_code, "there is no queue nobody.messages.dead" in done.output) == (1, True), done.output
    give_up(framework, {"character_id": "42"})
    queue = "campaign-service.character.created"
    framework.export_dead_letter(queue)
    done = export(framework.url, "--queue", queue, "--file", str(file), "--message-id", str(uuid4()))
    assert (done.exit_code, "messages read: 1" in done.output) == (1, True), done.output
    assert not file.exists()


def test_the_command_neither_replaces_a_file_nor_removes_what_it_could_not_write(
    memory: MessageHubTestFramework, tmp_path: Path
) -> None:
    give_up(memory, {"character_id": "42"})
    queue, file = "campaign-service.character.created", tmp_path / "letter.json"
    memory.export_dead_letter(queue)
    file.write_text("mine")
    done = export(memory.url, "--queue", queue, "--file", str(file))
    assert (done.exit_code, file.read_text()) == (1, "mine")
    done = export(memory.url, "--queue", queue, "--file", str(tmp_path / "no" / "letter.json"), "--remove")
    assert (done.exit_code, "cannot be written" in done.output) == (1, True)
    memory.export_dead_letter(queue)


def test_the_command_says_that_there_is_no_hub(tmp_path: Path) -> None:
    url = "amqp://user:secret@127.0.0.1:1/"
    done = export(url, "--queue", "a.messages", "--file", str(tmp_path / "x.json"), "--timeout", "0.3")
    assert done.exit_code == 3
    assert done.output.startswith("Error: no connection to the hub")
    assert "secret" not in done.output
