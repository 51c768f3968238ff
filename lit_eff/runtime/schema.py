"""What the files of a bundle have in common: strict fields, and no change of content where nothing is new."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Strict(BaseModel):
    """Immutable, without unknown fields or numbers that are not finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    # What older files lack stays out of the content where it is unknown: their digest stays the same.
    @model_serializer(mode="wrap")
    def _without_unknown(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        optional = {name for name, field in type(self).model_fields.items() if field.default is None}
        content: dict[str, Any] = handler(self)
        return {name: value for name, value in content.items() if value is not None or name not in optional}
