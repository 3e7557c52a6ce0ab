"""User and password that may change: from a function, a password file, or a file with the URL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from message_hub_sync.config import BrokerAddress, MemoryAddress, hub_addresses
from message_hub_sync.errors import MessageHubConfigurationError

SECRET = "s3cret"


def only(*args: Any, **kwargs: Any) -> BrokerAddress:
    found = hub_addresses(*args, **kwargs)
    assert not isinstance(found, MemoryAddress)
    [address] = found
    return address


def test_without_credentials_the_login_is_that_of_the_url() -> None:
    assert only("amqp://user:old@host").login() == ("user", "old")


def test_a_function_is_called_for_each_login() -> None:
    logins = iter([("user-1", "one"), ("user-2", "two")])
    address = only("amqp://host", credentials=lambda: next(logins))
    assert [address.login(), address.login()] == [("user-1", "one"), ("user-2", "two")]
    assert address.user_text == "that credentials= names"


def test_a_password_file_is_read_for_each_login(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("one\n")
    address = only("amqp://user@host", credentials=file)
    assert address.login() == ("user", "one")
    file.write_text("two: with colon\n")
    assert address.login() == ("user", "two: with colon")


def test_a_url_file_is_read_for_each_login_and_its_hosts_once(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("amqp://user:one@a,b\n")
    found = hub_addresses(file)
    assert not isinstance(found, MemoryAddress)
    file.write_text("amqp://user-2:t%20wo@b,c")
    assert [(address.host, address.login()) for address in found] == [
        ("a", ("user-2", "t wo")),
        ("b", ("user-2", "t wo")),
    ]


def test_credentials_have_precedence_over_a_url_file(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("amqp://user:one@host")
    assert only(file, credentials=lambda: ("x", "y")).login() == ("x", "y")


def test_the_embedded_hub_needs_no_login(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("memory://quest\n")
    assert hub_addresses(file, credentials=lambda: ("x", "y")) == MemoryAddress("quest")


def raising() -> tuple[str, str]:
    raise OSError(SECRET)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (raising, "it raised OSError"),
        (lambda: SECRET, "it returned a str"),
        (lambda: None, "it returned a NoneType"),
        (lambda: (SECRET,), "it returned a tuple"),
        (lambda: ("user", SECRET.encode()), "it returned a tuple"),
    ],
)
def test_what_a_function_does_wrong_is_told_without_a_secret(function: Any, text: str) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        only("amqp://host", credentials=function).login()
    assert text in str(caught.value)
    assert SECRET not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_file_that_is_gone_is_told_at_the_login(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET)
    address = only("amqp://user@host", credentials=file)
    file.unlink()
    with pytest.raises(MessageHubConfigurationError, match=r"^credentials must name a readable file"):
        address.login()


@pytest.mark.parametrize("value", ["a text", ("user", SECRET), 5])
def test_other_credentials_are_refused_by_the_constructor(value: Any) -> None:
    with pytest.raises(
        MessageHubConfigurationError, match=r"^credentials must be a function .* or a pathlib.Path"
    ) as caught:
        hub_addresses("amqp://host", credentials=value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("keyword", ["rabbitmq_url", "credentials"])
def test_a_file_that_is_missing_is_refused_by_the_constructor(keyword: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rabbitmq_url": "amqp://user@host", keyword: tmp_path / "missing"}
    url = settings.pop("rabbitmq_url")
    with pytest.raises(MessageHubConfigurationError, match=f"^{keyword} must name a readable file"):
        hub_addresses(url, **settings)


def test_no_repr_shows_credentials(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text(f"amqp://user:{SECRET}@host")
    assert SECRET not in f"{hub_addresses(file)!r}"
