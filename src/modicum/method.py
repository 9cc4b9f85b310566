"""What a method is: four verbs, the declaration of what it needs, keeps and gives, and the registry.

A method is one published technique in one file: a frozen pydantic model whose fields are its settings (defaults as
published) and which implements one verb:

* `LayerMethod.compress` changes one weight matrix at a time. The sweep over blocks, the calibration, the memory and
  the resume belong to the pipeline.
* `ModelMethod.transform` changes the structure, or trains.
* `StorageMethod.encode` changes how weights are stored, and no bit of them.
* `RuntimeMethod.fit` leaves a `Policy` attached that changes how the model runs.

A method registers itself by being imported: the file `prune/wanda.py` holds `class Wanda`, whose name is
`prune.wanda`. The command line, the YAML schema and the documentation are derived from the registry.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from modicum.errors import InvalidSetting, UnknownName
from modicum.kernels.chunks import chunked_bytes
from modicum.weights.properties import (
    IntegerGrid,
    LayerShapes,
    NMPattern,
    Property,
    TiedWeights,
    ZeroMask,
)

if TYPE_CHECKING:
    from modicum.calibrate.block import CalibratedBlock
    from modicum.calibrate.statistics import Statistics
    from modicum.data.samples import Samples
    from modicum.models.anatomy import Anatomy
    from modicum.trainer.objective import Objective
    from modicum.weights.base import WeightForm

FAMILIES = (
    "prune",
    "quantize",
    "factorize",
    "experts",
    "lossless",
    "cache",
    "tokens",
    "diffusion",
    "distill",
    "adapt",
    "train",
)


@dataclass(frozen=True)
class Paper:
    """Where a method was published."""

    title: str
    venue: str
    arxiv: str = ""

    @property
    def url(self) -> str:
        """Address of the preprint, or an empty string."""
        return f"https://arxiv.org/abs/{self.arxiv}" if self.arxiv else ""


@dataclass
class Context:
    """What the pipeline hands to every method: randomness, place, data and progress. No globals.

    Attributes:
        generator: the only source of randomness.
        device: where the work happens.
        dtype: compute dtype of the model.
        batches: calibration batches (keyword arguments of the model's forward).
        work_directory: scratch space that survives a restart of the run.
        progress: called with a short text whenever a step of the work is done.
        data: training data, for methods that train.
        objective: the loss that they train with; that of the model's kind by default.
        teacher: the model to learn from, for methods that distil.
        notes: what methods found out, by their name; a method adds to it, and modicum.json keeps it.
        promised: what holds for the layers of the model, by name: a method that keeps it must not break it.
    """

    generator: torch.Generator
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    batches: list[dict[str, Tensor]] = field(default_factory=list)
    work_directory: Path | None = None
    progress: Callable[[str], None] = lambda text: None
    data: Samples | None = None
    objective: Objective | None = None
    teacher: nn.Module | None = None
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    promised: Mapping[str, frozenset[Property]] = field(default_factory=dict)


@dataclass(frozen=True)
class Target:
    """One weight matrix as a layer method sees it.

    Attributes:
        name: unique dotted name of the layer.
        role: what the layer does in its block ("q", "down", ...).
        weight: [out_features, in_features] as the previous step of the recipe left it.
        bias: [out_features] or None.
        zeros: bool [out_features, in_features], True where an earlier step promised an exact zero; None if none did.
    """

    name: str
    role: str
    weight: Tensor
    bias: Tensor | None = None
    zeros: Tensor | None = None


class Method(BaseModel, ABC):
    """Base of all methods. Settings are the fields; whatever is not in `keeps` counts as broken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str] = ""
    paper: ClassVar[Paper]
    needs: ClassVar[tuple[type[Property], ...]] = ()
    keeps: ClassVar[tuple[type[Property], ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register a concrete method under `family.file`."""
        super().__pydantic_init_subclass__(**kwargs)
        if inspect.isabstract(cls) or cls.__module__ == __name__:
            return
        cls.name = ".".join(cls.__module__.split(".")[-2:])
        _REGISTRY[cls.name] = cls

    def gives(self) -> tuple[Property, ...]:
        """Properties that hold for every touched layer after this step."""
        return ()

    @classmethod
    def summary(cls) -> str:
        """First line of the docstring: the idea in one sentence."""
        return (inspect.getdoc(cls) or "").split("\n", 1)[0]

    def settings(self) -> dict[str, Any]:
        """The settings as plain JSON values."""
        return self.model_dump(mode="json")


class LayerMethod(Method):
    """A method that turns one weight matrix into a weight form."""

    only: tuple[str, ...] = Field(
        (), description="touch only layers whose name or role matches one of these patterns"
    )
    skip: tuple[str, ...] = Field(
        (), description="leave layers alone whose name or role matches one of these patterns"
    )

    def touches(self, name: str, role: str) -> bool:
        """Whether this step applies to the layer `name` with that `role` (shell patterns)."""

        def matches(patterns: tuple[str, ...]) -> bool:
            return any(fnmatch(name, p) or fnmatch(name, f"*.{p}") or role == p for p in patterns)

        return (not self.only or matches(self.only)) and not matches(self.skip)

    def of_layer(self, name: str) -> Self:
        """This step with the settings that it has for the layer `name`: its own, unless layers share a budget."""
        return self

    def statistics(self) -> frozenset[str]:
        """Names of the calibration statistics that `compress` reads; empty means that no data is needed."""
        return frozenset()

    def inputs(self) -> bool:
        """Whether `prepare` replays parts of the block on its recorded inputs."""
        return False

    def prepare(self, block: CalibratedBlock) -> None:
        """Rewrite a block without changing its function before its layers are compressed (scale migration)."""

    @abstractmethod
    def expected_form(self, weight: Tensor) -> WeightForm:
        """The form that `compress` will give `weight` (on the meta device, [out, in]): for sizes, before any data."""

    def workspace(self, weight: Tensor) -> int:
        """Bytes that `compress` needs at its peak for `weight` (on the meta device), beside weight and result."""
        return 8 * weight.numel() + chunked_bytes(weight.numel())

    @abstractmethod
    def compress(self, target: Target, statistics: Statistics) -> WeightForm:
        """The compressed form of one weight matrix. A pure function."""


class ModelMethod(Method):
    """A method that changes the structure of a model, or trains it.

    Attributes:
        asks_teacher: whether it learns from the model that the run began with (or from a teacher that is named).
    """

    asks_teacher: ClassVar[bool] = False

    def samples_read(self) -> int:
        """How many samples of the context's data it reads, repetitions counted; 0 if it needs no data."""
        return 0

    def blocks_kept(self, stacks: Sequence[int]) -> tuple[int, ...] | None:
        """How many blocks of each stack stay whole, as far as that is known before the step has run.

        Args:
            stacks: how many there are.

        Returns:
            As many numbers; None if the step cuts into blocks, or only running it tells.

        Raises:
            InvalidSetting: no such choice from so many blocks.
        """
        return None

    @abstractmethod
    def transform(self, anatomy: Anatomy, context: Context) -> Anatomy:
        """The anatomy of the changed model."""


@dataclass(frozen=True)
class Coding:
    """Weights as a storage method writes them.

    Attributes:
        tensors: what to store, by name; empty if the weights are to be stored as they are.
        bound: bits per weight below which no code for single bytes can get.
        raw: why they are to be stored as they are.
    """

    tensors: Mapping[str, Tensor]
    bound: float
    raw: str = ""


class StorageMethod(Method):
    """A method that changes how weights are stored and nothing else: every bit comes back.

    It is the last step that changes what is on disk, so it keeps every property.
    """

    keeps = (ZeroMask, NMPattern, IntegerGrid, TiedWeights, LayerShapes)

    @abstractmethod
    def groups(self, anatomy: Anatomy) -> dict[str, tuple[str, ...]]:
        """Which parameters are coded together: by the module that their arrays are named after."""

    @abstractmethod
    def encode(self, tensors: Sequence[Tensor]) -> Coding:
        """The weights of one group (on a CPU, of one dtype, in the order of the group). A pure function."""


class Policy(ABC):
    """What a runtime method leaves attached to a model; saved as JSON beside the weights.

    Attributes:
        method: that was fitted, with all settings.
    """

    method: RuntimeMethod

    @abstractmethod
    def attach(self, model: nn.Module) -> AbstractContextManager[nn.Module]:
        """A context in which `model` runs under this policy; leaving it restores the model."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """The policy as plain JSON values."""


class RuntimeMethod(Method):
    """A method that changes how a model runs.

    Attributes:
        decides: what it decides; two methods that decide the same cannot run one model.
        runs: `model_type` of the models that it can run.
    """

    decides: ClassVar[str]
    runs: ClassVar[tuple[str, ...]]

    def measures(self) -> bool:
        """Whether `fit` reads the context's batches."""
        return False

    @abstractmethod
    def fit(self, anatomy: Anatomy, context: Context) -> Policy:
        """The policy for this model."""

    @classmethod
    @abstractmethod
    def restore(cls, data: Mapping[str, Any]) -> Policy:
        """The policy that `Policy.to_json` wrote.

        Raises:
            CheckpointError: something else, of another version, or damaged.
        """


_REGISTRY: dict[str, type[Method]] = {}


def registry() -> dict[str, type[Method]]:
    """All methods by name; imports every family that is installed."""
    for family in FAMILIES:
        try:
            package = importlib.import_module(f"modicum.{family}")
        except ModuleNotFoundError as error:
            if error.name != f"modicum.{family}":
                raise
            continue
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"modicum.{family}.{module.name}")
    return dict(sorted(_REGISTRY.items()))


def find(name: str) -> type[Method]:
    """The method called `name`.

    Raises:
        UnknownName: no method has that name; the hint is the nearest one.
    """
    methods = registry()
    if name not in methods:
        raise UnknownName.among("method", name, methods)
    return methods[name]


def build(name: str, settings: Mapping[str, Any]) -> Method:
    """The method `name` with these settings, validated.

    Raises:
        UnknownName: there is no such method or no such setting.
        InvalidSetting: a value has the wrong type or is out of range.
    """
    method = find(name)
    for key in settings:
        if key not in method.model_fields:
            raise UnknownName.among(f"setting of {name}", str(key), method.model_fields)
    try:
        return method(**settings)
    except ValidationError as error:
        raise InvalidSetting(f"{name}: {readable(error)}", f"See `modicum show {name}`.") from error


def readable(error: ValidationError) -> str:
    """A validation error as one line per cause: key, complaint, value."""
    lines = []
    for cause in error.errors():
        key = ".".join(str(part) for part in cause["loc"]) or "settings"
        message = cause["msg"].removeprefix("Value error, ")
        given = "" if isinstance(cause.get("input"), dict) else f" (given: {shown(cause.get('input'))})"
        lines.append(f"{key}: {message}{given}")
    return "; ".join(lines)


def shown(value: Any) -> str:
    """A value as an error message shows it: cut short, however long or deep it is."""
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 100
    return brief.repr(value)
