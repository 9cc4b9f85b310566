"""Weights that lie in memory as DFloat11 codes and exist only while they are used.

A group of weights (those of a block, or one embedding) is decoded by a hook just before the forward pass of its
module, into a buffer that all groups share, and is gone afterwards. So a model takes the memory of its codes and of one
decoded group; with prefetching on a GPU of two, the second being decoded beside the computation.

    70% Size, 100% Accuracy: Lossless LLM Compression via Dynamic-Length Float (NeurIPS 2025, arXiv 2504.11651)

Between two passes an `Absent` stands for every weight: it has shape and dtype, and refuses to be used as values. Where
a backward pass will need the weights (LoRA on top of frozen codes), they are decoded into memory of their own, which
lives as long as autograd holds it, instead of the buffer that the next group would overwrite. `torch.compile` breaks
its graph around the hook.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from modicum.errors import UnsupportedModel
from modicum.kernels.huffman.decoder import check_gaps, decode
from modicum.kernels.huffman.layout import Encoded, Prepared, prepare

HOSTED = ("encoded_exponent", "sign_mantissa")
"""Arrays that stay in the memory of the host under offloading: nearly all bytes."""

_ASKED = frozenset(
    {"__get__", "__repr__", "size", "dim", "numel", "t", "stride", "element_size", "is_floating_point"}
)


class Absent(Tensor):
    """Stands for a weight that is not decoded now: shape, dtype and device are known, values are not."""

    label: str
    _is_hf_initialized: bool  # a mark of transformers: there is nothing to initialize

    @staticmethod
    def of(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, label: str) -> Absent:
        """A stand-in of some bytes for the weight `label`."""
        absent = torch.full((), torch.nan, dtype=dtype, device=device).expand(shape).as_subclass(Absent)
        absent.label, absent._is_hf_initialized = label, True
        return absent

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in _ASKED:
            with torch._C.DisableTorchFunctionSubclass():
                found = func(*args, **(kwargs or {}))
            return found.as_subclass(cls) if isinstance(found, Tensor) else found
        named = next((a.label for a in args if isinstance(a, cls) and hasattr(a, "label")), "A weight")
        raise UnsupportedModel(
            f"{named} is coded and exists only while its block runs ({getattr(func, '__name__', func)}).",
            "Write the original with modicum export --plain, and open that.",
        )


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

    def clear(self, dtype: torch.dtype, device: torch.device) -> None:
        """Let the module have a stand-in."""
        self.put(Absent.of(self.shape, dtype, device, self.label))


@dataclass(eq=False)
class Group:
    """Weights that are decoded together.

    Attributes:
        name: path of the module that holds the arrays.
        holder: that module.
        stored: dtype of the weights.
        users: modules before whose forward pass the weights are needed, and where they go; a tied head is a second.
    """

    name: str
    holder: nn.Module
    stored: torch.dtype
    users: list[tuple[nn.Module, tuple[Place, ...]]]
    hosted: dict[str, Tensor] = field(default_factory=dict)
    _prepared: Prepared | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are decoded."""
        return self.holder._buffers["luts"].device  # type: ignore[union-attr]

    @property
    def numel(self) -> int:
        """How many weights there are."""
        return sum(prod(place.shape) for place in self.users[0][1])

    def arrays(self) -> dict[str, Tensor]:
        """The coded arrays, wherever they lie."""
        names = Encoded.__dataclass_fields__
        held = {
            key: value for key, value in self.holder._buffers.items() if key in names and value is not None
        }
        return {**held, **self.hosted}

    def prepared(self) -> Prepared:
        """The checked group; checked again after it was moved.

        Raises:
            CheckpointError: the arrays contradict each other.
        """
        luts = self.holder._buffers["luts"]
        if self._prepared is None or self._prepared.encoded.luts is not luts:
            arrays = {key: value.to(self.device) for key, value in self.arrays().items()}
            self._prepared = prepare(Encoded(**arrays, dtype=self.stored), self.name)
            if self.hosted:
                self._prepared = self._with(self.hosted)
        if not self.hosted:
            return self._prepared
        return self._with(
            {key: value.to(self.device, non_blocking=True) for key, value in self.hosted.items()}
        )

    def _with(self, arrays: Mapping[str, Tensor]) -> Prepared:
        assert self._prepared is not None
        return replace(
            self._prepared, encoded=replace(self._prepared.encoded, **cast("dict[str, Any]", arrays))
        )

    def host(self) -> None:
        """Move the large arrays into the memory of the host, locked there if that makes sense."""
        for key in HOSTED:
            array = self.holder._buffers.pop(key)
            if array is not None:
                self.hosted[key] = array.cpu().pin_memory() if array.is_cuda else array.cpu()
        self._prepared = None


