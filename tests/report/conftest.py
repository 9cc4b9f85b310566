from __future__ import annotations

import pytest

from modicum.evaluate import Agreement, Comparison, LayerRecord, Measurements, Protocol, Sample, Spread

HOSTILE = '<script>alert("x")</script>&<img src=http://example.org/x.png>'


@pytest.fixture
def full() -> Comparison:
    """A comparison with everything measured, and hostile text wherever text comes from outside."""
    layers = tuple(
        LayerRecord(
            name=f"model.layers.{block}.{role}_proj{HOSTILE}",
            block=block,
            role=role,
            sparsity=0.5,
            bits_per_weight=4.25,
            relative_error=0.01 * (block + 1),
            nbytes=1000 + block,
            dense_nbytes=4000,
        )
        for block in range(3)
        for role in ("q", "down")
    )
    return Comparison(
        name=f"nano {HOSTILE}",
        before=Measurements(
            perplexity=12.3456789,
            disk_bytes=1_234_567,
            memory_bytes=1_300_001,
            peak_bytes=2_000_003,
            prefill=Spread(1001.5, 990.25, 1010.75),
            decode=Spread(101.5, 99.25, 103.75),
        ),
        after=Measurements(
            perplexity=13.3333333,
            disk_bytes=555_555,
            memory_bytes=600_007,
            peak_bytes=1_000_009,
            prefill=Spread(1002.5, 991.25, 1011.75),
            decode=Spread(151.5, 149.25, 153.75),
        ),
        agreement=Agreement(kl=0.0123456, overlap={1: 0.9123, 5: 0.8456}, tokens=999),
        prefill_ratio=Spread(1.0009, 0.98, 1.02),
        decode_ratio=Spread(1.4926, 1.45, 1.55),
        layers=layers,
        samples=(Sample(prompt=f"Once {HOSTILE}", before=" upon a time.", after=f" there was {HOSTILE}"),),
        recipe={"steps": [{"method": "magnitude", "note": HOSTILE}]},
        command=f"modicum compress {HOSTILE}",
        protocol=Protocol(),
        data=f"text {HOSTILE}",
        tokens=1000,
        environment={"processor": HOSTILE, "load_average": [0.1, 0.2, 0.3], "python": None},
    )
