"""The catalogue of this process. At first it contains the events of the integration guide's reference."""

from __future__ import annotations

from message_hub_sync.catalogue import campaign, character, image, llm
from message_hub_sync.catalogue.registry import Catalogue

__all__ = ["catalogue"]

#: The catalogue that all clients of this process use.
catalogue: Catalogue = Catalogue((*character.EVENT_TYPES, *campaign.EVENT_TYPES, *image.EVENT_TYPES, *llm.EVENT_TYPES))
