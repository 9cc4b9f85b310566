"""policies.json: the policies that a recipe fitted, beside the weights that they were fitted to.

::

    {"format": "modicum.policies",
     "version": 1,
     "blocks": 6,                          of the model that they belong to
     "policies": [{"method": "diffusion.fora", "settings": {...}, ...}]}

Each entry is what `Policy.to_json` gives; its method reads it back. Nothing in the file is trusted: an unknown method,
a setting out of range or a model of another depth ends in a sentence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from modicum.errors import CheckpointError, InvalidSetting, ModicumError
from modicum.formats.shards import write_json
from modicum.method import Policy, RuntimeMethod, find
from modicum.models import Anatomy

FILE = "policies.json"
FORMAT, VERSION = "modicum.policies", 1
AGAIN = "Fit the policies again, or delete the file."


@dataclass(frozen=True)
class Policies:
    """The policies of one model; there may be none.

    Attributes:
        policies: in the order in which they are attached.
        blocks: of the model that they were fitted to; 0 if there are none.
    """

    policies: tuple[Policy, ...] = ()
    blocks: int = 0

    @contextmanager
    def attach(self, model: nn.Module) -> Iterator[nn.Module]:
        """A context in which `model` runs under all of them; leaving it restores the model.

        Raises:
            InvalidSetting: the model has another number of blocks than the one that they were fitted to.
            UnsupportedModel: it is none that a policy can run.
        """
        if self.policies:
            self._check(model)
        with ExitStack() as stack:
            for policy in self.policies:
                stack.enter_context(policy.attach(model))
            yield model

    def described(self) -> tuple[str, ...]:
        """Each policy in words: its method, and the settings that are not the default."""
        return tuple(in_words(policy.method) for policy in self.policies)

    def write(self, directory: Path) -> None:
        """Write policies.json into `directory`."""
        saved = [policy.to_json() for policy in self.policies]
        write_json(
            directory / FILE,
            {"format": FORMAT, "version": VERSION, "blocks": self.blocks, "policies": saved},
        )

    @classmethod
    def read(cls, directory: Path) -> Policies:
        """What lies beside the weights in `directory`; none if there is no policies.json.

        Raises:
            CheckpointError: the file is damaged, something else, or of another version.
        """
        file = directory / FILE
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{file} is not valid JSON.", AGAIN) from error
        try:
            return _parsed(data)
        except ModicumError as error:
            raise CheckpointError(f"{file}: {error.what}", error.hint or AGAIN) from error

    def _check(self, model: nn.Module) -> None:
        blocks = len(Anatomy.of(model).blocks)
        if blocks != self.blocks:
            raise InvalidSetting(
                f"The policies are for a model of {self.blocks} blocks, this one has {blocks}.",
                "Fit policies to this model.",
            )


def in_words(method: RuntimeMethod) -> str:
    """A method and the settings of it that are not the default: "diffusion.fora interval=2"."""
    changed = method.model_dump(mode="json", exclude_defaults=True)
    return " ".join((method.name, *(f"{key}={value}" for key, value in changed.items())))


def _parsed(data: Any) -> Policies:
    if not isinstance(data, Mapping) or data.get("format") != FORMAT:
        raise CheckpointError("This is no file of policies.", AGAIN)
    if data.get("version") != VERSION:
        raise CheckpointError(
            f"The file has version {data.get('version')!r}, this modicum reads version {VERSION}.",
            "Fit the policies again, or update modicum.",
        )
    blocks, saved = data.get("blocks"), data.get("policies")
    if type(blocks) is not int or blocks < 1 or not isinstance(saved, Sequence) or isinstance(saved, str):
        raise CheckpointError("The file says neither how many blocks nor which policies.", AGAIN)
    return Policies(tuple(_policy(each) for each in saved), blocks)


def _policy(data: Any) -> Policy:
    name = data.get("method") if isinstance(data, Mapping) else None
    if not isinstance(name, str):
        raise CheckpointError("A policy names no method.", AGAIN)
    method = find(name)
    if not issubclass(method, RuntimeMethod):
        raise CheckpointError(f"{name} leaves no policy.", AGAIN)
    return method.restore(data)
