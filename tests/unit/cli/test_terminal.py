"""What reaches a terminal: no control character, and the columns that one came for."""

from __future__ import annotations

import io
import json
import os
import signal

import pytest

from message_hub_sync.cli import terminal
from message_hub_sync.cli.terminal import CommandError, Stop, Table, say, say_json

HOSTILE = "\x1b[2J\x9b31m\u202etxt.exe\u2066\r\n\x7f\ud800"
COLUMNS = {"queue": "Queue", "message_id": "Message id", "error": "Error"}


def rows(capsys: pytest.CaptureFixture[str], *given: dict[str, object]) -> list[str]:
    table = Table(COLUMNS, ("queue", "attempts", "message_id"))
    for row in given:
        table.add(row)
    table.finish()
    return capsys.readouterr().out.splitlines()


def test_control_characters_are_escaped_in_lines_errors_tables_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    say(HOSTILE, err=True)
    say_json({HOSTILE: HOSTILE})
    written = capsys.readouterr()
    lines = [*written.out.splitlines(), *written.err.splitlines(), CommandError(HOSTILE).message]
    lines += rows(capsys, {"queue": HOSTILE, "message_id": HOSTILE, "error": HOSTILE})
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)
    assert json.loads(lines[1]) == {HOSTILE: HOSTILE}, "a program reads the value as it is"


def test_a_wide_terminal_shows_all_columns_and_a_narrow_one_the_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    row: dict[str, object] = {"queue": "q" * 30, "message_id": "i" * 36, "error": "ValueError: " + "x" * 100}
    for cells, heading in ((None, 3), (100, 3), (70, 2), (40, 1)):
        monkeypatch.setattr(terminal, "width", lambda cells=cells: cells)
        first, second = rows(capsys, row)
        assert len(first.replace("Message id", "Message-id").split()) == heading, cells
        assert "ValueError: x" in second
        assert cells is None or (len(second) == cells and second.endswith("…"))


def test_wide_characters_count_as_two_cells(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terminal, "width", lambda: 44)
    first, second = rows(capsys, {"queue": "漢字", "message_id": None, "error": "漢" * 40})
    assert second.startswith("漢字   -           漢"), (first, second)
    assert terminal.cell_len(second) <= 44


def test_a_terminal_that_is_not_utf_8_gets_escapes_instead_of_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", stream)
    say("Éowyn")
    say_json({"name": "Éowyn"})
    stream.seek(0)
    text, document = stream.read().splitlines()
    assert text == "\\xc9owyn"
    assert json.loads(document) == {"name": "Éowyn"}


def test_the_first_signal_is_noted_and_the_second_one_interrupts() -> None:
    with Stop() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop(), stop.number) == (True, signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
