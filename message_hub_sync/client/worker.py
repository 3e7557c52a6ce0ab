"""A process that only consumes: from its subscriptions to its exit code, with what a supervisor wants to know."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from message_hub_sync.client.client import MessageHubClient
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.service_manager import notify

__all__ = ["run_worker"]

logger = SafeLogger("message_hub_sync.client")

#: Seconds between two updates of the liveness file.
_LIVENESS_EVERY = 5.0


def run_worker(client: MessageHubClient, subscribe: Callable[[], object], liveness_file: Path | None = None) -> bool:
    """Subscribe, consume until SIGTERM or SIGINT, then stop in order. For the main thread.

    systemd is told ``READY=1`` and ``STOPPING=1`` if it asks for them.

    :param subscribe: subscribes the handlers.
    :param liveness_file: its modification time is set every 5 s while the client works. At the end it is removed.
    :returns: whether every running handler ended in time.
    :raises MessageHubError: what ``subscribe`` raises; then the client is closed. Or the file cannot be written.
    """
    with contextlib.ExitStack() as ends:
        ends.callback(client.close)  # does nothing after run_forever()
        subscribe()
        if liveness_file is not None:
            ends.enter_context(_kept_alive(client, liveness_file))
        client._lifecycle.session().on_close(lambda: notify("STOPPING=1"))
        notify(f"READY=1\nMAINPID={os.getpid()}")
        logger.info("%s consumes, as process %d", client.service_name, os.getpid())
        return client.run_forever()


@contextlib.contextmanager
def _kept_alive(client: MessageHubClient, file: Path) -> Iterator[None]:
    """Set the time of the file in a thread, until the end of the block."""
    try:
        file.touch()
    except OSError as error:
        raise MessageHubConfigurationError(
            f"the liveness file must be in a directory that can be written: {type(error).__name__}"
        ) from None
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_LIVENESS_EVERY):
            # An error of the disk is not one of this process. The file becomes old, and the probe shows it.
            with contextlib.suppress(OSError):
                if client.get_health_status()["live"]:
                    file.touch()

    thread = threading.Thread(target=beat, name=f"message-hub-{client.service_name}-liveness", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(_LIVENESS_EVERY)
        with contextlib.suppress(OSError):
            file.unlink()
