from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any

import pytest
from pika import spec
from pika.data import encode_table

from message_hub_sync.consuming.republished_properties import (
    MAX_HEADER_BYTES,
    attempts_made,
    dead_letter_properties,
    expired,
    retry_properties,
)
from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageHubRejectError
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.rabbitmq.frames.decoding import decode, frame_start
from message_hub_sync.transport.rabbitmq.frames.encoding import encode_publish, properties_from_pika

NOW = 1_800_000_000.25
NOW_ISO = datetime.fromtimestamp(int(NOW), timezone.utc).isoformat()


@dataclass
class Failed:
    properties: Properties = field(default_factory=Properties)
    exchange: str = "events"
    routing_key: str = "character.created"


def failed(**properties: Any) -> Failed:
    return Failed(Properties(**properties))


def moved(delivery: Failed, error: BaseException | None = None, attempts: int = 1) -> Properties:
    return retry_properties(delivery, attempts=attempts, error=error, service="me", now=NOW, delay_ms=1_000)


def dead(delivery: Failed, error: BaseException | None = None, reason: str = "why") -> Properties:
    return dead_letter_properties(delivery, error=error, reason=reason, attempts=4, service="me", now=NOW)


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    ("value", "count"),
    [(3, 3), (0, 0), (-5, 0), (2**70, 2**31 - 1), (True, 0), ("3", 0), (2.0, 0), (None, 0), ([1], 0)],
)
def test_counts_in_headers_are_believed_only_where_they_are_counts(value: Any, count: int) -> None:
    assert attempts_made({"x-attempts": value}) == count
    assert attempts_made({}) == 0


# --- what a moved message bears ------------------------------------------------------------------


def test_a_move_keeps_what_the_message_is_and_its_headers() -> None:
    properties = Properties(
        message_id="m",
        correlation_id="c",
        type="event",
        app_id="sender",
        timestamp=1_700_000_000,
        reply_to="sender.replies.1",
        content_encoding="utf-8",
        priority=7,
        headers={"source": "sender", "tenant": "t-1"},
    )
    found = moved(Failed(properties), ValueError("no"), attempts=2)
    kept = ["message_id", "correlation_id", "type", "app_id", "timestamp", "reply_to", "content_type"]
    for name in [*kept, "content_encoding", "priority"]:
        assert getattr(found, name) == getattr(properties, name), name
    assert found.headers == {
        "source": "sender",
        "tenant": "t-1",
        "x-attempts": 2,
        "x-error-type": "ValueError",
        "x-error-message": "its text is in the log",
        "x-first-failed-at": NOW_ISO,
        "x-original-exchange": "events",
        "x-original-routing-key": "character.created",
        "x-service": "me",
    }
    assert properties.headers == {"source": "sender", "tenant": "t-1"}, "the delivery itself was changed"


def test_a_moved_message_is_persistent_even_if_it_came_otherwise() -> None:
    assert moved(failed(delivery_mode=1)).delivery_mode == 2


def test_expiration_and_user_id_ride_in_headers_and_stay_there_at_the_next_move() -> None:
    once = moved(failed(expiration="60000", user_id="alice"))
    twice = dead(Failed(once))
    for found in (once, twice):
        assert found.expiration is None
        assert found.user_id is None
        assert found.headers["x-original-expiration"] == "60000"
        assert found.headers["x-original-user-id"] == "alice"


def test_the_first_move_says_when_and_whence() -> None:
    once = moved(Failed())
    again = Failed(once, exchange="", routing_key="me.character.created")
    twice = retry_properties(again, attempts=2, error=None, service="other", now=NOW + 60, delay_ms=1_000)
    assert twice.headers["x-first-failed-at"] == NOW_ISO
    assert twice.headers["x-original-exchange"] == "events"
    assert twice.headers["x-original-routing-key"] == "character.created"
    assert twice.headers["x-attempts"] == 2
    assert twice.headers["x-service"] == "other"


@pytest.mark.parametrize("forged", [7, "x" * 60_000, {"a": 1}])
def test_forged_headers_of_ours_are_replaced(forged: Any) -> None:
    names = ("x-first-failed-at", "x-original-exchange", "x-original-routing-key")
    found = moved(failed(headers=dict.fromkeys(names, forged)))
    assert [found.headers[name] for name in names] == [NOW_ISO, "events", "character.created"]


