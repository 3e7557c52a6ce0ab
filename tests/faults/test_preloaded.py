"""The client was made before gunicorn forked, or gevent replaced Python's threads: each says at once what to do."""

from __future__ import annotations

import urllib.request
from pathlib import Path

import pytest
from faults.test_processes import needs
from faults.timing import eventually
from programs import run, running

from message_hub_sync.testing._node.free_ports import free_port

PROGRAM = """
import os, sys, time
from message_hub_sync import HandlerGroup, MessageHubClient, MessageHubConfigurationError

client = MessageHubClient("late-service", "memory://late")
before, call = sys.argv[1:]
subscription = None
if before == "used":
    client.publish_event("late.patched", {})
if before == "consuming":
    subscription = client.subscribe(["late.patched"], print)
if before == "forked" and (child := os.fork()):
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
from gevent import monkey
monkey.patch_all()
group = HandlerGroup()
group.on_message(print)
calls = {
    "publish": lambda: client.publish_event("late.patched", {}),
    "bulk": lambda: client.send_messages([("late-service", {})]),
    "request": lambda: client.request("late-service", {}),
    "subscribe": lambda: client.subscribe(["late.other"], print),
    "decorator": lambda: client.on_message(print),
    "include": lambda: client.include(group),
    "connect": client.connect,
    "stats": client.get_queue_stats,
    "start": lambda: subscription.start(),
}
try:
    calls[call]()
except MessageHubConfigurationError as error:
    print(f"refused: {error}")
client.close(60)
print("closed")
"""


@pytest.mark.faults
@pytest.mark.row(23)
@pytest.mark.parametrize("before", ["made", "used", "consuming", "forked"])
@pytest.mark.parametrize(
    "call", ["publish", "bulk", "request", "subscribe", "decorator", "include", "connect", "stats"]
)
def test_a_call_after_a_late_patch_is_refused_at_once(before: str, call: str) -> None:
    needs("gevent")
    program = run(["-W", "ignore", "-c", PROGRAM, before, call], timeout=50)
    lines = program.stdout.splitlines()
    assert len(lines) == 2, program.stdout + program.stderr
    assert lines[0].startswith(
        "refused: gevent's monkey.patch_all() must be called before message_hub_sync is imported"
    )
    assert lines[1] == "closed"


@pytest.mark.faults
@pytest.mark.row(23)
def test_a_subscription_is_not_started_again_after_a_late_patch() -> None:
    needs("gevent")
    program = run(["-W", "ignore", "-c", PROGRAM, "consuming", "start"], timeout=50)
    assert program.stdout.startswith("refused: gevent's"), program.stdout + program.stderr


@pytest.mark.faults
@pytest.mark.row(23)
@pytest.mark.parametrize("patched_first", [False, True])
def test_gunicorn_with_preload_and_gevent_works_if_its_configuration_patches_first(
    patched_first: bool, tmp_path: Path
) -> None:
    needs("gunicorn")
    needs("gevent")
    configuration = tmp_path / "gunicorn.conf.py"
    configuration.write_text("from gevent import monkey\n\nmonkey.patch_all()\n" if patched_first else "")
    port = free_port()
    command = [
        "-W",
        "ignore",
        "-m",
        "gunicorn",
        "--config",
        str(configuration),
        "--preload",
        "--worker-class",
        "gevent",
    ]
    command += ["--bind", f"127.0.0.1:{port}", "faults.scripts.late_patch:make()"]
    answers: list[str] = []

    def ask() -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=25) as answer:
                answers.append(answer.read().decode())
        except OSError:
            return False
        return True

    tests = str(Path(__file__).parents[1])
    with running(command, LATE_URL="memory://late", PYTHONPATH=f"{tests}:{Path(tests).parent}"):
        eventually(ask, 40)
    assert len(answers) == 1
    assert answers[0].startswith("handled {" if patched_first else "refused: gevent's monkey.patch_all()")


@pytest.mark.faults
@pytest.mark.row(22)
def test_each_worker_says_at_once_that_the_subscriptions_of_its_master_are_inactive_in_it() -> None:
    needs("gunicorn")
    tests = str(Path(__file__).parents[1])
    command = ["-m", "gunicorn", "--preload", "--workers", "2", "--bind", f"127.0.0.1:{free_port()}"]
    command.append("faults.scripts.consuming_at_import:application")
    with running(command, LATE_URL="memory://late", PYTHONPATH=f"{tests}:{Path(tests).parent}") as server:
        for _ in range(2):
            server.wait_for("1 subscriptions of forked-service consume in the process that made them", 40)
