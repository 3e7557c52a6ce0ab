"""The text of a handler's exception stays in the log: neither a reply nor a moved message has it."""

from __future__ import annotations

import pickle

import pytest
from collector import Collector
from contract.conftest import Hub
from pydantic import BaseModel

from message_hub_sync import Event, Message, MessageHubRejectError, MessageHubRemoteError, RetryPolicy

DSN = "postgresql://campaign:s3cret@db.internal/campaigns"


class Question(BaseModel):
    n: int


def test_a_reply_has_the_class_of_the_error_and_the_log_its_text(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    def answer(message: Message) -> None:
        raise ConnectionError(f"cannot connect to {DSN}")

    campaign = hub.client("campaign")
    campaign.subscribe_messages(answer)
    with pytest.raises(MessageHubRemoteError) as caught:
        hub.client("character").request(hub.name("campaign"), {"n": 1})

    assert (caught.value.error_type, caught.value.error_message) == ("ConnectionError", "")
    assert str(caught.value) == f"{hub.name('campaign')} failed: ConnectionError: its text is in the log there"
    assert b"s3cret" not in pickle.dumps(caught.value)
    campaign.close()
    assert DSN in caplog.text


def test_a_reply_has_the_reason_that_the_handler_chose(hub: Hub) -> None:
    def answer(message: Message) -> None:
        try:
            raise ConnectionError(DSN)
        except ConnectionError as error:
            raise MessageHubRejectError("campaigns cannot be read today") from error

    hub.client("campaign").subscribe_messages(answer)
    with pytest.raises(MessageHubRemoteError) as caught:
        hub.client("character").request(hub.name("campaign"), {"n": 1})

    assert caught.value.error_type == "MessageHubRejectError"
    assert caught.value.error_message == "campaigns cannot be read today"


def test_a_reply_says_what_is_wrong_with_the_request(hub: Hub) -> None:
    def answer(question: Question) -> None:
        pass

    hub.client("campaign").subscribe_messages(answer)
    with pytest.raises(MessageHubRemoteError) as caught:
        hub.client("character").request(hub.name("campaign"), {"n": DSN})

    assert caught.value.error_type == "InvalidMessage"
    assert "n:" in caught.value.error_message
    assert "s3cret" not in str(caught.value)


def test_a_retried_and_a_dead_lettered_event_have_class_and_place(hub: Hub, caplog: pytest.LogCaptureFixture) -> None:
    attempts = Collector()

    def handle(event: Event) -> None:
        attempts(event)
        raise OSError(111, f"refused by {DSN}")

    client = hub.client("campaign", retry=RetryPolicy(attempts=2, delays=(1,)))
    client.subscribe(["campaign.theme_changed"], handle)
    hub.client("character").publish_event("campaign.theme_changed", {"campaign_id": "7"})

    again = attempts.wait(2)[1]
    dead = hub.take(f"{hub.name('campaign')}.campaign.theme_changed.dead")
    for headers in (again.headers, dead.properties.headers):
        assert headers["x-error-type"] == "ConnectionRefusedError"
        assert headers["x-error-message"].startswith(f"raised in {__name__}.handle, line ")
        assert "s3cret" not in str(headers)
    client.close()  # what is moved is logged after its confirm
    assert DSN in caplog.text