def test_a_dead_letter_says_why_where_when_and_how_often() -> None:
    headers = dead(Failed(), raised(KeyError("name")), "failed 4 times").headers
    assert headers["x-reason"] == "failed 4 times"
    assert headers["x-attempts"] == 4
    assert headers["x-error-type"] == "KeyError"
    assert headers["x-error-message"].startswith(f"raised in {__name__}.raised, line ")
    assert headers["x-error-traceback"].endswith("KeyError")
    assert headers["x-service"] == "me"


def test_a_dead_letter_without_an_error_keeps_the_one_of_its_last_attempt() -> None:
    headers = dead(Failed(moved(Failed(), ValueError("no"))), None, "expired").headers
    assert headers["x-error-type"] == "ValueError"
    assert headers["x-reason"] == "expired"
    assert "x-error-traceback" not in headers


def test_what_errors_say_cannot_disturb_a_terminal_or_a_log() -> None:
    headers = dead(Failed(), raised(MessageHubRejectError("a\x1b[31m\r\nb\u202e")), "one\ntwo").headers
    for name in ("x-reason", "x-error-message"):
        assert headers[name].isprintable()


def test_an_error_of_any_length_is_cut() -> None:
    headers = dead(Failed(), raised(MessageHubRejectError("ü" * 1_000_000)), "r" * 10_000).headers
    assert len(headers["x-error-message"]) == len(headers["x-reason"]) == 500


def test_what_the_broker_would_read_as_routing_or_as_a_cycle_is_left_out() -> None:
    headers = {
        "x-death": [{"queue": "me.character.created", "reason": "expired", "count": 1}],
        "x-first-death-queue": "q",
        "x-last-death-reason": "expired",
        "x-delivery-count": 3,
        "CC": ["other.queue"],
        "BCC": ["other.queue"],
        "kept": 1,
    }
    assert set(moved(failed(headers=headers)).headers) & set(headers) == {"kept"}


def test_headers_of_any_kind_survive_or_are_dropped_so_that_the_move_can_be_written() -> None:
    nested: Any = "bottom"
    for _ in range(500):
        nested = {"down": nested, "beside": 1}
    moment = datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)
    headers: dict[Any, Any] = {
        "table": {"list": [1, "two", None, {"three": True}], "when": moment},
        "bytes": b"\xff\x00",
        "moment": moment,
        "before": datetime(1, 1, 1),
        "float": 1.5,
        "not-a-number": math.nan,
        "money": Decimal("12.345678901234567890123"),
        "large": 2**63,
        "least": -(2**63),
        "nested": nested,
        "surrogate": "\ud800",
        "k" * 256: 1,
        7: "seven",
        "object": object(),
    }
    found = moved(failed(headers=headers, timestamp=-1))
    assert found.timestamp is None
    data = encode_publish(Outgoing("", "x.dead", b"", found), 1, 131_064)
    method_size = frame_start(data, 0)[2]
    decoded = properties_from_pika(decode(spec.FRAME_HEADER, data[method_size:]).properties).headers
    assert decoded["table"]["list"] == [1, "two", None, {"three": True}]
    assert decoded["float"] == 1.5
    assert decoded["not-a-number"] == "nan"
    assert decoded["money"] == "12.345678901234567890123"
    assert decoded["least"] == -(2**63)
    assert decoded["nested"]["down"]["down"]["beside"] == 1
    assert not {"before", "large", "surrogate", "object", "k" * 256} & set(decoded)


def test_headers_that_are_too_large_make_way_for_ours_and_the_small_ones() -> None:
    headers = {"huge": "ü" * 31_000, "list": [b"x" * 50_000, "y" * 20_000], "source": "sender", "note": "n" * 9_000}
    found = dead(failed(headers=headers), raised(ValueError("x" * 10_000))).headers
    assert found["source"] == "sender"
    assert found["note"] == "n" * 9_000
    assert found["x-error-traceback"]
    assert not {"huge", "list"} & set(found)
    pieces: list[bytes] = []
    assert encode_table(pieces, found) <= MAX_HEADER_BYTES < 64 * 1024


def test_many_small_headers_stay_under_the_limit_as_they_are_written() -> None:
    found = moved(failed(headers={f"h{n}": [n, {"deep": n}] for n in range(10_000)})).headers
    pieces: list[bytes] = []
    # Sizes are estimated from above: numbers as if each took eight bytes.
    assert MAX_HEADER_BYTES / 2 < encode_table(pieces, found) <= MAX_HEADER_BYTES
    assert found["x-attempts"] == 1


