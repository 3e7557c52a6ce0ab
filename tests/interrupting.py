"""Interrupts a call at a chosen line, as Ctrl-C may: a signal handler raises between two instructions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

__all__ = ["interrupted"]


def interrupted(call: Callable[[], object], moment: int) -> bool:
    """Call ``call``, and raise KeyboardInterrupt at its line number ``moment``, counted from 0 as the lines run.

    :returns: whether it came so far. If not, the call has ended as usual.
    """
    lines = -1

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal lines
        # Not in `threading`: between two lines of it, at the end of a `with`, no signal handler can run.
        if "message_hub_sync" not in frame.f_code.co_filename:
            return None
        if event == "line":
            lines += 1
            if lines == moment:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    earlier = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(earlier)
    return False
