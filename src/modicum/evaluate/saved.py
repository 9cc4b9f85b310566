"""Records of what was measured: frozen data, and those that are saved as JSON and read back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from modicum.errors import UnusableData

FORMAT = 1


class Record(BaseModel):
    """Frozen data without unknown fields."""

    # Infinity and NaN are written as strings, which JSON has no numbers for, and are read back.
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class SavedRecord(Record):
    """A record with a file of its own.

    Attributes:
        kind: what it is, in messages.
        file: the name under which modicum writes it.
    """

    kind: ClassVar[str]
    file: ClassVar[str] = "report.json"

    def save(self, path: str | Path) -> Path:
        """Writes the record as JSON, to a temporary name first."""
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        os.replace(partial, path)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Reads a saved record.

        Raises:
            UnusableData: the file is missing, is no such record, or is of a format that this version does not
                know.
        """
        try:
            return cls.model_validate_json(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UnusableData(f"Cannot read {str(path)!r}: {error.strerror}.", "Check the path.") from error
        except (ValidationError, UnicodeDecodeError) as error:
            where = (
                f"{error.errors()[0]['loc']}: {error.errors()[0]['msg']}"
                if isinstance(error, ValidationError)
                else ""
            )
            raise UnusableData(
                f"{str(path)!r} is not {cls.kind} of format {FORMAT}. {where}".rstrip(),
                f"Give the {cls.file} of this or an older version of modicum.",
            ) from error
