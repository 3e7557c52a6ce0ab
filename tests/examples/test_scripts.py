"""Every example script, run as a user runs it, over both transports."""

from __future__ import annotations

import contextlib
import os
import runpy
from collections import Counter

import pytest
from collector import Collector
from programs import ROOT, run
from spy import spying

from message_hub_sync import MessageHubClient
from message_hub_sync.catalogue import catalogue

EXAMPLES = ROOT / "examples"

#: What each script writes, and the events that it publishes.
SCRIPTS = {
    "quickstart": (
        """\
campaign-service: character-service created Mira
character-service: campaign-service says welcome to Mira
character-service: the campaign has 5 players
""",
        {"character.created": 1},
    ),
    "request_response": (
        """\
service-a: service-b answered {'name': 'Mira', 'level': 3}
service-a: no answer but an error, MessageHubRejectError: there is no sheet 999
""",
        {},
    ),
    "broadcasting": (
        """\
character-service: the theme is winter siege, says campaign-service
image-service: the theme is winter siege, says campaign-service
llm-service: the theme is winter siege, says campaign-service
""",
        {"campaign.theme_changed": 1},
    ),
    "state_synchronisation": (
        """\
tracker: version 1 is created
tracker: version 2 is painted
tracker: version 1 is old, kept 2
tracker: version 3 is framed
in the end: framed
""",
        {"resource.state.changed": 4},
    ),
    "worker_threads": (
        """\
4 threads sent 100 messages and 100 events
handled: 100 messages and 100 events
""",
        {"image.item_generated": 100},
    ),
}


def test_every_example_is_tested() -> None:
    elsewhere = {"cron_script", "flask_service", "django_service"}
    assert {path.stem for path in EXAMPLES.glob("*.py")} == SCRIPTS.keys() | elsewhere


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_exchanges_what_it_says_and_ends(name: str, hub_url: str) -> None:
    output, events = SCRIPTS[name]
    with contextlib.ExitStack() as stack:
        spy = stack.enter_context(spying(hub_url)) if hub_url.startswith("amqp") else None
        done = run([f"examples/{name}.py"], MESSAGE_HUB_URL=hub_url)
        assert (done.returncode, done.stdout) == (0, output), done.stderr
        if name != "request_response":  # whose handler fails, which is logged
            assert done.stderr == ""
        if spy is not None:
            assert Counter(routing_key for routing_key, _, _ in spy.events()) == events


def test_a_script_without_a_hub_ends_with_an_error() -> None:
    done = run(["examples/quickstart.py"], MESSAGE_HUB_URL="amqp://127.0.0.1:1")
    assert done.returncode == 1
    assert "MessageHubConnectionError" in done.stderr


def test_the_cron_script_without_a_hub_ends_with_one_line() -> None:
    done = run(["examples/cron_script.py"], MESSAGE_HUB_URL="amqp://127.0.0.1:1")
    assert done.returncode == 1
    assert "127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.rabbitmq
def test_the_cron_script_handles_what_gathered_between_its_runs(broker_url: str) -> None:
    def night() -> str:
        done = run(["examples/cron_script.py"], MESSAGE_HUB_URL=broker_url)
        assert done.returncode == 0, done.stderr
        return done.stdout

    with spying(broker_url) as spy, MessageHubClient("character-service", broker_url) as client:
        assert night() == "digest of 0 notes\n"
        for number in range(3):
            client.send_message("digest-service", {"action": "note", "note": f"Mira, day {number}"})
        assert night() == (
            "digest of 3 notes\n"
            "- character-service: Mira, day 0\n"
            "- character-service: Mira, day 1\n"
            "- character-service: Mira, day 2\n"
        )
        notes = [[], [f"character-service: Mira, day {number}" for number in range(3)]]
        assert [payload["notes"] for _, _, payload in spy.events()] == notes


def test_the_cron_script_runs_over_the_embedded_hub(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], collected: Collector
) -> None:
    # A hub inside the process needs the notes to be written in the process, too.
    url = f"memory://cron-{os.getpid()}"
    monkeypatch.setenv("MESSAGE_HUB_URL", url)
    monkeypatch.setattr(catalogue, "_by_name", dict(catalogue._by_name))  # the script registers its event
    with MessageHubClient("digest-service", url) as inbox:
        inbox.subscribe_messages(collected).cancel()
    with MessageHubClient("character-service", url) as client:
        digests = client.subscribe(["digest.completed"], collected)
        client.send_message("digest-service", {"action": "note", "note": "Mira, day 0"})
        runpy.run_path(str(EXAMPLES / "cron_script.py"), run_name="__main__")
        assert capsys.readouterr().out == "digest of 1 notes\n- character-service: Mira, day 0\n"
        assert collected.wait(1) == ['{"notes":["character-service: Mira, day 0"]}']
        digests.cancel()
