"""The process's catalogue, which starts with the events of the integration guide's reference."""

from __future__ import annotations

from message_hub_sync.catalogue import campaign, character, image, llm
from message_hub_sync.catalogue.registry import Catalogue

__all__ = ["catalogue"]

#: What every client of this process looks events up in.
catalogue: Catalogue = Catalogue((*character.EVENT_TYPES, *campaign.EVENT_TYPES, *image.EVENT_TYPES, *llm.EVENT_TYPES))
