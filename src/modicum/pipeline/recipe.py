"""A recipe: an ordered list of methods with their settings, and the data that calibrates them.

In YAML::

    seed: 0
    calibration: {source: stdlib, samples: 128, length: 512}
    steps:
      - prune.sparsegpt: {sparsity: 0.5}
      - quantize.gptq: {bits: 4, group_size: 64}

A step without settings may be a bare name. A list of steps alone is a recipe as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError

from modicum.errors import InvalidSetting, ModicumError, UnknownName
from modicum.method import Method, build, readable, shown


class Calibration(BaseModel):
    """The text (or token file) that a run's statistics come from.

    `length` is cut to the model's context. The published settings are 128 windows of 2048 tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str = Field(
        "stdlib", description="stdlib, a text file or folder, hf:DATASET, or a .safetensors file of token ids"
    )
    samples: int = Field(128, ge=1, description="number of windows")
    length: int = Field(2048, ge=2, description="tokens per window")
    propagate_error: bool = Field(
        True,
        description="calibrate a block on what the compressed blocks before it give; without, on what the dense model "
        "gives, in one forward pass instead of two",
    )


class Recipe(BaseModel):
    """Ordered methods, calibration data and the seed of everything random."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    steps: tuple[SerializeAsAny[Method], ...]
    calibration: Calibration = Calibration()
    seed: int = Field(0, ge=0, lt=2**63)

    @classmethod
    def of(cls, *steps: Method, seed: int = 0, **calibration: Any) -> Recipe:
        """A recipe from method objects: `Recipe.of(Wanda(sparsity=0.5), RTN(bits=4), samples=32)`."""
        return cls(steps=steps, calibration=Calibration(**calibration), seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain JSON values; `parse` gives it back."""
        return {
            "seed": self.seed,
            "calibration": self.calibration.model_dump(mode="json"),
            "steps": [{step.name: step.settings()} for step in self.steps],
        }

    def to_yaml(self) -> str:
        """The recipe as YAML, with the settings that differ from their defaults."""
        steps: list[Any] = []
        for step in self.steps:
            changed = step.model_dump(mode="json", exclude_defaults=True)
            steps.append({step.name: changed} if changed else step.name)
        changed = self.calibration.model_dump(mode="json")
        value = {"seed": self.seed, "calibration": changed, "steps": steps}
        return str(yaml.safe_dump(value, sort_keys=False, default_flow_style=None))


def load(path: Path) -> Recipe:
    """Read a recipe file.

    Raises:
        InvalidSetting: the file is missing, not YAML, or not a recipe.
        UnknownName: a method or a setting that does not exist.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidSetting(f"The recipe {path} cannot be read.", "Give the path of a YAML file.") from error
    try:
        return parse_text(text)
    except ModicumError as error:
        raise type(error)(f"{path}: {error.what}", error.hint) from error


def parse_text(text: str) -> Recipe:
    """A recipe from YAML text.

    Raises:
        InvalidSetting: not YAML, or not a recipe.
        UnknownName: a method or a setting that does not exist.
    """
    try:
        value = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, RecursionError, *_SLIPS) as error:
        reason = " ".join(str(error).split())
        raise InvalidSetting(f"The recipe is not valid YAML: {reason}", EXAMPLE) from error
    return parse(value)


class _Loader(yaml.SafeLoader):
    """YAML without its numbers in base 60 and base 8: `2:4` is a text, not 124."""


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(0|[1-9][0-9]*)",
    "tag:yaml.org,2002:float": r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+)([eE][-+][0-9]+)?|[-+]?\.inf|\.nan",
}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _form in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"(?:{_form})$"), list("-+.0123456789"))


def _integer(loader: yaml.SafeLoader, node: Any) -> int:
    return int(str(loader.construct_scalar(node)))


_Loader.add_constructor("tag:yaml.org,2002:int", _integer)

# PyYAML lets these through for values that do not fit their tag (`!!bool x`, `!!timestamp x`, 2020-13-45)
_SLIPS = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)

EXAMPLE = "A recipe looks like:  steps: [{prune.wanda: {sparsity: 0.5}}, quantize.gptq]"


def parse(value: Any) -> Recipe:
    """A recipe from plain values (the content of a YAML or JSON file)."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = {"steps": value}
    if not isinstance(value, Mapping):
        raise InvalidSetting("The recipe holds no steps.", EXAMPLE)
    for key in value:
        if key not in Recipe.model_fields:
            raise UnknownName.among("recipe key", str(key), Recipe.model_fields)
    steps = value.get("steps")
    if not isinstance(steps, Sequence) or isinstance(steps, str) or not steps:
        raise InvalidSetting("The recipe holds no steps.", EXAMPLE)
    try:
        return Recipe(
            steps=tuple(_step(step) for step in steps),
            calibration=Calibration(**_mapping(value.get("calibration"), "calibration")),
            seed=value.get("seed", 0),
        )
    except ValidationError as error:
        raise InvalidSetting(f"calibration or seed: {readable(error)}", EXAMPLE) from error


def _step(step: Any) -> Method:
    if isinstance(step, str):
        return build(step, {})
    if isinstance(step, Mapping) and len(step) == 1:
        ((name, settings),) = step.items()
        return build(str(name), _mapping(settings, str(name)))
    raise InvalidSetting(f"{shown(step)} is not a step.", EXAMPLE)


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InvalidSetting(f"{where}: settings must be a mapping (given: {shown(value)}).", EXAMPLE)
    return dict(value)
