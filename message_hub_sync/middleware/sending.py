"""A message on its way out, as a middleware sees it."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from typing import Any, Literal
from uuid import UUID

from message_hub_sync.envelope.encode import check_header, check_headers_size
from message_hub_sync.envelope.header_names import DESTINATION, HUB_HEADERS, IN_REPLY_TO
from message_hub_sync.envelope.ids import uuid_of
from message_hub_sync.errors import MessageValidationError
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.base import Outgoing
from message_hub_sync.transport.topology import EVENTS

__all__ = ["Sending", "SendingKind", "SendingOutcome"]

SendingKind = Literal["event", "message", "request", "reply"]
SendingOutcome = Literal["confirmed", "rejected", "unknown", "circuit_open", "invalid", "not_sent"]


class Sending:
    """One message or event on its way out, as :meth:`Middleware.send` sees it. It belongs to one call.

    ``outcome`` is ``None`` until ``call_next`` has returned or raised: ``confirmed``, ``rejected`` (certainly not
    accepted), ``unknown`` (it may have been accepted), ``circuit_open``, ``invalid`` or ``not_sent``.
    """

    __slots__ = ("_frozen", "_headers", "_outgoing", "destination", "event_type", "kind", "outcome")

    def __init__(self, outgoing: Outgoing) -> None:
        headers = outgoing.properties.headers
        self._outgoing = outgoing
        self._headers: _SendingHeaders | None = None  # made when it is asked for
        self._frozen = False
        self.kind: SendingKind
        self.destination: str | None = None
        self.event_type: str | None = None
        self.outcome: SendingOutcome | None = None
        if outgoing.exchange == EVENTS:
            self.kind = "event"
            self.event_type = outgoing.routing_key
            return
        self.destination = headers.get(DESTINATION)
        if IN_REPLY_TO in headers:
            self.kind = "reply"
        else:
            self.kind = "message" if outgoing.properties.reply_to is None else "request"

    @property
    def message_id(self) -> UUID:
        """Its id. An attempt that is repeated has the same one."""
        return uuid_of(self._outgoing.properties.message_id)

    @property
    def correlation_id(self) -> str | None:
        """Its correlation id, as it goes out."""
        return self._outgoing.properties.correlation_id

    @property
    def reply_to(self) -> str | None:
        """The queue in which a request waits for its reply; else ``None``."""
        return self._outgoing.properties.reply_to

    @property
    def body(self) -> bytes:
        """The payload as JSON in UTF-8, as it goes out."""
        return self._outgoing.body

    @property
    def headers(self) -> MutableMapping[str, Any]:
        """Its headers. New ones may be added until ``call_next`` is called; those of the hub cannot be changed.

        A value is a text, a 64-bit whole number, a bool or ``None``; all headers together have at most 64 KiB.
        """
        found = self._headers
        if found is None:
            found = self._headers = _SendingHeaders(self)
        return found

    def _freeze(self) -> None:
        """From now on, adding a header raises an error: the message is being sent."""
        self._frozen = True

    def __repr__(self) -> str:
        return f"<Sending {self.kind} to {self.destination or self.event_type} ({self.outcome or 'not sent yet'})>"


class _SendingHeaders(MutableMapping[str, Any]):
    """The headers of one ``Outgoing``. Those of the hub stay as they are; what is added is checked at once."""

    __slots__ = ("_fixed", "_headers", "_sending")

    def __init__(self, sending: Sending) -> None:
        self._sending = sending
        self._headers = sending._outgoing.properties.headers
        self._fixed = frozenset(self._headers)

    def __getitem__(self, name: str) -> Any:
        return self._headers[name]

    def __setitem__(self, name: str, value: Any) -> None:
        check_header(name, value)
        self._check_name(name)
        check_headers_size({**self._headers, name: value})
        self._headers[name] = value

    def __delitem__(self, name: str) -> None:
        self._check_name(name)
        del self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    def __repr__(self) -> str:
        return f"<headers {', '.join(self._headers)}>"

    def _check_name(self, name: str) -> None:
        if self._sending._frozen:
            raise MessageValidationError("headers of a Sending must be added before call_next, not after it")
        if name in HUB_HEADERS:
            raise MessageValidationError(f"header {shown(name)} must not be set by a middleware: the hub reserves it")
        if name in self._fixed:
            raise MessageValidationError(
                f"header {shown(name)} must not be set by a middleware: the caller of this message has set it"
            )
