"""What the documentation says about methods, commands, models and errors, taken from the code itself.

Every function returns Markdown. `hooks.py` turns them into pages while the site is built, `generate.py` puts the
method table into the README.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from textwrap import indent
from typing import Any

import torch

from modicum import errors
from modicum.allocate.cache_size import kv_nbytes
from modicum.cli.app import commands
from modicum.method import LayerMethod, Method, ModelMethod, RuntimeMethod, registry
from modicum.models import family_of, supported
from modicum.models.infinity import PRESETS as INFINITY_PRESETS
from modicum.models.infinity import Resolution
from modicum.models.next_scale import AttentionShape
from modicum.models.var import PRESETS as VAR_PRESETS
from modicum.weights.properties import IntegerGrid, LayerShapes, NMPattern, Property, TiedWeights, ZeroMask

STEP_CACHE = """import torch, modicum
from {module} import {method}
from modicum.method import Context
from modicum.models import Anatomy

model = modicum.load("nano-dit")
policy = {method}().fit(Anatomy.of(model), Context(torch.Generator()))
with policy.attach(model):
    images = model.generate([3, 8], steps=50, sampler="ddim", seed=[0, 1])"""

PROPERTY_WORDS = {
    Property: "everything",
    ZeroMask: "zero mask",
    NMPattern: "N:M pattern",
    IntegerGrid: "integer grid",
    TiedWeights: "tied weights",
    LayerShapes: "layer shapes",
}
STATISTIC_WORDS = {
    "column_norm": "the norm of every input channel",
    "column_var": "mean and variance of every input channel",
    "alignment": "how far every weight moves the output along its direction",
    "turning": "how far every weight turns the output",
    "gradient": "the gradient of the model's loss",
    "mean_abs": "the mean magnitude of every input channel",
    "gram": "the Gram matrix XᵀX of the inputs",
    "sample": "a sample of the inputs themselves",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; `|` in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)


def prose(text: str) -> str:
    """Plain text of a docstring as Markdown: everything outside of backticks is taken literally."""
    lines = text.split("\n")
    return "\n".join(line if line.startswith("    ") else _escaped(line) for line in lines)  # indented: code


def _escaped(text: str) -> str:
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*_\[\]|\\])", r"\\\1", part).replace("<", "&lt;")
        for part in parts
    )


def paper_link(method: type[Method]) -> str:
    """Venue, linked to the preprint."""
    paper = method.paper
    return f"[{paper.venue}]({paper.url})" if paper.url else paper.venue


def method_table(link: str) -> str:
    """All methods: name, idea, whether data is needed, paper.

    Args:
        link: address of a method, with `{name}` ("prune.wanda") or `{path}` ("prune/wanda") in it.
    """
    rows = [
        [
            f"[`{name}`]({link.format(name=name, path=name.replace('.', '/'))})",
            prose(method.summary()),
            "yes" if needs_data(method()) else "no",
            paper_link(method),
        ]
        for name, method in registry().items()
    ]
    return table(["method", "idea", "data", "paper"], rows)


def needs_data(method: Method) -> bool:
    """Whether a method reads calibration or training data with these settings."""
    if isinstance(method, LayerMethod):
        return bool(method.statistics() or method.inputs())
    if isinstance(method, ModelMethod):
        return method.samples_read() > 0
    return getattr(method, "measures", False)


def method_page(name: str) -> str:
    """The page of one method."""
    method = registry()[name]
    built = method()
    details = (inspect.getdoc(method) or "").partition("\n")[2].strip()
    paper = method.paper
    title = f"[{paper.title}]({paper.url})" if paper.url else paper.title
    return "\n\n".join(
        [
            f"# {name}",
            f"**{prose(method.summary())}**",
            prose(details),
            f"Paper: {title}, {paper.venue}.",
            "## Use it",
            _usage(name, method),
            "## Settings",
            settings_table(method),
            *_in_a_recipe(built),
            f"The whole method is one file: `src/modicum/{name.replace('.', '/')}.py`.",
        ]
    )


def _in_a_recipe(method: Method) -> list[str]:
    """What a recipe checks; a method that changes how a model runs can only be the last step of one."""
    if isinstance(method, RuntimeMethod):
        page = "images" if method.name.startswith("cache.") else "diffusion"
        last = (
            "It changes how a model runs and none of its weights. In a recipe it is the last step, and its "
        )
        more = f"policy is saved beside the weights; [this page](../{page}.md) shows how it is used."
        return ["## In a recipe", last + more]
    return ["## In a recipe", table(["property", "this method"], _contract(method))]


def _usage(name: str, method: type[Method]) -> str:
    if issubclass(method, RuntimeMethod):
        return _tabs(_running(name, method))
    if name.startswith("distill."):
        return _tabs(_recovering(name, method))
    model, settings = _shown_on(name), _own_settings(method)
    module = method.__module__
    python = (
        f"import modicum\nfrom {module} import {method.__name__}\n\n"
        f'modicum.compress("{model}", {_call(method, settings)}, out="small")'
    )
    values = ", ".join(f"{key}: {_written(value)}" for key, value in settings.items())
    tabs = {
        "Command line": ("sh", f"modicum compress {model} --method {name}{_options(settings)} --out small"),
        "Recipe": ("yaml", f"steps:\n  - {name}: {{{values}}}"),
        "Python": ("py", python),
    }
    return _tabs(tabs)


def _shown_on(name: str) -> str:
    """A model that the method fits; the ResNet is converted as the page of models says."""
    if name == "prune.depgraph":
        return "resnet56"
    return "nano-dit" if name.startswith("diffusion.") else "nano-lm"


def _recovering(name: str, method: type[Method]) -> dict[str, tuple[str, str]]:
    """How a model is trained after half of its blocks are gone."""
    settings = {"steps": 300, "batch": 16}
    teacher = " --teacher nano-lm" if getattr(method, "asks_teacher", False) else ""
    cut = "modicum compress nano-lm --method prune.shortgpt --out small"
    options = _options(settings)
    return {
        "Command line": (
            "sh", f"{cut}\nmodicum recover small{teacher} --method {name}{options} --out better"
        )
    }  # fmt: skip


def _call(method: type[Method], settings: dict[str, Any]) -> str:
    return f"{method.__name__}({', '.join(f'{key}={value!r}' for key, value in settings.items())})"


def _options(settings: dict[str, Any]) -> str:
    """Settings as the command line takes them."""
    return "".join(f" --set {key}={_written(value).replace(' ', '')}" for key, value in settings.items())


def _written(value: Any) -> str:
    """A value as YAML has it."""
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _tabs(tabs: dict[str, tuple[str, str]]) -> str:
    """The same thing in several languages: title -> (language, code)."""
    return "\n\n".join(
        f'=== "{title}"\n\n' + indent(f"```{language}\n{code}\n```", "    ")
        for title, (language, code) in tabs.items()
    )


def _running(name: str, method: type[Method]) -> dict[str, tuple[str, str]]:
    """How a cache policy is used with nano-var, and a step cache with nano-dit."""
    if name.startswith("diffusion."):
        drawn = "modicum generate nano-dit --label 3,8 --steps 50 --sampler ddim"
        return {
            "Command line": ("sh", f"{drawn} --step-cache {name.partition('.')[2]} --out digits.png"),
            "Recipe": ("yaml", f"steps:\n  - prune.oracle\n  - {name}"),
            "Python": ("py", STEP_CACHE.format(module=method.__module__, method=method.__name__)),
        }
    short, fields = name.partition(".")[2], method.model_fields
    shown = {"budget": "20%"} if "budget" in fields else {}
    window = {"window": 9} if "window" in fields else {}
    options = "".join(f" --{key} {value}" for key, value in shown.items())
    options += "".join(f" --set {key}={value}" for key, value in window.items())
    settings = ", ".join(f"{key}={value!r}" for key, value in (shown | window).items())
    python = (
        f"import modicum\nfrom {method.__module__} import {method.__name__}\n\n"
        f'model = modicum.load("nano-var")\n'
        f"policy = modicum.fit_policy(model, {method.__name__}({settings}))\n"
        f"with policy.attach(model):\n    images = model.generate([3, 8], seed=[0, 1])"
    )
    return {
        "Command line": (
            "sh",
            f"modicum generate nano-var --label 3,8 --kv {short}{options} --out digits.png",
        ),
        "Python": ("py", python),
    }


def _own_settings(method: type[Method]) -> dict[str, Any]:
    """Settings to show, of those that fit the nano models; none where a method has no choice."""
    fitting: dict[str, Any] = {"group_size": 64, "sparsity": 0.5, "groups": "1:2", "keep": 4}
    if method.__name__ in ("Blocks", "DepGraph"):
        return {"keep": (0, 1, 4, 5)} if method.__name__ == "Blocks" else {"ratio": 0.3}
    key = next((key for key in fitting if key in method.model_fields), None)
    return {} if key is None else {key: fitting[key]} | ({"steps": 300} if key == "groups" else {})


def settings_table(method: type[Method]) -> str:
    """Settings with type, default and meaning."""
    shown = method.model_json_schema()["properties"]
    own = [key for key in method.model_fields if key in method.__annotations__]
    rows = [
        [
            f"`{key}`",
            _kind(shown[key]),
            f"`{_value(method.model_fields[key].get_default())}`",
            prose(method.model_fields[key].description or ""),
        ]
        for key in [*own, *(key for key in method.model_fields if key not in own)]
    ]
    return table(["setting", "type", "default", "meaning"], rows)


def _value(value: Any) -> str:
    return {(): "[]", None: "none", True: "true", False: "false"}.get(value, str(value))


def _kind(schema: dict[str, Any]) -> str:
    """Type and range of a setting in words."""
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "examples" in schema:
        return " or ".join(f"`{value}`" for value in schema["examples"])
    if "anyOf" in schema:
        kinds = [_kind(each) for each in schema["anyOf"] if each.get("type") != "null"]
        return " or ".join([*dict.fromkeys(kinds), *(["none"] if len(kinds) < len(schema["anyOf"]) else [])])
    words = {
        "integer": "whole number",
        "number": "number",
        "boolean": "yes or no",
        "array": "list of patterns" if schema.get("items", {}).get("type") == "string" else "list",
    }
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign}&nbsp;{schema[key]:g}" for key, sign in bounds.items() if key in schema]
    return ", ".join([words.get(schema.get("type", ""), "text"), *limits])


def _contract(method: Method) -> list[list[str]]:
    """What a method reads, needs, keeps and gives, one row each."""
    reads = []
    if isinstance(method, LayerMethod):
        reads = [STATISTIC_WORDS[kind] for kind in sorted(method.statistics())]
        reads += ["calls of the attention and feed-forward modules"] if method.inputs() else []
    elif isinstance(method, ModelMethod) and method.samples_read():
        reads = [f"{method.samples_read():,} samples, at its defaults"]
    needs = [PROPERTY_WORDS[kind] for kind in method.needs]
    keeps = [PROPERTY_WORDS[kind] for kind in method.keeps]
    gives = [given.name for given in method.gives()]
    return [
        ["reads of the data", ", ".join(reads) or "nothing"],
        ["needs from earlier steps", ", ".join(needs) or "nothing"],
        ["keeps of what earlier steps gave", ", ".join(keeps) or "nothing"],
        ["gives to later steps, at its defaults", ", ".join(gives) or "nothing"],
    ]


def methods_index() -> str:
    """The page that lists all methods."""
    families = list(dict.fromkeys(name.partition(".")[0] for name in registry()))
    return (
        "# Methods\n\n"
        f"{len(registry())} methods in {len(families)} families. Every page is made from the method's own file; "
        "`modicum methods` and `modicum show NAME` say the same in a terminal.\n\n"
        + method_table("{name}.md")
    )


def command_page() -> str:
    """All commands of the command line, their arguments and options."""
    parts = [
        "# Command line",
        "Commands that write a directory never replace one unless told to, print a plan first and progress while "
        "they work. In a pipe the output is plain lines; `--quiet` prints nothing but errors and `--json` "
        "one JSON object. Exit codes: see [Errors](errors.md).",
    ]
    for name, command in commands().items():
        parts += [f"## modicum {name}", prose(command.help or ""), f"```sh\n{command.epilog}\n```"]
        arguments = [_parameter(p) for p in command.params if p.name != "help"]
        parts.append(table(["argument or option", "meaning", "default"], arguments))
    return "\n\n".join(parts)


def _parameter(parameter: Any) -> list[str]:
    is_option = parameter.opts[0].startswith("-")
    spelled = (
        ", ".join(f"`{name}`" for name in parameter.opts) if is_option else f"`{parameter.name.upper()}`"
    )
    default = parameter.default
    shown = (
        "required" if parameter.required else "" if default is None or default is False else f"`{default}`"
    )
    return [spelled, prose(parameter.help or ""), shown]


def model_table() -> str:
    """The architectures that are described, and the roles of their layers."""
    rows: dict[str, list[str]] = {}
    for model_type in supported():
        family = family_of(type("Config", (), {"model_type": model_type}))
        roles = list(dict.fromkeys(family.roles.values()))
        experts = "gate, up, down of each expert" if family.experts else ""
        rows.setdefault(
            family.name,
            [
                f"`{family.name}`",
                ", ".join(f"`{each}`" for each in family.model_types),
                ", ".join(f"`{role}`" for role in roles) + (f"; {experts}" if experts else ""),
                str(len(family.folds)) or "",
            ],
        )
    return table(["family", "model types", "roles of its layers", "scale folds"], list(rows.values()))


def error_table() -> str:
    """Every error class, what it means and its exit code."""
    classes = [
        found
        for found in vars(errors).values()
        if inspect.isclass(found) and issubclass(found, errors.ModicumError)
    ]
    rows = [
        [f"`{found.__name__}`", prose(" ".join((inspect.getdoc(found) or "").split())), str(found.exit_code)]
        for found in classes[1:]
    ]
    return table(["error", "meaning", "exit code"], rows)


def storage_table() -> str:
    """Stored bits per weight of a bfloat16 matrix, measured on the forms themselves."""
    weight = torch.empty(4096, 4096, dtype=torch.bfloat16, device="meta")
    cases = [
        ("dense", "", None),
        ("half of the weights zero", "masked", ("prune.wanda", {"sparsity": 0.5})),
        ("three quarters zero", "masked", ("prune.wanda", {"sparsity": 0.75})),
        ("2:4", "semi-structured", ("prune.wanda", {"pattern": "2:4"})),
        ("8 bits, one scale per row", "packed", ("quantize.rtn", {"bits": 8, "group_size": -1})),
        ("4 bits, groups of 128", "packed", ("quantize.rtn", {"bits": 4})),
        ("4 bits, groups of 64", "packed", ("quantize.rtn", {"bits": 4, "group_size": 64})),
        (
            "4 bits with zero points, groups of 128",
            "packed",
            ("quantize.rtn", {"bits": 4, "symmetric": False}),
        ),
        ("3 bits, groups of 128", "packed", ("quantize.rtn", {"bits": 3})),
        ("half zero, then 4 bits in groups of 128", "packed", ("quantize.rtn", {"bits": 4})),
    ]
    rows = []
    for title, form, made in cases:
        nbytes = weight.nbytes
        if made is not None:
            method = registry()[made[0]](**made[1])
            assert isinstance(method, LayerMethod)
            nbytes = method.expected_form(weight).nbytes
        rows.append(
            [
                title,
                form or "dense",
                f"{8 * nbytes / weight.numel():.4g}",
                f"{100 * nbytes / weight.nbytes:.1f} %",
            ]
        )
    return table(["what", "stored as", "bits per weight", "of dense"], rows)


def cache_table() -> str:
    """Bytes of keys and values before the last map of published next-scale models, with guidance."""
    sizes = {f"VAR-{name}": (config, config.schedule) for name, config in VAR_PRESETS.items()}
    sizes |= {
        f"Infinity-{name.upper()}": (INFINITY_PRESETS[name], Resolution.of(1.0, "1M").schedule)
        for name in ("2b", "8b")
    }
    rows = []
    for name, (config, schedule) in sizes.items():
        shape = AttentionShape(config.depth, config.num_heads, config.embed_dim // config.num_heads)
        prefix = schedule.offsets[-2]
        cases = [(prefix, torch.float32), (prefix, torch.bfloat16), (prefix // 10, torch.bfloat16)]
        mebibytes = [kv_nbytes(tokens, shape, 2, key, torch.bfloat16) / 2**20 for tokens, key in cases]
        rows.append([name, f"{prefix:,}", *(f"{value:,.1f} MiB" for value in mebibytes)])
    head = ["model", "tokens", "keys in float32, as the originals", "keys in 16 bits", "10 % of the tokens"]
    return table(head, rows)


def recipe_listing(folder: Path) -> str:
    """Every example recipe with its text."""
    parts = []
    for file in sorted(folder.glob("*.yaml")):
        parts.append(f"### {file.name}\n\n```yaml\n{file.read_text().strip()}\n```")
    return "\n\n".join(parts)


FRAGMENTS = {
    "methods": lambda: method_table("methods/{name}.md"),
    "models": model_table,
    "errors": error_table,
    "storage": storage_table,
    "caches": cache_table,
    "recipes": lambda: recipe_listing(Path(__file__).parents[1] / "recipes"),
}
"""Text that a page asks for with a line `<!-- insert: NAME -->`."""
