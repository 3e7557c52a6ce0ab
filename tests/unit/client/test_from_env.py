"""A client from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from message_hub_sync import MessageHubClient, MessageHubConfigurationError


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESSAGE_HUB_TEST_URL", raising=False)
    monkeypatch.setenv("MESSAGE_HUB_URL", "memory://from-env")
    monkeypatch.setenv("MESSAGE_HUB_SERVICE_NAME", "quest-service")


def test_a_client_with_the_settings_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGE_HUB_STRICT_CATALOGUE", "yes")
    with MessageHubClient.from_env() as client:
        assert client.service_name == "quest-service"
        assert client._config.strict_catalogue is True
        assert str(client._config.address) == "memory://from-env"


def test_an_argument_has_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGE_HUB_HEARTBEAT", "nonsense")
    client = MessageHubClient.from_env(service_name="other-service", heartbeat=20, rabbitmq_url="memory://")
    assert (client.service_name, client._config.heartbeat) == ("other-service", 20)


def test_a_service_name_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESSAGE_HUB_SERVICE_NAME")
    with pytest.raises(MessageHubConfigurationError, match=r"^MESSAGE_HUB_SERVICE_NAME must be set"):
        MessageHubClient.from_env()
    assert MessageHubClient.from_env(service_name="x-service").service_name == "x-service"


@pytest.mark.parametrize(
    ("variable", "text", "keyword"),
    [
        ("MESSAGE_HUB_SERVICE_NAME", "Quest Service", "service_name"),
        ("MESSAGE_HUB_URL", "http://host", "rabbitmq_url"),
        ("MESSAGE_HUB_CONNECT_TIMEOUT", "0", "connect_timeout"),
        ("MESSAGE_HUB_QUEUE_TYPE", "stream", "queue_type"),
    ],
)
def test_a_value_that_the_client_refuses_is_told_with_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, text: str, keyword: str
) -> None:
    monkeypatch.setenv(variable, text)
    with pytest.raises(MessageHubConfigurationError, match=f"^{variable}: {keyword} "):
        MessageHubClient.from_env()


def test_a_url_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("memory://from-file\n")
    monkeypatch.setenv("MESSAGE_HUB_URL_FILE", str(tmp_path / "url"))
    with pytest.raises(MessageHubConfigurationError, match="MESSAGE_HUB_URL must not be set beside"):
        MessageHubClient.from_env()
    monkeypatch.delenv("MESSAGE_HUB_URL")
    assert str(MessageHubClient.from_env()._config.address) == "memory://from-file"


def test_a_subclass_makes_one_of_its_own() -> None:
    class Hub(MessageHubClient):
        pass

    assert type(Hub.from_env()) is Hub
