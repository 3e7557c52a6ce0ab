"""The faults by number: the rows of the table in docs/reliability.md."""

from __future__ import annotations

__all__ = ["ROWS"]

ROWS: dict[int, str] = {
    1: "broker killed (SIGKILL) while publishing, started again",
    2: "broker stopped and started inside its VM, again and again",
    3: "client made and used before the broker is up",
    4: "blackhole on open connections",
    5: "blackhole, or a stopped broker, before connecting",
    6: "broker process stopped (SIGSTOP) while publishing, continued",
    7: "memory alarm of 2 s",
    8: "memory alarm and disk alarm that last",
    9: "all connections closed every 2 s",
    10: "queue deleted under its consumer",
    11: "queue exists with other arguments, or belongs to another connection",
    12: "exchange missing",
    13: "unroutable message",
    14: "full queue that rejects",
    15: "classic queue's home node down (three nodes)",
    16: "quorum queue's leader killed; the connected node killed (three nodes)",
    17: "two of three nodes down, and back",
    18: "handler outlives consumer_timeout, or three heartbeats",
    19: "connection lost while a handler runs",
    20: "permission missing or taken away, password changed",
    21: "wrong password, vhost, authority, host; plain against TLS",
    22: "fork: os.fork, gunicorn --preload, uWSGI, Celery prefork",
    23: "gevent: 200 greenlets, a timeout thrown into one",
    24: "SIGTERM with a full prefetch",
    25: "signal handler that raises inside publish",
    26: "interpreter exit, the broker silent",
    27: "1,000 clients made and closed; 1,000 reconnects",
    28: "out of file descriptors",
    29: "slow consumer, backlog of 1 GB",
    30: "handler that always raises, hangs, or kills its process",
    31: "hostile headers",
    32: "wall clock that jumps an hour",
    33: "hostile bodies and ids",
    34: "soak: random draws of the above",
}
