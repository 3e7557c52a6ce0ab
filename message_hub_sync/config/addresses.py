"""The addresses of the hub, and where the user and password of each connection come from. Nothing here connects."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from message_hub_sync.config.broker_url import parse_addresses
from message_hub_sync.config.settings import BrokerAddress, Login, MemoryAddress
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.text import shown

__all__ = ["hub_addresses", "secret_of_file"]

_FUNCTION = "credentials must be a function that returns a user name and a password, both of them a str"


def hub_addresses(
    rabbitmq_url: str | Path | Iterable[str],
    *,
    ssl_context: ssl.SSLContext | None = None,
    credentials: Callable[[], Login] | Path | None = None,
) -> MemoryAddress | tuple[BrokerAddress, ...]:
    """Parse ``rabbitmq_url``, which may be a file, and attach the credentials.

    :param rabbitmq_url: see :func:`parse_addresses`. A ``Path``: the file that holds the URL. The hosts are read now,
        and the user and the password again for each connection.
    :param ssl_context: used for ``amqps://`` instead of the system's trust store.
    :param credentials: a function that returns user and password, or a file that holds the password of the URL's user.
        Called or read for each connection.
    :raises MessageHubConfigurationError: a value is not valid, or a file cannot be read.
    """
    file = rabbitmq_url if isinstance(rabbitmq_url, Path) else None
    found = parse_addresses(
        rabbitmq_url if not isinstance(rabbitmq_url, Path) else secret_of_file(rabbitmq_url, "rabbitmq_url"),
        ssl_context=ssl_context,
    )
    if not (credentials is None or isinstance(credentials, Path) or callable(credentials)):
        raise MessageHubConfigurationError(
            "credentials must be a function that returns user and password, or a pathlib.Path, "
            f"not {shown(credentials)}"
        )
    if isinstance(found, MemoryAddress):
        return found
    if isinstance(credentials, Path):
        secret_of_file(credentials, "credentials")  # now, so that a wrong name is an error of the constructor
    return tuple(_with_login(address, file, credentials) for address in found)


def _with_login(
    address: BrokerAddress, url_file: Path | None, credentials: Callable[[], Login] | Path | None
) -> BrokerAddress:
    # First match wins.
    if isinstance(credentials, Path):
        password_file = credentials
        return dataclasses.replace(
            address, credentials=lambda: (address.username, secret_of_file(password_file, "credentials"))
        )
    if credentials is not None:
        function = credentials
        return dataclasses.replace(address, username="", credentials=lambda: _login_of(function))
    if url_file is not None:
        file = url_file
        return dataclasses.replace(address, credentials=lambda: _login_of_url(file, address))
    return address


def _login_of(function: Callable[[], Any]) -> Login:
    try:
        found = function()
    except Exception as error:
        raise MessageHubConfigurationError(f"{_FUNCTION}: it raised {type(error).__name__}") from None
    if not isinstance(found, (tuple, list)) or len(found) != 2 or not all(isinstance(part, str) for part in found):
        raise MessageHubConfigurationError(f"{_FUNCTION}: it returned a {type(found).__name__}")
    return found[0], found[1]


def _login_of_url(file: Path, address: BrokerAddress) -> Login:
    """The user and the password that the URL in the file has now, for the same host if it names several."""
    found = parse_addresses(secret_of_file(file, "rabbitmq_url"), ssl_context=address.ssl_context)
    if isinstance(found, MemoryAddress):
        return address.username, address.password
    same = [each for each in found if (each.host, each.port) == (address.host, address.port)]
    chosen = (same or found)[0]
    return chosen.username, chosen.password


def secret_of_file(file: Path, name: str) -> str:
    """The text of a file without the line end at its end, which editors and ``echo`` add.

    :param name: the setting, for the text of the error.
    :raises MessageHubConfigurationError: the file cannot be read, or is empty.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a NUL character in the name
        raise MessageHubConfigurationError(
            f"{name} must name a readable file with text in UTF-8: reading it failed ({type(error).__name__})"
        ) from None
    text = text.removesuffix("\n").removesuffix("\r")
    if not text:
        raise MessageHubConfigurationError(f"{name} must name a file that is not empty")
    return text
