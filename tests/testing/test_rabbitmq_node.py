"""The throwaway node does what its docstring says; above all, it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest
from waiting import eventually

from message_hub_sync.testing._node import rabbitmq_install
from message_hub_sync.testing.rabbitmq_node import (
    RabbitMQNode,
    RabbitMQNodeError,
    RabbitMQNotAvailableError,
    provide_rabbitmq,
)

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks at processes in /proc")
needs_node = pytest.mark.rabbitmq


@pytest.fixture(scope="module")
def node() -> Iterator[RabbitMQNode]:
    with RabbitMQNode(install=True) as node:
        yield node


@contextlib.contextmanager
def connection(url: str) -> Iterator[pika.BlockingConnection]:
    parameters = pika.URLParameters(url)
    parameters.socket_timeout = parameters.stack_timeout = 10
    opened = pika.BlockingConnection(parameters)
    try:
        yield opened
    finally:
        if opened.is_open:
            opened.close()


def processes_of(directory: Path) -> dict[int, str]:
    """Living processes (no zombies) whose command line or environment names `directory`."""
    found = {}
    needle = os.fsencode(directory)
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes()
            if needle in command or needle in (process / "environ").read_bytes():
                found[int(process.name)] = command.replace(b"\0", b" ").decode(errors="replace")[:100]
    found.pop(os.getpid(), None)
    return found


def listeners_of(pids: set[int]) -> set[tuple[str, int]]:
    """Address (hex, as the kernel writes it) and port of every TCP socket that these processes listen on."""
    inodes = set()
    for pid in pids:
        for descriptor in Path(f"/proc/{pid}/fd").glob("*"):
            with contextlib.suppress(OSError):
                target = os.readlink(descriptor)
                if target.startswith("socket:["):
                    inodes.add(target[len("socket:[") : -1])
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and fields[9] in inodes:
                    address, port = fields[1].split(":")
                    found.add((address, int(port, 16)))
    return found


@needs_node
def test_node_answers_amqp(node: RabbitMQNode) -> None:
    with connection(node.url) as opened:
        channel = opened.channel()
        channel.queue_declare("answers")
        channel.confirm_delivery()
        channel.basic_publish("", "answers", b"hello", mandatory=True)
        assert channel.basic_get("answers", auto_ack=True)[2] == b"hello"


@needs_node
@needs_proc
def test_node_and_its_epmd_listen_on_the_loopback_interface_only(node: RabbitMQNode) -> None:
    # ::1 is epmd's own doing: it always adds it.
    loopback = {"0100007F", "00000000000000000000000001000000"}
    listeners = listeners_of(set(processes_of(node.directory)))
    assert {node.port, node.epmd_port} <= {port for _, port in listeners}
    assert {address for address, _ in listeners} <= loopback


@needs_node
def test_virtual_hosts_are_created_and_deleted(node: RabbitMQNode) -> None:
    url = node.create_vhost("tests/one two")
    assert url == node.vhost_url("tests/one two") == f"{node.url}/tests%2Fone%20two"
    with connection(url) as opened:
        opened.channel().queue_declare("here")
    assert "tests/one two" in node.ctl("list_vhosts", "--no-table-headers").splitlines()
    assert node.delete_vhost("tests/one two") == url
    assert "tests/one two" not in node.ctl("list_vhosts", "--no-table-headers").splitlines()


@needs_node
def test_ctl_tells_what_rabbitmqctl_said_when_it_fails(node: RabbitMQNode) -> None:
    with pytest.raises(RabbitMQNodeError, match=r"delete_vhost.*does not exist"):
        node.delete_vhost("never-created")
    with pytest.raises(RabbitMQNodeError, match=r"list_queues on .* was not done within 0.01 s"):
        node.ctl("list_queues", timeout=0.01)


@needs_node
def test_suspended_node_keeps_connections_and_answers_once_resumed(node: RabbitMQNode) -> None:
    with socket.create_connection(("127.0.0.1", node.port), timeout=10) as peer:
        node.suspend()
        try:
            assert node.running
            peer.sendall(b"AMQP\x00\x00\x09\x01")
            peer.settimeout(0.3)
            with pytest.raises(TimeoutError):
                peer.recv(1)
        finally:
            node.resume()
        peer.settimeout(10)
        assert peer.recv(1) == b"\x01"


@needs_node
def test_killed_node_comes_back_on_its_port_with_its_data_and_restart_keeps_it_too(
    node: RabbitMQNode,
) -> None:
    with connection(node.url) as opened:
        channel = opened.channel()
        channel.queue_declare("kept", durable=True)
        channel.confirm_delivery()
        channel.basic_publish("", "kept", b"still here", pika.BasicProperties(delivery_mode=2), mandatory=True)
        first = node.pid
        node.kill()
        assert not node.running
        with pytest.raises(pika.exceptions.AMQPError):
            opened.process_data_events(time_limit=10)
    node.start()
    assert node.pid != first
    second = node.pid
    node.restart()
    assert node.pid == second
    with connection(node.url) as opened:
        assert opened.channel().basic_get("kept", auto_ack=True)[2] == b"still here"


@needs_node
def test_starting_a_running_node_changes_nothing(node: RabbitMQNode) -> None:
    before = node.pid
    assert node.start() is node
    assert node.pid == before


@needs_node
@needs_proc
def test_forked_child_neither_owns_the_node_nor_keeps_it_alive(node: RabbitMQNode) -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            node.stop()
            try:
                node.start()
            except RabbitMQNodeError:
                code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
    with connection(node.url):
        pass


@needs_node
@needs_proc
def test_two_nodes_share_an_epmd_and_form_a_cluster_and_stop_leaves_no_process(node: RabbitMQNode) -> None:
    second = RabbitMQNode(cookie=node.cookie, epmd_port=node.epmd_port, config={"heartbeat": "7"})
    with second:
        directory = second.directory
        second.ctl("stop_app")
        second.ctl("join_cluster", node.name)
        second.ctl("start_app")
        assert second.name in node.ctl("cluster_status")
        assert second.ctl("eval", "application:get_env(rabbit, heartbeat).").strip() == "{ok,7}"
        assert second.pid in processes_of(directory)
        # The machine's clean stop is not the only way out: this one is asked to stop while it cannot hear.
        second.suspend()
    assert eventually(lambda: not processes_of(directory), 5), processes_of(directory)
    assert not directory.exists()
    with connection(node.url):
        pass


OWNER = textwrap.dedent("""
    import multiprocessing, sys, time
    from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

    node = RabbitMQNode().start()
    # A forked child that lives on must not keep the node alive.
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,), daemon=True)
    child.start()
    print(node.directory, node.epmd_port, child.pid, flush=True)
    if sys.argv[1] == "wait":
        sys.stdin.read()
