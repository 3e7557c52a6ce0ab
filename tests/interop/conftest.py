"""Services of ours, of aio-pika's and of Node's, each in a process of its own, on a virtual host of the test's own."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from programs import RunningProgram, running

from message_hub_sync.testing import MessageHubTestFramework


@pytest.fixture
def url(rabbitmq: str) -> Iterator[str]:
    with MessageHubTestFramework(rabbitmq) as framework:
        yield framework.url


class Process:
    """A service in another process. Used by one thread.

    Mutable: what it got so far.
    """

    def __init__(self, program: RunningProgram) -> None:
        self._program = program
        self._got: list[dict[str, Any]] = []
        assert self._hear("done") == "connected"

    def do(self, what: str, **details: Any) -> Any:
        """Have it do something, and return what came of it."""
        self._program.tell(json.dumps({"do": what, **details}))
        return self._hear("done")

    def got(self, count: int) -> list[dict[str, Any]]:
        """The first ``count`` that it got."""
        while len(self._got) < count:
            self._got.append(self._hear("got"))
        return self._got[:count]

    def so_far(self) -> list[dict[str, Any]]:
        """All that it got, without waiting."""
        for line in self._program.new_lines():
            if line.startswith('{"got"'):
                self._got.append(json.loads(line)["got"])
        return self._got

    @property
    def output(self) -> str:
        """All that it wrote so far, its log included."""
        return self._program.output

    def _hear(self, wanted: str) -> Any:
        while True:
            line = self._program.wait_for(r"^\{.*\}$").group(0)
            [(kind, value)] = json.loads(line).items()
            assert kind != "failed", f"{value}\n{self.output}"
            if kind == wanted:
                return value
            assert (kind, wanted) == ("got", "done"), f"{line} while waiting for {wanted}"
            self._got.append(value)


Start = Callable[[str], Process]


def _starter(program: str, url: str, stack: contextlib.ExitStack, **how: str) -> Start:
    path = str(Path(__file__).with_name(program))
    return lambda service: Process(stack.enter_context(running([path, url, service], **how)))


@pytest.fixture
def ours(url: str) -> Iterator[Start]:
    """Starts a process of a service of ours."""
    with contextlib.ExitStack() as stack:
        yield _starter("sync_service.py", url, stack)


@pytest.fixture
def theirs(url: str) -> Iterator[Start]:
    """Starts a process of a service of aio-pika's."""
    with contextlib.ExitStack() as stack:
        yield _starter("async_service.py", url, stack)


@pytest.fixture(scope="session")
def amqplib(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder with Node's amqplib."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("Node is missing: the tests with its amqplib need `node` and `npm`")
    folder = tmp_path_factory.mktemp("amqplib")
    install = [npm, "install", "--no-save", "--no-audit", "--no-fund", "--prefix", str(folder), "amqplib@2"]
    done = subprocess.run(install, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode != 0:
        pytest.skip(f"amqplib is missing: `npm install amqplib@2` failed: {done.stderr.strip()[-300:]}")
    return str(folder / "node_modules")


@pytest.fixture
def on_node(url: str, amqplib: str) -> Iterator[Start]:
    """Starts a process of a service on Node."""
    with contextlib.ExitStack() as stack:
        yield _starter("node_service.js", url, stack, interpreter="node", NODE_PATH=amqplib)
