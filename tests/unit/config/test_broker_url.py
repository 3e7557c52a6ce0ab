"""The URL of the broker: what is understood, what is refused, and that no error shows a secret."""

from __future__ import annotations

import logging
import ssl
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_hub_sync import MessageHubClient
from message_hub_sync.config import BrokerAddress, MemoryAddress, parse_addresses
from message_hub_sync.errors import MessageHubConfigurationError

SECRET = "s3cret"

#: A certificate made for this test; its key was thrown away.
AUTHORITY = """\
-----BEGIN CERTIFICATE-----
MIIBdTCCARugAwIBAgIUXhWOnjbrnGGg//MLk/Fn77MeYqowCgYIKoZIzj0EAwIw
DzENMAsGA1UEAwwEdGVzdDAgFw0yNjExMjMyMTU4MjRaGA8yMTI2MTAzMDIxNTgy
NFowDzENMAsGA1UEAwwEdGVzdDBZMBMGByqGSM49AgEGCCqGSM49AwEHA0IABPvC
siaB3VeUeshp0FxvHFNWMsrkUAyC/ME0wdSFXF8V7yqn83/4dnYBSI/lUKf85Zd0
vNlYf/327Ke/R7hlaX+jUzBRMB0GA1UdDgQWBBQRvzjc69tZxUC/WBPdZHVRL5nX
IzAfBgNVHSMEGDAWgBQRvzjc69tZxUC/WBPdZHVRL5nXIzAPBgNVHRMBAf8EBTAD
AQH/MAoGCCqGSM49BAMCA0gAMEUCIQC1nZXFx8WMaB9WbviTdV780ax5S4HCW3XW
sGoJjbe65wIgLWBXYU60g5vIwRQKOhPaA4FB+S/WQKlICE4ciAZncLI=
-----END CERTIFICATE-----
"""


#: Any text but the NUL character, which AMQP's login cannot carry, and lone surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


def refused(url: Any) -> str:
    """The error text of an invalid URL; checked to contain no secret."""
    with pytest.raises(MessageHubConfigurationError) as caught:
        parse_addresses(url)
    assert SECRET not in "".join(traceback.format_exception_only(caught.value))
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    text = str(caught.value)
    assert text.startswith("rabbitmq_url must ")
    return text


def only(url: Any) -> BrokerAddress:
    found = parse_addresses(url)
    assert isinstance(found, tuple)
    assert len(found) == 1
    return found[0]


# --- addresses that are understood -----------------------------------------------------------------


def test_an_amqp_url_without_anything_is_rabbitmqs_default() -> None:
    assert only("amqp://localhost") == BrokerAddress("localhost", 5672, "/", "guest", "guest")
    assert only("amqp://localhost/") == only("amqp://localhost:5672/%2F") == only("amqp://localhost")


def test_every_part_of_a_url_is_read_and_decoded() -> None:
    found = only("amqp://hub%40user:p%40ss%2Fw%3Ard@rabbit.example:5673/my%2Fhost")
    assert found == BrokerAddress("rabbit.example", 5673, "my/host", "hub@user", "p@ss/w:rd")


def test_an_at_sign_left_bare_in_a_password_is_understood_all_the_same() -> None:
    assert only("amqp://user:p@ss@host").password == "p@ss"
    assert only("amqp://user:p@ss@host").host == "host"


def test_an_ipv6_host_stands_in_brackets() -> None:
    found = only("amqp://[::1]:5673")
    assert (found.host, found.port) == ("::1", 5673)
    assert str(found) == "amqp://[::1]:5673"


def test_several_hosts_are_tried_with_the_same_credentials() -> None:
    found = parse_addresses("amqp://u:p@a,b:5673 , [::1]/v")
    assert found == (
        BrokerAddress("a", 5672, "v", "u", "p"),
        BrokerAddress("b", 5673, "v", "u", "p"),
        BrokerAddress("::1", 5672, "v", "u", "p"),
    )


def test_a_list_of_urls_keeps_its_order_and_may_mix_plain_and_tls() -> None:
    found = parse_addresses(["amqp://a", "amqps://b"])
    assert isinstance(found, tuple)
    assert [(address.host, address.port, address.tls) for address in found] == [("a", 5672, False), ("b", 5671, True)]


