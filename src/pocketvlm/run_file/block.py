"""What every block of the run file is: closed, documented, and without keys that mean nothing."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class IdleKeys(ValueError):
    def __init__(self, keys: dict[str, str]) -> None:
        super().__init__(f"{', '.join(keys)}: without effect")
        self.keys = keys


class Block(BaseModel):
    """A closed block: a key that is not here is an error, and so is one that means nothing beside the others."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    def idle(self) -> dict[str, str]:
        """Keys that mean nothing as the others are set, and what to do about each."""
        return {}

    @model_validator(mode="after")
    def _nothing_idle_is_set(self) -> Self:
        set_ = {key for key in self.model_fields_set if getattr(self, key) not in (None, [], {})}
        if idle := {key: why for key, why in self.idle().items() if key in set_}:
            raise IdleKeys(idle)
        return self

    @model_serializer(mode="wrap")
    def _nothing_idle_is_written(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        idle = self.idle()
        return {key: value for key, value in handler(self).items() if key not in idle}
