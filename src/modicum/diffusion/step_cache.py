"""What a step-caching method leaves behind: a policy under which a diffusion transformer computes less per step.

Neighbouring steps of a sampler ask the network nearly the same question, and most of its insides answer nearly the
same. So a method keeps parts of one pass and uses them in later ones:

    policy = FORA(interval=3).fit(Anatomy.of(model), context)
    with policy.attach(model):
        images = model.generate(...)
    policy.tally.evaluated          # branches computed, of policy.tally.of

Every generation gets a cache of its own, which ends with it, so nothing has to be reset and batches may differ in
size. Pictures with and without a label are rows of one batch, hence of every kept tensor: neither sees the other. A
call outside a generation computes everything. A policy knows no depth, so it fits a pruned model too. The solver
dopri5, which chooses its steps itself, is refused.

Legend: B rows of the network's batch, T tokens, D channels. A branch is the attention or the feed-forward layer of a
block, before its gate.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from modicum.errors import CheckpointError, InvalidSetting, ModicumError, UnsupportedModel
from modicum.method import Context, Policy, RuntimeMethod, build
from modicum.models import Anatomy
from modicum.models.dit import Block, DiT, SamplingStep
from modicum.models.dit.model import SAMPLERS
from modicum.models.dit.respacing import kept_steps

Sampling = Iterator[SamplingStep]
FORMAT, VERSION = "modicum.step-cache-policy", 1
BRANCHES = 2  # of a block


@dataclass
class Tally:
    """What one generation computed.

    Attributes:
        branches: branches computed, per pass of the network so far.
        of: branches that the passes would have computed without a cache.
        nbytes: most bytes that were kept from pass to pass.
    """

    branches: list[int] = field(default_factory=list)
    of: int = 0
    nbytes: int = 0

    @property
    def evaluated(self) -> int:
        """Branches computed by all passes."""
        return sum(self.branches)


class StepCache(ABC):
    """What is kept during one generation.

    Args:
        passes: how often the generation will call the network.

    Attributes:
        done: passes that are over.
        evaluated: branches that the present pass has computed.
    """

    def __init__(self, passes: int) -> None:
        self.passes = passes
        self.done = 0
        self.evaluated = 0

    @abstractmethod
    def stack(self, blocks: Sequence[Block], x: Tensor, c: Tensor) -> Tensor:
        """All blocks, or what stands for them: `x` `[B, T, D]`, `c` `[B, D]` to `[B, T, D]`."""

    @abstractmethod
    def kept(self) -> Iterable[Tensor]:
        """The tensors that are kept for later passes."""

    def run(self, blocks: Sequence[Block], x: Tensor, c: Tensor, tally: Tally) -> Tensor:
        """One pass through the blocks, and its entry in the tally."""
        self.evaluated = 0
        x = self.stack(blocks, x, c)
        self.done += 1
        tally.branches.append(self.evaluated)
        tally.of += BRANCHES * len(blocks)
        tally.nbytes = max(tally.nbytes, sum(tensor.nbytes for tensor in self.kept()))
        return x


class StepMethod(RuntimeMethod):
    """Base of the methods that reuse parts of one step of a sampler in later steps."""

    decides: ClassVar[str] = "what a step of the sampler computes"
    runs: ClassVar[tuple[str, ...]] = ("dit",)

    def fit(self, anatomy: Anatomy, context: Context) -> StepPolicy:
        """The policy for this model; nothing is measured.

        Raises:
            UnsupportedModel: the model is no DiT or SiT.
        """
        diffusion_transformer(anatomy.model)
        return StepPolicy(self)

    @classmethod
    def restore(cls, data: Mapping[str, Any]) -> StepPolicy:
        """The policy that `StepPolicy.to_json` wrote.

        Raises:
            CheckpointError: something else, of another version, or damaged.
        """
        return policy_from_json(data)

    @abstractmethod
    def cache(self, passes: int) -> StepCache:
        """An empty cache for a generation of that many passes."""


@dataclass
class StepPolicy(Policy):
    """A step-caching method, ready to be attached.

    Attributes:
        method: with all settings.
        tally: of the generation that began last.
    """

    method: StepMethod
    tally: Tally = field(default_factory=Tally, compare=False)

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[DiT]:
        """A context in which every generation of `model` runs under this policy.

        Raises:
            UnsupportedModel: the model is no DiT or SiT, or its blocks were replaced.
            InvalidSetting: a policy is attached to it already.
        """
        model = diffusion_transformer(model)
        if isinstance(vars(model).get("forward"), _Forward):
            raise InvalidSetting(
                "A step cache is attached to this model already.", "Leave its context first."
            )
        forward = _Forward(model)
        plain = model.steps

        def steps(*args: Any, **kwargs: Any) -> Sampling:
            bound = inspect.signature(plain).bind(*args, **kwargs)
            bound.apply_defaults()
            passes = _passes(model, bound.arguments)
            sampling = plain(*args, **kwargs)
            self.tally = Tally()
            return forward.under(self.method.cache(passes), self.tally, sampling)

        vars(model).update(forward=forward, steps=steps)
        try:
            yield model
        finally:
            del vars(model)["forward"], vars(model)["steps"]

    def to_json(self) -> dict[str, Any]:
        """Plain values that `policy_from_json` reads."""
        return {
            "format": FORMAT,
            "version": VERSION,
            "method": self.method.name,
            "settings": self.method.settings(),
        }


class _Forward:
    """`Transformer.forward` with the blocks run by the cache of the generation that is stepping."""

    def __init__(self, model: DiT) -> None:
        self.model = model
        self.plain = model.forward
        self.active: tuple[StepCache, Tally] | None = None

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, drop_ids: Tensor | None = None) -> Tensor:
        if self.active is None:
            return self.plain(x, t, y, drop_ids)
        cache, tally = self.active
        c = self.model.condition(t, y, drop_ids)
        blocks = cast("Sequence[Block]", self.model.blocks)
        return self.model.head(cache.run(blocks, self.model.embed(x), c, tally), c)

    def under(self, cache: StepCache, tally: Tally, sampling: Sampling) -> Sampling:
        """The steps of one generation; whatever happens between two of them does not meet its cache."""
        while True:
            self.active = cache, tally
            try:
                step = next(sampling, None)
            finally:
                self.active = None
            if step is None:
                return
            yield step


def diffusion_transformer(model: nn.Module) -> DiT:
    """`model`, if its blocks can be run branch by branch.

    Raises:
        UnsupportedModel: they cannot.
    """
    if not isinstance(model, DiT):
        raise UnsupportedModel(
            f"{type(model).__name__} is no diffusion transformer of modicum, so this step cache does not fit it.",
            "Give a DiT or SiT model.",
        )
    for index, block in enumerate(model.blocks):
        if type(block) is not Block:
            raise UnsupportedModel(
                f"blocks.{index} is a {type(block).__name__}, whose branches a step cache cannot tell apart.",
                "Take its gates out first.",
            )
    return model


def policy_from_json(data: Mapping[str, Any]) -> StepPolicy:
    """The inverse of `StepPolicy.to_json`.

    Raises:
        CheckpointError: something else, of another version, or damaged.
    """
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise CheckpointError("This is no step cache policy of modicum.", "Give a file that modicum wrote.")
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"The step cache policy has version {data.get('version')!r}, this modicum reads version {VERSION}.",
            "Fit the policy again, or update modicum.",
        )
    try:
        method = build(data["method"], data["settings"])
        if not isinstance(method, StepMethod):
            raise InvalidSetting(f"{method.name} caches no steps.", "Name a method that does.")
    except (KeyError, TypeError, ModicumError) as error:
        what = error.what if isinstance(error, ModicumError) else f"{type(error).__name__}: {error}"
        raise CheckpointError(f"The step cache policy is damaged: {what}", "Fit the policy again.") from error
    return StepPolicy(method)


def _passes(model: DiT, arguments: Mapping[str, Any]) -> int:
    """How often a generation with these arguments of `DiT.steps` calls the network."""
    sampler = arguments["sampler"] or SAMPLERS[model.config.kind][0]
    if sampler in SAMPLERS["dit"]:
        return len(kept_steps(str(arguments["steps"])))
    if sampler == "ode" and arguments["solver"] == "dopri5":
        raise InvalidSetting(
            "dopri5 chooses its steps itself, so a step cache cannot know which pass follows which.",
            "Choose the solver 'heun' or 'euler'.",
        )
    return int(arguments["steps"]) * (2 if sampler == "ode" and arguments["solver"] == "heun" else 1)
