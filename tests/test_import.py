"""`import modicum` and `modicum --help` cost next to nothing."""

from __future__ import annotations

import statistics
import subprocess
import sys

import pytest

import modicum


def seconds(*line: str) -> float:
    """Processor seconds of a Python process above those of an empty one: what else runs here does not count."""
    script = "import resource as r, subprocess as s, sys; s.run(sys.argv[1:], stdout=s.DEVNULL, check=True); "
    script += "u = r.getrusage(r.RUSAGE_CHILDREN); print(u.ru_utime + u.ru_stime)"

    def spent(arguments: tuple[str, ...]) -> float:
        done = subprocess.run(
            [sys.executable, "-c", script, sys.executable, *arguments],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    return statistics.median(spent(line) - spent(("-c", "")) for _ in range(3))


@pytest.mark.parametrize(
    ("line", "limit"),
    [
        (("-c", "import modicum"), 0.3),
        (("-m", "modicum", "--help"), 0.7),
        (("-m", "modicum", "compress", "-h"), 0.7),
    ],
    ids=["import", "help", "help of a command"],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(line: tuple[str, ...], limit: float) -> None:
    assert seconds(*line) < limit


@pytest.mark.parametrize(
    "statement",
    [
        "import modicum, modicum.hook, modicum.errors",
        "from modicum.cli import explain, app; explain(app, ['--help'])",
        "from modicum.cli import explain, app; explain(app, ['compress', '--help'])",
        "from modicum.cli import explain, app; explain(app, ['compress', 'nano-lm', '--samples', '0', '--out', 'x'])",
    ],
)
def test_neither_torch_nor_transformers_is_loaded(statement: str) -> None:
    script = f"import sys; {statement}; heavy = {{'torch', 'transformers', 'numpy', 'matplotlib'}} & set(sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"{script}; sys.exit(sorted(heavy))if heavy else None"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_public_names_resolve() -> None:
    for name in modicum.__all__:
        assert getattr(modicum, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        modicum.nothing  # noqa: B018


def test_the_version_is_that_of_the_distribution() -> None:
    from importlib.metadata import version

    assert modicum.__version__ == version("modicum")
