"""A throwaway RabbitMQ node for tests: free ports, private directories, 127.0.0.1 only, nothing left behind.

    with RabbitMQNode() as node:
        client = MessageHubClient(service_name="character-service", rabbitmq_url=node.url)

``provide_rabbitmq()`` is the rule by which our own tests, and yours, get their broker.
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
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from urllib.parse import quote
from weakref import WeakSet

from message_hub_sync.testing._node.free_ports import free_port
from message_hub_sync.testing._node.guarded_process import GuardedProcess, ProcessGuard
from message_hub_sync.testing._node.rabbitmq_install import (
    RabbitMQNotAvailableError,
    RabbitMQPrograms,
    ensure_rabbitmq,
)

__all__ = ["RabbitMQNode", "RabbitMQNodeError", "RabbitMQNotAvailableError", "provide_rabbitmq", "running_node"]

URL_VARIABLE = "MESSAGE_HUB_TEST_URL"

_HOST = "127.0.0.1"
_LOOPBACK_ONLY = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"
_STOP_TIMEOUT = 20.0
_EPMD_TIMEOUT = 10.0
_EXITED = b"EXITED"


class RabbitMQNodeError(RuntimeError):
    """A throwaway node did not do what it was told. The text ends with the broker's own words."""


class RabbitMQNode:
    """A RabbitMQ broker of one's own, started and ended by this process. User and password are ``guest``.

    It ends with ``stop()``, with the ``with`` block, at the interpreter's exit, and within a second of this
    process's death, whatever killed it. A forked child does not own it: there ``start()`` is an error and
    ``stop()`` does nothing.

    Several nodes can form a cluster: give the later ones the first one's ``cookie`` and ``epmd_port``, and join
    them with ``ctl()`` (``stop_app``, ``join_cluster``, ``start_app``). The first one's epmd serves them all: stop
    that one last.

    Thread-safe: ``start``, ``stop`` and ``restart`` exclude each other; ``kill``, ``suspend``, ``resume`` and
    ``ctl`` can be called from any thread at any time, during a ``start()`` too.

    :param config: lines of ``rabbitmq.conf``, as key and value.
    :param plugins: names of plugins to enable, for instance ``rabbitmq_management``.
    :param cookie: the Erlang cookie; random by default. Nodes of one cluster share it.
    :param epmd_port: port of another node's epmd, to share it; an epmd of its own by default.
    :param install: may a missing RabbitMQ be installed with apt-get, at ``start()``?
    """

    def __init__(
        self,
        *,
        config: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        cookie: str | None = None,
        epmd_port: int | None = None,
        install: bool = False,
    ) -> None:
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
        self._lock = threading.RLock()  # guards all below
        self._programs: RabbitMQPrograms | None = None
        self._directory: Path | None = None
        self._guard: ProcessGuard | None = None
        self._epmd: GuardedProcess | None = None
        self._broker: GuardedProcess | None = None
        _nodes.add(self)

    def __repr__(self) -> str:
        return f"<RabbitMQNode {self.name} port={self.port} {'running' if self.running else 'not running'}>"

    def __enter__(self) -> RabbitMQNode:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- what it is

    @property
    def url(self) -> str:
        """URL of the default virtual host, credentials included."""
        return f"amqp://guest:guest@{_HOST}:{self.port}"

    @property
    def running(self) -> bool:
        """Is there a broker process? A suspended one, or one still starting, counts."""
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
        """The node's private directory: configuration, logs and data. It is removed by ``stop()``.

        :raises RabbitMQNodeError: the node has not been started.
        """
        if self._directory is None:
            raise RabbitMQNodeError(f"{self.name} has not been started: call start() first")
        return self._directory

    def log(self) -> str:
        """The broker's whole log since the first ``start()``, as text.

        :raises RabbitMQNodeError: the node has not been started.
        """
        output = self.directory / "output.log"
        return output.read_text("utf-8", "replace") if output.exists() else ""

    # --- from start to stop

    def start(self, timeout: float = 60.0) -> RabbitMQNode:
        """Start the broker and return when it serves connections; nothing happens if it runs already.

        After ``kill()`` it starts again on the same port with the same data. After ``stop()`` it starts empty.

        :param timeout: seconds until giving up; the broker is ended then. Installing RabbitMQ is not counted.
        :raises RabbitMQNotAvailableError: RabbitMQ is not installed here.
        :raises RabbitMQNodeError: the broker ended, or was not ready in time.
        """
        if os.getpid() != self._owner:
            raise RabbitMQNodeError(f"{self.name} belongs to process {self._owner}: a forked child cannot start it")
        with self._lock:
            if self.running:
                return self
            self._programs = ensure_rabbitmq(install=self._install)
            deadline = time.monotonic() + timeout
            first_start = self._directory is None
            try:
                if first_start:
                    self._directory = self._prepare_directory()
                    self._guard = ProcessGuard(self._directory)
                    atexit.register(self.stop)
                assert self._guard is not None
                if self._owns_epmd and (self._epmd is None or not self._epmd.alive):
                    self._start_epmd(self._programs, self._guard)
                self._start_broker(self._programs, self._guard, deadline, timeout)
            except BaseException:
                # Do not leave half a node; what an earlier start has stored stays for another try.
                self.stop() if first_start else self.kill()
                raise
            return self

    def stop(self, timeout: float = _STOP_TIMEOUT) -> None:
        """End the broker and its epmd and remove its directory. Idempotent.

        Clients see the connection closed properly (320, CONNECTION_FORCED).

        :param timeout: seconds that the broker gets for a clean end, before it is killed.
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
        """Stop and start the broker inside its Erlang VM (``stop_app``, ``start_app``). Durable data stays.

        :param timeout: seconds for each of the two steps.
        :raises RabbitMQNodeError: a step failed or took longer.
        """
        with self._lock:
            self.ctl("stop_app", timeout=timeout)
            self.ctl("start_app", timeout=timeout)

    def kill(self) -> None:
        """SIGKILL the broker process and return when it is gone. ``start()`` brings it back, with its data.

        :raises RabbitMQNodeError: it was not gone 20 s later.
        """
        broker = self._broker
        if broker is not None:
            broker.signal(signal.SIGKILL)
            if not broker.wait(_STOP_TIMEOUT):
                raise RabbitMQNodeError(f"{self.name} survived SIGKILL for {_STOP_TIMEOUT:g} s")

    def suspend(self) -> None:
        """SIGSTOP the broker process: connections stay open, and nothing answers until ``resume()``."""
        self._process().signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT the broker process after ``suspend()``."""
        self._process().signal(signal.SIGCONT)

    # --- administration

    def ctl(self, *arguments: str, timeout: float = 30.0) -> str:
        """Run ``rabbitmqctl`` against this node (about half a second a call).

        :param arguments: command and its arguments, for instance ``"list_queues", "name", "messages"``.
        :param timeout: seconds until it is killed.
        :returns: what it wrote to stdout.
        :raises RabbitMQNodeError: it failed, or was not done in time.
        """
        directory, programs = self.directory, self._programs
        assert programs is not None
        command = [programs.ctl, "--quiet", "--node", self.name, *arguments]
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
        """URL of the virtual host ``name``, which need not exist."""
        return f"{self.url}/{quote(name, safe='')}"

    def create_vhost(self, name: str) -> str:
        """Create a virtual host on which ``guest`` may do everything (two ``ctl()`` calls). Returns its URL."""
        self.ctl("add_vhost", name)
        self.ctl("set_permissions", "--vhost", name, "guest", ".*", ".*", ".*")
        return self.vhost_url(name)

    def delete_vhost(self, name: str) -> str:
        """Delete a virtual host with all it holds; its connections are closed. Returns the URL it had."""
        self.ctl("delete_vhost", name)
        return self.vhost_url(name)

    # --- inside

    def _process(self) -> GuardedProcess:
        if self._broker is None:
            raise RabbitMQNodeError(f"{self.name} has not been started: call start() first")
        return self._broker

    def _prepare_directory(self) -> Path:
        directory = Path(tempfile.mkdtemp(prefix="message-hub-rabbitmq-"))
        cookie = directory / ".erlang.cookie"
        cookie.write_text(self.cookie)
        cookie.chmod(0o400)
        (directory / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        # One log, on stdout: that is output.log.
        config = {"log.file": "false", "log.console": "true"} | self._config
        lines = (f"{key} = {value}\n" for key, value in config.items())
        (directory / "rabbitmq.conf").write_text("".join(lines))
        return directory

    def _environment(self, directory: Path) -> dict[str, str]:
        # What the machine's own RabbitMQ or Erlang was told must not reach this node.
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))}
        return inherited | {
            "HOME": str(directory),
            "LC_ALL": "C.UTF-8",
            "ERL_CRASH_DUMP_BYTES": "0",
            "ERL_EPMD_ADDRESS": _HOST,
            "ERL_EPMD_PORT": str(self.epmd_port),
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": _HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_PID_FILE": str(directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK_ONLY,
            "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_ONLY,
            # Any free port: the usual eleven are not enough for parallel runs.
            "RABBITMQ_CTL_DIST_PORT_MIN": "0",
            "RABBITMQ_CTL_DIST_PORT_MAX": "0",
        }

    def _start_epmd(self, programs: RabbitMQPrograms, guard: ProcessGuard) -> None:
        directory = self.directory
        self._epmd = epmd = GuardedProcess(
            [programs.epmd, "-port", str(self.epmd_port), "-address", _HOST],
            guard,
            environment=self._environment(directory),
            output=directory / "output.log",
        )
        deadline = time.monotonic() + _EPMD_TIMEOUT
        while not _listens(self.epmd_port):
            # The wait for its end is the pause between two tries.
            if epmd.wait(0.01) or time.monotonic() > deadline:
                raise RabbitMQNodeError(f"epmd does not listen on port {self.epmd_port}{self._complaint(0)}")

    def _start_broker(self, programs: RabbitMQPrograms, guard: ProcessGuard, deadline: float, timeout: float) -> None:
        """Start the broker and wait until it reports itself ready, in the way it reports to systemd.

        rabbitmqctl would cost half a second and polls; the port alone opens before everything is ready.
        """
        directory = self.directory
        logged_before = len(self.log())
        # Another one at each start: the process before may report its end only now.
        path = directory / f"notify-{secrets.token_hex(4)}"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reports:
            reports.bind(str(path))
            self._broker = GuardedProcess(
                [programs.server],
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
                        f"{self.name} was not ready within {timeout:g} s{self._complaint(logged_before)}"
                    ) from None
                if report == _EXITED:
                    raise RabbitMQNodeError(f"{self.name} ended while it started{self._complaint(logged_before)}")

    def _complaint(self, logged_before: int) -> str:
        """The log since its character ``logged_before``: from its first error on, else its end."""
        log = self.log()[logged_before:]
        error = log.find("[error]")
        return f"; its log:\n{log[error:][:3000] if error >= 0 else log[-3000:]}"


# Mutable, without a lock: single operations, and a copy before iterating.
_nodes: WeakSet[RabbitMQNode] = WeakSet()


def running_node(host: str, port: int) -> RabbitMQNode | None:
    """The node of this process that listens there, if there is one."""
    if host not in (_HOST, "localhost"):
        return None
    return next((node for node in list(_nodes) if node.port == port and node.running), None)


def _report_exit(path: Path) -> None:
    """Wake whoever still waits for the broker's reports: there will be none."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as reporter, contextlib.suppress(OSError):
        reporter.sendto(_EXITED, str(path))


def _listens(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((_HOST, port)) == 0


@contextlib.contextmanager
def provide_rabbitmq(*, install: bool = True, timeout: float = 60.0) -> Iterator[str]:
    """The URL of a RabbitMQ to test against, for as long as the ``with`` block lasts.

    ``MESSAGE_HUB_TEST_URL`` if it is set; else a throwaway node of the installed ``rabbitmq-server``; else one of
    Debian's package, which is installed for it where that is allowed (root, apt-get at hand); else an error
    that says how to provide one. Never a silent skip.

    :param install: False forbids the third way.
    :param timeout: seconds for the throwaway node's start.
    :returns: a context manager that gives the ``amqp://`` URL.
    :raises RabbitMQNotAvailableError: none of the ways is open.
    :raises RabbitMQNodeError: the throwaway node did not start.
    """
    url = os.environ.get(URL_VARIABLE)
    if url:
        yield url
        return
    node = RabbitMQNode(install=install)
    with node.start(timeout):
        yield node.url
