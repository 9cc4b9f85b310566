"""The routed experts of one block as layers: three matrices per expert, sliced out of two fused tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from modicum.models.families import Experts
from modicum.models.layer import Layer
from modicum.models.storage import ExpertStorage


@dataclass(frozen=True)
class ExpertsView:
    """The experts of one block: y_e = down_e(act(gate_e x) * up_e x).

    Attributes:
        name: path of the module that owns the fused parameters.
        module: that module; called as `module(hidden [T, d], indices [T, k], weights [T, k])`.
        num_experts: how many there are.
        router: path of the module that scores experts.
        router_module: that module; returns (logits [T, experts], weights [T, k], indices [T, k]).
        gate: the gate matrices [f, d], by expert.
        up: the up matrices [f, d], by expert.
        down: the down matrices [d, f], by expert.
    """

    name: str
    module: nn.Module
    num_experts: int
    router: str
    router_module: nn.Module
    gate: tuple[Layer, ...]
    up: tuple[Layer, ...]
    down: tuple[Layer, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Gate, up and down of expert 0, then of expert 1, and so on."""
        return tuple(layer for expert in zip(self.gate, self.up, self.down, strict=True) for layer in expert)


def experts_of(
    index: int, block: str, inside: Mapping[str, nn.Module], experts: Experts | None
) -> ExpertsView | None:
    """The experts of a block, or None where the family or this block (a dense one) has none.

    Args:
        index: index of the block.
        block: path of the block.
        inside: every module of the block by its path.
        experts: where the family keeps them.
    """
    if experts is None or experts.module not in inside:
        return None
    module = inside[experts.module]
    fused: Tensor = module.gate_up_proj  # type: ignore[assignment]  # [experts, 2 * f, d]
    count, half = fused.shape[0], fused.shape[1] // 2
    name = f"{block}.{experts.module}"

    def slices(role: str, parameter: str, rows: slice) -> tuple[Layer, ...]:
        return tuple(
            Layer(
                f"{name}.{expert}.{role}_proj",
                role,
                index,
                ExpertStorage(module, parameter, expert, rows),
                module,
                parameter,
                expert,
            )
            for expert in range(count)
        )

    return ExpertsView(
        name,
        module,
        count,
        f"{block}.{experts.router}",
        inside[experts.router],
        slices("gate", "gate_up_proj", slice(0, half)),
        slices("up", "gate_up_proj", slice(half, 2 * half)),
        slices("down", "down_proj", slice(None)),
    )
