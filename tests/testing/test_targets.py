"""A virtual host of a framework's own, through the management plugin's API."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from message_hub_sync.testing import targets
from message_hub_sync.testing.targets import find_target

Request = tuple[str, str, Any, str]


class Api:
    """A management API that answers as it is told, and remembers what it was asked."""

    def __init__(self, statuses: dict[str, int]) -> None:
        self.requests: list[Request] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                user = base64.b64decode(self.headers["Authorization"].removeprefix("Basic ")).decode()
                api.requests.append((self.command, self.path, json.loads(body) if body else None, user))
                kind = self.path.split("/")[2]
                self.send_response(statuses.get(f"{self.command} {kind}", 204))
                self.send_header("Content-Length", "0")
                self.end_headers()

            do_PUT = do_DELETE = answer  # noqa: N815

            def log_message(self, format: str, *arguments: Any) -> None:
                """Not on the terminal."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()


@pytest.fixture
def statuses() -> dict[str, int]:
    return {"PUT vhosts": 201, "PUT permissions": 201}


@pytest.fixture
def api(statuses: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    api = Api(statuses)
    monkeypatch.setattr(targets, "_API_PORT", api.server.server_port)
    yield api
    api.server.shutdown()
    api.server.server_close()
    api.thread.join(30)


URL = "amqp://tester:se%40cret@127.0.0.1:1"


def test_a_virtual_host_is_made_and_deleted_through_the_api(api: Api) -> None:
    target = find_target(URL, isolated=None, virtual_clock=False)
    name = target.url.rpartition("/")[2]
    assert target.own
    assert target.url == f"{URL}/{name}"
    assert name.startswith("message-hub-test-")
    target.remove()
    everything = {"configure": ".*", "write": ".*", "read": ".*"}
    assert api.requests == [
        ("PUT", f"/api/vhosts/{name}", {}, "tester:se@cret"),
        ("PUT", f"/api/permissions/{name}/tester", everything, "tester:se@cret"),
        ("DELETE", f"/api/vhosts/{name}", None, "tester:se@cret"),
    ]


def test_a_url_with_a_virtual_host_asks_nobody(api: Api) -> None:
    assert find_target(f"{URL}/given", isolated=None, virtual_clock=False).url == f"{URL}/given"
    assert find_target(URL, isolated=False, virtual_clock=False).url == URL
    assert api.requests == []
    own = find_target(f"{URL},other:2/given", isolated=True, virtual_clock=False).url
    assert own.startswith(f"{URL},other:2/message-hub-test-")


def test_the_options_of_a_url_stay() -> None:
    with_options = "amqps://tester@hub/given?verify=verify_none"
    assert targets._with_vhost(with_options, "a b") == "amqps://tester@hub/a%20b?verify=verify_none"


def test_a_user_who_may_not_gets_the_virtual_host_of_the_url(api: Api, statuses: dict[str, int]) -> None:
    statuses["PUT vhosts"] = 401
    target = find_target(URL, isolated=None, virtual_clock=False)
    assert (target.url, target.own, len(api.requests)) == (URL, False, 1)


def test_a_virtual_host_without_permissions_is_deleted_again(api: Api, statuses: dict[str, int]) -> None:
    statuses["PUT permissions"] = 403
    target = find_target(URL, isolated=None, virtual_clock=False)
    assert (target.url, target.own) == (URL, False)
    assert [request[0] for request in api.requests] == ["PUT", "PUT", "DELETE"]
