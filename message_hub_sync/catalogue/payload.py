"""The base class of the payload models, and the types of the ids in them."""

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
    """Base class of payload models. Instances are frozen and keep fields that the model does not define.

    An optional field that was not given is left out of the JSON: ``null`` would mean that it has no value.
    """

    # Instances are validated again when they are published, because model_construct() does not validate.
    model_config = ConfigDict(extra="allow", frozen=True, populate_by_name=True, revalidate_instances="always")

    @model_serializer(mode="wrap")
    def _leave_out_what_was_not_given(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        given = self.model_fields_set
        return {name: value for name, value in handler(self).items() if value is not None or name in given}


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, UUID) else value


#: An id: text that is not empty, usually that of a UUID. A :class:`uuid.UUID` is accepted and converted to text.
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
