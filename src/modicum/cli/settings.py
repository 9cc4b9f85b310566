"""KEY=VALUE as typed."""

from __future__ import annotations

from typing import Any

from modicum.errors import InvalidSetting


def parse_setting(text: str, example: str) -> tuple[str, Any]:
    """The key and the value of `--set KEY=VALUE`; the value is read as YAML.

    Args:
        text: as typed.
        example: a setting that works, for the message.

    Raises:
        InvalidSetting: no equals sign, or a value that is none.
    """
    import yaml

    key, equals, value = text.partition("=")
    if not equals:
        raise InvalidSetting(f"--set {text!r} is not KEY=VALUE.", f"For example --set {example}")
    if not value or ":" in value:  # YAML 1.1 reads 2:4 as a number in base sixty
        return key, value
    try:
        return key, yaml.safe_load(value)
    except (yaml.YAMLError, ValueError) as error:
        raise InvalidSetting(
            f"--set {text!r}: {value!r} is not a value.", "Lists look like [q, k], texts like q."
        ) from error
