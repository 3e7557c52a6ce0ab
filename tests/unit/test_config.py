"""Settings are checked once, the error says which and what is allowed, and no secret is ever shown."""

from __future__ import annotations

import dataclasses
import ssl
import traceback
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from message_hub_sync.config import (
    BrokerAddress,
    CircuitBreakerConfig,
    ClientConfig,
    MemoryAddress,
    parse_addresses,
    positive_seconds,
)
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.text import shown

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


@given(username=st.text(min_size=1, max_size=20), password=st.text(max_size=20), vhost=st.text(min_size=1, max_size=20))
def test_percent_encoded_credentials_come_back_as_they_were(username: str, password: str, vhost: str) -> None:
    def encode(text: str) -> str:
        return quote(text, safe="")

    found = only(f"amqp://{encode(username)}:{encode(password)}@host/{encode(vhost)}")
    assert (found.username, found.password, found.virtual_host) == (username, password, vhost)


# --- TLS -------------------------------------------------------------------------------------------


def test_tls_verifies_the_peer_under_the_urls_host_unless_told_otherwise() -> None:
    found = only("amqps://rabbit.example")
    assert (found.tls, found.port, found.server_hostname) == (True, 5671, "rabbit.example")
    assert found.ssl_context is not None
    assert found.ssl_context.verify_mode is ssl.CERT_REQUIRED
    assert found.ssl_context.check_hostname


def test_verification_is_turned_off_only_by_the_url_that_says_so() -> None:
    context = only("amqps://h/?verify=verify_none").ssl_context
    assert context is not None
    assert context.verify_mode is ssl.CERT_NONE
    assert not context.check_hostname
    strict = only("amqps://h/?verify=verify_peer").ssl_context
    assert strict is not None
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
    context = only(f"amqps://h/?cacertfile={file}").ssl_context
    assert context is not None
    assert [certificate["subject"] for certificate in context.get_ca_certs()] == [((("commonName", "test"),),)]


@pytest.mark.parametrize(
    "query",
    ["cacertfile=/no/such/file", "certfile=/no/such/file", "cacertfile=%00", f"certfile={__file__}"],
)
def test_a_tls_file_that_cannot_be_used_is_a_configuration_error(query: str) -> None:
    text = refused(f"amqps://user:{SECRET}@h/?{query}")
    assert text.startswith("rabbitmq_url must name readable PEM files in cacertfile, certfile and keyfile: ")
    assert "loading them failed (" in text


@pytest.mark.parametrize("query", ["cafile=x", "verify=no", "verify=", SECRET, f"verify={SECRET}", f"{SECRET}=1"])
def test_an_option_that_is_not_known_is_refused_with_those_that_are(query: str) -> None:
    text = refused(f"amqps://h/?{query}")
    assert text.startswith("rabbitmq_url must have only these options after '?', with these values: ")
    assert "cacertfile, certfile, keyfile, server_name_indication, verify (verify_peer or verify_none)" in text


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
        f"amqp://user:{SECRET}/x@h/v",
    ],
)  # fmt: skip
def test_a_url_without_host_or_with_a_bare_slash_is_refused_with_the_way_to_write_it(url: str) -> None:
    text = refused(url)
    assert "must have a host, and no bare '/' in its vhost: write '/' as %2F" in text
    assert "percent-encode '@', ':' and '/' in a password" in text


