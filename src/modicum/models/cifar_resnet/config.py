"""Widths of a residual network for CIFAR: those of the paper by depth, or any others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from modicum.errors import InvalidSetting

STAGES = 3


class CifarResNetConfig(BaseModel):
    """Three stages of equally many blocks of two 3 x 3 convolutions; a later stage halves the side.

    A stage reads what the stage before it left, between `pads` zero channels on either side.

    Attributes:
        width: channels of the first stage.
        pads: channels that the second and third stage add before and after those they read.
        inner: channels between the two convolutions of every block, in execution order.
        classes: of the answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    model_type: ClassVar[str] = "cifar_resnet"

    width: int = Field(16, gt=0)
    pads: tuple[tuple[int, int], tuple[int, int]] = ((8, 8), (16, 16))
    inner: tuple[int, ...] = Field(min_length=STAGES)
    classes: int = Field(10, gt=0)

    @model_validator(mode="after")
    def _consistent(self) -> CifarResNetConfig:
        if len(self.inner) % STAGES:
            raise ValueError(f"{len(self.inner)} blocks are not {STAGES} equal stages")
        if min(self.inner) <= 0 or min(map(min, self.pads)) < 0:
            raise ValueError("inner widths are above zero, pads not below")
        return self

    @classmethod
    def of_depth(cls, depth: int, classes: int = 10) -> CifarResNetConfig:
        """The published network of 6 n + 2 layers: 20, 32, 44, 56, 110.

        Raises:
            InvalidSetting: no such depth.
        """
        blocks, rest = divmod(depth - 2, 2 * STAGES)
        if blocks < 1 or rest:
            raise InvalidSetting(
                f"No ResNet for CIFAR has {depth} layers.", "Depths are 6 n + 2, such as 20 or 56."
            )
        return cls(inner=(16,) * blocks + (32,) * blocks + (64,) * blocks, classes=classes)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CifarResNetConfig:
        """From `to_dict`.

        Raises:
            InvalidSetting: a setting that modicum does not know, or of the wrong type or range.
        """
        try:
            return cls(**{key: value for key, value in data.items() if key != "model_type"})
        except ValidationError as error:
            faults = "; ".join(
                f"{'.'.join(map(str, e['loc'])) or 'sizes'}: {e['msg']}" for e in error.errors()
            )
            raise InvalidSetting(
                f"The ResNet configuration is not usable: {faults}.", "Correct it."
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """The layout that `from_dict` reads."""
        return {"model_type": self.model_type, **self.model_dump(mode="json")}

    @property
    def widths(self) -> tuple[int, int, int]:
        """Channels that leave each stage."""
        second = self.width + sum(self.pads[0])
        return self.width, second, second + sum(self.pads[1])
