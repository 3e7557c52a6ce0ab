"""Settings are checked once, the error says which and what is allowed, and no secret is ever shown."""

from __future__ import annotations

import dataclasses
import ssl
from typing import Any

import pytest

from message_hub_sync.config import BrokerAddress, CircuitBreakerConfig, ClientConfig, MemoryAddress, positive_seconds
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.text import shown

SECRET = "s3cret"

# --- what shows nothing ----------------------------------------------------------------------------


def test_no_repr_and_no_text_of_an_address_holds_the_password() -> None:
    address = BrokerAddress("host", 5672, "v", "user", SECRET)
    assert address.password == SECRET
    config = ClientConfig("s", (address,), auth_key=SECRET + "-key")
    for text in (repr(address), str(address), repr(config), str(config), f"{[address]} {config!r}"):
        assert SECRET not in text
    assert str(address) == "amqp://host:5672"
    assert str(dataclasses.replace(address, tls=True)) == "amqps://host:5672"


# --- durations and the circuit breaker -------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 0.001, 5.5, 2_147_000])
def test_a_duration_is_a_number_of_seconds(value: float) -> None:
    assert positive_seconds(value, "x") == value


BAD_SECONDS: list[Any] = [
    0, -1, 0.0, -0.5, float("nan"), float("inf"), float("-inf"), True, False, None, "5", 2_147_001, 1e300, 10**400
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_SECONDS, ids=lambda value: ascii(value)[:12])
def test_another_duration_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        positive_seconds(value, "connect_timeout")
    assert str(caught.value) == (
        f"connect_timeout must be a number of seconds greater than 0 and at most 2147000, not {shown(value)}"
    )


def test_a_circuit_breaker_is_configured_as_the_guide_does_it() -> None:
    assert CircuitBreakerConfig(5, 60, 30) == CircuitBreakerConfig(
        failure_threshold=5, reset_timeout=60, half_open_timeout=30
    )
    assert CircuitBreakerConfig() == CircuitBreakerConfig(5, 60, 30)


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None, True])
def test_a_failure_threshold_is_a_whole_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        CircuitBreakerConfig(failure_threshold=value)
    assert str(caught.value) == f"failure_threshold must be a whole number of at least 1, not {value!r}"


@pytest.mark.parametrize("name", ["reset_timeout", "half_open_timeout"])
def test_the_circuit_breakers_durations_are_checked(name: str) -> None:
    with pytest.raises(MessageHubConfigurationError, match=f"^{name} must be a number of seconds .*, not 0$"):
        CircuitBreakerConfig(**{name: 0})


# --- the client's settings -------------------------------------------------------------------------


def configured(**settings: Any) -> ClientConfig:
    return ClientConfig(**{"service_name": "s", "address": MemoryAddress("default"), **settings})


def test_the_defaults_are_those_the_design_promises() -> None:
    config = configured()
    assert (config.connect_timeout, config.delivery_timeout, config.close_timeout) == (5, 5, 5)
    assert (config.heartbeat, config.queue_type, config.max_message_bytes) == (10, "classic", 16 * 2**20)
    assert (config.message_priorities, config.strict_catalogue, config.settle_each) == (False, False, False)


BAD_SETTINGS: list[tuple[str, Any, str]] = [
    ("service_name", "", "service_name must be a service name (lower-case letters"),
    ("service_name", "", "not ''"),
    ("service_name", "No Such", "lower-case letters, digits, '_' and '-'"),
    ("connect_timeout", 0, "connect_timeout must be a number of seconds greater than 0 and at most 2147000, not 0"),
    ("delivery_timeout", -1, "delivery_timeout must be a number of seconds greater than 0 and at most 2147000, not -1"),
    ("close_timeout", None, "close_timeout must be a number of seconds greater than 0 and at most 2147000, not None"),
    ("auth_key", "", "auth_key must be a str that is not empty, or None"),
    ("auth_key", SECRET.encode(), "auth_key must be a str that is not empty, or None"),
    ("circuit_breaker", (5, 60, 30), "circuit_breaker_config must be a CircuitBreakerConfig, not tuple"),
    ("queue_type", "stream", "queue_type must be 'classic' or 'quorum', not 'stream'"),
    ("heartbeat", 0, "heartbeat must be a whole number from 1 to 65535, not 0"),
    ("heartbeat", 65536, "heartbeat must be a whole number from 1 to 65535, not 65536"),
    ("heartbeat", 1.5, "heartbeat must be a whole number from 1 to 65535, not 1.5"),
    ("heartbeat", True, "heartbeat must be a whole number from 1 to 65535, not True"),
    ("max_message_bytes", 0, "max_message_bytes must be a whole number from 1 to 9223372036854775807, not 0"),
    ("settle_each", 1, "settle_each must be True or False, not 1"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD_SETTINGS, ids=lambda value: ascii(value)[:20])
def test_a_setting_that_is_not_usable_is_named_with_what_is(name: str, value: Any, expected: str) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        configured(**{name: value})
    assert expected in str(caught.value)
    assert SECRET not in str(caught.value)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        configured().delivery_timeout = 7  # type: ignore[misc]


# --- TLS contexts ----------------------------------------------------------------------------------


def test_a_context_made_before_gevent_replaced_the_class_is_refused_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    address = BrokerAddress("h", 5671, tls=True, ssl_context=ssl.create_default_context())
    address.tls_context()

    class Replaced(ssl.SSLContext):  # as gevent's monkey.patch_ssl() does
        pass

    monkeypatch.setattr(ssl, "SSLContext", Replaced)
    with pytest.raises(MessageHubConfigurationError, match="must be made after gevent's monkey"):
        address.tls_context()


def test_a_context_of_the_library_is_made_anew_for_each_connection() -> None:
    address = BrokerAddress("h", 5671, tls=True)
    assert address.tls_context() is not address.tls_context()
