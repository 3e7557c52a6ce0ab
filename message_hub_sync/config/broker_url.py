"""Parsing of ``rabbitmq_url``, after RFC 3986 and RabbitMQ's URI documentation. Nothing here connects.

No error text quotes a URL: it may contain a password, and in an invalid URL the password may be anywhere.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote_to_bytes

from message_hub_sync.config.settings import BrokerAddress, MemoryAddress
from message_hub_sync.config.tls_files import TLSFiles
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import encodable, shown

__all__ = ["parse_addresses"]

logger = SafeLogger("message_hub_sync.client")

_URL_HELP = (
    "allowed are amqp://user:password@host:port/vhost, amqps://…, a list of them, "
    "several hosts separated by commas, or memory://name"
)
_QUERY_HELP = (
    "cacertfile, certfile, keyfile, password (of the key), server_name_indication, verify (verify_peer or verify_none)"
)
_OPTIONS = frozenset({"cacertfile", "certfile", "keyfile", "password", "server_name_indication", "verify"})
#: A vhost is a short string of AMQP.
_VHOST_BYTES = 255
_HOST_HELP = f"rabbitmq_url must name each host, with a port from 1 to 65535 or without one: {_URL_HELP}"


def parse_addresses(
    rabbitmq_url: str | Iterable[str], *, ssl_context: ssl.SSLContext | None = None
) -> MemoryAddress | tuple[BrokerAddress, ...]:
    """Parse a ``rabbitmq_url``. Log a warning for each TLS setting that is turned off or not used.

    :param rabbitmq_url: one URL, a list of them, or one URL with several hosts separated by commas.
    :param ssl_context: used for ``amqps://`` instead of the system's trust store.
    :returns: the hosts to try, in this order; or the embedded hub, if the URL is ``memory://``.
    :raises MessageHubConfigurationError: a URL is not valid. The text names the invalid part, without the password.
    """
    if ssl_context is not None and not isinstance(ssl_context, ssl.SSLContext):
        raise MessageHubConfigurationError(f"ssl_context must be an ssl.SSLContext, not {shown(ssl_context)}")
    urls = [rabbitmq_url] if isinstance(rabbitmq_url, str) else list(_strings(rabbitmq_url))
    if not urls:
        raise MessageHubConfigurationError(f"rabbitmq_url must not be an empty list: {_URL_HELP}")
    addresses: list[BrokerAddress] = []
    warnings: list[str] = []
    for url in urls:
        if url[:7].lower() == "memory:":
            if len(urls) > 1:
                raise MessageHubConfigurationError("rabbitmq_url must not mix memory:// with other URLs: give it alone")
            return _memory_address(url)
        addresses.extend(_broker_addresses(url, ssl_context, warnings))
    if ssl_context is not None and not any(address.tls for address in addresses):
        warnings.append("ssl_context is not used, and connections are not encrypted: rabbitmq_url begins with amqp://")
    for text in dict.fromkeys(warnings):
        logger.warning(text)
    return tuple(addresses)


def _strings(values: Any) -> Iterable[str]:
    try:
        items = list(values)
    except TypeError:
        raise MessageHubConfigurationError(
            f"rabbitmq_url must be a str or a list of str, not {shown(values)}: {_URL_HELP}"
        ) from None
    for item in items:
        if not isinstance(item, str):
            raise MessageHubConfigurationError(
                f"rabbitmq_url must be a str or a list of str, not a list with {shown(item)}: {_URL_HELP}"
            )
        yield item


def _memory_address(url: str) -> MemoryAddress:
    name = url[len("memory:") :].removeprefix("//").strip("/")
    if url[:9].lower() != "memory://" or not all(c.isalnum() or c in "-_." for c in name):
        raise MessageHubConfigurationError(
            "rabbitmq_url must be memory://name (the name is optional: letters, digits, '-', '_' and '.')"
        )
    return MemoryAddress(name or "default")


def _broker_addresses(url: str, given: ssl.SSLContext | None, warnings: list[str]) -> list[BrokerAddress]:
    scheme, separator, rest = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in ("amqp", "amqps"):
        raise MessageHubConfigurationError(f"rabbitmq_url must start with amqp://, amqps:// or memory://: {_URL_HELP}")
    userinfo, hosts, path, query = _parts(rest)
    username, colon, password = userinfo.partition(":") if userinfo is not None else ("guest", ":", "guest")
    vhost = _decoded(path) or "/"
    if len(vhost.encode()) > _VHOST_BYTES:
        raise MessageHubConfigurationError(f"the vhost of rabbitmq_url must have at most {_VHOST_BYTES} bytes in UTF-8")
    tls = scheme == "amqps"
    files, server_name = _tls_options(query, given, warnings) if tls else _no_options(query)
    check_name = tls and (files is None or files.check_name)
    found = []
    for text in hosts.split(","):
        host, port = _host_and_port(text)
        found.append(
            BrokerAddress(
                host=host,
                port=port or (5671 if tls else 5672),
                virtual_host=vhost,
                username=_decoded(username),
                password=_decoded(password) if colon else "guest",
                tls=tls,
                ssl_context=given if tls else None,
                tls_files=files,
                server_hostname=_server_hostname(server_name or host) if check_name else None,
            )
        )
    return found


def _parts(rest: str) -> tuple[str | None, str, str, str]:
    """Split what follows the scheme.

    :returns: user information (``None``: there is none), hosts, path without its slash, query.
    :raises MessageHubConfigurationError: a character could belong to two parts, or is not allowed in a URL.
    """
    authority, _, after = _split_at(rest, "/?")
    userinfo, at, hosts = authority.rpartition("@")
    hosts = re.sub(" *, *", ",", hosts)  # the only place for spaces
    if any(c.isspace() or not c.isprintable() for c in userinfo + hosts + after):
        raise MessageHubConfigurationError(
            "rabbitmq_url must not contain white space, line ends or control characters: percent-encode them. A URL "
            "that was read from a file may end in a line end: remove it"
        )
    if "@" in after or "#" in rest or ("," in userinfo and "@" in userinfo):
        raise MessageHubConfigurationError(
            "rabbitmq_url must not have a bare '@' after the host, a bare '#', or a second user: percent-encode '/' "
            "as %2F, '@' as %40, '#' as %23 and '?' as %3F in user, password, vhost and options. For several users "
            "give a list of URLs"
        )
    path, _, query = after.removeprefix("/").partition("?")
    if "/" in path or not hosts:
        raise MessageHubConfigurationError(
            "rabbitmq_url must have a host, and no bare '/' in its vhost: write '/' as %2F, and percent-encode "
            f"'@', ':' and '/' in a password: {_URL_HELP}"
        )
    return (userinfo if at else None), hosts, path, query


def _split_at(text: str, characters: str) -> tuple[str, str, str]:
    position = min((p for p in map(text.find, characters) if p >= 0), default=len(text))
    return text[:position], text[position : position + 1], text[position:]


def _decoded(text: str) -> str:
    """``text`` without percent-encoding."""
    if re.search("%(?![0-9A-Fa-f]{2})", text):
        raise MessageHubConfigurationError("rabbitmq_url must have two hexadecimal digits after each '%': write '%25'")
    try:
        decoded = unquote_to_bytes(text).decode()
    except UnicodeError:
        raise MessageHubConfigurationError("rabbitmq_url must be percent-encoded UTF-8") from None
    if "\0" in decoded or not encodable(decoded):
        raise MessageHubConfigurationError("rabbitmq_url must not contain NUL characters (%00)")
    return decoded


def _host_and_port(text: str) -> tuple[str, int | None]:
    bracketed = re.fullmatch(r"\[([^\[\]]*)\](?::([0-9]{1,5}))?", text)
    named = re.fullmatch(r"([^:\[\]]+)(?::([0-9]{1,5}))?", text)
    match = bracketed or named
    if match is None:
        raise MessageHubConfigurationError(_HOST_HELP)
    host = _ipv6(match[1]) if bracketed else _name(match[1])
    port = None if match[2] is None else int(match[2])
    if port is not None and not 1 <= port <= 65535:
        raise MessageHubConfigurationError(_HOST_HELP)
    return host, port


def _ipv6(text: str) -> str:
    # RFC 6874: the zone of a link-local address follows "%25".
    address, separator, zone = text.partition("%25")
    try:
        valid = "%" not in address and ipaddress.IPv6Address(address) is not None
    except ValueError:
        valid = False
    zone = _decoded(zone)
    if not valid or (separator and not re.fullmatch(r"[\w.~-]+", zone)):
        raise MessageHubConfigurationError(
            f"rabbitmq_url must have an IPv6 address in brackets, with a zone as in [fe80::1%25eth0]: {_URL_HELP}"
        )
    return f"{address.lower()}%{zone}" if separator else address.lower()


def _name(text: str) -> str:
    host = _decoded(text).lower()
    try:
        valid = bool(re.fullmatch(r"[\w.-]+", host)) and bool(host.encode("idna"))
    except UnicodeError:  # an empty part between two dots, or one of more than 63 bytes
        valid = False
    if not valid:
        raise MessageHubConfigurationError(_HOST_HELP)
    return host


def _server_hostname(host: str) -> str:
    # A certificate has the name without the zone of a link-local address, and without the dot of the root.
    return host.partition("%")[0].rstrip(".")


def _no_options(query: str) -> tuple[None, None]:
    if query:
        raise MessageHubConfigurationError(
            f"rabbitmq_url must not have options after '?' with amqp://; amqps:// takes {_QUERY_HELP}"
        )
    return None, None


def _options(query: str) -> dict[str, str]:
    options: dict[str, str] = {}
    for item in filter(None, query.split("&")):
        # Not parse_qsl: in a URL that is no HTML form, '+' is a plus sign.
        name, _, value = item.partition("=")
        if name not in _OPTIONS or name in options or not value:
            raise MessageHubConfigurationError(
                f"rabbitmq_url must have only these options after '?', each once and with a value: {_QUERY_HELP}"
            )
        options[name] = _decoded(value)
    return options


def _tls_options(query: str, given: ssl.SSLContext | None, warnings: list[str]) -> tuple[TLSFiles | None, str | None]:
    """Read the options of ``amqps://``.

    :returns: the settings, ``None`` if a context was given; and the name in the certificate, if not the host's.
    """
    options = _options(query)
    verify = options.pop("verify", "verify_peer")
    server_name = options.pop("server_name_indication", None)
    check_name = server_name != "disable"
    if verify not in ("verify_peer", "verify_none"):
        raise MessageHubConfigurationError(
            f"rabbitmq_url must have only these options after '?', with these values: {_QUERY_HELP}"
        )
    if "certfile" not in options and ("keyfile" in options or "password" in options):
        raise MessageHubConfigurationError("rabbitmq_url must have the option certfile beside keyfile and password")
    if check_name and server_name is not None:
        server_name = _name(server_name.replace("%", "%25"))
    if given is not None:
        unused = (
            sorted(options) + ["verify"] * (verify == "verify_none") + ["server_name_indication"] * (not check_name)
        )
        if unused:
            warnings.append(f"rabbitmq_url has options that are not used beside ssl_context: {', '.join(unused)}")
        return None, server_name if check_name else None
    if verify == "verify_none":
        warnings.append("the broker's certificate is not verified: rabbitmq_url has verify=verify_none")
    elif not check_name:
        warnings.append(
            "the name in the broker's certificate is not checked: rabbitmq_url has server_name_indication=disable"
        )
    files = TLSFiles(**options, verify=verify == "verify_peer", check_name=check_name)
    files.context()  # read them now, so that a wrong file is an error of the constructor
    return files, server_name if check_name else None
