"""Measures how long an import takes."""

from __future__ import annotations

import statistics
import subprocess
import sys


def fresh_imports(statement: str, times: int = 5) -> float:
    """Median milliseconds of an import in a new interpreter, without the start of the interpreter."""
    program = f"import time; began = time.perf_counter(); {statement}; print(time.perf_counter() - began)"
    subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)  # writes the bytecode caches
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, check=True) for _ in range(times)]
    return statistics.median(float(run.stdout) for run in runs) * 1000