def test_a_memory_url_names_an_embedded_hub() -> None:
    assert parse_addresses("memory://") == MemoryAddress("default")
    assert parse_addresses("memory://test-1") == parse_addresses(["memory://test-1/"]) == MemoryAddress("test-1")
    assert str(MemoryAddress("test-1")) == "memory://test-1"


@given(username=TEXTS.filter(bool), password=TEXTS, vhost=TEXTS.filter(bool))
def test_percent_encoded_credentials_come_back_as_they_were(username: str, password: str, vhost: str) -> None:
    def encode(text: str) -> str:
        return quote(text, safe="")

    found = only(f"amqp://{encode(username)}:{encode(password)}@host/{encode(vhost)}")
    assert (found.username, found.password, found.virtual_host) == (username, password, vhost)


# --- TLS -------------------------------------------------------------------------------------------


def test_tls_verifies_the_peer_under_the_urls_host_unless_told_otherwise() -> None:
    found = only("amqps://rabbit.example")
    assert (found.tls, found.port, found.server_hostname) == (True, 5671, "rabbit.example")
    assert found.tls_files is not None
    assert found.tls_context().verify_mode is ssl.CERT_REQUIRED
    assert found.tls_context().check_hostname


def test_verification_is_turned_off_only_by_the_url_that_says_so() -> None:
    context = only("amqps://h/?verify=verify_none").tls_context()
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    strict = only("amqps://h/?verify=verify_peer").tls_context()
    assert strict.verify_mode is ssl.CERT_REQUIRED


def test_the_name_in_the_certificate_may_differ_from_the_host() -> None:
    assert only("amqps://10.0.0.1/?server_name_indication=rabbit.example").server_hostname == "rabbit.example"


def test_a_context_of_the_callers_own_is_used_as_it_is() -> None:
    own = ssl.create_default_context()
    found = parse_addresses("amqps://h", ssl_context=own)
    assert isinstance(found, tuple)
    assert found[0].ssl_context is own
    plain = parse_addresses("amqp://h", ssl_context=own)
    assert isinstance(plain, tuple)
    assert plain[0].ssl_context is None


def test_the_authority_of_the_url_is_trusted_and_no_other(tmp_path: Path) -> None:
    file = tmp_path / "authority.pem"
    file.write_text(AUTHORITY)
    context = only(f"amqps://h/?cacertfile={file}").tls_context()
    assert [certificate["subject"] for certificate in context.get_ca_certs()] == [((("commonName", "test"),),)]


@pytest.mark.parametrize(
    "query",
    ["cacertfile=/no/such/file", "certfile=/no/such/file", f"certfile={__file__}"],
)
def test_a_tls_file_that_cannot_be_used_is_a_configuration_error(query: str) -> None:
    text = refused(f"amqps://user:{SECRET}@h/?{query}")
    assert text.startswith("rabbitmq_url must name readable PEM files in cacertfile, certfile and keyfile, ")
    assert "loading them failed (" in text


@pytest.mark.parametrize("query", ["cafile=x", "verify=no", "verify=", SECRET, f"verify={SECRET}", f"{SECRET}=1"])
def test_an_option_that_is_not_known_is_refused_with_those_that_are(query: str) -> None:
    text = refused(f"amqps://h/?{query}")
    assert text.startswith("rabbitmq_url must have only these options after '?', ")
    assert "cacertfile, certfile, keyfile, password (of the key), server_name_indication, verify" in text


def test_options_of_a_plain_url_are_refused_rather_than_ignored() -> None:
    for url in (f"amqp://u:{SECRET}@h/?verify=verify_none", f"amqp://u:{SECRET}@h?verify=verify_none"):
        assert "must not have options after '?' with amqp://" in refused(url)


# --- addresses that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "", " ", "localhost", f"user:{SECRET}@host", f"http://user:{SECRET}@host", f"amqp:/user:{SECRET}@host",
        f"AMQP//user:{SECRET}@host", f" amqp://user:{SECRET}@host", [f"kafka://user:{SECRET}@host"],
    ],
)  # fmt: skip
def test_a_url_of_another_scheme_is_refused_without_being_quoted(url: Any) -> None:
    text = refused(url)
    assert "must start with amqp://, amqps:// or memory://" in text
    assert "allowed are amqp://user:password@host:port/vhost, amqps://…, a list of them" in text


