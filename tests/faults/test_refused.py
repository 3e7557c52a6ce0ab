"""The broker refuses the login of a user, or a permission."""

from __future__ import annotations

import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from collector import Collector
from faults.judging import judge
from faults.names import Names, NewClient
from faults.oracle import Oracle
from faults.raw import kill
from faults.test_handlers import dead_letters
from faults.timing import TOLERANCE, eventually, in_thread, within

from message_hub_sync import MessageHubAuthorizationError, MessageHubConnectionError, MessageHubError, RetryPolicy
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode

SECRET = "a-secret-nobody-may-read"
MISSING_OPENSSL = "openssl is missing, to make certificates with"


@pytest.fixture
def user(node: RabbitMQNode, names: Names) -> Iterator[str]:
    """A broker user with all permissions, which the test can take away."""
    name = f"user-{names.service}"
    node.ctl("add_user", name, SECRET)
    node.ctl("set_permissions", name, ".*", ".*", ".*")
    yield name
    node.ctl("delete_user", name)


def url_of(node: RabbitMQNode, user: str, password: str = SECRET) -> str:
    return f"amqp://{user}:{password}@127.0.0.1:{node.port}"


def logins(node: RabbitMQNode) -> int:
    """The number of connections that the broker has accepted so far."""
    return node.log().count("accepting AMQP connection")


@pytest.mark.rabbitmq
@pytest.mark.row(20)
def test_a_user_without_permission_is_told_at_once_and_the_circuit_stays_closed(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names, user: str
) -> None:
    node.ctl("set_permissions", user, "", "", "")
    client = new_client(names.service, url_of(node, user))
    client.connect()
    before = logins(node)
    for _ in range(20):
        with within(0):
            error = oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))
        assert isinstance(error, MessageHubAuthorizationError)
    with within(1), pytest.raises(MessageHubAuthorizationError):
        client.publish_events([(names.event, {})] * 50)

    def publish_too() -> None:
        for _ in range(20):
            error = oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))
            assert isinstance(error, MessageHubAuthorizationError), error

    with in_thread(publish_too), in_thread(publish_too), in_thread(publish_too):
        publish_too()  # concurrently on one channel, on which the broker has never accepted a publish to the exchange
    with within(1), pytest.raises(MessageHubAuthorizationError):
        client.subscribe([names.event], lambda event: None)
    health = client.get_health_status()
    assert health["circuit_breaker_state"] == "closed"
    assert health["connected"], "one refused entity must not cost the connection"
    assert logins(node) - before <= 1, "refused calls must not make new connections"
    judge(oracle)


@pytest.mark.rabbitmq
@pytest.mark.row(20)
def test_permissions_taken_away_while_running_and_given_back(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    client = new_client(names.service, url_of(node, user))
    subscription = client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))

    def publish() -> MessageHubError | None:
        return oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))

    assert publish() is None
    assert oracle.drained(5)
    node.ctl("set_permissions", user, "^$", "^$", "^$")
    # The broker caches permissions per channel: the change applies to new connections.
    node.ctl("close_all_connections", "taken away")
    before = logins(node)
    with within(1):
        error = publish()
    # Also while the client is reconnecting.
    assert isinstance(error, MessageHubAuthorizationError), error
    eventually(lambda: not subscription.active, 5)
    with within(1):
        assert isinstance(publish(), MessageHubAuthorizationError)
    # First the status is disconnected. It is degraded when the connection is restored, but the queue is not consumed.
    eventually(lambda: client.get_health_status()["status"] == "degraded", 5)
    assert client.get_health_status()["circuit_breaker_state"] == "closed"

    node.ctl("set_permissions", user, ".*", ".*", ".*")
    eventually(lambda: subscription.active, 15)
    assert logins(node) - before <= 6
    node.ctl("close_all_connections", "given back")
    eventually(lambda: subscription.active and publish() is None, 10)
    judge(oracle)
    assert SECRET not in caplog.text


