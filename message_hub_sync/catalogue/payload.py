"""What the payload models have in common, and the identities they speak of."""

from __future__ import annotations

from typing import Annotated, Any
from uuid import UUID

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
)

__all__ = ["CampaignId", "CharacterId", "Identity", "Payload"]


class Payload(BaseModel):
    """A payload: frozen, and keeping every field it does not know.

    An optional field that was not given is left out of the JSON: a ``null`` would tell receivers that the
    thing has none.
    """

    # Instances are looked at again when they are published: model_construct() checks nothing.
    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, revalidate_instances="always")

    @model_serializer(mode="wrap")
    def _leave_out_what_was_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        given = self.model_fields_set
        return {name: value for name, value in handler(self).items() if value is not None or name in given}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


#: The name of a thing: text, most often a UUID's. A :class:`uuid.UUID` is accepted and becomes its text.
Identity = Annotated[str, StringConstraints(min_length=1), BeforeValidator(_text)]

CharacterId = Annotated[
    Identity,
    Field(
        validation_alias=AliasChoices("character_id", "id"),
        description="The character; also accepted as `id`",
    ),
]

CampaignId = Annotated[
    Identity,
    Field(
        validation_alias=AliasChoices("campaign_id", "id"),
        description="The campaign; also accepted as `id`",
    ),
]
