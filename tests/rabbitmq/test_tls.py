"""amqps:// against a node with a throwaway authority: it works, and what does not fit is named in time."""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from message_hub_sync.errors import MessageHubAuthorizationError, MessageHubConnectionError
from message_hub_sync.testing._node.free_ports import free_port
from message_hub_sync.testing.rabbitmq_node import RabbitMQNode
from message_hub_sync.transport.base import ConnectionState, PublishResult
from message_hub_sync.transport.topology import inbox_subscription

pytestmark = pytest.mark.rabbitmq


def openssl(*arguments: str, cwd: Path) -> None:
    subprocess.run(["openssl", *arguments], cwd=cwd, check=True, capture_output=True, stdin=subprocess.DEVNULL)


def authority(directory: Path, name: str) -> None:
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"),
        *("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}"),
        *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),
        cwd=directory,
    )


def certificate(directory: Path, name: str, *, names: str, issuer: str) -> None:
    # Python 3.13 insists on the identifiers.
    extensions = f"subjectAltName={names}\nsubjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
    (directory / f"{name}.ext").write_text(extensions)
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}"),
        cwd=directory,
    )
    openssl(
        *("x509", "-req", "-in", f"{name}.csr", "-CA", f"{issuer}.pem", "-CAkey", f"{issuer}.key", "-CAcreateserial"),
        *("-out", f"{name}.pem", "-days", "2", "-extfile", f"{name}.ext"),
        cwd=directory,
    )


@dataclass(frozen=True)
class Secured:
    """A node that listens for TLS too, and the files that open it."""

    node: RabbitMQNode
    port: int
    files: Path

    def url(self, *, host: str = "localhost", port: int | None = None, scheme: str = "amqps", **options: str) -> str:
        if scheme == "amqps":
            options = {"cacertfile": str(self.files / "authority.pem"), **options}
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"{scheme}://guest:guest@{host}:{port or self.port}/{'?' if query else ''}{query}"


@contextlib.contextmanager
def tls_node(files: Path, *, client_certificate_needed: bool) -> Iterator[Secured]:
    """A node with the server's certificate of these files."""
    port = free_port()
    options = {
        "listeners.ssl.default": f"127.0.0.1:{port}",
        "ssl_options.cacertfile": str(files / "authority.pem"),
        "ssl_options.certfile": str(files / "server.pem"),
        "ssl_options.keyfile": str(files / "server.key"),
        "ssl_options.verify": "verify_peer",
        "ssl_options.fail_if_no_peer_cert": "true" if client_certificate_needed else "false",
    }
    with RabbitMQNode(config=options, install=True) as node:
        yield Secured(node, port, files)


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    files = tmp_path_factory.mktemp("certificates")
    authority(files, "authority")
    authority(files, "stranger")
    certificate(files, "server", names="DNS:localhost,IP:127.0.0.1", issuer="authority")
    certificate(files, "client", names="DNS:client", issuer="authority")
    with tls_node(files, client_certificate_needed=False) as secured:
        yield secured


def refusal(bench: Any, url: str, **settings: Any) -> str:
    transport = bench.transport(url.replace("guest:guest", "guest:s3cret") if "guest:" in url else url, **settings)
    began = time.monotonic()
    with pytest.raises(MessageHubConnectionError) as caught:
        transport.connect(bench.within(60))
    assert time.monotonic() - began < 30
    assert "s3cret" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_bulk_is_published_and_consumed_over_tls(bench: Any, secured: Secured, host: str) -> None:
    transport = bench.transport(secured.url(host=host))
    consumer = bench.consume(transport, prefetch=500)
    count = 5000
    receipts = transport.publish_many([bench.message(str(n)) for n in range(count)], bench.within(30))
    assert {receipt.wait(bench.within(30)) for receipt in receipts} == {PublishResult.CONFIRMED}
    for number in range(count):
        delivery = bench.take(consumer)
        assert delivery.body == b'{"text":"%d"}' % number
        consumer.ack(delivery)
    consumer.close(bench.within())
    stats = transport.queue_stats([f"{bench.service}.messages"], bench.within())
    assert stats[f"{bench.service}.messages"].depth == 0


def test_large_bodies_pass_in_both_directions_over_tls(bench: Any, secured: Secured) -> None:
    """Larger than a socket's buffer and than one turn of reading: partial writes and reads that go on."""
    transport = bench.transport(secured.url())
    consumer = bench.consume(transport, prefetch=20)
    texts = [chr(ord("a") + number) * 3_000_000 for number in range(12)]
    batch = []
    for text in texts:
        outgoing = bench.message()
        outgoing.body = text.encode()
        batch.append(outgoing)
    receipts = transport.publish_many(batch, bench.within(60))
    for text in texts:
        delivery = bench.take(consumer, timeout=60)
        assert delivery.body == text.encode()
        consumer.ack(delivery)
    assert {receipt.wait(bench.within(30)) for receipt in receipts} == {PublishResult.CONFIRMED}


def test_many_threads_share_one_tls_connection(bench: Any, secured: Secured, in_thread: Any) -> None:
    transport = bench.transport(secured.url())
    consumer = bench.consume(transport)

    def publish() -> None:
        for _ in range(100):
            bench.confirmed(transport)

    ends = [in_thread(publish) for _ in range(8)]
    for _ in range(800):
        consumer.ack(bench.take(consumer))
    assert [end.get(timeout=30) for end in ends] == [None] * 8


