"""The proof, other than a confirm, that the broker accepted a message."""

from __future__ import annotations

from message_hub_sync.transport.base import PublishResult, Receipt

__all__ = ["Acceptance"]


class Acceptance:
    """Ends the wait for the confirm of a request when its reply comes first: the broker has accepted the request.

    One caller publishes the request; any thread may call :meth:`prove`. No lock: :meth:`prove` sets ``proved`` before
    it reads the receipt, and :meth:`watch` sets the receipt before it reads ``proved``, so one of the two resolves it.
    """

    __slots__ = ("_receipt", "proved")

    def __init__(self) -> None:
        self.proved = False  # written once
        self._receipt: Receipt | None = None  # of the present attempt; written by the caller that publishes

    def prove(self) -> None:
        """The reply has come: wake the caller that waits for the confirm."""
        self.proved = True
        if self._receipt is not None:
            self._receipt.resolve(PublishResult.CONFIRMED)

    def watch(self, receipt: Receipt) -> None:
        """The receipt of the present attempt, before the caller waits for it."""
        self._receipt = receipt
        if self.proved:
            receipt.resolve(PublishResult.CONFIRMED)