@pytest.mark.parametrize(
    "hosts",
    [
        "h:", "h:0", "h:65536", "h:-1", "h:x", f"h:{SECRET}", "a,,b", ",", "[::1", "ho st", "h\tx", "h#x",
        f"h#{SECRET}", f"{SECRET}:h:1",
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


# --- what shows nothing ----------------------------------------------------------------------------


def test_no_repr_and_no_text_of_an_address_holds_the_password() -> None:
    address = only(f"amqp://user:{SECRET}@host/v")
    assert address.password == SECRET
    config = ClientConfig("s", (address,), auth_key=SECRET + "-key")
    for text in (repr(address), str(address), repr(config), str(config), f"{[address]} {config!r}"):
        assert SECRET not in text
    assert str(address) == "amqp://host:5672"
    assert str(dataclasses.replace(address, tls=True)) == "amqps://host:5672"


# --- durations and the circuit breaker -------------------------------------------------------------


@pytest.mark.parametrize("value", [1, 0.001, 5.5, 4_294_967])
def test_a_duration_is_a_number_of_seconds(value: float) -> None:
    assert positive_seconds(value, "x") == value


BAD_SECONDS: list[Any] = [
    0, -1, 0.0, -0.5, float("nan"), float("inf"), float("-inf"), True, False, None, "5", 4_294_968, 1e300, 10**400
]  # fmt: skip


@pytest.mark.parametrize("value", BAD_SECONDS, ids=lambda value: ascii(value)[:12])
def test_another_duration_is_refused_by_name_and_value(value: Any) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        positive_seconds(value, "connect_timeout")
    assert str(caught.value) == (
        f"connect_timeout must be a number of seconds greater than 0 and at most 4294967, not {shown(value)}"
    )


def test_a_circuit_breaker_is_configured_as_the_guide_does_it() -> None:
    assert CircuitBreakerConfig(5, 60, 30) == CircuitBreakerConfig(
        failure_threshold=5, reset_timeout=60, half_open_timeout=30
    )
    assert CircuitBreakerConfig() == CircuitBreakerConfig(5, 60, 30)


@pytest.mark.parametrize("value", [0, -1, 1.5, "5", None, True])
def test_a_failure_threshold_is_a_whole_number_of_at_least_one(value: Any) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        CircuitBreakerConfig(failure_threshold=value)
    assert str(caught.value) == f"failure_threshold must be a whole number of at least 1, not {value!r}"


@pytest.mark.parametrize("name", ["reset_timeout", "half_open_timeout"])
def test_the_circuit_breakers_durations_are_checked(name: str) -> None:
    with pytest.raises(MessageHubConfigurationError, match=f"^{name} must be a number of seconds .*, not 0$"):
        CircuitBreakerConfig(**{name: 0})


# --- the client's settings -------------------------------------------------------------------------


def configured(**settings: Any) -> ClientConfig:
    return ClientConfig(**{"service_name": "s", "address": MemoryAddress("default"), **settings})


def test_the_defaults_are_those_the_design_promises() -> None:
    config = configured()
    assert (config.connect_timeout, config.delivery_timeout, config.close_timeout) == (5, 5, 5)
    assert (config.heartbeat, config.queue_type, config.max_message_bytes) == (10, "classic", 16 * 2**20)
    assert (config.message_priorities, config.strict_catalogue, config.settle_each) == (False, False, False)


BAD_SETTINGS: list[tuple[str, Any, str]] = [
    ("service_name", "", "service_name must be a service name (lower-case letters"),
    ("service_name", "", "not ''"),
    ("service_name", "No Such", "lower-case letters, digits, '_' and '-'"),
    ("connect_timeout", 0, "connect_timeout must be a number of seconds greater than 0 and at most 4294967, not 0"),
    ("delivery_timeout", -1, "delivery_timeout must be a number of seconds greater than 0 and at most 4294967, not -1"),
    ("close_timeout", None, "close_timeout must be a number of seconds greater than 0 and at most 4294967, not None"),
    ("auth_key", "", "auth_key must be a str that is not empty, or None"),
    ("auth_key", SECRET.encode(), "auth_key must be a str that is not empty, or None"),
    ("circuit_breaker", (5, 60, 30), "circuit_breaker_config must be a CircuitBreakerConfig, not tuple"),
    ("queue_type", "stream", "queue_type must be 'classic' or 'quorum', not 'stream'"),
    ("heartbeat", 0, "heartbeat must be a whole number from 1 to 65535, not 0"),
    ("heartbeat", 65536, "heartbeat must be a whole number from 1 to 65535, not 65536"),
    ("heartbeat", 1.5, "heartbeat must be a whole number from 1 to 65535, not 1.5"),
    ("heartbeat", True, "heartbeat must be a whole number from 1 to 65535, not True"),
    ("max_message_bytes", 0, "max_message_bytes must be a whole number from 1 to 9223372036854775807, not 0"),
    ("settle_each", 1, "settle_each must be True or False, not 1"),
]


@pytest.mark.parametrize(("name", "value", "expected"), BAD_SETTINGS, ids=lambda value: ascii(value)[:20])
def test_a_setting_that_is_not_usable_is_named_with_what_is(name: str, value: Any, expected: str) -> None:
    with pytest.raises(MessageHubConfigurationError) as caught:
        configured(**{name: value})
    assert expected in str(caught.value)
    assert SECRET not in str(caught.value)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        configured().delivery_timeout = 7  # type: ignore[misc]
