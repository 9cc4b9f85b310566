"""Follow channels through a model: its graph by torch.fx, one rule per kind of layer or function.

The channel axis is axis 1 throughout, as in convolutional networks. What no rule explains is refused with its name,
never guessed.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from modicum.errors import UnsupportedModel
from modicum.models.channels.coupling import Channels, Ids, Ledger
from modicum.models.channels.rules import FUNCTIONS, METHODS, Call, rule_of

Value = Ids | tuple[Ids, ...] | None
HINT = "Channels can be followed through convolutional networks of known layers only."


def couple(model: nn.Module, example: Mapping[str, Tensor]) -> Channels:
    """The removable channels of a model.

    Args:
        model: anything that torch.fx can trace; not changed.
        example: its inputs by name, [B, C, ...] each; only shapes matter.

    Raises:
        UnsupportedModel: it cannot be traced, or something in it has no rule; names what.
    """
    graph = _trace(model, example)
    ledger, values = Ledger(), dict[fx.Node, Value]()
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            shape = _shape(node)
            values[node] = ledger.fresh(shape[1]) if shape is not None else None
            if shape is not None:
                ledger.fix(values[node])  # type: ignore[arg-type]
        elif node.op == "output":
            for each in (*_tensors(node.args, values), *_tuples(node.args, values)):
                ledger.fix(each)
        else:
            values[node] = _apply(node, model, ledger, values)
    return ledger.settle()


class _Tracer(fx.Tracer):
    """Stops at layers that have a rule, goes through all others."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return rule_of(m) is not None


def _trace(model: nn.Module, example: Mapping[str, Tensor]) -> fx.GraphModule:
    try:
        graph = fx.GraphModule(model, _Tracer().trace(model))
        names = [node.target for node in graph.graph.nodes if node.op == "placeholder"]
        evaluated = copy.deepcopy(graph).eval()
        with torch.no_grad():
            ShapeProp(evaluated).propagate(*(example.get(name) for name in names))
    except Exception as error:  # fx fails in as many ways as there are models
        raise UnsupportedModel(
            f"The graph of {type(model).__name__} cannot be followed: {error}", HINT
        ) from error
    for node, shaped in zip(graph.graph.nodes, evaluated.graph.nodes, strict=True):
        node.meta = shaped.meta
    return graph


def _apply(node: fx.Node, model: nn.Module, ledger: Ledger, values: Mapping[fx.Node, Value]) -> Value:
    name, rule, module = str(node.target), None, None
    if node.op == "call_module":
        module = model.get_submodule(name)
        rule = rule_of(module)
    elif node.op == "call_function":
        name, rule = getattr(node.target, "__name__", name), FUNCTIONS.get(node.target)
    elif node.op == "call_method":
        rule = METHODS.get(name)
    given = _tensors(node.args, values) + _tensors(node.kwargs, values)
    if not given and not _tuples(node.args, values):
        return None  # arithmetic on sizes
    if isinstance(node.target, type) and issubclass(node.target, tuple):
        return tuple(given)  # an answer with names
    if rule is None:
        raise UnsupportedModel(f"No rule says where the channels of {name} ({node.name}) come from.", HINT)
    shapes = [shape for arg in node.all_input_nodes if (shape := _shape(arg)) is not None]
    call = Call(name, module, node, given, _tuples(node.args, values), shapes, _shape(node), ledger)
    return rule(call)


def _tensors(args: Any, values: Mapping[fx.Node, Value]) -> list[Ids]:
    """The channels of all tensors among arguments, in order."""
    found: list[Ids] = []

    def look(node: fx.Node) -> fx.Node:
        value = values.get(node)
        if value is not None and not isinstance(value, tuple):
            found.append(value)
        return node

    fx.node.map_arg(args, look)
    return found


def _tuples(args: Any, values: Mapping[fx.Node, Value]) -> tuple[Ids, ...]:
    """The pieces that a split left, if the first argument is one."""
    first = args[0] if args else None
    value = values.get(first) if isinstance(first, fx.Node) else None
    return value if isinstance(value, tuple) else ()


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    shape = getattr(node.meta.get("tensor_meta"), "shape", None)
    return None if shape is None else tuple(shape)
