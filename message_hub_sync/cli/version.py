"""Which version this is."""

from __future__ import annotations

from importlib import metadata

__all__ = ["package_version"]


def package_version() -> str:
    """The installed distribution's version; a source tree that is not installed has none."""
    try:
        return metadata.version("message-hub-sync")
    except metadata.PackageNotFoundError:
        return "0.0.0"
