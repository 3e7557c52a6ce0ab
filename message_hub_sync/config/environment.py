"""The settings of a client as texts: from the environment, or from the configuration of a web framework."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from message_hub_sync.config.addresses import secret_of_file
from message_hub_sync.config.settings import CircuitBreakerConfig
from message_hub_sync.errors import MessageHubConfigurationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import printable, shown

__all__ = ["EnvironmentSettings"]

logger = SafeLogger("message_hub_sync.client")

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


def _text(value: str) -> str:
    return value


def _flag(value: str) -> bool:
    lower = value.strip().lower()
    if lower not in _TRUE | _FALSE:
        raise ValueError("must be true or false (also 1, yes, on, 0, no, off)")
    return lower in _TRUE


def _whole(value: str) -> int:
    if not re.fullmatch(r"\s*[+-]?[0-9]{1,19}\s*", value):
        raise ValueError("must be a whole number")
    return int(value)


def _seconds(value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError("must be a number of seconds") from None


def _file(value: str) -> Path:
    return Path(value)


#: The keyword of ``MessageHubClient``, and how its text is read.
_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "MESSAGE_HUB_SERVICE_NAME": ("service_name", _text),
    "MESSAGE_HUB_URL": ("rabbitmq_url", _text),
    "MESSAGE_HUB_URL_FILE": ("rabbitmq_url", _file),
    "MESSAGE_HUB_PASSWORD_FILE": ("credentials", _file),
    "MESSAGE_HUB_AUTH_KEY": ("auth_key", _text),
    "MESSAGE_HUB_AUTH_KEY_FILE": ("auth_key", lambda value: secret_of_file(Path(value), "MESSAGE_HUB_AUTH_KEY_FILE")),
    "MESSAGE_HUB_CONNECT_TIMEOUT": ("connect_timeout", _seconds),
    "MESSAGE_HUB_DELIVERY_TIMEOUT": ("delivery_timeout", _seconds),
    "MESSAGE_HUB_CLOSE_TIMEOUT": ("close_timeout", _seconds),
    "MESSAGE_HUB_HEARTBEAT": ("heartbeat", _whole),
    "MESSAGE_HUB_MESSAGE_PRIORITIES": ("message_priorities", _flag),
    "MESSAGE_HUB_QUEUE_TYPE": ("queue_type", _text),
    "MESSAGE_HUB_MAX_MESSAGE_BYTES": ("max_message_bytes", _whole),
    "MESSAGE_HUB_STRICT_CATALOGUE": ("strict_catalogue", _flag),
    "MESSAGE_HUB_SETTLE_EACH": ("settle_each", _flag),
    "MESSAGE_HUB_HOSTS_IN_ORDER": ("hosts_in_order", _flag),
}
#: The same for ``CircuitBreakerConfig``.
_CIRCUIT: dict[str, tuple[str, Callable[[str], Any]]] = {
    "MESSAGE_HUB_FAILURE_THRESHOLD": ("failure_threshold", _whole),
    "MESSAGE_HUB_RESET_TIMEOUT": ("reset_timeout", _seconds),
    "MESSAGE_HUB_HALF_OPEN_TIMEOUT": ("half_open_timeout", _seconds),
}
#: Read elsewhere: by the frames, the tests, and the integrations of web frameworks.
_ELSEWHERE = (
    "MESSAGE_HUB_CONSUME",
    "MESSAGE_HUB_CORRELATION_HEADERS",
    "MESSAGE_HUB_FRAMES",
    "MESSAGE_HUB_TEST_RABBITMQ",
    "MESSAGE_HUB_TEST_URL",
)
#: What Kubernetes sets in each container for a service that is named "message-hub".
_KUBERNETES = re.compile(r"MESSAGE_HUB_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP)(_[A-Z]+)?)?)")


@dataclass(frozen=True)
class _Found:
    variable: str
    value: Any


class EnvironmentSettings:
    """The settings that ``variables`` has, by the keywords of ``MessageHubClient``.

    An empty text counts as not set. A value that is not a text, as a web framework's configuration may have it, is
    taken as it is. A name that begins with ``MESSAGE_HUB_`` and is no setting is logged as a warning.

    :param variables: the environment, or the configuration of a framework.
    :param given: the keywords that have a value already: their variables are not read.
    :raises MessageHubConfigurationError: a text cannot be read, or a secret and its file are both set.
    """

    def __init__(self, variables: Mapping[str, Any], given: Container[str] = ()) -> None:
        self._found = _read(_VARIABLES, variables, given)
        self._circuit = {} if "circuit_breaker_config" in given else _read(_CIRCUIT, variables, ())
        self.settings: dict[str, Any] = {keyword: found.value for keyword, found in self._found.items()}
        if self._circuit:
            try:
                self.settings["circuit_breaker_config"] = CircuitBreakerConfig(
                    **{keyword: found.value for keyword, found in self._circuit.items()}
                )
            except MessageHubConfigurationError as error:
                raise self.explained(error) from None
        _warn_of_unknown(variables)

    def explained(self, error: MessageHubConfigurationError) -> MessageHubConfigurationError:
        """The error of a client that was made with these settings, with the name of the variable in front."""
        for keyword, found in (self._found | self._circuit).items():
            if str(error).startswith(f"{keyword} "):
                return MessageHubConfigurationError(f"{found.variable}: {error}")
        return error


def _read(
    table: Mapping[str, tuple[str, Callable[[str], Any]]], variables: Mapping[str, Any], given: Container[str]
) -> dict[str, _Found]:
    found: dict[str, _Found] = {}
    for variable, (keyword, read) in table.items():
        value = variables.get(variable)
        if keyword in given or value is None or value == "":
            continue
        if keyword in found:
            raise MessageHubConfigurationError(
                f"{found[keyword].variable} must not be set beside {variable}: remove one of them"
            )
        try:
            found[keyword] = _Found(variable, read(value) if isinstance(value, str) else value)
        except ValueError as error:
            raise MessageHubConfigurationError(f"{variable} {error}, not {shown(value)}") from None
    return found


def _warn_of_unknown(variables: Mapping[str, Any]) -> None:
    known = [*_VARIABLES, *_CIRCUIT, *_ELSEWHERE]
    for name in sorted(name for name in variables if isinstance(name, str) and name.startswith("MESSAGE_HUB_")):
        if name not in known and not _KUBERNETES.fullmatch(name):
            nearest = difflib.get_close_matches(name, known, 1, 0.8)
            hint = f" (did you mean {nearest[0]}?)" if nearest else ""
            logger.warning("%s is not a setting of the hub, so it has no effect%s", printable(name), hint)
