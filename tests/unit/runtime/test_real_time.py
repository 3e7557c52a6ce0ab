import subprocess
import sys
import textwrap
import time

import pytest
from freezegun import freeze_time

from message_hub_sync.runtime.real_time import time as real

_USE = """
from message_hub_sync import Event, MessageHubClient
from message_hub_sync.catalogue import ActionPayload, CharacterCreated

with MessageHubClient("character", "memory://") as client:
    client.subscribe_messages(lambda message: {"n": 2})
    client.subscribe(["character.created"], print)
    client.send_message("character", ActionPayload(action="x", data={}))
    client.publish_event(CharacterCreated(character_id="42", level=3))
    assert client.request("character", {"n": 1}, timeout=30).payload == {"n": 2}
"""

_ORDERS = {
    "the hub, then freezegun": "from message_hub_sync import MessageHubClient; from freezegun import freeze_time",
    "freezegun, then the hub": "from freezegun import freeze_time; from message_hub_sync import MessageHubClient",
    "the package only, then freezegun": "import message_hub_sync; from freezegun import freeze_time",
    "pydantic, then freezegun": "import pydantic; from freezegun import freeze_time",
    "the hub within frozen time": "from freezegun import freeze_time",
}


@pytest.mark.parametrize("imports", list(_ORDERS.values()), ids=list(_ORDERS))
def test_a_program_may_import_the_hub_and_freezegun_in_any_order(imports: str) -> None:
    code = f"{imports}\nwith freeze_time('2020-01-01'):\n{textwrap.indent(_USE, '    ')}"
    code += "\nimport time\nassert time.time() > 1_700_000_000"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_the_clocks_go_on_while_those_of_the_process_are_frozen() -> None:
    before, wall = real.monotonic(), real.time()
    with freeze_time("2020-01-01"):
        assert time.time() < wall - 86_400
        assert wall <= real.time() < wall + 3600
        assert before <= real.monotonic() < before + 3600
        assert time.monotonic() == time.monotonic()


def test_the_clocks_are_those_of_the_module_time() -> None:
    assert real is not time
    first, ours, last = time.monotonic(), real.monotonic(), time.monotonic()
    assert first <= ours <= last
