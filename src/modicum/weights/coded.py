"""Weights that lie in memory as DFloat11 codes and exist only while they are used.

A group of weights (those of a block, or one embedding) is decoded by a hook just before the forward pass of its
module, into a buffer that all groups share, and is gone afterwards. So a model takes the memory of its codes and of one
decoded group; with prefetching on a GPU of two, the second being decoded beside the computation
(`modicum.weights.lanes`). The experts of a block are a group inside that of the block, and have a buffer of their own.

    70% Size, 100% Accuracy: Lossless LLM Compression via Dynamic-Length Float (NeurIPS 2025, arXiv 2504.11651)

Between two passes an `Absent` stands for every weight. Where a backward pass will need the weights (LoRA on top of
frozen codes), they are decoded into memory of their own, which lives as long as autograd holds it, instead of the
buffer that the next group would overwrite. `torch.compile` breaks its graph around the hook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from modicum.kernels.huffman.decoder import check_gaps, decode
from modicum.kernels.huffman.layout import Encoded, Prepared, prepare
from modicum.weights.absent import Absent
from modicum.weights.lanes import Lane

HOSTED = ("encoded_exponent", "sign_mantissa")
"""Arrays that stay in the memory of the host under offloading: nearly all bytes."""


@dataclass(frozen=True)
class Place:
    """Where a decoded weight goes.

    Attributes:
        module: that has the weight.
        attribute: under which name.
        shape: of the weight.
        label: its full name.
    """

    module: nn.Module
    attribute: str
    shape: tuple[int, ...]
    label: str

    def put(self, weight: Tensor) -> None:
        """Let the module have `weight`."""
        self.module.__dict__[self.attribute] = weight


@dataclass(eq=False)
class Group:
    """Weights that are decoded together.

    Attributes:
        name: path of the module that holds the arrays.
        holder: that module.
        stored: dtype of the weights.
        dtype: what the model computes in; weights stored in another one are cast after decoding.
        users: modules before whose forward pass the weights are needed, and where they go; a tied head is a second.
        hosted: arrays that stay in the memory of the host.
    """

    name: str
    holder: nn.Module
    stored: torch.dtype
    dtype: torch.dtype
    users: list[tuple[nn.Module, tuple[Place, ...]]]
    hosted: dict[str, Tensor] = field(default_factory=dict)
    _checked: tuple[Tensor, Prepared] | None = None
    _absent: tuple[torch.device, list[tuple[Place, Absent]]] | None = None

    @property
    def luts(self) -> Tensor:
        """The tables; another tensor after the group was moved."""
        return cast("Tensor", self.holder._buffers["luts"])

    @property
    def device(self) -> torch.device:
        """Where the weights are decoded."""
        return self.luts.device

    @property
    def numel(self) -> int:
        """How many weights there are."""
        return sum(prod(place.shape) for place in self.users[0][1])

    def ready(self) -> Prepared:
        """The checked arrays, wherever they lie; checked again after they were moved.

        Raises:
            CheckpointError: they contradict each other.
        """
        if self._checked is None or self._checked[0] is not self.luts:
            prepared = self._prepare(self.device)
            if self.device.type != "cpu":
                check_gaps(self._prepare(torch.device("cpu")))  # later nothing would notice there
            encoded = replace(prepared.encoded, **cast("dict[str, Any]", self.hosted))
            self._checked = self.luts, replace(prepared, encoded=encoded)
        return self._checked[1]

    def prepared(self) -> Prepared:
        """The checked arrays, all of them where they are decoded; what the host holds is copied for this call."""
        ready = self.ready()
        if not self.hosted:
            return ready
        here = {key: array.to(self.device, non_blocking=True) for key, array in self.hosted.items()}
        return replace(ready, encoded=replace(ready.encoded, **cast("dict[str, Any]", here)))

    def _prepare(self, device: torch.device) -> Prepared:
        held = {key: self.holder._buffers.get(key) for key in Encoded.__dataclass_fields__} | self.hosted
        arrays = {key: array.to(device) for key, array in held.items() if array is not None}
        return prepare(Encoded(**arrays, dtype=self.stored), self.name)

    def decoded(self, out: Tensor | None = None, cast_to: Tensor | None = None) -> Tensor:
        """All weights in the dtype that the model computes in, [numel].

        Args:
            out: [numel] of the stored dtype, to decode into; None makes memory of their own.
            cast_to: [numel] of the other dtype, if it is another one.
        """
        flat = decode(self.prepared(), out, threads=torch.get_num_threads())
        if self.stored == self.dtype:
            return flat
        return flat.to(self.dtype) if cast_to is None else cast_to.copy_(flat)

    def withdraw(self, device: torch.device | None = None) -> None:
        """Put stand-ins in all places; on the device of the group by default."""
        device = self.device if device is None else device
        if self._absent is None or self._absent[0] != device:
            self._absent = (
                device,
                [
                    (place, self._stand_in(place, index, device))
                    for _, places in self.users
                    for index, place in enumerate(places)
                ],
            )
        for place, absent in self._absent[1]:
            place.put(absent)

    def _stand_in(self, place: Place, index: int, device: torch.device) -> Absent:
        return Absent.of(place.shape, self.dtype, device, place.label, partial(self._alone, index))

    def _alone(self, index: int) -> Tensor:
        """One weight in memory of its own."""
        places = self.users[0][1]
        flat = self.decoded().split([prod(place.shape) for place in places])[index]
        return flat.view(places[index].shape)


class CodedWeights:
    """All coded weights of a model, and the hooks that decode them.

    Args:
        groups: of the model.
        streams: what has the interface of `torch.cuda` to decode ahead with, beside the computation; that itself does
            so on a GPU only. None decodes when a group's turn comes.
    """

    def __init__(self, groups: Sequence[Group], streams: Any = None) -> None:
        self.groups, self.streams = groups, streams
        self._lanes: dict[tuple[torch.device, int], Lane] = {}
        self._open: list[tuple[Group, Lane | None]] = []
        for group in groups:
            group.withdraw()
            for user, places in group.users:
                _hook(self, group, user, places)

    def check(self) -> None:
        """Compare all arrays with each other before the first pass.

        Raises:
            CheckpointError: a group is damaged.
        """
        for group in self.groups:
            group.ready()

    def provide(self, group: Group, user: nn.Module, places: tuple[Place, ...], kept: bool) -> None:
        """Decode a group into its places.

        Args:
            group: the group.
            user: the module that is about to run.
            places: where its weights go.
            kept: whether they must outlive the pass.
        """
        lane = None if kept else self._lane(group.device)
        self._open.append((group, lane))
        flat = group.decoded() if lane is None else lane.take(group, user)
        for place, weight in zip(places, flat.split([prod(place.shape) for place in places]), strict=True):
            place.put(weight.view(place.shape))

    def withdraw(self, group: Group) -> None:
        """Take the weights of a group away."""
        group.withdraw()
        while any(opened is group for opened, _ in self._open):
            opened, lane = self._open.pop()
            if lane is not None:
                lane.leave()
            if opened is group:
                return

    def _lane(self, device: torch.device) -> Lane:
        """The memory for what is decoded while as many groups are in use as now."""
        key = device, len(self._open)
        if key not in self._lanes:
            used = {group.device for group in self.groups}
            self._lanes = {place: lane for place, lane in self._lanes.items() if place[0] in used}
            elsewhere = self.streams is torch.cuda and device.type != "cuda"
            self._lanes[key] = Lane(device, None if elsewhere else self.streams)
        return self._lanes[key]


def _hook(coded: CodedWeights, group: Group, user: nn.Module, places: tuple[Place, ...]) -> None:
    """Decode before every forward pass of `user`, and take the weights away behind it."""

    @torch.compiler.disable
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        coded.provide(group, module, places, _differentiated(module, args, kwargs))

    @torch.compiler.disable
    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        coded.withdraw(group)

    user.register_forward_pre_hook(before, with_kwargs=True)
    user.register_forward_hook(after, always_call=True)


def _differentiated(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a backward pass may follow, which reads the weights once more."""
    if not torch.is_grad_enabled():
        return False
    inputs = (*args, *kwargs.values(), *module.parameters())
    return any(isinstance(value, Tensor) and value.requires_grad for value in inputs)
