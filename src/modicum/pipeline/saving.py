"""Write a model that is in memory, regular or not, as a directory that transformers opens again.

`save_pretrained` knows two kinds of models: those that config.json describes completely, and those of a quantizer that
can write itself. A compressed model is often neither: its layers have different widths, and some of them are weight
forms. Here the model is compared with the regular model of its config; what differs goes into modicum.json, from which
the loader rebuilds it. A model in which nothing differs is written plainly, and needs modicum for nothing.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.core_model_loading import revert_weight_conversion

from modicum.errors import OutputExists, UnsupportedModel
from modicum.formats.irregular import added_biases, differences, stored_tensors, tensor_at
from modicum.formats.manifest import Manifest
from modicum.formats.merge import join_all, plan_shards
from modicum.formats.native import config_entries
from modicum.formats.shards import no_space, write_json, write_tensors
from modicum.kernels.grids import IntegerScheme, quantize
from modicum.models import skeleton
from modicum.pipeline.checkpoint import COMPANIONS, file_hash
from modicum.pipeline.run import check_space
from modicum.version import __version__
from modicum.weights.base import WeightForm, dtype_name, make_spec
from modicum.weights.packed import PackedWeight


@torch.no_grad()
def save_model(
    model: Any,
    directory: str | Path,
    tokenizer: Any = None,
    *,
    manifest: Manifest | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Write a transformers model, whatever its layers have become, for `from_pretrained` and `modicum.load`.

    Args:
        model: regular or with layers of different sizes; with dense weights, weight forms, or as compressed-tensors
            loaded it. Its config says the counts of blocks; sizes are found by looking.
        directory: what to write.
        tokenizer: a tokenizer to write beside it, or a directory whose tokenizer files are copied.
        manifest: what is known of the model's making; its recipe, source, layer records and promises are kept.
        overwrite: replace `directory` if it exists.

    Returns:
        The content of modicum.json.

    Raises:
        OutputExists: `directory` is there.
        UnsupportedModel: the class is not one of transformers', or the config misses or adds whole modules.
        OutOfSpace: the disk is too full.
    """
    directory = Path(directory).absolute()
    if directory.exists() and not overwrite:
        raise OutputExists(f"{directory} exists.", "Choose another directory, or pass overwrite=True.")
    config = regular_config(model)
    regular = skeleton(config)
    forms = forms_of(model)
    shapes, attributes = differences(model, regular, forms)
    written = _described(manifest or Manifest(), forms).model_copy(
        update={"shapes": shapes, "attributes": attributes}
    )
    tensors = _tensors(model, regular, forms)
    check_space(directory, sum(tensor.nbytes for tensor in tensors.values()))
    with published(directory) as root:
        _write_companions(root, model, tokenizer)
        write_json(root / "config.json", _config_json(config, model, bool(forms or shapes or attributes)))
        written.files = {name: file_hash(root / name) for name in _write_shards(root, tensors)}
        written.write(root)
    return written


