"""Finds RabbitMQ's programs on this machine, and installs them if that is allowed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

_HOW = (
    "Tests that use RabbitMQ need one of two things. 1: the variable "
    "MESSAGE_HUB_TEST_URL=amqp://user:password@host:5672/vhost with the URL of a running broker; the tests create and "
    "delete queues there. 2: the program rabbitmq-server on this machine (Debian and Ubuntu: apt-get install "
    "rabbitmq-server; macOS: brew install rabbitmq)."
)

# Debian's rabbitmq-server on PATH is a wrapper that changes user and directory. The actual program is here.
_DEBIAN_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
_APT_TIMEOUT = 600.0


class RabbitMQNotAvailableError(RuntimeError):
    """There is no RabbitMQ for the tests. The text says what was tried, and how to provide one."""


@dataclass(frozen=True)
class RabbitMQPrograms:
    """The three programs that a node needs, as commands. Each command starts with an absolute path or a program of
    this machine, and its own process becomes the program."""

    server: tuple[str, ...]
    ctl: tuple[str, ...]
    epmd: tuple[str, ...]


def find_rabbitmq() -> RabbitMQPrograms | None:
    """Look for an installed RabbitMQ, first in Debian's directory, then on ``PATH``.

    :returns: the programs, or ``None`` if one of them is missing.
    """
    directories = [_DEBIAN_PROGRAMS]
    on_path = shutil.which("rabbitmq-server")
    if on_path is not None:
        directories.append(Path(on_path).resolve().parent)
    epmd = _find_epmd()
    for directory in directories:
        server, ctl = directory / "rabbitmq-server", directory / "rabbitmqctl"
        if epmd is not None and os.access(server, os.X_OK) and os.access(ctl, os.X_OK):
            return RabbitMQPrograms((str(server),), (str(ctl),), (epmd,))
    return None


def ensure_rabbitmq(*, install: bool = True) -> RabbitMQPrograms:
    """Find RabbitMQ's programs. If there are none and ``install`` is true, install Debian's package.

    :param install: allow ``apt-get install rabbitmq-server``. It needs root and ``apt-get``, and takes minutes. On a
        machine with systemd, the package also starts a broker on port 5672.
    :returns: the programs.
    :raises RabbitMQNotAvailableError: RabbitMQ is not installed, and installing is not allowed, not possible or failed.
    """
    programs = find_rabbitmq()
    if programs is not None:
        return programs
    reason = why_not_apt(install)
    if reason is not None:
        raise RabbitMQNotAvailableError(f"RabbitMQ is not installed here, and {reason}. {_HOW}")
    apt_install("rabbitmq-server")
    programs = find_rabbitmq()
    if programs is None:
        raise RabbitMQNotAvailableError(
            f"apt-get installed rabbitmq-server, but it is not in {_DEBIAN_PROGRAMS} or on PATH. {_HOW}"
        )
    return programs


def version_of(programs: RabbitMQPrograms) -> str:
    """The version of RabbitMQ, asked from its ``rabbitmqctl``. It takes about half a second.

    :raises RabbitMQNotAvailableError: the program does not work.
    """
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_"))}
    command = [*programs.ctl, "version"]
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        raise RabbitMQNotAvailableError("rabbitmqctl version did not end within 120 s") from None
    found = re.search(r"\d+\.\d+(\.\d+)?", done.stdout)
    if found is None:
        raise RabbitMQNotAvailableError(f"rabbitmqctl version failed: {done.stderr or done.stdout}")
    return found[0]


def _find_epmd() -> str | None:
    on_path = shutil.which("epmd")
    if on_path is not None:
        return on_path
    # Some packages put only `erl` on PATH. epmd is then in erts-*/bin of the same Erlang.
    roots = [Path("/usr/lib/erlang")]
    erl = shutil.which("erl")
    if erl is not None:
        roots.insert(0, Path(erl).resolve().parent.parent)
    for root in roots:
        for candidate in sorted(root.glob("erts-*/bin/epmd"), reverse=True):
            if os.access(candidate, os.X_OK):
                return str(candidate)
    return None


def why_not_apt(install: bool) -> str | None:
    """Why this process may not install a package, or ``None``."""
    if not install:
        return "this run may not install it"
    if shutil.which("apt-get") is None:
        return "there is no apt-get to install it with"
    if os.geteuid() != 0:
        return "only root may install it with apt-get"
    return None


def apt_install(package: str) -> None:
    """Install a Debian package on this machine.

    :raises RabbitMQNotAvailableError: it failed. The text ends with the output of apt-get.
    """
    # With RUNLEVEL=1, invoke-rc.d assumes single-user mode, so that without systemd the package starts no broker.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    apt_get = ["apt-get", "-q", "-o", "DPkg::Lock::Timeout=300"]
    transcript = ""
    for step in (["update"], ["install", "-y", "--no-install-recommends", package]):
        try:
            done = subprocess.run(
                [*apt_get, *step],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                timeout=_APT_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise RabbitMQNotAvailableError(
                f"apt-get {step[0]} did not end within {_APT_TIMEOUT:g} s. {_HOW}"
            ) from None
        transcript += done.stdout
        # Ignore a failed update: the package lists that exist may be sufficient. If not, the install fails.
        if done.returncode != 0 and step[0] == "install":
            raise RabbitMQNotAvailableError(
                f"apt-get install {package} failed (exit code {done.returncode}). {_HOW}\n{transcript[-2000:]}"
            )
