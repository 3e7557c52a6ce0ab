"""Reads the Python blocks of a Markdown document, to run them unchanged."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One ``python`` block. ``section``: the ``##`` heading above it; ``line``: the line on which its code begins."""

    path: Path
    section: str
    line: int
    text: str

    def compiled(self, transform: Callable[[str], str]) -> CodeType:
        """Its code. Tracebacks show the line numbers of the document."""
        return compile("\n" * (self.line - 1) + transform(self.text), str(self.path), "exec")

    def run(self, namespace: dict[str, Any], transform: Callable[[str], str]) -> None:
        """Run it in ``namespace``."""
        exec(self.compiled(transform), namespace)


def python_blocks(path: Path) -> list[Block]:
    """All ``python`` blocks of a document, in order."""
    document = path.read_text("utf-8")
    blocks = []
    for fence in _FENCE.finditer(document):
        if fence.group(1) == "python":
            sections = _SECTION.findall(document, 0, fence.start())
            line = document.count("\n", 0, fence.start(2)) + 1
            blocks.append(Block(path, sections[-1] if sections else "", line, fence.group(2)))
    return blocks
