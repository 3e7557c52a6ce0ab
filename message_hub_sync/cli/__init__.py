"""Entry point of the command ``message-hub``, which :mod:`message_hub_sync.cli.app` implements."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line. If the ``cli`` extra is not installed, exit with a text that says how to install it."""
    try:
        from message_hub_sync.cli.app import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in ("click", "rich"):
            raise
        missing = error.name.partition(".")[0]
        raise SystemExit(
            f"message-hub needs {missing}, which is not installed: pip install 'message-hub-sync[cli]'"
        ) from None
    run()
