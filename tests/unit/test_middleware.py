"""What a client takes for middleware, and what it costs to have none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from message_hub_sync import MessageHubClient, MessageHubConfigurationError, Middleware, Received
from message_hub_sync.middleware import CallNext, overriding
from message_hub_sync.publishing.publisher import Publisher


class Asynchronous(Middleware):
    async def handle(self, received: Received, call_next: Callable[[], Any]) -> Any:
        return call_next()


class Generating(Middleware):
    def arrived(self, received: Received) -> Iterator[int]:  # type: ignore[override]
        yield 1


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (Middleware(), "middleware must be a list of Middleware objects, not Middleware"),
        ("text", "middleware must be a list of Middleware objects, not 'text'"),
        (7, "middleware must be a list of Middleware objects, not 7"),
        ([Middleware], r"middleware must hold Middleware objects, not the class Middleware: write Middleware\(\)"),
        ([object()], "middleware must hold Middleware objects, not object"),
        ([Asynchronous()], r"Asynchronous\.handle must be a plain function, not one with 'async' or 'yield'"),
        ([Generating()], r"Generating\.arrived must be a plain function"),
    ],
    ids=["object", "text", "number", "class", "other", "async", "generator"],
)
def test_what_is_no_list_of_middleware_is_refused(given: Any, says: str) -> None:
    with pytest.raises(MessageHubConfigurationError, match=says):
        MessageHubClient("image-service", "memory://middleware", middleware=given)


def test_any_iterable_of_middleware_is_taken() -> None:
    for given in ([], (), [Middleware()], iter([Middleware(), Middleware()])):
        MessageHubClient("image-service", "memory://middleware", middleware=given).close()


def test_a_method_that_is_not_overridden_is_never_called() -> None:
    class OnlyArrived(Middleware):
        def arrived(self, received: Received) -> None: ...

    assert overriding([OnlyArrived(), Middleware()], "send") == ()
    assert len(overriding([OnlyArrived(), Middleware()], "arrived")) == 1
    with MessageHubClient("image-service", "memory://middleware", middleware=[OnlyArrived()]) as client:
        # The plain publisher: this middleware costs what is sent nothing.
        assert type(client._lifecycle.session().publisher) is Publisher


def test_call_next_can_be_called_once() -> None:
    def method() -> None: ...

    call_next = CallNext(method, 0, lambda: 42)
    assert call_next() == 42
    assert call_next.returned
    with pytest.raises(MessageHubConfigurationError, match="once, before method returns, not twice"):
        call_next()
    assert call_next.end()
    late = CallNext(method, 0, lambda: 42)
    assert not late.end()
    with pytest.raises(MessageHubConfigurationError, match="not after it"):
        late()
    assert not late.returned
