"""Chooses the RabbitMQ of a version: the installed one, one that was built before, or one of a Debian release."""

from __future__ import annotations

import re

from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import shown
from message_hub_sync.testing._node.debian_folder import build, built_versions, one_builder, programs_of, why_not_build
from message_hub_sync.testing._node.rabbitmq_install import (
    RabbitMQNotAvailableError,
    RabbitMQPrograms,
    find_rabbitmq,
    version_of,
)

# Which RabbitMQ a Debian release has. Debian sid changes: what it really has is known when it has been built.
_SUITES = {"4.0": "trixie", "4.3": "sid"}


def checked_version(version: object) -> str:
    """A version or the beginning of one, such as ``4``, ``4.3`` or ``4.3.6``.

    :raises MessageValidationError: it is none.
    """
    if isinstance(version, str) and re.fullmatch(r"\d{1,4}(\.\d{1,4}){0,2}", version):
        return version
    raise MessageValidationError(f'version must be text such as "4.3", not {shown(version)}')


def programs_of_version(wanted: str, *, install: bool) -> RabbitMQPrograms:
    """The programs of the newest RabbitMQ that fits. If it is not on this machine, it is built. That takes minutes.

    :param wanted: a version or the beginning of one.
    :param install: allow to build it.
    :raises RabbitMQNotAvailableError: it cannot be had here. The text says which versions can, and why not this one.
    """
    installed = find_rabbitmq()
    found = _choose(wanted, installed)
    if found in _SUITES:
        reason = why_not_build(install)
        if reason is not None:
            raise RabbitMQNotAvailableError(
                f"RabbitMQ {found} is in Debian {_SUITES[found]} and must be built here, but {reason}. Without that "
                f"there is here: {_list([*built_versions(), *_version_of(installed)])}"
            )
        with one_builder():
            found = _choose(wanted, installed)
            if found in _SUITES:
                build(_SUITES[found])
                found = _choose(wanted, installed)
    if installed is not None and found in _version_of(installed):
        return installed
    return programs_of(found)


def _choose(wanted: str, installed: RabbitMQPrograms | None) -> str:
    """The newest version that fits: one that is here, or a key of ``_SUITES`` that is not yet here."""
    here = [*built_versions(), *_version_of(installed)]
    series = [one for one in _SUITES if not any(_fits(one, version) for version in here)]
    fitting = [one for one in [*here, *series] if _fits(wanted, one)]
    if not fitting:
        raise RabbitMQNotAvailableError(
            f"RabbitMQ {wanted} cannot be had here. On this machine: {_list(here)}. From Debian: "
            f"{_list([f'{one} ({suite})' for one, suite in _SUITES.items()])}. For another one start a broker "
            "yourself, and set MESSAGE_HUB_TEST_URL to its URL"
        )
    return max(fitting, key=_numbers)


def _fits(wanted: str, version: str) -> bool:
    """Whether they agree, as far as both go: ``4.3.6`` fits the series ``4.3``, and the reverse."""
    return all(one == other for one, other in zip(_numbers(wanted), _numbers(version), strict=False))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _version_of(programs: RabbitMQPrograms | None) -> list[str]:
    return [] if programs is None else [version_of(programs)]


def _list(versions: list[str]) -> str:
    return ", ".join(versions) or "none"
