"""Notices that a Python file was changed, for ``--reload``."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["FileWatch"]

#: Seconds between two looks. Only a library for each platform would be told of changes.
_EVERY = 0.5
_IGNORED = frozenset({"__pycache__", "node_modules", "venv", "site-packages"})


class FileWatch:
    """Calls ``changed`` when a ``.py`` file below ``directory`` is written, added or removed. For development.

    Hidden directories, virtual environments and ``node_modules`` are not looked at.
    """

    def __init__(self, directory: Path, changed: Callable[[], None]) -> None:
        self._directory = directory
        self._changed = changed
        self._ended = threading.Event()
        self._known = dict(self._times())  # then the watching thread only
        self._thread = threading.Thread(target=self._watch, name="message-hub-reload", daemon=True)

    def __enter__(self) -> FileWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(_EVERY * 10)

    def _watch(self) -> None:
        while not self._ended.wait(_EVERY):
            found = dict(self._times())
            if found != self._known:
                self._known = found
                self._changed()

    def _times(self) -> Iterator[tuple[str, int]]:
        for directory, below, files in os.walk(self._directory):
            below[:] = [name for name in below if name[0] != "." and name not in _IGNORED]
            for name in files:
                if name.endswith(".py"):
                    path = os.path.join(directory, name)
                    try:
                        yield path, os.stat(path).st_mtime_ns
                    except OSError:  # removed meanwhile
                        continue
