"""The hub on which a test framework works: a hub or virtual host of its own if one can be created."""

from __future__ import annotations

import base64
import http.client
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

from message_hub_sync.config import BrokerAddress, MemoryAddress, parse_addresses
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.testing.rabbitmq_node import running_node
from message_hub_sync.transport.memory import VirtualClock, drop_hub, open_hub
from message_hub_sync.transport.memory.broker import Hub

__all__ = ["Target", "find_target"]

logger = logging.getLogger("message_hub_sync.testing")

#: Default ports of the management plugin.
_API_PORT, _API_TLS_PORT = 15672, 15671
#: Seconds for one request to the management API. It either answers at once or is not there.
_API_TIMEOUT = 2.0


@dataclass(frozen=True)
class Target:
    """A hub to test on.

    :param url: the URL to which clients connect.
    :param own: true if only this framework uses the hub.
    :param remove: deletes the hub and its contents if ``own`` is true; otherwise does nothing.
    :param clock: the virtual clock of an embedded hub, or ``None``.
    :param hub: the embedded hub, or ``None`` on RabbitMQ.
    """

    url: str
    own: bool
    remove: Callable[[], object]
    clock: VirtualClock | None = None
    hub: Hub | None = None


def find_target(url: str, *, isolated: bool | None, virtual_clock: bool) -> Target:
    """Find or create the hub that ``url`` means.

    :param url: ``memory://``, ``memory://name`` or an ``amqp://`` or ``amqps://`` URL.
    :param isolated: ``True``: create a hub or virtual host of its own, or raise. ``False``: use the one of the URL.
        ``None``: create one if the URL names none and it can be created.
    :param virtual_clock: let the test move the time of an embedded hub.
    :raises MessageHubConfigurationError: the URL is invalid, or ``isolated`` or ``virtual_clock`` is not possible with
        it.
    """
    addresses = parse_addresses(url)
    if isinstance(addresses, MemoryAddress):
        return _memory(url, addresses, isolated, virtual_clock)
    if virtual_clock:
        raise MessageHubConfigurationError(
            "virtual_clock must be False on RabbitMQ, not True: its clock cannot be moved; use memory://"
        )
    names_vhost = urlsplit(url).path not in ("", "/")
    if isolated or (isolated is None and not names_vhost):
        name = f"message-hub-test-{uuid4().hex[:12]}"
        delete = _through_node(addresses[0], name) or _through_api(addresses[0], name)
        if delete is not None:
            return Target(_with_vhost(url, name), True, delete)
        if isolated:
            raise MessageHubConfigurationError(
                f"isolated must not be True on {addresses[0]}, because no virtual host can be created there: it is no "
                "RabbitMQNode of this process, and its management API does not allow it to this user. Enable the "
                "plugin rabbitmq_management, or omit isolated"
            )
        logger.info("could not create a virtual host on %s: the tests use the one of the URL", addresses[0])
    return Target(url, False, lambda: None)


def _memory(url: str, address: MemoryAddress, isolated: bool | None, virtual_clock: bool) -> Target:
    clock = VirtualClock() if virtual_clock else None
    named = url.removeprefix("memory://").strip("/") != ""
    if named and not isolated:
        return Target(url, False, lambda: None, clock, open_hub(address.name, clock))
    name = f"test-{uuid4().hex[:12]}"
    return Target(f"memory://{name}", True, lambda: drop_hub(name), clock, open_hub(name, clock))


def _with_vhost(url: str, name: str) -> str:
    scheme, _, rest = url.partition("://")
    authority, _, query = rest.partition("?")
    return f"{scheme}://{authority.partition('/')[0]}/{quote(name, safe='')}{'?' + query if query else ''}"


def _through_node(address: BrokerAddress, name: str) -> Callable[[], object] | None:
    """Create a virtual host on a throwaway node of this process. Returns a function that deletes it, or ``None``."""
    node = running_node(address.host, address.port)
    if node is None:
        return None
    node.create_vhost(name)
    return lambda: node.delete_vhost(name) if node.running else None


def _through_api(address: BrokerAddress, name: str) -> Callable[[], object] | None:
    """Create a virtual host with the management API on its default port. Returns a function that deletes it."""
    vhost, user = quote(name, safe=""), quote(address.username, safe="")
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    if not _ask(address, "PUT", f"/api/vhosts/{vhost}", {}):
        return None

    def delete() -> None:
        _ask(address, "DELETE", f"/api/vhosts/{vhost}", None)

    if _ask(address, "PUT", f"/api/permissions/{vhost}/{user}", everything):
        return delete
    delete()
    return None


def _ask(address: BrokerAddress, method: str, path: str, body: Any) -> bool:
    connection: http.client.HTTPConnection
    if address.tls:
        context = address.tls_context()
        connection = http.client.HTTPSConnection(address.host, _API_TLS_PORT, timeout=_API_TIMEOUT, context=context)
    else:
        connection = http.client.HTTPConnection(address.host, _API_PORT, timeout=_API_TIMEOUT)
    credentials = base64.b64encode(f"{address.username}:{address.password}".encode()).decode()
    headers = {"Authorization": f"Basic {credentials}", "Content-Type": "application/json"}
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        return connection.getresponse().status in (201, 204)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