def _described(known: Manifest, forms: dict[str, WeightForm]) -> Manifest:
    """What is known of the model, with the forms that its layers have now."""
    specs = {name: form.spec() for name, form in forms.items()}
    versions = {
        "modicum": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    layers = {
        name: {**known.layers.get(name, {}), "form": specs.get(name)} for name in {**known.layers, **specs}
    }
    return known.model_copy(update={"versions": versions, "layers": layers})


def regular_config(model: Any) -> Any:
    """A copy of the model's config that names its class and no quantizer.

    Raises:
        UnsupportedModel: the model has no transformers config.
    """
    if not isinstance(model, transformers.PreTrainedModel):
        raise UnsupportedModel(
            f"{type(model).__name__} is not a transformers model.", "Save the model that it wraps."
        )
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return config


def forms_of(model: nn.Module) -> dict[str, WeightForm]:
    """Every layer that is stored in a form. A linear layer that compressed-tensors loaded becomes packed."""
    found: dict[str, WeightForm] = {}
    for name, module in model.named_modules():
        if isinstance(module, WeightForm):
            found[name] = module
        elif isinstance(module, nn.Linear) and hasattr(module, "quantization_scheme"):
            packed = repacked(module)
            found |= {name: packed} if packed is not None else {}
    return found


def repacked(module: Any) -> PackedWeight | None:
    """The integers of a linear layer that compressed-tensors loaded; None if it holds none.

    It keeps a layer packed until its first forward pass and dense from then on, with the scales beside it.

    Raises:
        UnsupportedModel: other than integer weights.
    """
    arguments = module.quantization_scheme.weights
    if arguments is None:
        return None
    if str(getattr(arguments.type, "value", arguments.type)) != "int" or not hasattr(module, "weight_scale"):
        raise UnsupportedModel(
            f"compressed-tensors stores {type(module).__name__} weights that are not integers."
        )
    scheme = IntegerScheme(
        int(arguments.num_bits), int(arguments.group_size or -1), bool(arguments.symmetric)
    )
    scale = module.weight_scale.detach()
    bias = module.bias
    if hasattr(module, "weight_packed"):
        settings = {**asdict(scheme), "scale_dtype": dtype_name(scale.dtype)}
        like = torch.empty([int(size) for size in module.weight_shape], dtype=scale.dtype, device="meta")
        spec = make_spec(PackedWeight, like, settings)
        suffixes = PackedWeight.empty(spec, False).layout()
        return PackedWeight(spec, {key: getattr(module, key).detach() for key in suffixes}, bias)
    zero = None if scheme.symmetric else module.weight_zero_point.to(torch.int32)
    codes = quantize(module.weight.detach(), scale, zero, scheme)
    return PackedWeight.from_codes(codes, scale, zero, scheme, bias, module.weight.dtype)


def _tensors(model: Any, regular: nn.Module, forms: dict[str, WeightForm]) -> dict[str, Tensor]:
    """Everything to store, under the names that a checkpoint of this architecture has."""
    names = [name for name, _ in stored_tensors(regular) if name.rpartition(".")[0] not in forms]
    dense = {name: tensor_at(model, regular, name).detach() for name in names}
    dense |= {
        n: bias.detach() for n, bias in added_biases(model, regular) if n.rpartition(".")[0] not in forms
    }
    _check_tied(model, regular, dense)
    for name, tensor in dense.items():
        if tensor.is_meta:
            raise UnsupportedModel(f"{name} holds no values.", "Load the weights before saving the model.")
    # The skeleton carries no memory of how the model was read, so that names and expert slices are the usual ones.
    tensors: dict[str, Tensor] = dict(revert_weight_conversion(regular, dense))  # type: ignore[arg-type]
    for name, form in forms.items():
        tensors |= {f"{name}.{suffix}": tensor for suffix, tensor in form.tensors().items()}
    return tensors


def _check_tied(model: nn.Module, regular: nn.Module, dense: dict[str, Tensor]) -> None:
    """Parameters that the config ties are stored once, so they must be one."""
    first: dict[int, str] = {}
    for name, parameter in regular.named_parameters(remove_duplicate=False):
        kept = first.setdefault(id(parameter), name)
        if kept == name:
            continue
        own = getattr(model.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2], None)
        if kept not in dense or not isinstance(own, Tensor) or not torch.equal(own, dense[kept]):
            raise UnsupportedModel(
                f"The config ties {name} to {kept}, but the model has two different ones.",
                "Set model.config.tie_word_embeddings = False.",
            )


def _config_json(config: Any, model: Any, irregular: bool) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(config.to_json_string())
    values["dtype"] = dtype_name(model.dtype)
    if irregular:
        values |= config_entries()
    return values


def _write_companions(root: Path, model: Any, tokenizer: Any) -> None:
    if isinstance(tokenizer, (str, Path)):
        for name in COMPANIONS:
            if (Path(tokenizer) / name).is_file():
                shutil.copyfile(Path(tokenizer) / name, root / name)
    elif tokenizer is not None:
        tokenizer.save_pretrained(root)
    if model.can_generate() and model.generation_config is not None:
        write_json(root / "generation_config.json", json.loads(model.generation_config.to_json_string()))


def _write_shards(root: Path, tensors: dict[str, Tensor]) -> list[str]:
    parts, names = root / "parts", sorted(tensors)
    parts.mkdir()
    for index, group in enumerate(plan_shards([tensors[name].nbytes for name in names])):
        write_tensors(parts / f"{index:05d}.safetensors", {names[i]: tensors[names[i]] for i in group})
    files = join_all(parts, root)
    parts.rmdir()
    return files


@contextmanager
def published(directory: Path) -> Iterator[Path]:
    """A new directory to write into, which takes the place of `directory` when all went well."""
    root = directory.with_name(f".{directory.name}.{os.getpid()}.saving")
    try:
        root.mkdir(parents=True)
    except OSError as error:
        raise no_space(root, error) from error
    try:
        yield root
        retired = root.with_suffix(".old")
        if directory.exists():
            os.replace(directory, retired)
        os.replace(root, directory)
        shutil.rmtree(retired, ignore_errors=True)
    except BaseException:
        shutil.rmtree(root, ignore_errors=True)
        raise