""")


@needs_node
@needs_proc
@pytest.mark.parametrize("ending", ["killed", "exits"])
def test_node_does_not_outlive_its_owner(ending: str, node: RabbitMQNode) -> None:
    del node  # RabbitMQ is installed now
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, "wait" if ending == "killed" else "exit"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with owner:
        assert owner.stdout is not None
        directory, epmd_port, child = owner.stdout.readline().split()
        if ending == "killed":
            assert len(processes_of(Path(directory))) >= 2
            owner.send_signal(signal.SIGKILL)
        assert owner.wait(30) == (-signal.SIGKILL if ending == "killed" else 0)
    assert eventually(lambda: not processes_of(Path(directory)), 5), processes_of(Path(directory))
    assert eventually(lambda: not Path(directory).exists(), 5)
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(epmd_port))) != 0
    if ending == "killed":
        os.kill(int(child), signal.SIGKILL)  # fails if the child had ended, and proved nothing


@needs_node
@needs_proc
def test_node_that_cannot_start_says_why_and_leaves_nothing(
    node: RabbitMQNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del node
    monkeypatch.chdir(tmp_path)
    broken = RabbitMQNode(config={"no.such.key": "1"})
    with pytest.raises(RabbitMQNodeError, match=r"(?s)ended while it started.*no\.such\.key"):
        broken.start()
    late = RabbitMQNode()
    with pytest.raises(RabbitMQNodeError, match=r"was not ready within 0\.5 s"):
        late.start(timeout=0.5)
    for failed in (broken, late):
        assert not failed.running
        assert eventually(lambda name=failed.name: not commands_with(name), 5), commands_with(failed.name)
    assert list(tmp_path.iterdir()) == []


def commands_with(text: str) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if text in command:
                found.append(command)
    return found


@needs_node
def test_provide_rabbitmq_starts_a_node_when_no_url_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESSAGE_HUB_TEST_URL", raising=False)
    with provide_rabbitmq() as url, connection(url):
        pass
    with pytest.raises(pika.exceptions.AMQPConnectionError), connection(url):
        pass


def test_provide_rabbitmq_hands_out_the_url_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MESSAGE_HUB_TEST_URL", "amqp://elsewhere:5672/tests")
    with provide_rabbitmq() as url:
        assert url == "amqp://elsewhere:5672/tests"


@pytest.mark.parametrize(
    ("install", "uid", "apt_get", "reason"),
    [
        (False, 0, "/usr/bin/apt-get", "this run may not install it"),
        (True, 0, None, "there is no apt-get"),
        (True, 1000, "/usr/bin/apt-get", "only root may install it"),
    ],
)
def test_no_rabbitmq_is_an_error_that_says_how_to_get_one(
    monkeypatch: pytest.MonkeyPatch, install: bool, uid: int, apt_get: str | None, reason: str
) -> None:
    monkeypatch.delenv("MESSAGE_HUB_TEST_URL", raising=False)
    monkeypatch.delenv("MESSAGE_HUB_TEST_RABBITMQ", raising=False)
    monkeypatch.setattr(rabbitmq_install, "find_rabbitmq", lambda: None)
    monkeypatch.setattr(rabbitmq_install.os, "geteuid", lambda: uid)
    monkeypatch.setattr(rabbitmq_install.shutil, "which", lambda program: apt_get)
    with (
        pytest.raises(RabbitMQNotAvailableError, match=reason) as error,
        provide_rabbitmq(install=install),
    ):
        pass
    assert "MESSAGE_HUB_TEST_URL" in str(error.value)
    assert "apt-get install rabbitmq-server" in str(error.value)


@pytest.mark.parametrize("fails", [False, True])
def test_missing_rabbitmq_is_installed_with_apt_get(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    programs = rabbitmq_install.RabbitMQPrograms(("server",), ("ctl",), ("epmd",))
    found: list[rabbitmq_install.RabbitMQPrograms | None] = [None]
    ran: list[list[str]] = []

    def run(command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
        ran.append(command)
        found[0] = programs
        return subprocess.CompletedProcess(command, 100 if fails else 0, stdout="E: Unable to locate package")

    monkeypatch.setattr(rabbitmq_install, "find_rabbitmq", lambda: found[0])
    monkeypatch.setattr(rabbitmq_install.os, "geteuid", lambda: 0)
    monkeypatch.setattr(rabbitmq_install.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(rabbitmq_install.subprocess, "run", run)
    if fails:
        with pytest.raises(RabbitMQNotAvailableError, match=r"(?s)exit code 100.*Unable to locate package"):
            rabbitmq_install.ensure_rabbitmq()
    else:
        assert rabbitmq_install.ensure_rabbitmq() is programs
    assert [command[0] for command in ran] == ["apt-get", "apt-get"]
    assert ran[1][-1] == "rabbitmq-server"
