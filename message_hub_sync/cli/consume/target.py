"""Imports what ``message-hub consume`` is to run: a client, and groups of handlers."""

from __future__ import annotations

import dataclasses
import importlib
import os
import sys
import traceback
from typing import Any

from message_hub_sync.client import MessageHubClient
from message_hub_sync.consuming.handler_group import HandlerGroup
from message_hub_sync.errors import MessageHubConfigurationError, MessageHubError
from message_hub_sync.runtime.text import shown

__all__ = ["imported_client", "imported_group", "with_workers"]


def imported_client(target: str) -> MessageHubClient:
    """The client that ``target`` names: ``module:client``, or ``module:function`` of a function that returns one.

    :raises MessageHubConfigurationError: there is no such module or name, or it is no client.
    """
    found = _imported(target)
    if not isinstance(found, MessageHubClient) and callable(found) and not isinstance(found, type):
        found = found()
    if isinstance(found, MessageHubClient):
        return found
    hint = ""
    if type(found).__module__.startswith("message_hub_sync.contrib.flask"):
        hint = ": for a Flask app, use flask --app … message-hub consume"
    elif isinstance(found, HandlerGroup):
        hint = ": give a group with --group, and the client as the target"
    raise MessageHubConfigurationError(
        f"{target} must be a MessageHubClient, or a function that returns one, not {_kind(found)}{hint}"
    )


def imported_group(target: str) -> HandlerGroup:
    """The group of handlers that ``target`` names as ``module:group``.

    :raises MessageHubConfigurationError: there is no such module or name, or it is no group.
    """
    found = _imported(target)
    if not isinstance(found, HandlerGroup):
        raise MessageHubConfigurationError(f"{target} must be a HandlerGroup, not {_kind(found)}")
    return found


def with_workers(group: HandlerGroup, workers: int) -> None:
    """Give ``workers`` threads to the handlers of a group that were declared with one."""
    group._declared[:] = [
        dataclasses.replace(each, options=dataclasses.replace(each.options, workers=workers))
        if each.options.workers == 1
        else each
        for each in group._declared
    ]


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else shown(value)


def _imported(target: str) -> Any:
    module_name, colon, path = target.partition(":")
    if not (colon and all(part.isidentifier() for part in [*module_name.split("."), *path.split(".")])):
        raise MessageHubConfigurationError(
            f"a target must be written as module:name, for example quests.main:client, not {shown(target)}"
        )
    # As python -m does it. A console script has its own directory there.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except MessageHubError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise _failed_import(module_name, error) from None
        raise MessageHubConfigurationError(
            f"{target} must name a module that can be imported, but there is no module {error.name}: start the command "
            "in the directory of the module, or set PYTHONPATH"
        ) from None
    except Exception as error:
        raise _failed_import(module_name, error) from None
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise MessageHubConfigurationError(
                f"{target} must name something that exists, but {module_name} has no {path}"
            ) from None
    return found


def _failed_import(module_name: str, error: Exception) -> MessageHubConfigurationError:
    # The frames of this module and of importlib tell the reader nothing.
    own = error.__traceback__
    while own is not None and (
        "importlib" in own.tb_frame.f_code.co_filename or own.tb_frame.f_code.co_filename == __file__
    ):
        own = own.tb_next
    sys.stderr.write("".join(traceback.format_exception(type(error), error, own)))
    return MessageHubConfigurationError(f"{module_name} cannot be imported: {type(error).__name__} (see above)")
