"""A network namespace in which nft drops all packets on command: a blackhole made by the kernel."""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import shutil
import subprocess
from types import TracebackType

from faults.proxy import Proxy

__all__ = ["Namespace", "why_no_namespace"]

_DROP = """
table inet message_hub_blackhole {
    chain incoming { type filter hook input priority 0; policy drop; }
    chain outgoing { type filter hook output priority 0; policy drop; }
}
"""
_numbers = itertools.count(os.getpid() % 200)


class Namespace:
    """A namespace for programs. They reach the broker only over a virtual cable (veth) and a proxy at its other end.

    The namespace exists until its holder ends. The holder is a process that ends when this process ends in any way.

    :param port: the broker's port on 127.0.0.1.
    """

    def __init__(self, port: int) -> None:
        number = next(_numbers) % 250
        self._here, self._there = f"10.231.{number}.1", f"10.231.{number}.2"
        self._device = f"mhf{os.getpid() % 100_000}n{number}"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--", "sh", "-c", "echo held; read -r end"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        try:
            self._holder.stdout.readline()
            self._connect()
            self._proxy = Proxy(port, self._here)
        except BaseException:
            self._end_holder()
            raise

    def __enter__(self) -> Namespace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._proxy.close()
        self._end_holder()

    @property
    def url(self) -> str:
        """The broker's URL for programs in the namespace."""
        return self._proxy.url

    @property
    def command(self) -> tuple[str, ...]:
        """The prefix of a command that must run in the namespace."""
        return ("nsenter", f"--target={self._holder.pid}", "--net", "--")

    def blackhole(self) -> None:
        """Drop all packets in both directions from now on, without closing any connection."""
        _run(*self.command, "nft", "-f", "-", given=_DROP)

    def heal(self) -> None:
        """Let packets pass again."""
        _run(*self.command, "nft", "delete", "table", "inet", "message_hub_blackhole")

    def _connect(self) -> None:
        near, far = self._device, f"{self._device}p"
        _run("ip", "link", "add", near, "type", "veth", "peer", "name", far, "netns", str(self._holder.pid))
        _run("ip", "addr", "add", f"{self._here}/30", "dev", near)
        _run("ip", "link", "set", near, "up")
        _run(*self.command, "ip", "addr", "add", f"{self._there}/30", "dev", far)
        _run(*self.command, "ip", "link", "set", far, "up")
        _run(*self.command, "ip", "link", "set", "lo", "up")

    def _end_holder(self) -> None:
        for pipe in (self._holder.stdin, self._holder.stdout):
            if pipe is not None:
                pipe.close()
        self._holder.wait(10)
        with contextlib.suppress(RuntimeError):  # the kernel removes the device with its namespace, perhaps earlier
            _run("ip", "link", "del", self._device)


@functools.cache
def why_no_namespace() -> str | None:
    """Why this machine does not allow a namespace, or ``None`` if it does."""
    missing = [name for name in ("ip", "nft", "unshare", "nsenter") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} is missing (Debian: apt-get install iproute2 nftables)"
    try:
        with Namespace(1) as namespace:
            namespace.blackhole()
            namespace.heal()
    except (RuntimeError, OSError) as error:
        return f"network namespaces with nft are not allowed here: {error}"
    return None


def _run(*command: str, given: str = "") -> None:
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
