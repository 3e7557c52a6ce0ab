"""The kind of this process: a reloader's parent, a finished script, an event loop's thread, uWSGI, gevent.

It matters for threads and connections. The functions only inspect ``sys.modules``, the command line and the
environment; they import none of the frameworks.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
from typing import Any

from message_hub_sync.errors import MessageHubConfigurationError

__all__ = [
    "became_reloader_parent",
    "has_running_loop",
    "refuse_late_patch",
    "reloader_parent",
    "script_ended",
    "under_forking_server",
    "uwsgi_hint",
]

#: What makes locks: Python's function, or the one by which gevent had replaced it when this module was imported.
_ALLOCATE_LOCK = _thread.allocate_lock

_RELOADER = "werkzeug._reloader"
#: Commands that start a development server.
_COMMANDS = frozenset({"run", "runserver", "runserver_plus"})
#: Modules of servers and development servers. If one is loaded, the server may control the signals and the exit.
_SERVERS = (
    *("celery", "cheroot", "django.core.servers.basehttp", "gunicorn", "hypercorn", "uvicorn", "uwsgi", "waitress"),
    "werkzeug.serving",
)
_TRUE = ("1", "true", "t", "yes", "y", "on")


def reloader_parent() -> str | None:
    """The name of the reloader whose parent process this is (``werkzeug``, ``flask``, ``django``), or ``None``.

    The parent process loads the application once, to see whether it loads. Then it watches files, and a child process
    serves. A consumer in the parent would take half of the child's messages, and handle them with outdated code.

    Django and ``flask run`` are recognised by their command line, before the application is loaded. A script that calls
    ``app.run(debug=True)`` is recognised only after that call: see :func:`became_reloader_parent`.
    """
    # This function is called before every send, so the check that ends it in most processes comes first.
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
    """Whether a call of werkzeug's ``run_simple`` has made this process a reloader's parent.

    ``run_simple`` imports the reloader's module only with ``use_reloader``. Consumers call this before each delivery.
    """
    return _RELOADER in sys.modules and os.environ.get("WERKZEUG_RUN_MAIN") != "true"


def _flask_reloads() -> bool:
    # Flask decides in this order: the command line, FLASK_RUN_RELOAD, the debug mode.
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
    """Whether the interpreter exits because a plain script reached its last line, as far as this can be detected.

    Call this at the interpreter's exit. It is false (1) if a server may have run the script, (2) if an exception or
    Ctrl-C ended it, (3) if it installed its own handlers of SIGTERM or SIGINT, whose ``sys.exit()`` cannot be detected.
    """
    return (
        not any(name in sys.modules for name in _SERVERS)
        and getattr(sys, "last_type", None) is None
        and signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.SIG_IGN)
        and signal.getsignal(signal.SIGINT) in (signal.default_int_handler, signal.SIG_DFL, signal.SIG_IGN)
    )


def under_forking_server() -> bool:
    """Whether this process belongs to a web server that may fork its workers after it has loaded the application."""
    return "gunicorn" in sys.modules or "uwsgi" in sys.modules


def has_running_loop() -> bool:
    """Whether this thread runs an asyncio event loop now: a blocking call would stop the loop."""
    asyncio: Any = sys.modules.get("asyncio")
    return asyncio is not None and asyncio._get_running_loop() is not None


def uwsgi_hint() -> str:
    """Text to append to a timeout's error if uWSGI keeps the threads of this library from running; else ``""``."""
    uwsgi: Any = sys.modules.get("uwsgi")
    options = getattr(uwsgi, "opt", None)
    if not isinstance(options, dict) or options.get("enable-threads") or options.get("threads"):
        return ""
    return "; this process runs under uWSGI without enable-threads, so no thread of the client runs: set enable-threads"


def refuse_late_patch() -> None:
    """Refuse to work with threads of two kinds: those that this library has imported, and gevent's that replaced them.

    A thread of one kind that waits for the other kind stops the whole process.

    :raises MessageHubConfigurationError: they were replaced after this library was imported.
    """
    if _thread.allocate_lock is not _ALLOCATE_LOCK:
        patch = "eventlet.monkey_patch()" if "eventlet" in sys.modules else "gevent's monkey.patch_all()"
        raise MessageHubConfigurationError(
            f"{patch} must be called before message_hub_sync is imported, not after it: this process would wait for "
            "ever, so nothing was done. Call it in the first lines of the program; under gunicorn with --preload, in "
            "the first lines of gunicorn.conf.py"
        )
