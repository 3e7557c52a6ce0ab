"""The ``message-hub demo`` command: raise the curtain, follow the story, leave the hub as it was found."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeoutError

import click

from message_hub_sync.cli.demo.cast import SERVICES, Scene, scenes
from message_hub_sync.cli.demo.ledger import Ledger
from message_hub_sync.cli.demo.report import Report, report_on
from message_hub_sync.cli.demo.screen import PATIENCE, Screen, open_screen
from message_hub_sync.cli.demo.service import Service
from message_hub_sync.client.session import Session
from message_hub_sync.config import ClientConfig, MemoryAddress, parse_addresses
from message_hub_sync.consuming.retry_policy import RetryPolicy
from message_hub_sync.errors import MessageHubError
from message_hub_sync.runtime.deadlines import MAX_TIMEOUT

__all__ = ["demo"]

#: Seconds for removing the queues, once the story has ended or its time is up.
CLEAN_UP_TIMEOUT = 10.0


@click.command("demo")
@click.option("--url", default="memory://demo", show_default=True, help="The hub: amqp://user:password@host/vhost.")
@click.option("--json", "as_json", is_flag=True, help="Write one JSON document at the end, nothing else.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds until deliveries that did not happen count as missing.",
)
@click.option("--force", is_flag=True, help="Use, and then remove, such queues as exist already without a consumer.")
def demo(url: str, as_json: bool, timeout: float, force: bool) -> None:
    """Let the character, campaign, image and LLM services talk, and account for every delivery.

    Exit code 0 only if all happened. The queues are those of the real services; they are made for the demo and
    removed after it. Where one exists already the demo refuses to run, because it would take away messages that
    wait there. Services under other names receive the demo's events if they subscribe to them: on a hub that others
    use, give the demo a virtual host of its own.
    """
    if not timeout <= MAX_TIMEOUT:  # neither does NaN
        raise click.BadParameter(f"seconds up to {MAX_TIMEOUT} are usable", param_hint="--timeout")
    try:
        hub = _shown(url)
        screen = open_screen(as_json)
        with _terminable(), contextlib.closing(screen):
            screen.begin(hub)
            _refuse_to_disturb(url, force, min(timeout, 5.0))
            report = _perform(url, hub, timeout, screen)
    except MessageHubError as error:
        raise click.ClickException(str(error)) from None
    if not report.ok:
        raise SystemExit(1)


def _perform(url: str, hub: str, timeout: float, screen: Screen) -> Report:
    began = time.monotonic()
    deadline = began + timeout
    ledger = Ledger()
    services, story = scenes(url, ledger, timeout)
    try:
        _start(services, deadline)
        _play(story, ledger, screen, deadline)
        seconds = time.monotonic() - began
    finally:
        _end(services, ledger)
    report = report_on(hub, seconds, ledger.everything(), [service.name for service in services], ledger.errors)
    screen.finish(report)
    return report


def _start(services: Sequence[Service], deadline: float) -> None:
    subscribed = [service.start() for service in services]
    for service, ready in zip(services, subscribed, strict=True):
        try:
            ready.result(max(0.0, deadline - time.monotonic()))
        except FutureTimeoutError:
            raise click.ClickException(f"{service.name} was not subscribed in time: raise --timeout") from None


def _play(story: Sequence[Scene], ledger: Ledger, screen: Screen, deadline: float) -> None:
    for number, scene in enumerate(story, start=1):
        screen.scene(number, scene.title)
        ledger.scene_begins()
        scene.service.play(scene.play)
        if not ledger.follow(screen.show, deadline, PATIENCE):
            return


def _end(services: Sequence[Service], ledger: Ledger) -> None:
    deadline = time.monotonic() + CLEAN_UP_TIMEOUT
    for service in services:
        service.leave()
    for service in services:
        if not service.join(max(0.0, deadline - time.monotonic())):
            ledger.note_error(f"the queues of {service.name} may still be there: it did not end in time")


def _refuse_to_disturb(url: str, force: bool, timeout: float) -> None:
    """Consuming a queue that others rely on would take their messages, removing it all that wait there."""
    config = ClientConfig("message-hub-demo", parse_addresses(url), connect_timeout=timeout)
    session = Session(config, RetryPolicy())
    deadline = time.monotonic() + timeout
    names = [name for service in SERVICES for name in service.queues()]
    try:
        found = {name: stats for name, stats in session.transport.queue_stats(names, deadline).items() if stats}
    finally:
        session.close(time.monotonic() + timeout)
    consumed = [name for name, stats in found.items() if stats.consumers]
    advice = "give the demo a virtual host of its own (amqp://host/demo)"
    if consumed:
        raise click.ClickException(f"services consume from {', '.join(consumed)}: {advice}")
    if found and not force:
        waiting = sum(stats.depth for stats in found.values())
        raise click.ClickException(
            f"these queues exist already, with {waiting} messages waiting: {', '.join(found)}: {advice}, or, if "
            "an earlier demo left them behind, let --force take them over and remove them with all they hold"
        )


def _shown(url: str) -> str:
    """Where a URL leads, without its password."""
    address = parse_addresses(url)
    return str(address) if isinstance(address, MemoryAddress) else ", ".join(map(str, address))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends the demo as Ctrl-C does: the queues are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
