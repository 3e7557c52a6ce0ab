"""What kind of process this is, as far as it bears on threads and connections. Reads, never imports."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

__all__ = ["became_reloader_parent", "has_running_loop", "reloader_parent", "script_ended", "uwsgi_hint"]

_RELOADER = "werkzeug._reloader"
#: Words on the command line of a development server.
_COMMANDS = frozenset({"run", "runserver", "runserver_plus"})
#: Modules that a process loads that a server, or a development server, may run: it owns the signals and the end.
_SERVERS = (
    *("celery", "cheroot", "django.core.servers.basehttp", "gunicorn", "hypercorn", "uvicorn", "uwsgi", "waitress"),
    "werkzeug.serving",
)
_TRUE = ("1", "true", "t", "yes", "y", "on")


def reloader_parent() -> str | None:
    """The name of the reloader whose parent process this is, or ``None``.

    Such a process loads the application only to find out whether it loads, then watches files while a
    child serves. A consumer in it would take half of the child's messages, with the code of yesterday.

    Django and ``flask run`` are known by their command line, before anything is loaded. A script that calls
    ``app.run(debug=True)`` is known only from that call on: see :func:`became_reloader_parent`.
    """
    # First what most processes are told by, as this is asked before every send.
    if _RELOADER not in sys.modules and _COMMANDS.isdisjoint(sys.argv):
        return None
    if became_reloader_parent():
        return "werkzeug"
    environ = os.environ
    if (
        "run" in sys.argv[1:]
        and environ.get("FLASK_RUN_FROM_CLI") == "true"
        and environ.get("WERKZEUG_RUN_MAIN") != "true"
        and _flask_reloads()
    ):
        return "flask"
    if (
        sys.argv[1:2] in (["runserver"], ["runserver_plus"])
        and "--noreload" not in sys.argv
        and environ.get("RUN_MAIN") != "true"
        and environ.get("WERKZEUG_RUN_MAIN") != "true"
        and "django" in sys.modules
    ):
        return "django"
    return None


def became_reloader_parent() -> bool:
    """Whether a call of werkzeug's ``run_simple`` has made this process a reloader's parent by now.

    Only with ``use_reloader`` does it import the module asked for here. Consumers ask before each delivery.
    """
    return _RELOADER in sys.modules and os.environ.get("WERKZEUG_RUN_MAIN") != "true"


def _flask_reloads() -> bool:
    # The command line, then FLASK_RUN_RELOAD, then what debug says: the order in which Flask decides.
    arguments = sys.argv[1:]
    if "--no-reload" in arguments:
        return False
    if "--reload" in arguments:
        return True
    if "FLASK_RUN_RELOAD" in os.environ:
        return os.environ["FLASK_RUN_RELOAD"].lower() in _TRUE
    if "--no-debug" in arguments:
        return False
    return "--debug" in arguments or os.environ.get("FLASK_DEBUG", "").lower() in _TRUE


def script_ended() -> bool:
    """At the interpreter's end: whether it came because a plain script has no more lines, as far as that can be known.

    Not so where a server may have run it, an exception or Ctrl-C was its end, or handlers of its own ask for signals:
    their ``sys.exit()`` leaves no trace.
    """
    return (
        not any(name in sys.modules for name in _SERVERS)
        and getattr(sys, "last_type", None) is None
        and signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN)
        and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)
    )


def has_running_loop() -> bool:
    """Whether this thread runs an asyncio event loop now, which a blocking call would hold up."""
    asyncio: Any = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def uwsgi_hint() -> str:
    """What to add to the text of a timeout where no thread of ours can run; empty elsewhere."""
    uwsgi: Any = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", None)
    if not isinstance(options, dict) or options.get("enable-threads") or options.get("threads"):
        return ""
    return "; this process runs under uWSGI without enable-threads, so no thread of the client runs: enable it"