class CodedWeights:
    """All coded weights of a model: the hooks, and the memory that they decode into.

    Args:
        groups: in execution order.
        dtype: what the model computes in; weights stored in another one are cast after decoding.
        prefetch: on a GPU, decode the next group while this one computes.
    """

    def __init__(self, groups: Sequence[Group], dtype: torch.dtype, *, prefetch: bool = True) -> None:
        self.groups, self.dtype, self.prefetch = groups, dtype, prefetch
        self._buffers: dict[tuple[torch.device, torch.dtype, int], Tensor] = {}
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._ahead: tuple[Group, Tensor, torch.cuda.Event] | None = None
        self._slot = 0
        self._following = dict(zip(groups, [*groups[1:], groups[0]], strict=True)) if groups else {}
        for group in groups:
            self.withdraw(group)
            for user, places in group.users:
                _hook(self, group, user, places)

    def check(self) -> None:
        """Compare all arrays with each other before the first pass; on a GPU nothing would notice later.

        Raises:
            CheckpointError: a group is damaged.
        """
        for group in self.groups:
            prepared = group.prepared()
            if group.device.type != "cpu":
                arrays = {key: value.cpu() for key, value in group.arrays().items()}
                check_gaps(prepare(Encoded(**arrays, dtype=group.stored), group.name))
            del prepared

    def offload(self) -> None:
        """Keep the codes in the memory of the host; only what is decoded is on the accelerator."""
        for group in self.groups:
            group.host()

    def provide(self, group: Group, places: tuple[Place, ...], kept: bool) -> None:
        """Decode a group into its places.

        Args:
            group: the group.
            places: where its weights go.
            kept: whether they must outlive the pass.
        """
        flat = self._decode(group, None if kept else self._slot)
        for place, weight in zip(places, flat.split([prod(place.shape) for place in places]), strict=True):
            place.put(weight.view(place.shape))

    def withdraw(self, group: Group) -> None:
        """Take the weights of a group away."""
        for _, places in group.users:
            for place in places:
                place.clear(self.dtype, group.device)

    def _decode(self, group: Group, slot: int | None) -> Tensor:
        if group.device.type != "cuda" or not self.prefetch or slot is None:
            return self._decode_into(group, slot)
        current = torch.cuda.current_stream(group.device)
        if self._ahead is not None and self._ahead[0] is group:
            _, flat, done = self._ahead
            current.wait_event(done)
        else:
            if self._ahead is not None:
                current.wait_event(self._ahead[2])
            flat = self._decode_into(group, self._slot)
        self._slot = 1 - self._slot
        self._ahead = self._decode_ahead(self._following[group], current)
        return flat

    def _decode_ahead(
        self, group: Group, current: torch.cuda.Stream
    ) -> tuple[Group, Tensor, torch.cuda.Event] | None:
        """Begin to decode a group beside the computation, into the buffer that the last pass has left."""
        if group.device != current.device:
            return None
        stream = self._streams.setdefault(group.device, torch.cuda.Stream(group.device))
        stream.wait_stream(current)  # what read that buffer is queued there
        with torch.cuda.stream(stream):
            flat, done = self._decode_into(group, self._slot), torch.cuda.Event()
            done.record(stream)
        return group, flat, done

    def _decode_into(self, group: Group, slot: int | None) -> Tensor:
        out = self._room(group, group.stored, slot)
        decode(group.prepared(), out, threads=torch.get_num_threads())
        return out if group.stored == self.dtype else self._room(group, self.dtype, slot).copy_(out)

    def _room(self, group: Group, dtype: torch.dtype, slot: int | None) -> Tensor:
        """Memory for a group: its own, or the beginning of a buffer that grows to the largest group."""
        if slot is None:
            return torch.empty(group.numel, dtype=dtype, device=group.device)
        key = group.device, dtype, slot
        if key not in self._buffers or self._buffers[key].numel() < group.numel:
            self._buffers.pop(key, None)  # free before the larger one is made
            most = max(other.numel for other in self.groups if other.device == group.device)
            with torch.inference_mode(False):  # else only passes in inference mode could write to it
                self._buffers[key] = torch.empty(most, dtype=dtype, device=group.device)
        return self._buffers[key][: group.numel]


def _hook(coded: CodedWeights, group: Group, user: nn.Module, places: tuple[Place, ...]) -> None:
    """Decode before every forward pass of `user`, and take the weights away behind it."""

    @torch.compiler.disable
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        coded.provide(group, places, _differentiated(module, args, kwargs))

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
