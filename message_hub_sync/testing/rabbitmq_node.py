"""A throwaway RabbitMQ node for tests. It uses free ports of 127.0.0.1 and a private directory, and leaves nothing.

    with RabbitMQNode() as node:
        client = MessageHubClient(service_name="character-service", rabbitmq_url=node.url)

``provide_rabbitmq()`` chooses the broker for this project's own tests, and for yours.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote
from weakref import WeakSet

from message_hub_sync.runtime.real_time import time
from message_hub_sync.testing._node.free_ports import free_port
from message_hub_sync.testing._node.guarded_process import GuardedProcess, ProcessGuard
from message_hub_sync.testing._node.node_files import HOST, node_environment, prepare_directory
from message_hub_sync.testing._node.rabbitmq_install import (
    RabbitMQNotAvailableError,
    RabbitMQPrograms,
    ensure_rabbitmq,
    version_of,
)
from message_hub_sync.testing._node.rabbitmq_versions import checked_version, programs_of_version

__all__ = ["RabbitMQNode", "RabbitMQNodeError", "RabbitMQNotAvailableError", "provide_rabbitmq", "running_node"]

URL_VARIABLE = "MESSAGE_HUB_TEST_URL"
VERSION_VARIABLE = "MESSAGE_HUB_TEST_RABBITMQ"

_STOP_TIMEOUT = 20.0
_EPMD_TIMEOUT = 10.0
_EXITED = b"EXITED"


class RabbitMQNodeError(RuntimeError):
    """An operation on a throwaway node failed. The text ends with the broker's own output, if there is any."""


