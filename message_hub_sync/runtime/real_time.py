"""The clocks of this process that no test can freeze.

Tools such as freezegun replace the functions of the module ``time``, and each reference to them in other modules. A
deadline would then never pass, and a connection would miss its heartbeats. So the package reads the clocks from a copy
of that module. The copy has functions of its own, which such tools do not know. It costs nothing at a call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["time"]

if TYPE_CHECKING:
    import time
else:

    def _copy_of_time() -> Any:
        from importlib.util import find_spec, module_from_spec

        spec = find_spec("time")
        copy = module_from_spec(spec)
        spec.loader.exec_module(copy)
        return copy

    time = _copy_of_time()
