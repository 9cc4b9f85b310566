from __future__ import annotations

import pytest
import torch

from modicum.evaluate import memory, peak_memory

MEGABYTE = 2**20


def touch(megabytes: int) -> int:
    """Holds that many megabytes for a moment and lets go of them."""
    block = torch.ones(megabytes * MEGABYTE // 4)
    return block.numel()


@pytest.mark.parametrize("sampled", [False, True])
def test_sees_memory_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch, sampled: bool) -> None:
    if not memory.STATUS.exists():
        pytest.skip("no /proc on this system")
    if sampled:
        monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    result, held, method = peak_memory(lambda: touch(200))
    assert result == 200 * MEGABYTE // 4
    assert held is not None
    assert 180 * MEGABYTE < held < 260 * MEGABYTE
    assert method == "sampled" if sampled else method in ("high-water mark", "sampled")


def test_an_earlier_higher_peak_does_not_count() -> None:
    touch(300)
    _, held, method = peak_memory(lambda: touch(50))
    if method in ("high-water mark", "sampled"):
        assert held is not None
        assert 40 * MEGABYTE < held < 110 * MEGABYTE


def test_a_mark_that_does_not_reset_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_status", {"VmHWM": 900 * MEGABYTE, "VmRSS": 100 * MEGABYTE}.__getitem__)
    assert not memory._reset_high_water_mark()


def test_the_lifetime_mark_is_the_last_resort(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    monkeypatch.setattr(memory, "STATUS", memory.STATUS / "missing")
    result, held, method = peak_memory(lambda: "done")
    assert (result, method) == ("done", "lifetime mark")
    assert held is not None
    assert held >= 0


def test_errors_of_the_work_come_through_and_the_watcher_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_reset_high_water_mark", lambda: False)
    before = memory.threading.active_count()
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 // 0)
    assert memory.threading.active_count() == before
