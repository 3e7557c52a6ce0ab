"""tox reads this file beside tox.ini: it lets tox find the interpreters that pyenv has installed.

pyenv's shims on PATH answer only for the versions that are selected just now; these are all installed ones.
"""

from __future__ import annotations

import os
import re
from pathlib import Path


def _pyenv_directories() -> list[str]:
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
    directories = [path for path in root.glob("versions/3.*/bin") if re.fullmatch(r"[\d.]+", path.parent.name)]
    directories.sort(key=lambda path: [int(part) for part in path.parent.name.split(".")], reverse=True)
    return [str(path) for path in directories]


# At the end: whatever is on PATH already comes first.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), *_pyenv_directories()])