@pytest.mark.rabbitmq
@pytest.mark.row(20)
def test_a_consumer_that_may_not_make_its_dead_letter_queue_says_so_and_goes_on_once_it_may(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names, user: str
) -> None:
    node.ctl("set_permissions", user, f"^(events|{names.event_queue})$", ".*", ".*")
    client = new_client(names.service, url_of(node, user), retry=RetryPolicy.none())

    def handler(event: dict[str, int], envelope: object) -> None:
        if event["n"] < 10:
            raise ValueError("always")
        oracle.ledger.handled(envelope.id)  # type: ignore[attr-defined]

    client.subscribe([names.event], handler)
    refused = node.log().count("access_refused")
    for n in range(10):
        client.publish_event(names.event, {"n": n})
    for n in range(10, 20):
        assert oracle.ledger.call(lambda id, n=n: client.publish_event(names.event, {"n": n}, message_id=id)) is None
    judge(oracle)

    def error() -> str:
        return client.get_health_status()["queues"][names.event_queue]["error"] or ""

    eventually(lambda: error().startswith("10 messages cannot be moved"), 5)
    assert f"declaring the queue '{names.event_queue}.dead'" in error()
    assert client.get_health_status()["status"] == "degraded"
    # Each attempt writes two lines to the broker's log: for the declare, and for the passive declare.
    assert node.log().count("access_refused") - refused <= 12, "each message has it refused for itself"

    node.ctl("set_permissions", user, ".*", ".*", ".*")
    assert len(dead_letters(node, names.event_queue, 10, timeout=20)) == 10
    eventually(lambda: client.get_health_status()["status"] == "ok", 5)


@pytest.mark.rabbitmq
@pytest.mark.row(20)
def test_a_changed_password_is_an_authorization_error_at_once_and_no_storm(
    node: RabbitMQNode, oracle: Oracle, new_client: NewClient, names: Names, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "message_hub_sync")
    client = new_client(names.service, url_of(node, user))
    subscription = client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))

    def publish() -> MessageHubError | None:
        return oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))

    assert publish() is None
    assert oracle.drained(5)
    node.ctl("change_password", user, "another")
    node.ctl("close_all_connections", "changed")
    before = logins(node)
    with within(1):
        assert isinstance(publish(), MessageHubAuthorizationError)
    for _ in range(50):
        with within(0):
            assert isinstance(publish(), MessageHubAuthorizationError)
    assert client.get_health_status()["circuit_breaker_state"] == "closed"
    assert logins(node) - before <= 10, "a refused password must not be tried all the time"

    node.ctl("change_password", user, SECRET)
    eventually(lambda: subscription.active, 15)
    eventually(lambda: publish() is None, 15)
    judge(oracle)
    assert SECRET not in caplog.text


