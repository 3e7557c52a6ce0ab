"""The ``message-hub`` command; :mod:`message_hub_sync.cli.app` has it, this is its door."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; without the ``cli`` extra, say how to get it."""
    try:
        from message_hub_sync.cli.app import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        raise SystemExit(
            f"message-hub needs {error.name}, which is not installed: pip install 'message-hub-sync[cli]'"
        ) from None
    run()
