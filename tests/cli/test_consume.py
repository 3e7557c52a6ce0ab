"""``message-hub consume`` as a program: one process, a supervisor, its signals and exit codes.

The processes show what they do in files: a hub of memory:// is inside each of them.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import RunningProgram, eventually, run, running

import message_hub_sync
from message_hub_sync.testing._node.free_ports import free_port

MODULE = """
import os, pathlib, threading, time
from message_hub_sync import HandlerGroup, MessageHubClient

here = pathlib.Path(__file__).parent
client = MessageHubClient("quest-service", "memory://", close_timeout=float(os.environ.get("CLOSE", "20")))
handlers = HandlerGroup()

@handlers.on_message
def handle(message: dict) -> None:
    (here / f"began-{os.getpid()}").touch()
    if message["slow"]:
        threading.Event().wait(message["slow"])
    (here / f"ended-{os.getpid()}").touch()

def publishing():
    threading.Thread(target=publish, daemon=True).start()
    return client

def publish():
    while not client.get_health_status()["queues"]:
        time.sleep(0.01)
    client.send_message("quest-service", {"slow": float(os.environ.get("SLOW", "0"))})
"""

Consume = Callable[..., list[str]]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    file = tmp_path / "quests.py"
    file.write_text(MODULE)
    return file


def consume(*options: str) -> list[str]:
    target = ["quests:publishing", "--group", "quests:handlers"]
    return ["-m", "message_hub_sync.cli", "consume", *target, *options]


def settings(module: Path, **more: str) -> dict[str, str]:
    package = Path(message_hub_sync.__file__).parents[1]
    return {"PYTHONPATH": f"{package}:{module.parent}", **more}


def pids(module: Path, what: str) -> set[int]:
    return {int(file.name.partition("-")[2]) for file in module.parent.glob(f"{what}-*")}


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def stopped(program: RunningProgram, number: int = signal.SIGTERM) -> int:
    program.process.send_signal(number)
    return program.process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["one", "supervised"])
def test_a_running_handler_ends_before_the_exit_with_0(module: Path, options: tuple[str, ...], number: int) -> None:
    with running(consume(*options), **settings(module, SLOW="1")) as program:
        count = 2 if options else 1
        assert eventually(lambda: len(pids(module, "began")) == count, 60), program.output
        assert stopped(program, number) == 0
    assert pids(module, "ended") == pids(module, "began")


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["one", "supervised"])
def test_a_handler_that_does_not_end_in_time_is_exit_code_5(module: Path, options: tuple[str, ...]) -> None:
    with running(consume(*options), **settings(module, SLOW="120", CLOSE="0.2")) as program:
        assert eventually(lambda: len(pids(module, "began")) == (2 if options else 1), 60), program.output
        assert stopped(program) == 5


def test_a_process_that_ends_is_started_again(module: Path) -> None:
    with running(consume("--processes", "2"), **settings(module)) as program:
        assert eventually(lambda: len(pids(module, "ended")) == 2, 60), program.output
        first = pids(module, "ended")
        os.kill(min(first), signal.SIGKILL)
        program.wait_for("is started again in 1 s", 60)
        assert eventually(lambda: len(pids(module, "ended")) == 3, 60), program.output
        assert program.process.pid not in pids(module, "ended"), "the supervisor never runs the target"
        assert stopped(program) == 0
    assert not any(is_alive(pid) for pid in pids(module, "ended"))


def test_sighup_starts_all_of_them_again(module: Path) -> None:
    with running(consume("--processes", "2"), **settings(module)) as program:
        assert eventually(lambda: len(pids(module, "ended")) == 2, 60), program.output
        program.wait_for("all 2 processes consume", 60)
        first = pids(module, "ended")
        program.process.send_signal(signal.SIGHUP)
        assert eventually(lambda: len(pids(module, "ended")) == 4, 60), program.output
        assert not any(is_alive(pid) for pid in first)
        assert stopped(program) == 0


def test_a_second_signal_ends_all_at_once(module: Path) -> None:
    with running(consume("--processes", "2"), **settings(module, SLOW="120", CLOSE="120")) as program:
        assert eventually(lambda: len(pids(module, "began")) == 2, 60), program.output
        program.process.send_signal(signal.SIGTERM)
        program.process.send_signal(signal.SIGINT)
        assert program.process.wait(60) in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert eventually(lambda: not any(is_alive(pid) for pid in pids(module, "began")), 30)


def test_the_children_of_a_killed_supervisor_end_in_order(module: Path) -> None:
    with running(consume("--processes", "2"), **settings(module, SLOW="1")) as program:
        assert eventually(lambda: len(pids(module, "began")) == 2, 60), program.output
        program.process.kill()
        program.process.wait()
        assert eventually(lambda: not any(is_alive(pid) for pid in pids(module, "began")), 60)
    assert pids(module, "ended") == pids(module, "began")


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["one", "supervised"])
@pytest.mark.parametrize(
    ("code", "text"),
    [("1 / 0", "ZeroDivisionError"), ("", "but quests has no publishing"), ("publishing = 5", "not 5")],
)
def test_a_target_that_cannot_be_used_ends_the_command(module: Path, options: list[str], code: str, text: str) -> None:
    module.write_text(code)
    done = run(consume(*options), **settings(module))
    assert done.returncode == 1
    assert text in done.stderr


def test_without_a_broker_one_process_ends_with_3(module: Path) -> None:
    module.write_text(MODULE.replace('"memory://"', f'"amqp://127.0.0.1:{free_port()}", connect_timeout=0.5'))
    done = run(consume(), **settings(module))
    assert done.returncode == 3
    assert "Error: " in done.stderr


def test_a_changed_file_starts_it_again_and_a_mistake_waits_for_the_next_change(module: Path) -> None:
    arguments = consume("--reload")
    changed = ["-c", f"import os; os.chdir({str(module.parent)!r}); import runpy, sys; "]
    changed[1] += (
        f"sys.argv = ['message-hub', *{arguments[2:]!r}]; runpy.run_module('message_hub_sync.cli', alter_sys=True)"
    )
    with running([*changed], **settings(module)) as program:
        assert eventually(lambda: len(pids(module, "ended")) == 1, 60), program.output
        module.write_text(MODULE + "\n1 / 0\n")
        program.wait_for("waits for a changed file", 60)
        module.write_text(MODULE + "\n# mended\n")
        assert eventually(lambda: len(pids(module, "ended")) == 2, 60), program.output
        assert stopped(program) == 0


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["one", "supervised"])
def test_systemd_and_probes_are_told(module: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)
        arguments = consume(*options, "--liveness-file", str(alive))
        with running(arguments, **settings(module, NOTIFY_SOCKET=str(tmp_path / "notify"))) as program:
            assert systemd.recv(100).startswith(b"READY=1")
            assert eventually(alive.exists, 60)
            health = ["-m", "message_hub_sync.cli", "health", "--live", "--liveness-file", str(alive)]
            assert run(health).returncode == 0
            assert stopped(program) == 0
            assert systemd.recv(100) == b"STOPPING=1"
    assert not alive.exists()
    assert run(health).returncode == 1
