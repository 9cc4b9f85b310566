"""Which tensors of a checkpoint feed which parameter of a model.

Names in a safetensors file and names in a model's state dict differ in a handful of ways, all decided here:

- the base model's prefix is there or not ("h.0.attn…" against "transformer.h.0.attn…");
- older names, which the family's table entry lists ("encoder.layer.0…" against "layers.0…");
- experts are stored one by one, and fused in the model: gate and up of every expert make one [experts, 2 *
  f, d];
- tied parameters are stored once, under either name.

Nothing is read here except what `load` asks for, one parameter at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modicum.errors import CheckpointError
from modicum.models.families import Family, family_of
from modicum.models.layer import Layer
from modicum.models.skeleton import load_tensors

_SHOWN = 5


@dataclass(frozen=True)
class SourceTensor:
    """One tensor of a checkpoint and the part of a parameter that it holds.

    Attributes:
        name: its name in the checkpoint.
        expert: index along the first axis of the parameter, or None for the whole parameter.
        rows: (start, stop) rows of that expert.
        shape: the shape that the model expects it to have.
    """

    name: str
    expert: int | None
    rows: tuple[int, int] | None
    shape: tuple[int, ...]

    def part_of(self, parameter: Tensor) -> Tensor:
        """The view of `parameter` that this tensor fills."""
        if self.expert is None or self.rows is None:
            return parameter
        return parameter[self.expert, slice(*self.rows)]


class CheckpointMap:
    """The mapping between one checkpoint's tensor names and one model's parameters.

    Args:
        available: every tensor name in the checkpoint.
        model: the model; parameters may be on the meta device.
        family: its table entry; looked up by default.
    """

    def __init__(self, available: Iterable[str], model: nn.Module, family: Family | None = None) -> None:
        self.available = frozenset(available)
        self.model = model
        self.family = family or family_of(model.config)
        self._prefix = getattr(model, "base_model_prefix", "")
        self._shapes = {name: tuple(tensor.shape) for name, tensor in _stored(model)}
        aliases: dict[int, list[str]] = {}
        for name, tensor in model.named_parameters(remove_duplicate=False):
            aliases.setdefault(id(tensor), []).append(name)
        self._tied = {name: names for names in aliases.values() for name in names}

    def needed(self, prefix: str = "", skip: Sequence[str] = ()) -> list[str]:
        """Names of the parameters and stored buffers below the module `prefix` but not below `skip`.

        Tied parameters are named once. Counters that only training reads are left out if the checkpoint
        lacks them.
        """
        outside = tuple(f"{name}." for name in skip)
        inside = [n for n in self._shapes if not prefix or n.startswith(f"{prefix}.")]
        inside = [n for n in inside if not n.startswith(outside)]
        optional = {n for n in inside if n.endswith("num_batches_tracked") and not self._find(n)}
        return [name for name in inside if name not in optional]

    def sources(self, name: str) -> list[SourceTensor]:
        """The checkpoint tensors that feed the parameter or buffer `name` of the model.

        Raises:
            CheckpointError: the checkpoint has no such tensors; the first few that are missing are named.
        """
        whole = self._find(name)
        if whole is not None:
            return [whole]
        wanted = expert_names(self.family, name, self._shapes[name]) or []
        found = [self._present(source) for source in wanted]
        absent = [source.name for source, here in zip(wanted, found, strict=True) if here is None]
        if absent or not wanted:
            raise self._lacks(absent or [name])
        return [source for source in found if source is not None]

    def missing(self, prefix: str = "") -> list[str]:
        """Names below `prefix` that the checkpoint cannot feed."""
        return [name for name in self.needed(prefix) if not self._has(name)]

    def check(self, shapes: Mapping[str, Sequence[int]], prefix: str = "") -> None:
        """Compare the checkpoint with the model before anything is read.

        Args:
            shapes: tensor name in the checkpoint -> shape.
            prefix: only what lies below this module.

        Raises:
            CheckpointError: missing tensors (the first few named), or the first tensor of another shape.
        """
        missing = self.missing(prefix)
        if missing:
            raise self._lacks(missing)
        for source in (source for name in self.needed(prefix) for source in self.sources(name)):
            _check_shape(source, shapes[source.name])

    def assemble(self, name: str, tensors: Mapping[str, Tensor]) -> Tensor:
        """The parameter `name` from its source tensors, in their dtype, as a tensor of its own.

        Args:
            name: a parameter or stored buffer of the model.
            tensors: checkpoint name -> values, with at least what `sources(name)` lists.

        Raises:
            CheckpointError: a tensor has another shape than the model's config implies.
        """
        sources = self.sources(name)
        for source in sources:
            _check_shape(source, tensors[source.name].shape)
        if sources[0].expert is None:
            # Readers may map the file: a write in place would keep its pages and change what is read next.
            return tensors[sources[0].name].clone()
        first = tensors[sources[0].name]
        fused = torch.empty(self._shapes[name], dtype=first.dtype, device=first.device)
        for source in sources:
            source.part_of(fused).copy_(tensors[source.name])
        return fused

    def split(self, name: str, parameter: Tensor) -> dict[str, Tensor]:
        """The inverse of `assemble`: checkpoint name -> contiguous part of the parameter `name`."""
        return {s.name: s.part_of(parameter).contiguous() for s in self.sources(name)}

    def load(self, prefix: str, read: Callable[[str], Tensor], skip: Sequence[str] = ()) -> None:
        """Fill every parameter and stored buffer below the module `prefix` ("" for all) of the model.

        Args:
            prefix: a module path.
            read: gives the tensor of a checkpoint name; called for one parameter's tensors at a time.
            skip: modules to leave alone; the names of all blocks, to load what is outside them.

        Raises:
            CheckpointError: missing tensors, other shapes, or tied parameters with two different values.
        """
        for name in self.needed(prefix, skip):
            tensors = {source.name: read(source.name) for source in self.sources(name)}
            self._check_tied(name, tensors, read)
            load_tensors(self.model, {name: self.assemble(name, tensors)})

    def source_of(self, layer: Layer) -> SourceTensor:
        """The checkpoint tensor that holds the weight of `layer`; it may hold other layers too, if fused."""
        sources = self.sources(layer.parameter_names[0])
        if layer.expert is None or sources[0].expert is None:
            return sources[0]
        same = [source for source in sources if source.expert == layer.expert]
        return same[-1] if layer.role == "up" else same[0]

    def _find(self, name: str) -> SourceTensor | None:
        """The one tensor that feeds `name`, under any of its possible names."""
        for alias in self._tied.get(name, [name]):
            for candidate in disk_names(self.family, alias, self._prefix):
                if candidate in self.available:
                    return SourceTensor(candidate, None, None, self._shapes[name])
        return None

    def _has(self, name: str) -> bool:
        try:
            return bool(self.sources(name))
        except CheckpointError:
            return False

    def _present(self, source: SourceTensor) -> SourceTensor | None:
        """`source` under the name that the checkpoint has for it, or None."""
        for candidate in _prefixed(source.name, self._prefix):
            if candidate in self.available:
                return SourceTensor(candidate, source.expert, source.rows, source.shape)
        return None

    def _check_tied(self, name: str, tensors: Mapping[str, Tensor], read: Callable[[str], Tensor]) -> None:
        for alias in self._tied.get(name, []):
            names = disk_names(self.family, alias, self._prefix)
            twin = next((name for name in names if name in self.available), None)
            if twin is not None and twin not in tensors and not torch.equal(read(twin), *tensors.values()):
                raise CheckpointError(
                    f"The config ties {name!r} and {alias!r}, but the checkpoint holds two different ones.",
                    'Set "tie_word_embeddings": false in config.json if both are meant.',
                )

    def _lacks(self, names: Sequence[str]) -> CheckpointError:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        shown = ", ".join(sorted(self.available)[:3])
        return CheckpointError(
            f"The checkpoint has no tensor for {', '.join(names[:_SHOWN])}{more}.",
            f"It holds {len(self.available)} tensors ({shown} ...). Is config.json that of another model?",
        )


def disk_names(family: Family, name: str, prefix: str = "") -> list[str]:
    """Every name under which a checkpoint may store the parameter `name` whole, the model's own first.

    Args:
        family: the model's table entry.
        name: a name in the model's state dict.
        prefix: the model's `base_model_prefix`.
    """
    renamed = name
    for pattern, replacement in (*family.renames, *_LEGACY):
        renamed = re.sub(pattern, replacement, renamed)
    return [n for base in dict.fromkeys((name, renamed)) for n in _prefixed(base, prefix)]


# TensorFlow's names for the two parameters of a layer norm, still found in early BERT checkpoints.
_LEGACY = ((r"LayerNorm\.weight$", "LayerNorm.gamma"), (r"LayerNorm\.bias$", "LayerNorm.beta"))


def expert_names(family: Family, name: str, shape: tuple[int, ...]) -> list[SourceTensor] | None:
    """The per-expert tensors of a fused expert parameter, or None if `name` is not one.

    Args:
        family: the model's table entry.
        name: a name in the model's state dict.
        shape: that parameter's (experts, rows, in).
    """
    experts = family.experts
    kind = name.rpartition(".")[2]
    if experts is None or not name.endswith(
        (f"{experts.module}.gate_up_proj", f"{experts.module}.down_proj")
    ):
        return None
    block = name.removesuffix(f"{experts.module}.{kind}")  # ends with a dot
    count, rows, columns = shape
    gate, up, down = experts.disk
    half = rows // 2
    parts = [(gate, 0, half), (up, half, rows)] if kind == "gate_up_proj" else [(down, 0, rows)]
    return [
        SourceTensor(block + pattern.format(expert=expert), expert, (start, stop), (stop - start, columns))
        for expert in range(count)
        for pattern, start, stop in parts
    ]


def _prefixed(name: str, prefix: str) -> list[str]:
    """`name` as it is, and with the base model's prefix taken away or added."""
    if not prefix:
        return [name]
    other = name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else f"{prefix}.{name}"
    return [name, other]


def _stored(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers that belong into a checkpoint; tied parameters once."""
    yield from model.named_parameters()
    kept = model.state_dict(keep_vars=True)
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _check_shape(source: SourceTensor, found: Sequence[int]) -> None:
    if tuple(found) != source.shape:
        raise CheckpointError(
            f"{source.name}: the config says {list(source.shape)}, the file holds {list(found)}.",
            "config.json and the weights belong to different models, or the file is damaged.",
        )
