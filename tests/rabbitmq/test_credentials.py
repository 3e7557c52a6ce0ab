"""A password that changes while a service runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from message_hub_sync import MessageHubClient
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

pytestmark = pytest.mark.rabbitmq

Ways = Callable[[RabbitMQNode, Path, str], tuple[dict[str, Any], Callable[[str], Any]]]


@pytest.fixture
def user(node: RabbitMQNode) -> Iterator[str]:
    node.ctl("add_user", "rotating", "one")
    node.ctl("set_permissions", "rotating", ".*", ".*", ".*")
    yield "rotating"
    node.ctl("delete_user", "rotating")


def password_file(node: RabbitMQNode, directory: Path, user: str) -> tuple[dict[str, Any], Callable[[str], Any]]:
    file = directory / "password"
    file.write_text("one\n")
    return {"rabbitmq_url": node.url.replace("guest:guest@", f"{user}@"), "credentials": file}, file.write_text


def url_file(node: RabbitMQNode, directory: Path, user: str) -> tuple[dict[str, Any], Callable[[str], Any]]:
    file = directory / "url"

    def change(password: str) -> None:
        file.write_text(node.url.replace("guest:guest@", f"{user}:{password}@") + "\n")

    change("one")
    return {"rabbitmq_url": file}, change


def function(node: RabbitMQNode, directory: Path, user: str) -> tuple[dict[str, Any], Callable[[str], Any]]:
    passwords = ["one"]
    return {"rabbitmq_url": node.url, "credentials": lambda: (user, passwords[-1])}, passwords.append


@pytest.mark.parametrize("way", [password_file, url_file, function])
def test_a_new_password_is_used_at_the_next_connection(
    way: Ways, node: RabbitMQNode, user: str, tmp_path: Path, collected: Any
) -> None:
    settings, change = way(node, tmp_path, user)
    with MessageHubClient(f"rotating-{way.__name__.replace('_', '-')}", delivery_timeout=60, **settings) as client:
        client.subscribe_messages(collected)
        client.send_message(client.service_name, {"number": 1})
        node.ctl("change_password", user, "two")
        change("two")
        node.ctl("close_all_user_connections", user, "the password was changed")
        client.send_message(client.service_name, {"number": 2})
        # At least once: an acknowledgement may be lost with the connection.
        collected.until(lambda messages: {message["payload"]["number"] for message in messages} == {1, 2})
