"""The command ``message-hub consume``."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path

import click

from message_hub_sync.cli.consume.file_watch import FileWatch
from message_hub_sync.cli.consume.supervisor import SUPERVISED, Supervisor, child_command
from message_hub_sync.cli.consume.target import imported_client, imported_group, with_workers
from message_hub_sync.cli.exits import Exit, exit_code
from message_hub_sync.cli.terminal import CommandError
from message_hub_sync.client.worker import run_worker
from message_hub_sync.errors import MessageHubError

__all__ = ["consume"]


@click.command("consume")
@click.argument("target", metavar="MODULE:CLIENT")
@click.option(
    "--group", "groups", multiple=True, metavar="MODULE:GROUP", help="A HandlerGroup to include. Can be repeated."
)
@click.option("--processes", type=click.IntRange(1, 1000), default=1, show_default=True, help="Processes that consume.")
@click.option(
    "--workers",
    type=click.IntRange(1, 1000),
    help="Threads for each queue of a group's handler, unless the handler was declared with more than one.",
)
@click.option("--reload", is_flag=True, help="Start again when a .py file below this directory changes.")
@click.option(
    "--liveness-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Touch this file every 5 seconds while all processes work.",
)
def consume(
    target: str, groups: tuple[str, ...], processes: int, workers: int | None, reload: bool, liveness_file: Path | None
) -> None:
    """Run the handlers of a client until SIGTERM or SIGINT, then wait for running ones.

    MODULE:CLIENT is a MessageHubClient, or a function that returns one. With several processes or --reload, a
    supervisor starts them, and starts one again that ends. SIGHUP starts all of them again.

    Exit codes: 0 if every running handler ended in time, 5 if not; 3 without a connection, 4 if the hub refuses the
    login or a permission, 1 after another error, 128 plus its number after a second signal.
    """
    if processes == 1 and not reload:
        _consume_here(target, groups, workers, liveness_file)
        return
    if not hasattr(signal, "SIGHUP"):
        raise CommandError("--processes and --reload need signals of POSIX: start several commands instead")
    _log_if_nobody_does()
    arguments = [target, *(part for group in groups for part in ("--group", group))]
    if workers is not None:
        arguments += ["--workers", str(workers)]
    supervisor = Supervisor(child_command(arguments), processes, liveness_file, keep_on_mistakes=reload)
    if reload:
        with FileWatch(Path.cwd(), supervisor.restart):
            code = supervisor.run()
    else:
        code = supervisor.run()
    click.get_current_context().exit(code)


def _consume_here(target: str, groups: tuple[str, ...], workers: int | None, liveness_file: Path | None) -> None:
    if os.environ.get(SUPERVISED):
        _stop_with_the_supervisor()
    try:
        client = imported_client(target)
        included = [imported_group(group) for group in groups]
        _log_if_nobody_does()

        def subscribe() -> None:
            for group in included:
                if workers is not None:
                    with_workers(group, workers)
                client.include(group)

        drained = run_worker(client, subscribe, liveness_file)
    except MessageHubError as error:
        raise CommandError(str(error), exit_code(error)) from None
    except KeyboardInterrupt:
        raise CommandError("interrupted before it consumed", Exit.SIGNALLED + signal.SIGINT) from None
    if not drained:
        click.get_current_context().exit(Exit.NOT_ALL)


def _log_if_nobody_does() -> None:
    """Write log records to standard error, unless the target has configured logging."""
    if not logging.getLogger().handlers:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")


def _stop_with_the_supervisor() -> None:
    """Stop in order when the supervisor has ended, also if it was killed: nobody else would stop this process."""

    def wait() -> None:
        # Not sys.stdin: its lock would be held at the interpreter's exit.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    os.environ.pop(SUPERVISED)
    threading.Thread(target=wait, name="message-hub-supervisor", daemon=True).start()