def test_a_client_certificate_is_shown_where_the_url_names_one(bench: Any, secured: Secured) -> None:
    files = secured.files
    transport = bench.transport(secured.url(certfile=str(files / "client.pem"), keyfile=str(files / "client.key")))
    transport.declare(inbox_subscription(bench.service), bench.within())
    bench.confirmed(transport)
    shown = secured.node.ctl("list_connections", "peer_cert_subject")
    assert "CN=client" in shown


def test_an_unknown_authority_is_named(bench: Any, secured: Secured) -> None:
    text = refusal(bench, secured.url(cacertfile=str(secured.files / "stranger.pem")))
    assert "certificate" in text
    assert "cacertfile" in text


def test_a_wrong_host_name_is_named(bench: Any, secured: Secured) -> None:
    assert "host's name" in refusal(bench, secured.url(server_name_indication="elsewhere.example"))


def test_verification_can_be_switched_off(bench: Any, secured: Secured) -> None:
    bench.transport(secured.url(cacertfile=str(secured.files / "stranger.pem"), verify="verify_none")).connect(
        bench.within(5)
    )


def test_plain_against_a_tls_port_is_named(bench: Any, secured: Secured) -> None:
    assert "whether it must be amqp:// or amqps://" in refusal(bench, secured.url(scheme="amqp"))


def test_tls_against_a_plain_port_is_named(bench: Any, secured: Secured) -> None:
    assert "check that the port speaks TLS" in refusal(bench, secured.url(port=secured.node.port))


def test_a_wrong_password_over_tls_is_an_authorization_error(bench: Any, secured: Secured) -> None:
    transport = bench.transport(secured.url().replace("guest:guest", "guest:s3cret"))
    with pytest.raises(MessageHubAuthorizationError) as caught:
        transport.connect(bench.within(5))
    assert "s3cret" not in str(caught.value)


def test_a_tls_connection_that_is_cut_comes_back(bench: Any, secured: Secured) -> None:
    transport = bench.transport(secured.url())
    consumer = bench.consume(transport)
    for _ in range(3):
        bench.confirmed(transport)
        consumer.ack(bench.take(consumer))
        secured.node.ctl("close_all_connections", "test")
    bench.confirmed(transport)
    consumer.ack(bench.take(consumer))


@pytest.fixture(scope="module")
def demanding(secured: Secured) -> Iterator[Secured]:
    """A node that asks for a client certificate."""
    with tls_node(secured.files, client_certificate_needed=True) as demanding:
        yield demanding


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_missing_client_certificate_is_named_at_once(bench: Any, demanding: Secured, version: ssl.TLSVersion) -> None:
    context = ssl.create_default_context(cafile=str(demanding.files / "authority.pem"))
    context.minimum_version = context.maximum_version = version
    text = refusal(bench, demanding.url(cacertfile="").replace("?cacertfile=", ""), ssl_context=context)
    assert "client certificate" in text or "TLS" in text
    assert "starting or stopping" not in text


def test_a_client_certificate_of_an_unknown_authority_is_named_at_once(bench: Any, demanding: Secured) -> None:
    certificate(demanding.files, "foreign", names="DNS:client", issuer="stranger")
    files = demanding.files
    text = refusal(
        bench, demanding.url(certfile=str(files / "foreign.pem"), keyfile=str(files / "foreign.key"))
    )  # fmt: skip
    assert "authority" in text


def test_certificates_that_were_renewed_on_disk_are_used_at_the_next_connection(
    bench: Any, demanding: Secured, tmp_path: Path, eventually: Any
) -> None:
    for name in ("client.pem", "client.key"):
        shutil.copy(demanding.files / name, tmp_path / name)
    transport = bench.transport(
        demanding.url(certfile=str(tmp_path / "client.pem"), keyfile=str(tmp_path / "client.key"))
    )
    transport.declare(inbox_subscription(bench.service), bench.within())
    bench.confirmed(transport)
    certificate(demanding.files, "renewed", names="DNS:client", issuer="authority")
    for end in ("pem", "key"):
        shutil.copy(demanding.files / f"renewed.{end}", tmp_path / f"client.{end}")
    transport.interrupt()
    assert eventually(lambda: "CN=renewed" in demanding.node.ctl("list_connections", "peer_cert_subject"), timeout=60)
    bench.confirmed(transport)


def test_a_file_that_is_gone_at_a_reconnect_is_named_and_its_return_is_noticed(
    bench: Any, secured: Secured, tmp_path: Path, eventually: Any
) -> None:
    authority_file = tmp_path / "authority.pem"
    shutil.copy(secured.files / "authority.pem", authority_file)
    transport = bench.transport(secured.url(cacertfile=str(authority_file)))
    transport.connect(bench.within())
    authority_file.unlink()
    transport.interrupt()
    assert eventually(lambda: "readable PEM files" in (transport.status()[0].last_error or ""), timeout=60)
    shutil.copy(secured.files / "authority.pem", authority_file)
    assert eventually(lambda: transport.status()[0].state is ConnectionState.OPEN, timeout=60)