class RabbitMQNode:
    """A RabbitMQ broker that this process starts and stops. User and password are ``guest``.

    It ends with ``stop()``, at the end of the ``with`` block, at interpreter exit, and within a second after this
    process was killed in any way. A forked child does not own the node: there ``start()`` raises, and ``stop()`` does
    nothing.

    Several nodes can form a cluster: give the other nodes the ``cookie`` and ``epmd_port`` of the first one, and join
    them with ``ctl()`` (``stop_app``, ``join_cluster``, ``start_app``). All of them use the first node's epmd: stop the
    first node last.

    Thread-safe. ``start``, ``stop`` and ``restart`` run one at a time. ``kill``, ``suspend``, ``resume`` and ``ctl``
    can be called at any time, also during ``start()``.

    :param config: lines of ``rabbitmq.conf``, as key and value.
    :param plugins: names of plugins to enable, for example ``rabbitmq_management``.
    :param cookie: the Erlang cookie; by default a random one. All nodes of a cluster need the same one.
    :param epmd_port: the port of another node's epmd, to share it; by default the node starts its own epmd.
    :param install: allow ``start()`` to install a missing RabbitMQ with apt-get, or to build one of another version.
    :param version: the version of RabbitMQ, or its beginning: ``"4"`` is the newest 4 that can be had. By default that
        of the variable ``MESSAGE_HUB_TEST_RABBITMQ``; if it is not set, the installed one. A version that is not
        installed is taken from a Debian release: ``start()`` builds it once in the user's cache directory, as root.
        Such a broker sees only files below the directory for temporary files.
    :raises MessageValidationError: ``version`` is not a version.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        cookie: str | None = None,
        epmd_port: int | None = None,
        install: bool = False,
        version: str | None = None,
    ) -> None:
        version = os.environ.get(VERSION_VARIABLE) or None if version is None else version
        self._wanted = None if version is None else checked_version(version)
        self.port = free_port()
        self.epmd_port = free_port() if epmd_port is None else epmd_port
        self.cookie = secrets.token_hex(16) if cookie is None else cookie
        self.name = f"message-hub-{self.port}@localhost"
        self._dist_port = free_port()
        self._config = dict(config or {})
        self._plugins = tuple(plugins)
        self._owns_epmd = epmd_port is None
        self._install = install
        self._owner = os.getpid()
        self._lock = threading.RLock()
        self._programs: RabbitMQPrograms | None = None  # written under _lock
        self._version: str | None = None  # every thread that sets it sets the same text
        self._directory: Path | None = None  # written under _lock
        self._guard: ProcessGuard | None = None  # guarded by _lock
        self._epmd: GuardedProcess | None = None  # guarded by _lock
        self._broker: GuardedProcess | None = None  # written under _lock
        _nodes.add(self)

    def __repr__(self) -> str:
        return f"<RabbitMQNode {self.name} port={self.port} {'running' if self.running else 'not running'}>"

    def __enter__(self) -> RabbitMQNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- state

    @property
    def url(self) -> str:
        """URL of the default virtual host, with user and password."""
        return f"amqp://guest:guest@{HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Whether there is a broker process. One that is suspended or still starting counts."""
        broker = self._broker
        return broker is not None and broker.alive

    @property
    def pid(self) -> int:
        """Process id of the broker (the Erlang VM).

        :raises RabbitMQNodeError: the node has not been started.
        """
        return self._process().pid

    @property
    def directory(self) -> Path:
        """The node's private directory, with its configuration, logs and data. ``stop()`` removes it.

        :raises RabbitMQNodeError: the node has not been started.
        """
        if self._directory is None:
            raise RabbitMQNodeError(f"{self.name} has not been started: call start() first")
        return self._directory

    @property
    def version(self) -> str:
        """The version of RabbitMQ, for example ``4.3.6``. The first use takes about half a second.

        :raises RabbitMQNodeError: the node has not been started.
        """
        if self._version is None:
            if self._programs is None:
                raise RabbitMQNodeError(f"{self.name} has not been started: call start() first")
            self._version = version_of(self._programs)
        return self._version

    def log(self) -> str:
        """The broker's complete log since the first ``start()``.

        :raises RabbitMQNodeError: the node has not been started.
        """
        output = self.directory / "output.log"
        return output.read_text("utf-8", "replace") if output.exists() else ""

    # --- start and stop

    def start(self, timeout: float = 60.0) -> RabbitMQNode:
        """Start the broker, and return when it accepts connections. If it runs already, do nothing.

        After ``kill()`` it starts on the same port with the same data. After ``stop()`` it starts without data.

        :param timeout: seconds until the broker must be ready; otherwise it is killed. Time for installing RabbitMQ
            does not count.
        :returns: this node.
        :raises RabbitMQNotAvailableError: RabbitMQ is not here in this version, and this call did not install it.
        :raises RabbitMQNodeError: the broker ended or was not ready in time, or this is a forked child.
        """
        if os.getpid() != self._owner:
            raise RabbitMQNodeError(
                f"{self.name} belongs to process {self._owner}: create another node in this forked child"
            )
        with self._lock:
            if self.running:
                return self
            self._programs = self._find_programs()
            deadline = time.monotonic() + timeout
            first_start = self._directory is None
            try:
                if first_start:
                    self._directory = prepare_directory(self.cookie, self._plugins, self._config)
                    self._guard = ProcessGuard(self._directory)
                    atexit.register(self.stop)
                assert self._guard is not None
                if self._owns_epmd and (self._epmd is None or not self._epmd.alive):
                    self._start_epmd(self._programs, self._guard)
                self._start_broker(self._programs, self._guard, deadline, timeout)
            except BaseException:
                # End what was started. The data of an earlier start is kept, so that start() can be called again.
                self.stop() if first_start else self.kill()
                raise
            return self

    def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """Stop the broker and its epmd, and remove the directory. Idempotent. In a forked child it does nothing.

        The broker closes clients' connections with 320, CONNECTION_FORCED.

        :param timeout: seconds for the broker to end before it is killed.
        """
        if os.getpid() != self._owner:
            return
        with self._lock:
            for process in (self._broker, self._epmd):
                if process is not None:
                    process.end(timeout)
            if self._guard is not None:
                self._guard.close()
            if self._directory is not None:
                shutil.rmtree(self._directory, ignore_errors=True)
            self._broker = self._epmd = self._guard = self._directory = None
            atexit.unregister(self.stop)

    def restart(self, timeout: float = 60.0) -> None:
        """Stop and start the broker inside its Erlang VM (``stop_app``, ``start_app``). Durable data is kept.

        :param timeout: seconds for each of the two steps.
        :raises RabbitMQNodeError: a step failed or took longer.
        """
        with self._lock:
            self.ctl("stop_app", timeout=timeout)
            self.ctl("start_app", timeout=timeout)

    def kill(self) -> None:
        """Kill the broker process with SIGKILL, and return when it has ended. ``start()`` restarts it with its data.

        :raises RabbitMQNodeError: it had not ended after 20 s.
        """
        broker = self._broker
        if broker is not None:
            broker.signal(signal.SIGKILL)
            if not broker.wait(_STOP_TIMEOUT):
                raise RabbitMQNodeError(f"{self.name} did not end within {_STOP_TIMEOUT:g} s after SIGKILL")

    def suspend(self) -> None:
        """Stop the broker process with SIGSTOP. Connections stay open, but nothing answers until ``resume()``.

        :raises RabbitMQNodeError: the node has not been started.
        """
        self._process().stop()

    def resume(self) -> None:
        """Continue the broker process with SIGCONT after ``suspend()``.

        :raises RabbitMQNodeError: the node has not been started.
        """
        self._process().signal(signal.SIGCONT)

    # --- administration

    def ctl(self, *arguments: str, timeout: float = 120.0) -> str:
        """Run ``rabbitmqctl`` for this node. A call takes about half a second.

        :param arguments: the command and its arguments, for example ``"list_queues", "name", "messages"``.
        :param timeout: seconds until it is killed.
        :returns: its standard output.
        :raises RabbitMQNodeError: it failed, or did not end in time.
        """
        directory, programs = self.directory, self._programs
        assert programs is not None
        command = [*programs.ctl, "--quiet", "--node", self.name, *arguments]
        what = f"rabbitmqctl {' '.join(arguments)}"
        try:
            done = subprocess.run(
                command,
                env=self._environment(directory),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                timeout=timeout,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RabbitMQNodeError(f"{what} on {self.name} was not done within {timeout:g} s") from None
        if done.returncode != 0:
            raise RabbitMQNodeError(
                f"{what} on {self.name} failed (exit code {done.returncode}): {done.stderr or done.stdout}"
            )
        return done.stdout

    def vhost_url(self, name: str) -> str:
        """The URL of the virtual host ``name``. The virtual host need not exist."""
        return f"{self.url}/{quote(name, safe='')}"

    def create_vhost(self, name: str) -> str:
        """Create a virtual host in which ``guest`` has all permissions, with two ``ctl()`` calls.

        :returns: its URL.
        :raises RabbitMQNodeError: the command failed, or did not end in time.
        """
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        return self.vhost_url(name)

    def delete_vhost(self, name: str) -> str:
        """Delete a virtual host and its contents. The broker closes its connections.

        :returns: the URL that it had.
        :raises RabbitMQNodeError: the command failed, for example because the virtual host does not exist, or did not
            end in time.
        """
        self.ctl("delete_vhost", name)
        return self.vhost_url(name)

    # --- internal

    def _find_programs(self) -> RabbitMQPrograms:
        if self._programs is not None:
            return self._programs  # after kill() it is the same broker, even if a newer one has appeared
        if self._wanted is None:
            return ensure_rabbitmq(install=self._install)
        return programs_of_version(self._wanted, install=self._install)

    def _process(self) -> GuardedProcess:
        if self._broker is None:
            raise RabbitMQNodeError(f"{self.name} has not been started: call start() first")
        return self._broker

    def _environment(self, directory: Path) -> dict[str, str]:
        return node_environment(
            directory, name=self.name, port=self.port, dist_port=self._dist_port, epmd_port=self.epmd_port
        )

    def _start_epmd(self, programs: RabbitMQPrograms, guard: ProcessGuard) -> None:
        directory = self.directory
        self._epmd = epmd = GuardedProcess(
            [*programs.epmd, "-port", str(self.epmd_port), "-address", HOST],
            guard,
            environment=self._environment(directory),
            output=directory / "output.log",
        )
        deadline = time.monotonic() + _EPMD_TIMEOUT
        while not _listens(self.epmd_port):
            # Waiting for its end is also the pause between two attempts to connect.
            if epmd.wait(0.01) or time.monotonic() > deadline:
                raise RabbitMQNodeError(f"epmd does not listen on port {self.epmd_port}{self._log_excerpt(0)}")

    def _start_broker(self, programs: RabbitMQPrograms, guard: ProcessGuard, deadline: float, timeout: float) -> None:
        """Start the broker, and wait until it reports that it is ready."""
        directory = self.directory
        logged_before = len(self.log())
        # A new socket at each start: the end of the previous process may be reported only now.
        path = directory / f"notify-{secrets.token_hex(4)}"
        # The broker reports READY=1 to this socket, as it does to systemd. The alternatives are worse: rabbitmqctl
        # takes half a second and polls, and the port opens before everything is ready.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reports:
            reports.bind(str(path))
            self._broker = GuardedProcess(
                programs.server,
                guard,
                environment=self._environment(directory) | {"NOTIFY_SOCKET": str(path)},
                output=directory / "output.log",
                on_exit=lambda: _report_exit(path),
            )
            report = b""
            while b"READY=1" not in report.splitlines():
                reports.settimeout(max(0.001, deadline - time.monotonic()))
                try:
                    report = reports.recv(65536)
                except TimeoutError:
                    raise RabbitMQNodeError(
                        f"{self.name} was not ready within {timeout:g} s{self._log_excerpt(logged_before)}"
                    ) from None
                if report == _EXITED:
                    raise RabbitMQNodeError(f"{self.name} ended while it started{self._log_excerpt(logged_before)}")

    def _log_excerpt(self, logged_before: int) -> str:
        """For error texts: the log after character ``logged_before``, from the first error on, or its end."""
        log = self.log()[logged_before:]
        error = log.find("[error]")
        return f"; its log:\n{log[error:][:3000] if error >= 0 else log[-3000:]}"


_nodes: WeakSet[RabbitMQNode] = WeakSet()  # without a lock: single operations, and a copy before iterating


def running_node(host: str, port: int) -> RabbitMQNode | None:
    """The running node of this process that listens on this host and port, or ``None``."""
    if host not in (HOST, "localhost"):
        return None
    return next((node for node in list(_nodes) if node.port == port and node.running), None)


def _report_exit(path: Path) -> None:
    """Wake the thread that still waits for the broker's report: the broker has ended."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reporter, contextlib.suppress(OSError):
        reporter.sendto(_EXITED, str(path))


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0


@contextlib.contextmanager
def provide_rabbitmq(*, install: bool = True, timeout: float = 60.0) -> Iterator[str]:
    """The URL of a RabbitMQ for tests, valid during the ``with`` block.

    First match wins. 1: ``MESSAGE_HUB_TEST_URL``, if it is set. 2: a throwaway node, if ``rabbitmq-server`` is
    installed. 3: a throwaway node after installing Debian's package, if this is root and there is ``apt-get``. 4: an
    error that says how to provide a broker; tests are never skipped silently.

    :param install: ``False`` forbids case 3.
    :param timeout: seconds for the start of the throwaway node.
    :returns: a context manager that gives the ``amqp://`` URL.
    :raises RabbitMQNotAvailableError: case 4.
    :raises RabbitMQNodeError: the throwaway node did not start.
    """
    url = os.environ.get(URL_VARIABLE)
    if url:
        yield url
        return
    node = RabbitMQNode(install=install)
    with node.start(timeout):
        yield node.url
