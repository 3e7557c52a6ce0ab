"""Dead letters: read them, write them to a file, and requeue them."""

from __future__ import annotations

from message_hub_sync.dead_letters.files import dead_letter_json, load_dead_letter, save_dead_letter
from message_hub_sync.dead_letters.letter import DeadLetter
from message_hub_sync.dead_letters.queues import (
    Gathered,
    dead_letter_queues,
    each_dead_letter,
    existing,
    fetch_dead_letter,
    gathered,
    requeue_dead_letters,
    send_again,
)

__all__ = [
    "DeadLetter",
    "Gathered",
    "dead_letter_json",
    "dead_letter_queues",
    "each_dead_letter",
    "existing",
    "fetch_dead_letter",
    "gathered",
    "load_dead_letter",
    "requeue_dead_letters",
    "save_dead_letter",
    "send_again",
]