# --- past its ttl --------------------------------------------------------------------------------


def back(properties: Properties, at: float) -> Properties:
    """As the broker hands it back from the retry queue, by its clock, which writes whole seconds."""
    death = {"queue": "q.retry.1000", "reason": "expired", "time": datetime.fromtimestamp(int(at), timezone.utc)}
    return replace(properties, headers={**properties.headers, "x-death": [death]})


def sent(at: float, ttl_ms: Any = "60000", **headers: Any) -> Failed:
    iso = datetime.fromtimestamp(at, timezone.utc).isoformat()
    return failed(timestamp=int(at), expiration=ttl_ms, headers={"timestamp": iso, **headers})


def test_each_delay_and_what_it_waited_before_shorten_what_is_left_of_a_ttl() -> None:
    first = moved(sent(NOW - 10))
    assert first.headers["x-ttl-left"] == 60_000 - 10_000 - 1_000
    second = retry_properties(
        Failed(back(first, NOW + 1)), attempts=2, error=None, service="me", now=NOW + 4, delay_ms=30_000
    )
    # 3 s it waited to be handled, of which those count that are certain, as the broker writes whole seconds.
    assert 49_000 - 3_000 - 30_000 <= second.headers["x-ttl-left"] <= 49_000 - 2_000 - 30_000
    assert not expired(back(second, NOW + 34), NOW + 34)
    third = retry_properties(
        Failed(back(second, NOW + 34)), attempts=3, error=None, service="me", now=NOW + 34, delay_ms=30_000
    )
    assert expired(back(third, NOW + 64), NOW + 64)


def test_a_message_that_waits_for_its_consumer_after_a_retry_expires_then() -> None:
    returned = back(moved(sent(NOW)), NOW + 1)
    assert not expired(returned, NOW + 58)
    assert expired(returned, NOW + 63)


def test_a_message_that_was_never_moved_is_the_brokers_to_expire() -> None:
    assert not expired(sent(NOW).properties, NOW + 61)


@pytest.mark.parametrize("jump", [-3600, 3600])
def test_a_clock_that_is_set_while_it_waits_gives_no_message_up(jump: float) -> None:
    # Each of the three clocks that are asked may be the one: the sender's, the broker's, the consumer's.
    for sender, broker, consumer in ((jump, 0, 0), (0, jump, 0), (0, 0, jump), (jump, jump, jump)):
        first = retry_properties(
            sent(NOW + sender),
            attempts=1,
            error=None,
            service="me",
            now=NOW,
            earliest_now=NOW + min(consumer, 0),
            delay_ms=1_000,
        )
        assert first.headers["x-ttl-left"] == 59_000
        returned = back(first, NOW + 1 + max(broker, 0))
        assert not expired(returned, NOW + 1 + min(consumer, 0))


def test_the_timestamp_property_serves_where_the_header_does_not() -> None:
    for stamp in ("yesterday", None, 7):
        delivery = failed(timestamp=int(NOW) - 20, expiration="60000", headers={"timestamp": stamp})
        assert 38_000 <= moved(delivery).headers["x-ttl-left"] <= 39_000


@pytest.mark.parametrize("ttl", [None, "", "-1", "soon", 60000, "٣", ["1"]])
def test_a_message_without_a_usable_ttl_never_expires(ttl: Any) -> None:
    found = moved(sent(NOW, ttl))
    assert "x-ttl-left" not in found.headers
    forged = replace(found, headers={**found.headers, "x-ttl-left": -1})
    assert not expired(forged, NOW + 1e9)


def test_a_ttl_of_thousands_of_digits_is_only_a_long_one() -> None:
    assert moved(sent(NOW, "9" * 5000)).headers["x-ttl-left"] == 9_999_999_999 - 1_000


@pytest.mark.parametrize("forged", ["1", None, 1.5, True, 2**62])
def test_a_forged_rest_of_a_ttl_is_no_more_than_the_ttl(forged: Any) -> None:
    properties = Properties(headers={"x-original-expiration": "60000", "x-ttl-left": forged, "x-death": "none"})
    assert not expired(properties, NOW)
    assert moved(Failed(properties)).headers["x-ttl-left"] == 59_000


def test_a_message_that_does_not_say_when_it_was_sent_has_all_of_its_ttl_left() -> None:
    assert moved(failed(expiration="2000")).headers["x-ttl-left"] == 1_000
