"""One block with what calibration saw of it: statistics per layer, and calls of sub-modules that can be replayed.

`observe` runs a block once over all calibration batches with hooks on its layers. Layers that receive the very same
tensor share one set of running sums. The fused experts of a mixture have no module per expert, so their inputs are
sorted by expert where they enter, and the inputs of the down projections are recomputed there.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from modicum.calibrate.directions import Directions
from modicum.calibrate.statistics import DIRECTIONS, MATRICES, Statistics
from modicum.errors import UnsupportedModel
from modicum.models.anatomy import Block, ExpertsView, Layer, ResolvedFold

CALL_TOKENS = 2048


@dataclass(frozen=True)
class Call:
    """Arguments of one call of a sub-module."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class CalibratedBlock:
    """A block whose weights are in memory, and what calibration knows of it.

    Attributes:
        block: the block.
        statistics: running sums by layer name; layers with one input share the object.
        calls: recorded calls by sub-module path, at most `CALL_TOKENS` input vectors each.
        references: the weight that each touched layer should reproduce, [out, in]; moves along with scale migration.
        matrices: for each layer, what is known of each of its weights, [out, in] by name.
    """

    block: Block
    statistics: dict[str, Statistics] = field(default_factory=dict)
    calls: dict[str, list[Call]] = field(default_factory=dict)
    references: dict[str, Tensor] = field(default_factory=dict)
    matrices: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def layer_statistics(self, layer: Layer) -> Statistics:
        """Statistics of one layer; those of white noise where no token reached it (an expert nobody asked)."""
        found = self.statistics.get(layer.name)
        if found is None:
            return Statistics()
        if not found.tokens:
            found = Statistics.of_white_noise(found.wanted, layer.in_features, layer.weight.device)
        return replace(found, matrices={**found.matrices, **self.matrices.get(layer.name, {})})

    def add_gradients(self, gradients: Mapping[str, Tensor], tokens: int) -> None:
        """Take in what a pass over `tokens` tokens of the dense model said, [out, in] by layer name."""
        for name, gradient in gradients.items():
            self.statistics.setdefault(name, Statistics(frozenset({"gradient"}), tokens))
            self.matrices.setdefault(name, {})["gradient"] = gradient

    def replay(self, parent: str) -> list[Tensor]:
        """Outputs of the sub-module `parent` on its recorded calls, with the block's weights as they are now."""
        module = _submodule(self.block, parent)
        outputs = [module(*call.args, **call.kwargs) for call in self.calls[parent]]
        return [output[0] if isinstance(output, tuple) else output for output in outputs]

    def migrate(self, fold: ResolvedFold, scale: Tensor) -> None:
        """Apply a fold, and bring statistics and reference weights along.

        Args:
            fold: where the scale moves from and to.
            scale: [fold.features], positive.
        """
        fold.apply(scale)
        shared = {id(found): found for layer in fold.targets if (found := self.statistics.get(layer.name))}
        for found in shared.values():
            found.divide_inputs(scale)
        for layer in fold.targets:
            self._rescale_reference(layer.name, scale)
            self._rescale_matrices(layer.name, MATRICES, 1 / scale.float())
        if isinstance(fold.source, Layer):
            self._rescale_reference(fold.source.name, 1 / scale[:, None])
            # Where its output points now would have to be measured again; no method asks after a migration.
            self._rescale_matrices(fold.source.name, {"gradient"}, scale.float()[:, None])

    def _rescale_reference(self, name: str, factor: Tensor) -> None:
        if name in self.references:
            reference = self.references[name]
            self.references[name] = (reference.float() * factor).to(reference.dtype)

    def _rescale_matrices(self, name: str, kinds: Collection[str], factor: Tensor) -> None:
        known = self.matrices.get(name, {})
        self.matrices[name] = {kind: m * factor if kind in kinds else m for kind, m in known.items()}


