"""The private directory of a throwaway node, and the environment in which its programs run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

HOST = "127.0.0.1"

_LOOPBACK_ONLY = "-start_epmd false -kernel inet_dist_use_interface {127,0,0,1}"


def prepare_directory(cookie: str, plugins: Sequence[str], config: Mapping[str, str]) -> Path:
    """Create the directory of a node, with its configuration.

    :param cookie: the Erlang cookie.
    :param plugins: names of plugins to enable.
    :param config: lines of ``rabbitmq.conf``, as key and value.
    """
    directory = Path(tempfile.mkdtemp(prefix="message-hub-rabbitmq-"))
    cookie_file = directory / ".erlang.cookie"
    cookie_file.write_text(cookie)
    cookie_file.chmod(0o400)
    (directory / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
    # One log, on stdout: that is output.log.
    lines = (f"{k} = {v}\n" for k, v in ({"log.file": "false", "log.console": "true"} | dict(config)).items())
    (directory / "rabbitmq.conf").write_text("".join(lines))
    return directory


def node_environment(directory: Path, *, name: str, port: int, dist_port: int, epmd_port: int) -> dict[str, str]:
    """The complete environment of a node's broker, epmd and rabbitmqctl.

    :param directory: the node's directory.
    :param name: the node's name.
    :param port: the port for AMQP.
    :param dist_port: the port for other nodes and for rabbitmqctl.
    :param epmd_port: the port of epmd.
    """
    # Settings for the machine's own RabbitMQ or Erlang must not affect this node.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RABBITMQ_", "ERL_", "NOTIFY_"))}
    return inherited | {
        "HOME": str(directory),
        "LC_ALL": "C.UTF-8",
        "ERL_CRASH_DUMP_BYTES": "0",
        "ERL_EPMD_ADDRESS": HOST,
        "ERL_EPMD_PORT": str(epmd_port),
        "RABBITMQ_NODENAME": name,
        "RABBITMQ_NODE_IP_ADDRESS": HOST,
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(dist_port),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": "/dev/null",
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": _LOOPBACK_ONLY,
        "RABBITMQ_CTL_ERL_ARGS": _LOOPBACK_ONLY,
        # Any free port: the default range of eleven is too small for parallel runs.
        "RABBITMQ_CTL_DIST_PORT_MIN": "0",
        "RABBITMQ_CTL_DIST_PORT_MAX": "0",
    }
