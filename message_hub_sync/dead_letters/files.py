"""The file in which a dead letter is stored, so that a failure in production becomes a regression test.

The file is JSON in UTF-8::

    {
      "format": "message-hub-dead-letter/1",
      "queue": "campaign-service.character.created",
      "exchange": "events",
      "routing_key": "character.created",
      "failure": {"reason": …, "error_type": …, "error_message": …, "error_traceback": …,
                  "attempts": 4, "first_failed_at": …, "service": "campaign-service"},
      "properties": {"message_id": …, "correlation_id": …, "type": "event", …},
      "headers": {"source": "character-service", …},
      "payload": {…}
    }

``queue``, ``exchange`` and ``routing_key`` have their values from before the failure. If the body is not a JSON object,
the file has ``body`` (base64) instead of ``payload``. If this library would write it in another way, for example with
other spaces, the file has both, and ``body`` counts: delete it to change ``payload`` by hand. Header values that JSON
does not have are written as text.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

from message_hub_sync.dead_letters.letter import DeadLetter
from message_hub_sync.envelope.values import Properties
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import printable, printable_json, shown

__all__ = ["dead_letter_json", "load_dead_letter", "save_dead_letter"]

FORMAT = "message-hub-dead-letter/1"

_NUMBERS = ("delivery_mode", "priority", "timestamp")
_PROPERTIES = [one.name for one in dataclasses.fields(Properties) if one.name != "headers"]


def dead_letter_json(letter: DeadLetter) -> str:
    """The content of a dead letter's file. Characters that control a terminal are escaped."""
    properties = {name: getattr(letter.properties, name) for name in _PROPERTIES}
    document = {
        "format": FORMAT,
        "queue": letter.queue,
        "exchange": letter.exchange,
        "routing_key": letter.routing_key,
        "failure": dict(letter.failure),
        "properties": {name: value for name, value in properties.items() if value is not None},
        "headers": letter.properties.headers,
    }
    try:
        document["payload"] = letter.payload
        text = printable_json(document, indent=2)
        exact = _encoded(document["payload"]) == letter.body
    except (MessageValidationError, RecursionError):
        document.pop("payload", None)
        exact = False
    if not exact:
        document["body"] = base64.b64encode(letter.body).decode()
        text = printable_json(document, indent=2)
    return text + "\n"


def _encoded(payload: Any) -> bytes:
    """The body of a payload as this library writes it. A lone surrogate, which UTF-8 lacks, is written as an escape."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(payload, separators=(",", ":")).encode()


def save_dead_letter(letter: DeadLetter, file: str | os.PathLike[str]) -> Path:
    """Write a dead letter to a JSON file. An existing file is replaced when the new one is complete.

    :param letter: the dead letter.
    :param file: the path of the file.
    :returns: the path.
    :raises OSError: the file cannot be written. An existing file stays as it is.
    """
    path = Path(file)
    content = dead_letter_json(letter).encode()
    if path.exists() and not path.is_file():  # for example /dev/stdout: nothing to replace
        path.write_bytes(content)
        return path
    target = path.resolve()  # a link stays a link
    beside = target.with_name(f".{target.name[:100]}.{uuid4().hex[:8]}")
    try:
        with open(beside, "xb") as written:
            written.write(content)
            written.flush()
            os.fsync(written.fileno())  # the caller may remove the message from its queue next
        if target.exists():
            shutil.copymode(target, beside)
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    return path


def load_dead_letter(file: str | os.PathLike[str]) -> DeadLetter:
    """Read a dead letter from a file of ``message-hub dead-letters export`` or :func:`save_dead_letter`.

    :param file: the path of the file.
    :returns: the dead letter.
    :raises MessageValidationError: the file does not hold a dead letter. The text says what is wrong or missing.
    :raises OSError: the file cannot be read.
    """
    path = Path(file)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise MessageValidationError(f"{_named(path)} is not a dead letter: its JSON is nested too deeply") from None
    except ValueError as error:
        raise MessageValidationError(f"{_named(path)} is not JSON in UTF-8: {printable(str(error))}") from None
    found = document.get("format") if isinstance(document, dict) else None
    if found != FORMAT:
        raise MessageValidationError(
            f"{_named(path)} is not a dead letter: format must be {FORMAT!r}, not {shown(found)}"
        )
    try:
        if "body" in document:
            body = base64.b64decode(document["body"], validate=True)
        else:
            body = _encoded(document["payload"])
        properties = _properties(document["properties"], document["headers"])
        return DeadLetter(
            queue=_text(document["queue"]),
            exchange=_text(document["exchange"]),
            routing_key=_text(document["routing_key"]),
            body=body,
            properties=properties,
            failure=dict(_mapping(document["failure"])),
        )
    except KeyError as error:
        raise MessageValidationError(f"{_named(path)} is not a complete dead letter: {error} is missing") from None
    except (TypeError, ValueError, AttributeError, RecursionError, binascii.Error):
        raise MessageValidationError(
            f"{_named(path)} is not a complete dead letter: a field has the wrong type"
        ) from None


def _named(path: Path) -> str:
    return printable(str(path), 500)


def _properties(given: Any, headers: Any) -> Properties:
    # A property that the file does not name was not set. Properties' defaults are for messages that we publish.
    values: dict[str, Any] = dict.fromkeys(_PROPERTIES)
    for name, value in _mapping(given).items():
        if name in _NUMBERS:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError
            values[name] = value
        elif name in _PROPERTIES:
            values[name] = _text(value)
    return Properties(**values, headers=dict(_mapping(headers)))


def _mapping(value: Any) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