def _submodule(block: Block, path: str) -> nn.Module:
    return block.module.get_submodule(path.removeprefix(block.name).lstrip("."))


@torch.no_grad()
def observe(
    block: Block,
    run: Callable[[int, Tensor], Tensor],
    hidden: Sequence[Tensor],
    wanted: Mapping[str, frozenset[str]],
    parents: Collection[str] = (),
    masks: Sequence[Tensor | None] = (),
    keep: Callable[[int, Tensor], None] | None = None,
) -> CalibratedBlock:
    """Run `block` once over all batches and collect what is wanted of its layers.

    Without `keep`, a forward pass ends at the input of the block's last layer.

    Args:
        block: its weights must be in memory.
        run: `run(i, hidden)` gives the block's output for batch i.
        hidden: block inputs, one tensor per batch.
        wanted: statistics by layer name.
        parents: paths of sub-modules whose calls are to be recorded.
        masks: bool [batch, tokens] per batch, False at padding, which is left out of the statistics.
        keep: called with the number of each batch and what the block makes of it; may overwrite `hidden`.
    """
    calibrated = CalibratedBlock(block, {name: Statistics(kinds) for name, kinds in wanted.items()})
    taps = _Taps(calibrated.statistics, early=keep is None)
    with _recording(calibrated, parents, copied=keep is not None), _hooks(block, taps, wanted):
        for i, states in enumerate(hidden):
            taps.begin(masks[i] if i < len(masks) else None)
            try:
                output = run(i, states)
            except _EverythingSeen:
                continue
            if keep is not None:
                keep(i, output)
    sequences = sum(len(states) for states in hidden)
    for found in calibrated.statistics.values():
        found.sequences = sequences
    calibrated.matrices = {name: sums.matrices() for name, sums in taps.directions.items()}
    return calibrated


class _EverythingSeen(Exception):
    """Ends a block's forward pass when its last layer has its input: nobody wants the output."""


class _Taps:
    """Feeds layer inputs into running sums, once per distinct tensor."""

    def __init__(self, statistics: dict[str, Statistics], early: bool) -> None:
        self.statistics, self.early = statistics, early
        self.directions = {
            name: Directions(kinds)
            for name, found in statistics.items()
            if (kinds := found.wanted & DIRECTIONS)
        }
        # Holding the tensors of the current batch keeps their identities from being reused.
        self.seen: dict[Hashable, tuple[Tensor, Statistics]] = {}
        self.mask: Tensor | None = None
        self.hooked = self.fired = 0

    def begin(self, mask: Tensor | None) -> None:
        self.seen.clear()
        self.mask = mask
        self.fired = 0

    def stop_after_the_last(self) -> None:
        """Called by every hook when it is done."""
        self.fired += 1
        if self.fired == self.hooked:
            self.seen.clear()
            if self.early:
                raise _EverythingSeen

    def feed(self, layer: Layer, inputs: Tensor) -> None:
        if layer.name in self.directions:
            _refuse_groups(layer)
            self.directions[layer.name].update(self._vectors(layer, inputs), layer.weight)
        own, key = self.statistics[layer.name], (id(inputs), _geometry(layer))
        if key not in self.seen:
            self.seen[key] = (inputs, own)
            own.update(self._vectors(layer, inputs))
            return
        shared = self.seen[key][1]
        if shared is own:
            return
        if own.tokens == 0 and shared.wanted >= own.wanted:
            self.statistics[layer.name] = shared
        else:
            own.update(self._vectors(layer, inputs))

    def _vectors(self, layer: Layer, inputs: Tensor) -> Tensor:
        if layer.kind == "conv2d":
            return _patches(layer.module, inputs)
        return self.unpadded(inputs) if layer.expert is None else inputs

    def unpadded(self, inputs: Tensor) -> Tensor:
        """The vectors of `inputs` [batch, tokens, d] or [batch * tokens, d] that are not padding."""
        if self.mask is None or inputs.shape[:-1].numel() != self.mask.numel():
            return inputs
        return inputs.flatten(0, -2)[self.mask.flatten().to(inputs.device)]  # [kept, d]


