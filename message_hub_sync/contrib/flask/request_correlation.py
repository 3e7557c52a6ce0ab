"""The correlation id of a request: from its headers, bound while it is served, and sent back with the response."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

from flask import Flask, Response, request

from message_hub_sync.envelope.correlation import bound_correlation

__all__ = ["correlate_requests"]

_KEY = "message_hub.correlation"


class _Bound(NamedTuple):
    correlation_id: str
    headers: tuple[str, ...]
    """The headers of the response that bear the id."""
    ends: ExitStack


def correlate_requests(app: Flask, headers: Sequence[str]) -> None:
    """Bind a correlation id while a request of ``app`` is served. Messages and log records have it.

    :param headers: names of the headers that may bring an id; the first one that does wins. The response has the id in
        the header that brought it, and in the first of the list.
    """

    def bind() -> None:
        # An id of another system may be anything: one that messages cannot carry is replaced. An empty one counts as
        # none.
        came = next((name for name in headers if request.headers.get(name, "").strip()), None)
        # WSGI gives each byte of a header as one character, and takes it back in the same way.
        foreign: Any = None if came is None else request.headers[came].strip().encode("latin-1", "replace")
        ends = ExitStack()
        correlation_id = ends.enter_context(bound_correlation(foreign, foreign=True))
        back = headers[:1] if came is None else (headers[0], came)
        request.environ[_KEY] = _Bound(correlation_id, tuple(dict.fromkeys(back)), ends)

    def send_back(response: Response) -> Response:
        bound: _Bound | None = request.environ.get(_KEY)
        if bound is not None:
            for name in bound.headers:
                response.headers.setdefault(name, bound.correlation_id.encode().decode("latin-1"))
        return response

    def unbind(_error: BaseException | None) -> None:
        bound: _Bound | None = request.environ.pop(_KEY, None)
        if bound is not None:
            bound.ends.close()

    app.before_request(bind)
    app.after_request(send_back)
    app.teardown_request(unbind)