@pytest.mark.parametrize(
    "url",
    [
        "amqp://", "amqp:///vhost", f"amqp://user:{SECRET}@", f"amqp://user:{SECRET}@/v", f"amqp://user:{SECRET}@h/a/b",
    ],
)  # fmt: skip
def test_a_url_without_host_or_with_a_bare_slash_is_refused_with_the_way_to_write_it(url: str) -> None:
    text = refused(url)
    assert "must have a host, and no bare '/' in its vhost: write '/' as %2F" in text
    assert "percent-encode '@', ':' and '/' in a password" in text


@pytest.mark.parametrize(
    "hosts",
    [
        "h:", "h:0", "h:65536", "h:-1", "h:x", f"h:{SECRET}", "a,,b", ",", "[::1", "::1", "[::1]x:5672",
        "[::1]:", "a..b", "h:\u0665", "x" * 64, f"{SECRET}:h:1",
    ],
)  # fmt: skip
def test_a_host_or_port_that_is_not_usable_is_refused_without_being_quoted(hosts: str) -> None:
    text = refused(f"amqp://user:{SECRET}@{hosts}/v")
    assert "must name each host, with a port from 1 to 65535 or without one" in text
    assert "allowed are amqp://user:password@host:port/vhost" in text


def test_a_password_whose_special_characters_are_bare_is_never_in_the_error() -> None:
    for url in (
        f"amqps://user:1/x?{SECRET}@host",
        f"amqps://user:1/{SECRET}?x@host",
        f"amqps://user:{SECRET}?x@host",
        f"amqp://user:{SECRET}#x",
        f"memory://user:{SECRET}@host",
        f"memory:user:{SECRET}",
    ):
        refused(url)


def test_something_that_is_no_text_and_no_list_of_texts_is_refused_by_its_type() -> None:
    assert "must be a str or a list of str, not None: allowed are" in refused(None)
    assert "must be a str or a list of str, not 5672: allowed are" in refused(5672)
    assert "must be a str or a list of str, not a list with bytes: " in refused([f"amqp://user:{SECRET}@h".encode()])
    assert "must not be an empty list" in refused([])


def test_the_embedded_hub_stands_alone() -> None:
    assert "give it alone" in refused(["memory://a", "amqp://b"])
    assert "give it alone" in refused(["amqp://b", "memory://a"])
    text = refused("memory://a b")
    assert text == "rabbitmq_url must be memory://name (the name is optional: letters, digits, '-', '_' and '.')"


# --- what cannot be told apart ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"amqp://user:12/{SECRET}@host", f"amqp://user:12?{SECRET}@host", f"amqp://user:12#{SECRET}@host",
        f"amqp://user:p@1/{SECRET}@host", f"amqps://user:p@1/v?cacertfile={SECRET}@host", f"amqp://u:p@h/v#{SECRET}",
        f"amqp://u:p@a,u2:{SECRET}@b", f"amqp://user:12/x/{SECRET}@host",
    ],
)  # fmt: skip
def test_a_url_that_can_be_read_in_two_ways_is_refused(url: str) -> None:
    assert "percent-encode '/' as %2F, '@' as %40, '#' as %23" in refused(url)


def test_a_comma_in_a_password_is_understood() -> None:
    found = only("amqp://u:p,w@host")
    assert (found.password, found.host) == ("p,w", "host")


@pytest.mark.parametrize("bad", ["\n", "\r\n", " ", "\t", "\x00", "\x1b", "\u200b", "\u00a0"], ids=ascii)
@pytest.mark.parametrize(
    "url", ["amqp://h/v{}", "amqp://h{}", "amqp://u:{}p@h", "amqp://h{}/v", "amqps://h/?verify={}"]
)
def test_white_space_and_control_characters_are_refused_wherever_they_stand(url: str, bad: str) -> None:
    assert "must not contain white space, line ends or control characters" in refused(url.format(bad))


@pytest.mark.parametrize("text", ["%", "%2", "%zz", "%ff", "%C3%28", "%00", "%ED%A0%80"])
@pytest.mark.parametrize(
    "url", ["amqp://h/{}", "amqp://{}:p@h", "amqp://u:{}@h", "amqp://{}", "amqps://h?cacertfile={}"]
)
def test_what_percent_encoding_does_not_mean_is_refused(url: str, text: str) -> None:
    refused(url.format(text))


@pytest.mark.parametrize("host", ["[fe80::1%eth0]", "[fe80::1%25]", "[::1%25a%2Fb]", "[v1.x]", "[127.0.0.1]"])
def test_brackets_hold_an_ipv6_address_and_nothing_else(host: str) -> None:
    assert "with a zone as in [fe80::1%25eth0]" in refused(f"amqp://{host}")