def _refuse_groups(layer: Layer) -> None:
    if isinstance(layer.module, nn.Conv2d) and layer.module.groups > 1:
        raise UnsupportedModel(
            f"{layer.name} is a grouped convolution, no single matrix that could turn its output.",
            f"Leave it out with skip=['{layer.name}'].",
        )


def _geometry(layer: Layer) -> Hashable:
    """What else decides which vectors a layer multiplies: convolutions cut the same image differently."""
    if not isinstance(layer.module, nn.Conv2d):
        return None
    conv = layer.module
    return conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups


def _patches(module: nn.Module, images: Tensor) -> Tensor:
    """What every output position of a convolution multiplies: [positions, in / groups * kh * kw]."""
    assert isinstance(module, nn.Conv2d)
    padding: Any = module.padding  # named paddings ("same") do not occur in the models that are described
    columns = F.unfold(images, module.kernel_size, module.dilation, padding, module.stride)
    grouped = columns.unflatten(1, (module.groups, -1))  # [batch, groups, in / groups * kh * kw, positions]
    return grouped.permute(0, 1, 3, 2).flatten(0, 2)


@contextmanager
def _hooks(block: Block, taps: _Taps, wanted: Mapping[str, frozenset[str]]) -> Iterator[None]:
    with ExitStack() as stack:
        for layer in block.layers:
            if layer.name in wanted and layer.expert is None:
                hook = layer.module.register_forward_pre_hook(_layer_hook(taps, layer))
                stack.callback(hook.remove)
                taps.hooked += 1
        if block.experts and any(layer.name in wanted for layer in block.experts.layers):
            hook = block.experts.module.register_forward_pre_hook(_experts_hook(taps, block.experts))
            stack.callback(hook.remove)
            taps.hooked += 1
        yield


def _layer_hook(taps: _Taps, layer: Layer) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        taps.feed(layer, args[0])
        taps.stop_after_the_last()

    return hook


def _experts_hook(taps: _Taps, experts: ExpertsView) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
        hidden, indices = taps.unpadded(args[0]), taps.unpadded(args[1])  # [tokens, d], [tokens, k]
        for expert in range(experts.num_experts):
            routed = hidden[(indices == expert).any(1)]  # [routed, d]
            if len(routed):
                _feed_expert(taps, experts, expert, routed)
        taps.stop_after_the_last()

    return hook


def _feed_expert(taps: _Taps, experts: ExpertsView, expert: int, routed: Tensor) -> None:
    gate, up, down = experts.gate[expert], experts.up[expert], experts.down[expert]
    for layer in (gate, up):
        if layer.name in taps.statistics:
            taps.feed(layer, routed)
    if down.name in taps.statistics:
        fused: Any = experts.module
        taps.feed(down, fused._apply_gate(F.linear(routed, fused.gate_up_proj[expert])))


@contextmanager
def _recording(calibrated: CalibratedBlock, parents: Collection[str], copied: bool) -> Iterator[None]:
    with ExitStack() as stack:
        for path in parents:
            calls = calibrated.calls.setdefault(path, [])
            module = _submodule(calibrated.block, path)
            hook = module.register_forward_pre_hook(_record_hook(calls, copied), with_kwargs=True)
            stack.callback(hook.remove)
        yield


def _record_hook(
    calls: list[Call], copied: bool
) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if sum(_vectors(call) for call in calls) >= CALL_TOKENS:
            return
        if (
            copied
        ):  # what enters the block will be overwritten, and a sub-module may have been given just that
            args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, kwargs))
        calls.append(Call(args, kwargs))

    return hook


def _vectors(call: Call) -> int:
    hidden = call.args[0] if call.args else call.kwargs["hidden_states"]
    return int(hidden.shape[:-1].numel())
