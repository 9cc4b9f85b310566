"""Models of others, by directory or by their name on the Hugging Face hub; no network unless it was asked for.

Only configurations, vocabularies and safetensors are fetched: nothing that could run code when it is opened.
"""

from __future__ import annotations

from pathlib import Path

from modicum.errors import CheckpointError

FILES = ("*.json", "*.txt")


def model_directory(name: str | Path, weights: str, *, download: bool = False) -> Path:
    """The directory of a model.

    Args:
        name: a directory, or the name of a model on the hub, such as "owner/model".
        weights: pattern of the weight files.
        download: fetch what is not on this machine yet; else the network is left alone.

    Raises:
        CheckpointError: it is not on this machine, and was not to be fetched or could not be.
    """
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(str(name), allow_patterns=[*FILES, weights], local_files_only=not download)
        )
    except (OSError, ValueError) as error:  # the hub's own errors are of these two kinds
        if download:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"{name} could not be fetched: {reason}", "Check the name and the connection."
            ) from error
        raise CheckpointError(
            f"{name} is neither a directory nor a model that was downloaded before.",
            "Give the directory that holds it, or allow --download.",
        ) from error