def test_schemes_may_be_in_upper_case() -> None:
    assert only("AMQP://h") == only("amqp://h")
    assert only("Amqps://h").port == 5671
    assert parse_addresses("MEMORY://a") == MemoryAddress("a")


def test_the_zone_of_a_link_local_address_is_decoded_and_stays_out_of_the_certificates_name() -> None:
    found = only("amqps://[fe80::1%25eth0]:5673")
    assert (found.host, found.port, found.server_hostname) == ("fe80::1%eth0", 5673, "fe80::1")
    assert str(found) == "amqps://[fe80::1%25eth0]:5673"


def test_a_host_may_be_percent_encoded_and_end_in_the_dot_of_the_root() -> None:
    assert only("amqp://rabbit%2Dexample").host == "rabbit-example"
    assert only("amqps://rabbit.example.").server_hostname == "rabbit.example"


def test_a_plus_sign_in_an_option_is_a_plus_sign(tmp_path: Path) -> None:
    file = tmp_path / "my+ca.pem"
    file.write_text(AUTHORITY)
    assert only(f"amqps://h?cacertfile={file}").tls_context().get_ca_certs()
    assert only(f"amqps://h?cacertfile={quote(str(file))}").tls_context().get_ca_certs()


def test_a_vhost_fits_into_a_short_string_of_amqp() -> None:
    assert only("amqp://h/" + "v" * 255).virtual_host == "v" * 255
    for vhost in ("v" * 256, "v" * 300, "%C3%A4" * 128):
        with pytest.raises(MessageHubConfigurationError, match="the vhost of rabbitmq_url must have at most 255 bytes"):
            parse_addresses(f"amqp://h/{vhost}")


@pytest.mark.parametrize("query", ["verify=verify_peer&verify=verify_none", "cacertfile=", "server_name_indication="])
def test_an_option_is_given_once_and_has_a_value(query: str) -> None:
    assert "each once and with a value" in refused(f"amqps://h?{query}")


@pytest.mark.parametrize("query", ["keyfile=/k", f"password={SECRET}"])
def test_a_key_without_a_certificate_is_refused_rather_than_ignored(query: str) -> None:
    assert "must have the option certfile" in refused(f"amqps://h?{query}")


# --- settings that are turned off or not used ------------------------------------------------------


def warned(caplog: pytest.LogCaptureFixture, url: Any, **settings: Any) -> list[str]:
    caplog.set_level(logging.WARNING, logger="message_hub_sync.client")
    caplog.clear()
    parse_addresses(url, **settings)
    return [record.message for record in caplog.records]


def test_a_certificate_that_is_not_verified_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = warned(caplog, ["amqps://a,b?verify=verify_none", "amqps://c?verify=verify_none"])
    assert "verify=verify_none" in line


def test_a_name_that_is_not_sent_is_not_checked_and_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    (line,) = warned(caplog, "amqps://a?server_name_indication=disable")
    assert "is not checked" in line
    found = only("amqps://a?server_name_indication=disable")
    assert found.server_hostname is None
    assert not found.tls_context().check_hostname
    assert found.tls_context().verify_mode is ssl.CERT_REQUIRED


def test_options_beside_a_context_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    own = ssl.create_default_context()
    (line,) = warned(caplog, f"amqps://a?certfile=/{SECRET}&verify=verify_none", ssl_context=own)
    assert "beside ssl_context: certfile, verify" in line
    assert SECRET not in line
    assert warned(caplog, "amqps://a?server_name_indication=b", ssl_context=own) == []


def test_a_context_that_no_url_uses_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    own = ssl.create_default_context()
    (line,) = warned(caplog, "amqp://a", ssl_context=own)
    assert "not encrypted" in line
    assert warned(caplog, ["amqp://a", "amqps://b"], ssl_context=own) == []


# --- no secret in what is shown --------------------------------------------------------------------


def test_a_client_whose_constructor_failed_has_a_repr() -> None:
    client = MessageHubClient.__new__(MessageHubClient)
    with pytest.raises(MessageHubConfigurationError):
        client.__init__("s", f"amqp://user:12/{SECRET}@host")  # type: ignore[misc]
    assert repr(client) == "<MessageHubClient (its constructor failed)>"
