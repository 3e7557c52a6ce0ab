"""The events of the LLM service."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, Field

from message_hub_sync.catalogue.event_type import EventType
from message_hub_sync.catalogue.payload import Identity, Payload

__all__ = ["EVENT_TYPES", "LlmContentGenerated", "LlmGeneratePrompt", "LlmRefinementSuggested"]


class LlmContentGenerated(Payload):
    """Content has been generated, for a character or a campaign."""

    content_id: Annotated[
        Identity,
        Field(
            validation_alias=AliasChoices("content_id", "id"),
            description="The content; also accepted as `id`",
        ),
    ]
    content: str | dict[str, Any] | None = Field(default=None, description="The content itself")
    character_id: Identity | None = Field(default=None, description="The character it is for")
    campaign_id: Identity | None = Field(default=None, description="The campaign for which it was generated")


class LlmRefinementSuggested(Payload):
    """Refinements of a character are suggested; they are not applied yet."""

    refinement_id: Annotated[
        Identity,
        Field(
            validation_alias=AliasChoices("refinement_id", "id"),
            description="The suggestion; also accepted as `id`",
        ),
    ]
    suggestions: list[Any] | dict[str, Any] | None = Field(default=None, description="What is suggested")
    character_id: Identity | None = Field(default=None, description="The character it is for")


class LlmGeneratePrompt(Payload):
    """A prompt has been written; an image can be generated from it."""

    prompt_id: Annotated[
        Identity,
        Field(
            validation_alias=AliasChoices("prompt_id", "id"),
            description="The prompt; also accepted as `id`",
        ),
    ]
    prompt: str | dict[str, Any] | None = Field(default=None, description="The prompt itself")
    character_id: Identity | None = Field(default=None, description="The character to show")
    campaign_id: Identity | None = Field(default=None, description="The campaign to which it belongs")


_SERVICE = "llm-service"

EVENT_TYPES = (
    EventType(
        "llm.content_generated",
        "Content generation complete",
        _SERVICE,
        ("character-service", "campaign-service"),
        LlmContentGenerated,
    ),
    EventType(
        "llm.refinement_suggested",
        "Refinement suggestions available",
        _SERVICE,
        ("character-service",),
        LlmRefinementSuggested,
    ),
    EventType(
        "llm.generate_prompt",
        "Generation prompt created",
        _SERVICE,
        ("image-service",),
        LlmGeneratePrompt,
    ),
)
