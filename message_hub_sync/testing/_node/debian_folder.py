"""Builds a RabbitMQ of another Debian release in a folder, and runs its programs there. The system stays as it is.

The folder has a small Debian with ``rabbitmq-server``. Its programs run with ``chroot``, in a mount namespace of their
own: when the last of them ends, its mounts are gone. They see this machine's processes, devices and temporary files.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from message_hub_sync.testing._node.rabbitmq_install import (
    RabbitMQNotAvailableError,
    RabbitMQPrograms,
    apt_install,
    why_not_apt,
)

_STEP_TIMEOUT = 1800.0
_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"

# A mount namespace for one command: its mounts are gone when it and its children have ended.
_UNSHARE = ("unshare", "-m")

# $1: the folder. $2: this machine's folder for temporary files, which has the node's directory. Then the command.
# `exec` at the end: the process that was started becomes the command, so that signals reach it.
_ENTER = """
set -e
root=$1 temporary=$2
shift 2
for folder in /proc /dev /sys "$temporary"; do
    mkdir -p "$root$folder"
    mount --rbind "$folder" "$root$folder"
done
exec chroot "$root" "$@"
"""


def folders() -> Path:
    """Where the folders are: ``message-hub-sync/rabbitmq`` below the user's cache directory."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "message-hub-sync" / "rabbitmq"


def built_versions() -> list[str]:
    """The versions for which there is a folder. Each folder has the name of its version."""
    return [folder.name for folder in folders().glob("*") if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]


def programs_of(version: str) -> RabbitMQPrograms:
    """The programs of a built folder, as commands that enter it first.

    :raises RabbitMQNotAvailableError: this process cannot enter a folder.
    """
    reason = _why_not_enter()
    if reason is not None:
        raise RabbitMQNotAvailableError(f"RabbitMQ {version} is in {folders() / version}, but {reason}")
    root = folders() / version
    enter = [*_UNSHARE, "/bin/sh", "-c", _ENTER, "message-hub-enter", str(root), tempfile.gettempdir()]
    enter += ["/usr/bin/env", f"PATH={_PATH}"]
    directory = "/usr/lib/rabbitmq/bin"
    return RabbitMQPrograms(
        (*enter, f"{directory}/rabbitmq-server"), (*enter, f"{directory}/rabbitmqctl"), (*enter, "/usr/bin/epmd")
    )


def why_not_build(install: bool) -> str | None:
    """Why this process cannot build a folder, or ``None``."""
    return why_not_apt(install) or _why_not_enter()


@contextlib.contextmanager
def one_builder() -> Iterator[None]:
    """Only one process at a time is inside this ``with`` block. Look again inside it what has been built."""
    place = folders()
    place.mkdir(parents=True, exist_ok=True)
    with (place / "lock").open("w") as lock:
        # This wait ends: each step of the other process has a time-out, and the kernel unlocks if that process ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build(suite: str) -> str:
    """Build the folder of a Debian release. It takes minutes. Call it inside ``one_builder()``.

    The folder is built beside its place and renamed when it is complete.

    :param suite: the release, for example ``trixie``.
    :returns: the version of RabbitMQ that it has.
    :raises RabbitMQNotAvailableError: a step failed. The text ends with its output.
    """
    unfinished = folders() / f"building-{suite}"
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        _install_debian(suite, unfinished)
        _install_rabbitmq(suite, unfinished)
        version = _packaged_version(unfinished)
        shutil.rmtree(folders() / version, ignore_errors=True)
        unfinished.rename(folders() / version)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return version


def _why_not_enter() -> str | None:
    if os.geteuid() != 0:
        return "only root may run programs in a folder with chroot"
    if shutil.which("unshare") is None or shutil.which("chroot") is None:
        return "this machine has no unshare and chroot (Linux, package util-linux)"
    return None


def _install_debian(suite: str, root: Path) -> None:
    if shutil.which("debootstrap") is None:
        apt_install("debootstrap")
    what = f"debootstrap of Debian {suite}"
    # In a mount namespace, so that no mount stays if it is killed.
    _run(what, [*_UNSHARE, "debootstrap", "--variant=minbase", suite, str(root), *_mirror()])
    hosts = root / "etc/hosts"
    if not hosts.exists():
        hosts.write_text("127.0.0.1 localhost\n::1 localhost\n")
    # Debian's packages ask this program whether they may start a service.
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)


def _install_rabbitmq(suite: str, root: Path) -> None:
    # A failed update is ignored: the package lists of debootstrap may be sufficient. If not, the install fails.
    script = (
        "apt-get -q update; apt-get -q install -y --no-install-recommends rabbitmq-server && apt-get clean && "
        "rm -rf /var/lib/apt/lists/*"
    )
    enter = ["chroot", str(root), "/usr/bin/env", f"PATH={_PATH}"]
    _run(f"apt-get install rabbitmq-server in Debian {suite}", [*enter, "/bin/sh", "-c", script])


def _packaged_version(root: Path) -> str:
    """Debian has RabbitMQ in ``/usr/lib/rabbitmq/lib/rabbitmq_server-{version}``."""
    for found in (root / "usr/lib/rabbitmq/lib").glob("rabbitmq_server-*"):
        return found.name.removeprefix("rabbitmq_server-")
    raise RabbitMQNotAvailableError(f"the package rabbitmq-server has no program in {root}/usr/lib/rabbitmq")


def _mirror() -> list[str]:
    """The Debian mirror of this machine. None on Ubuntu, for example: then debootstrap takes its own default."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return [line for line in done.stdout.splitlines() if line.rstrip("/").endswith("/debian")][:1]


def _run(what: str, command: Sequence[str]) -> None:
    process = subprocess.Popen(
        command,
        env={**os.environ, "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        transcript = process.communicate(timeout=_STEP_TIMEOUT)[0]
    except BaseException as error:
        # The group, because dpkg and others run below it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        raise RabbitMQNotAvailableError(f"{what} did not end within {_STEP_TIMEOUT:g} s") from None
    if process.returncode != 0:
        raise RabbitMQNotAvailableError(f"{what} failed (exit code {process.returncode}):\n{transcript[-2000:]}")
