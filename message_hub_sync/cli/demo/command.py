"""The command ``message-hub demo``: starts the services, runs the scenes, reports, and removes its queues."""

from __future__ import annotations

import contextlib
import signal
import threading
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
from message_hub_sync.runtime.real_time import time

__all__ = ["demo"]

#: Seconds for removing the queues after the scenes or the timeout.
CLEAN_UP_TIMEOUT = 10.0


@click.command("demo")
@click.option(
    "--url",
    default="memory://demo",
    show_default=True,
    help="URL of the hub, for example amqp://user:password@host/vhost.",
)
@click.option("--json", "as_json", is_flag=True, help="Write only one JSON document, at the end.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=30.0,
    show_default=True,
    help="Seconds until a delivery counts as missing.",
)
@click.option(
    "--force", is_flag=True, help="Use queues that exist without a consumer, and delete them with their messages."
)
def demo(url: str, as_json: bool, timeout: float, force: bool) -> None:
    """Run four demo services and check every delivery.

    They are the character, campaign, image and LLM services. The exit code is 0 only if every delivery happened.

    The demo uses the queue names of the real services. It creates the queues and deletes them afterwards. It does not
    run if one of them exists, because it would take messages away from there. Other services that subscribe to the
    demo's events receive them: on a shared hub, use a separate virtual host for the demo.
    """
    if not timeout <= MAX_TIMEOUT:  # also true for NaN
        raise click.BadParameter(
            f"must be a number of seconds up to {MAX_TIMEOUT}, not {timeout}", param_hint="--timeout"
        )
    try:
        hub = _without_password(url)
        screen = open_screen(as_json)
        with _terminable(), contextlib.closing(screen):
            screen.begin(hub)
            _check_queues_unused(url, force, min(timeout, 5.0))
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
            raise click.ClickException(f"{service.name} could not subscribe in time: raise --timeout") from None


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
            ledger.note_error(f"the queues of {service.name} may still exist: the service did not end in time")


def _check_queues_unused(url: str, force: bool, timeout: float) -> None:
    """Raise if a queue of the demo is in use.

    Consuming it would take messages away from its services; deleting it would delete the messages that wait there.
    """
    config = ClientConfig("message-hub-demo", parse_addresses(url), connect_timeout=timeout)
    session = Session(config, RetryPolicy())
    deadline = time.monotonic() + timeout
    names = [name for service in SERVICES for name in service.queues()]
    try:
        found = {name: stats for name, stats in session.transport.queue_stats(names, deadline).items() if stats}
    finally:
        session.close(time.monotonic() + timeout)
    consumed = [name for name, stats in found.items() if stats.consumers]
    advice = "use a separate virtual host for the demo (amqp://host/demo)"
    if consumed:
        raise click.ClickException(f"services consume from {', '.join(consumed)}: {advice}")
    if found and not force:
        waiting = sum(stats.depth for stats in found.values())
        raise click.ClickException(
            f"these queues exist already, with {waiting} messages waiting: {', '.join(found)}: {advice}. If an "
            "earlier demo left the queues behind, use --force to delete them with their messages"
        )


def _without_password(url: str) -> str:
    """The address in a URL, without user and password."""
    address = parse_addresses(url)
    return str(address) if isinstance(address, MemoryAddress) else ", ".join(map(str, address))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the demo as Ctrl-C does, so that the queues are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)
