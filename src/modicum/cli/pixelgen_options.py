"""What the commands of `modicum pixelgen` make of their options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum.errors import InvalidSetting, UnknownName, UnusableData

if TYPE_CHECKING:
    from modicum.apps.pixelgen.energy import EnergyModel
    from modicum.apps.pixelgen.gateway import KnownNode
    from modicum.apps.pixelgen.node import NodeSettings
    from modicum.apps.pixelgen.radio.links import Link

HIGHEST_ID = 65535


def link(to: str, serial: Path | None, baud: int, loss: float, seed: int) -> Link:
    """Where a node sends to: a serial line, or a gateway at HOST:PORT with losses on the way."""
    from modicum.apps.pixelgen.energy import EnergyModel
    from modicum.apps.pixelgen.radio.channel import Channel
    from modicum.apps.pixelgen.radio.links import Serial, Udp, address
    from modicum.apps.pixelgen.radio.serial_port import open_line

    if serial:
        return Serial(open_line(serial, baud))
    pause = EnergyModel().air(244).total  # as long as the packet would be on the air
    return Udp(*address(to), pause=pause, air=Channel(loss=loss).open(seed))


def known_nodes(nodes: list[str], columns: bool) -> dict[int, KnownNode]:
    """The nodes of `--node ID` and `--node ID:KEYFILE`.

    Raises:
        InvalidSetting: no number in front.
    """
    from modicum.apps.pixelgen.gateway import KnownNode

    known = {}
    for text in nodes:
        id_, _, file = text.partition(":")
        if not id_.isdecimal() or int(id_) > HIGHEST_ID:
            raise InvalidSetting(
                f"--node {text!r} names no node.", "Give ID or ID:KEYFILE, such as 7:key.txt."
            )
        known[int(id_)] = KnownNode(secret(Path(file)) if file else None, columns)
    return known


def secret(file: Path | None) -> bytes | None:
    """The content of a key file; None without a file.

    Raises:
        UnusableData: it cannot be read, or it is empty.
    """
    if file is None:
        return None
    try:
        content = file.read_bytes().strip()
    except OSError as error:
        raise UnusableData(f"{file}: {error.strerror}.", "Name a file that holds the secret.") from error
    if not content:
        raise UnusableData(f"{file} is empty.", "Write the secret into it.")
    return content


def node_settings(**values: Any) -> NodeSettings:
    """Settings of a node.

    Raises:
        InvalidSetting: a value is out of range, or they do not go together.
    """
    from pydantic import ValidationError

    from modicum.apps.pixelgen.node import NodeSettings

    try:
        return NodeSettings(**values)
    except ValidationError as error:
        from modicum.method import readable

        raise InvalidSetting(
            f"The node cannot work like that: {readable(error)}.", "See `modicum pixelgen node -h`."
        ) from error


def energy_model(settings: list[str]) -> EnergyModel:
    """The energy model with the constants of `--set KEY=VALUE`.

    Raises:
        UnknownName: there is no such constant.
        InvalidSetting: not a number, or negative.
    """
    from pydantic import ValidationError

    from modicum.apps.pixelgen.energy import EnergyModel

    pairs = [text.partition("=")[::2] for text in settings]
    for name, _ in pairs:
        if name not in EnergyModel.model_fields:
            raise UnknownName.among("constant", name, EnergyModel.model_fields)
    try:
        return EnergyModel(**dict(pairs))
    except ValidationError as error:
        from modicum.method import readable

        raise InvalidSetting(f"--set: {readable(error)}", "Give KEY=VALUE in SI units.") from error
