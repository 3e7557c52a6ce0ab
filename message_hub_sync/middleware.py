"""Middleware: code that is called around each message that is sent or handled (tracing, signing, frameworks, an inbox).

A client gets its middleware once, ``MessageHubClient(middleware=[…])``. The first of the list is the outermost. A
client without middleware uses other entry points, so middleware costs it nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from types import AsyncGeneratorType, CoroutineType, GeneratorType, MappingProxyType
from typing import Any, Literal, Protocol
from uuid import UUID

from message_hub_sync.envelope.encode import check_header, check_headers_size
from message_hub_sync.envelope.header_names import DESTINATION, HUB_HEADERS, IN_REPLY_TO
from message_hub_sync.envelope.ids import uuid_of
from message_hub_sync.envelope.values import Event, Message, Properties
from message_hub_sync.errors import MessageHubConfigurationError, MessageValidationError
from message_hub_sync.runtime.log import SafeLogger
from message_hub_sync.runtime.text import shown
from message_hub_sync.transport.base import Delivery, Outgoing
from message_hub_sync.transport.topology import EVENTS

__all__ = [
    "CallNext",
    "Middleware",
    "Received",
    "Sending",
    "SendingKind",
    "SendingOutcome",
    "checked_middleware",
    "method_name",
    "overriding",
    "refuse_not_run",
]

SendingKind = Literal["event", "message", "request", "reply"]
SendingOutcome = Literal["confirmed", "rejected", "unknown", "circuit_open", "invalid", "not_sent"]

logger = SafeLogger("message_hub_sync.client")

#: The methods of a middleware, and what each is called with.
_METHODS = {"send": ("batch", "call_next"), "arrived": ("received",), "handle": ("received", "call_next")}
_NOT_PLAIN = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


class Middleware:
    """Code that runs around each call that sends and each delivery that is handled. Override the methods that you need.

    One object serves all threads of its client at the same time, so it must be thread-safe. A method that is not
    overridden is never called.
    """

    def send(self, batch: Sequence[Sending], call_next: Callable[[], None]) -> None:
        """Run around one call that sends, on the caller's thread. It must call ``call_next`` once.

        It runs once for each call: a single message is a batch of one, a bulk call is one batch. It also runs for
        replies. It does not run for attempts that the library repeats inside the call, nor for messages that the
        library republishes to retry queues and dead-letter queues. Its time counts against the call's ``timeout``.

        If this method sends a message itself, that message passes only the middleware after this one in the list:
        otherwise it would call itself without end.

        :param batch: what is sent, in order. Headers may be added.
        :param call_next: sends. It returns when the broker has all messages, and raises what the caller would get.
            After that, each ``Sending`` has its ``outcome``. A second call raises
            :class:`MessageHubConfigurationError`.

        What this method raises reaches the caller. If it raises before ``call_next``, nothing was sent. If it returns
        without ``call_next``, nothing was sent and the caller gets a :class:`MessageHubConfigurationError`. An error of
        ``call_next`` that it does not pass on is raised nevertheless.
        """
        call_next()

    def arrived(self, received: Received) -> None:
        """Look at a delivery before anything else is done with it, on the consumer's thread.

        It runs for each delivery, replies included, before the body is decoded, a reply is matched to its request, or
        a duplicate is dropped.

        :raises MessageHubRejectError: the delivery must not be handled. It is moved to the dead-letter queue with the
            reason. If its queue has none, it is dropped and counted. Nobody gets a reply. Any other error counts as an
            error of the handler.
        """

    def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        """Run around the handling of one delivery, on the consumer's thread, in a context of its own.

        ``call_next`` runs the check for duplicates and all callbacks of the delivery. The reply is sent, and the
        delivery is acknowledged, after the outermost ``handle`` has returned. A reply to a request of this process is
        not handled, so it passes ``arrived`` only.

        :param call_next: runs the callbacks and returns their result; raises what they raise. A second call raises
            :class:`MessageHubConfigurationError`.
        :returns: the result, which is the reply if the delivery is a request. ``None`` sends no reply.

        If it returns without ``call_next``, the delivery counts as handled already: it is acknowledged and counted as
        skipped. What it raises counts as the error of the handler: a retry, then the dead-letter queue.
        """
        return call_next()


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


class DeliveryView(Protocol):
    """What :class:`Received` shows: a delivery that knows what it is. A Protocol: the way in imports this module."""

    delivery: Delivery

    @property
    def sending_kind(self) -> SendingKind: ...

    @property
    def event_type(self) -> str: ...

    @property
    def attempt(self) -> int: ...

    def envelope(self) -> Event[Any] | Message[Any]: ...


class Received:
    """One delivery, as :meth:`Middleware.arrived` and :meth:`Middleware.handle` see it. For the consumer's thread.

    Everything is read from the delivery when it is asked for.
    """

    __slots__ = ("_delivery", "_is_reply", "_view")

    def __init__(self, view: DeliveryView, *, is_reply: bool = False) -> None:
        self._view = view
        self._delivery = view.delivery
        self._is_reply = is_reply

    @property
    def kind(self) -> SendingKind:
        """``event``, ``message``, ``request`` (its sender waits for a reply) or ``reply``."""
        return "reply" if self._is_reply else self._view.sending_kind

    @property
    def event_type(self) -> str | None:
        """The type of an event, also after a retry; ``None`` for anything else."""
        return self._view.event_type if self.kind == "event" else None

    @property
    def attempt(self) -> int:
        """1 for the first run of the handler, counted by the message's own header."""
        return self._view.attempt

    @property
    def body(self) -> bytes:
        """The body as it came, not checked."""
        return self._delivery.body

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers as they came, read-only. Other clients may write anything there."""
        return MappingProxyType(self._delivery.properties.headers)

    @property
    def properties(self) -> Properties:
        """The AMQP properties as they came: ``message_id``, ``correlation_id``, ``app_id``, … Not to be changed."""
        return self._delivery.properties

    @property
    def queue(self) -> str:
        """The queue that delivered it."""
        return self._delivery.queue

    @property
    def redelivered(self) -> bool:
        """Whether the broker has delivered it before."""
        return self._delivery.redelivered

    @property
    def envelope(self) -> Event[Any] | Message[Any]:
        """The envelope, decoded at the first call. Handlers of the delivery share it.

        :raises MessageValidationError: it is not a message of the hub; the text says why.
        """
        return self._view.envelope()

    def __repr__(self) -> str:
        return f"<Received {self.kind} from {self.queue} (attempt {self.attempt})>"


def checked_middleware(given: Any) -> tuple[Middleware, ...]:
    """The middleware of a client, each one checked.

    :raises MessageHubConfigurationError: it is no list of :class:`Middleware` objects, or a method cannot be called as
        it will be.
    """
    if isinstance(given, (str, bytes, Mapping, Middleware, type)) or not isinstance(given, Iterable):
        is_one = isinstance(given, Middleware) or (isinstance(given, type) and issubclass(given, Middleware))
        name = given.__name__ if isinstance(given, type) else type(given).__name__
        hint = f": write [{name}()]" if is_one else ""
        raise MessageHubConfigurationError(f"middleware must be a list of Middleware objects, not {shown(given)}{hint}")
    found = tuple(given)
    for each in found:
        if not isinstance(each, Middleware):
            hint = f": write {each.__name__}()" if isinstance(each, type) else ""
            raise MessageHubConfigurationError(f"middleware must hold Middleware objects, not {shown(each)}{hint}")
        for name, arguments in _METHODS.items():
            _check_method(each, name, arguments)
        if not any(overriding([each], name) for name in _METHODS):
            logger.warning("the middleware %s does nothing: override %s", type(each).__name__, ", ".join(_METHODS))
    return found


def _check_method(middleware: Middleware, name: str, arguments: tuple[str, ...]) -> None:
    method = getattr(middleware, name)
    owner = f"{type(middleware).__name__}.{name}"
    if not callable(method):
        raise MessageHubConfigurationError(f"{owner} must be a method, not {shown(method)}")
    if any(is_not_plain(method) for is_not_plain in _NOT_PLAIN):
        raise MessageHubConfigurationError(
            f"{owner} must be a plain function, not one with 'async' or 'yield': calling it would run nothing of it"
        )
    try:
        signature = inspect.signature(method)
    except ValueError:  # some callables written in C have no signature: the first call will show
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise MessageHubConfigurationError(
            f"{owner} must take ({', '.join(('self', *arguments))}), not ({', '.join(('self', *signature.parameters))})"
        ) from None


def overriding(middleware: Sequence[Middleware], method: str) -> tuple[Any, ...]:
    """The bound methods named ``method`` of each middleware that overrides it, in the order of the list."""
    own = getattr(Middleware, method)
    found = (getattr(each, method) for each in middleware)
    return tuple(each for each in found if getattr(each, "__func__", None) is not own)


class CallNext:
    """The ``call_next`` that one middleware gets for one call. It works once, and only until that middleware returns.

    If two threads call it, also at the same time, the second call raises.
    """

    __slots__ = ("_error", "_method", "_once", "active", "index", "returned")

    def __init__(self, method: Callable[..., Any], index: int, rest: Callable[[], Any]) -> None:
        self._method = method
        #: The position of the middleware in the list.
        self.index = index
        self.active = True  # false once the middleware has returned
        self.returned = False  # true once call_next has ended, in whatever thread it ran
        self._error: BaseException | None = None  # what call_next raised; written by its thread
        # pop() is atomic: exactly one caller gets it.
        self._once = [rest]

    def __call__(self) -> Any:
        try:
            rest = self._once.pop()
        except IndexError:
            what = "twice" if self.active else "after it"
            raise MessageHubConfigurationError(
                f"call_next must be called once, before {method_name(self._method)} returns, not {what}: "
                "nothing was done this time"
            ) from None
        try:
            return rest()
        except BaseException as error:
            self._error = error
            raise
        finally:
            self.returned = True

    def end(self) -> bool:
        """The middleware has returned or raised: from now on a call raises. Returns whether there was a call."""
        self.active = False
        try:
            self._once.pop()
        except IndexError:
            return True
        return False

    def take_error(self) -> BaseException | None:
        """Return what the call raised, and forget it:

        an exception that is kept keeps its traceback and the message in memory.
        """
        error, self._error = self._error, None
        return error


def refuse_not_run(result: Any, method: Callable[..., Any]) -> None:
    """Raise if ``result`` is a coroutine or a generator: the body of ``method`` has not run.

    :raises MessageHubConfigurationError: the result is a coroutine or a generator.
    """
    if isinstance(result, (CoroutineType, GeneratorType, AsyncGeneratorType)):
        if isinstance(result, (CoroutineType, GeneratorType)):
            result.close()
        raise MessageHubConfigurationError(
            f"{method_name(method)} must do its work before it returns, not return a {type(result).__name__}: "
            "its code has not run"
        )


def method_name(method: Callable[..., Any]) -> str:
    """``Class.method`` of a middleware, for an error text."""
    owner = getattr(method, "__self__", None)
    name = getattr(method, "__name__", "method")
    return name if owner is None else f"{type(owner).__name__}.{name}"
