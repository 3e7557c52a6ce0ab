"""Settings as texts, from the environment or a framework's configuration."""

from __future__ import annotations

import inspect
import logging
from pathlib import Path
from typing import Any

import pytest

from message_hub_sync import MessageHubClient
from message_hub_sync.client.settings import ClientSettings
from message_hub_sync.config import CircuitBreakerConfig, EnvironmentSettings
from message_hub_sync.config.environment import _VARIABLES
from message_hub_sync.errors import MessageHubConfigurationError

SECRET = "s3cret"


@pytest.mark.parametrize(
    ("variable", "text", "keyword", "value"),
    [
        ("MESSAGE_HUB_SERVICE_NAME", "quest-service", "service_name", "quest-service"),
        ("MESSAGE_HUB_URL", "amqp://a,b", "rabbitmq_url", "amqp://a,b"),
        ("MESSAGE_HUB_URL_FILE", "/run/secrets/url", "rabbitmq_url", Path("/run/secrets/url")),
        ("MESSAGE_HUB_PASSWORD_FILE", "/run/secrets/password", "credentials", Path("/run/secrets/password")),
        ("MESSAGE_HUB_CONNECT_TIMEOUT", "1.5", "connect_timeout", 1.5),
        ("MESSAGE_HUB_HEARTBEAT", " 30 ", "heartbeat", 30),
        ("MESSAGE_HUB_STRICT_CATALOGUE", "True", "strict_catalogue", True),
        ("MESSAGE_HUB_SETTLE_EACH", "off", "settle_each", False),
        ("MESSAGE_HUB_QUEUE_TYPE", "quorum", "queue_type", "quorum"),
    ],
)
def test_a_text_becomes_what_its_keyword_takes(variable: str, text: str, keyword: str, value: Any) -> None:
    settings = EnvironmentSettings({variable: text}).settings
    assert settings == {keyword: value}
    assert type(settings[keyword]) is type(value)


def test_every_keyword_that_a_text_can_give_has_a_variable() -> None:
    objects = {"circuit_breaker_config", "retry", "ssl_context", "middleware", "json_encoder"}
    keywords = set(inspect.signature(MessageHubClient).parameters)
    assert {keyword for keyword, _ in _VARIABLES.values()} == keywords - objects
    assert set(ClientSettings.__annotations__) == keywords


def test_the_circuit_has_a_variable_for_each_number() -> None:
    found = EnvironmentSettings({"MESSAGE_HUB_FAILURE_THRESHOLD": "1", "MESSAGE_HUB_RESET_TIMEOUT": "5"})
    assert found.settings == {"circuit_breaker_config": CircuitBreakerConfig(1, 5)}
    given = EnvironmentSettings({"MESSAGE_HUB_FAILURE_THRESHOLD": "x"}, {"circuit_breaker_config"})
    assert given.settings == {}


def test_an_empty_text_counts_as_not_set() -> None:
    assert EnvironmentSettings({"MESSAGE_HUB_URL": "", "MESSAGE_HUB_HEARTBEAT": ""}).settings == {}


def test_a_value_of_a_framework_that_is_no_text_is_taken_as_it_is() -> None:
    urls = ["amqp://a", "amqp://b"]
    found = EnvironmentSettings({"MESSAGE_HUB_URL": urls, "MESSAGE_HUB_HEARTBEAT": 20, "MESSAGE_HUB_SETTLE_EACH": True})
    assert found.settings == {"rabbitmq_url": urls, "heartbeat": 20, "settle_each": True}


@pytest.mark.parametrize(
    ("variable", "text", "rule"),
    [
        ("MESSAGE_HUB_HEARTBEAT", "ten", "must be a whole number, not 'ten'"),
        ("MESSAGE_HUB_HEARTBEAT", "1.5", "must be a whole number, not '1.5'"),
        ("MESSAGE_HUB_CONNECT_TIMEOUT", "5s", "must be a number of seconds, not '5s'"),
        ("MESSAGE_HUB_SETTLE_EACH", "2", "must be true or false (also 1, yes, on, 0, no, off), not '2'"),
        ("MESSAGE_HUB_RESET_TIMEOUT", "soon", "must be a number of seconds, not 'soon'"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(variable: str, text: str, rule: str) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        EnvironmentSettings({variable: text})
    assert str(caught.value) == f"{variable} {rule}"


def test_a_value_out_of_range_is_told_with_its_variable() -> None:
    with pytest.raises(
        MessageHubConfigurationError, match=r"^MESSAGE_HUB_FAILURE_THRESHOLD: failure_threshold must be"
    ):
        EnvironmentSettings({"MESSAGE_HUB_FAILURE_THRESHOLD": "0"})


@pytest.mark.parametrize("secret", ["MESSAGE_HUB_URL", "MESSAGE_HUB_AUTH_KEY"])
def test_a_secret_beside_its_file_is_refused(secret: str, tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text(SECRET)
    with pytest.raises(MessageHubConfigurationError) as caught:
        EnvironmentSettings({secret: f"amqp://u:{SECRET}@h", f"{secret}_FILE": str(file)})
    assert str(caught.value) == f"{secret} must not be set beside {secret}_FILE: remove one of them"


def test_a_secret_beside_its_file_does_not_matter_if_the_caller_gives_the_value() -> None:
    both = {"MESSAGE_HUB_URL": "amqp://a", "MESSAGE_HUB_URL_FILE": "/nowhere"}
    assert EnvironmentSettings(both, {"rabbitmq_url": "memory://"}).settings == {}


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_secret_file_is_read_without_its_line_end(end: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(f"{SECRET} {end}".encode())
    assert EnvironmentSettings({"MESSAGE_HUB_AUTH_KEY_FILE": str(file)}).settings == {"auth_key": f"{SECRET} "}


@pytest.mark.parametrize("content", [None, b"", b"\n", b"\xff\xfe"])
def test_a_secret_file_that_cannot_be_used_is_named_without_its_content(content: bytes | None, tmp_path: Path) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(MessageHubConfigurationError, match=r"^MESSAGE_HUB_AUTH_KEY_FILE must name a "):
        EnvironmentSettings({"MESSAGE_HUB_AUTH_KEY_FILE": str(file)})


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MESSAGE_HUB_CONECT_TIMEOUT", " (did you mean MESSAGE_HUB_CONNECT_TIMEOUT?)"),
        ("MESSAGE_HUB_URLS", " (did you mean MESSAGE_HUB_URL?)"),
        ("MESSAGE_HUB_ZZZZZZZZZZZZZZZZZZZZ", ""),
    ],
)
def test_an_unknown_name_warns_with_the_nearest_one(name: str, hint: str, caplog: pytest.LogCaptureFixture) -> None:
    assert EnvironmentSettings({name: SECRET}).settings == {}
    assert caplog.messages == [f"{name} is not a setting of the hub, so it has no effect{hint}"]


@pytest.mark.parametrize(
    "name",
    [
        *("MESSAGE_HUB_TEST_URL", "MESSAGE_HUB_TEST_RABBITMQ", "MESSAGE_HUB_FRAMES"),
        # of Kubernetes, for a service named message-hub
        *("MESSAGE_HUB_SERVICE_HOST", "MESSAGE_HUB_SERVICE_PORT", "MESSAGE_HUB_SERVICE_PORT_AMQP", "MESSAGE_HUB_PORT"),
        *("MESSAGE_HUB_PORT_5672_TCP", "MESSAGE_HUB_PORT_5672_TCP_ADDR", "MESSAGE_HUBBLE"),
    ],
)
def test_names_that_others_read_do_not_warn(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    EnvironmentSettings({name: "x"})
    assert caplog.messages == []