@pytest.mark.rabbitmq
@pytest.mark.row(21)
@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("amqp://guest:{secret}@127.0.0.1:{port}", MessageHubAuthorizationError),
        ("amqp://nobody:{secret}@127.0.0.1:{port}", MessageHubAuthorizationError),
        ("amqp://guest:guest@127.0.0.1:{port}/no-such-vhost", MessageHubAuthorizationError),
        ("amqp://guest:{secret}@no-such-host.invalid:{port}", MessageHubConnectionError),
        ("amqp://guest:{secret}@127.0.0.1:1", MessageHubConnectionError),
        ("amqps://guest:{secret}@127.0.0.1:{port}", MessageHubConnectionError),
        # Not an AMQP server: the port of epmd, which waits for a request of its own protocol.
        ("amqp://guest:{secret}@127.0.0.1:{epmd_port}", MessageHubConnectionError),
    ],
    ids=["password", "user", "vhost", "host", "port", "tls-to-plain", "not-a-broker"],
)
def test_a_wrong_address_is_a_typed_error_in_time_without_the_secret(
    url: str,
    expected: type[MessageHubError],
    node: RabbitMQNode,
    oracle: Oracle,
    new_client: NewClient,
    names: Names,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    wrong = url.format(secret=SECRET, port=node.port, epmd_port=node.epmd_port)
    client = new_client(names.service, wrong, connect_timeout=1, delivery_timeout=1)
    with within(1), pytest.raises(expected) as caught:
        client.connect()
    with within(1):
        error = oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id))
    with within(1), pytest.raises(expected):
        client.subscribe([names.event], Collector())
    assert isinstance(error, expected)
    for text in (str(caught.value), str(error), repr(client), str(client.get_health_status()), caplog.text):
        assert SECRET not in text
    assert caught.value.__cause__ is None
    judge(oracle, slowest=1)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RabbitMQNode, Path]]:
    """A node with TLS, and the directory of its certificate authority."""
    directory = tmp_path_factory.mktemp("tls")
    make_certificates(directory)
    from message_hub_sync.testing._node.free_ports import free_port

    settings = {
        "listeners.ssl.default": str(free_port()),
        "ssl_options.cacertfile": str(directory / "authority.pem"),
        "ssl_options.certfile": str(directory / "server.pem"),
        "ssl_options.keyfile": str(directory / "server.key"),
        "ssl_options.verify": "verify_none",
        "ssl_options.fail_if_no_peer_cert": "false",
    }
    with RabbitMQNode(config=settings, install=True) as node:
        (directory / "port").write_text(settings["listeners.ssl.default"])
        yield node, directory


def make_certificates(directory: Path) -> None:
    """A certificate authority, its server certificate for localhost, and another certificate authority."""

    def openssl(*arguments: str) -> None:
        try:
            subprocess.run(["openssl", *arguments], cwd=directory, capture_output=True, check=True, timeout=60)
        except FileNotFoundError:
            pytest.skip(MISSING_OPENSSL)

    for name in ("authority", "stranger"):
        openssl(
            *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    openssl(
        *("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"),
        *("-keyout", "server.key", "-out", "server.csr"),
    )
    (directory / "names").write_text("subjectAltName=DNS:localhost\n")
    openssl(
        *("x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial"),
        *("-days", "2", "-extfile", "names", "-out", "server.pem"),
    )
    (directory / "server.key").chmod(0o644)


@pytest.mark.faults
@pytest.mark.row(21)
def test_tls_works_and_a_wrong_authority_or_name_is_a_connection_error_in_time(
    tls: tuple[RabbitMQNode, Path], oracle: Oracle, new_client: NewClient, names: Names
) -> None:
    node, directory = tls
    port = (directory / "port").read_text()

    def tried(url: str) -> str:
        client = new_client(names.service, url, connect_timeout=3, delivery_timeout=3)
        with within(3), pytest.raises(MessageHubConnectionError) as caught:
            client.connect()
        assert caught.value.__cause__ is None
        assert SECRET not in str(caught.value)
        return str(caught.value)

    stranger = f"cacertfile={directory / 'stranger.pem'}"
    ours = f"cacertfile={directory / 'authority.pem'}"
    assert "certificate" in tried(f"amqps://guest:{SECRET}@localhost:{port}?{stranger}")
    assert "certificate" in tried(f"amqps://guest:{SECRET}@127.0.0.1:{port}?{ours}")
    tried(f"amqp://guest:{SECRET}@localhost:{port}")
    tried(f"amqps://guest:{SECRET}@localhost:{node.port}?{ours}")

    client = new_client(names.service, f"amqps://guest:guest@localhost:{port}?{ours}")
    client.subscribe([names.event], lambda event, envelope: oracle.ledger.handled(envelope.id))
    for _ in range(200):
        assert (
            oracle.ledger.call(lambda id: client.publish_event(names.event, {"text": "x" * 5000}, message_id=id))
            is None
        )
    kill(node)
    node.start()
    eventually(
        lambda: oracle.ledger.call(lambda id: client.publish_event(names.event, {}, message_id=id)) is None,
        10 + TOLERANCE,
    )
    judge(oracle)
