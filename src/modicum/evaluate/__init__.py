"""Metrics and their Comparison: what compressing a model cost, measured on the same inputs before and after.

Every metric is one small file and takes models that are already loaded; device and dtype come from the model.
Nothing here is inferred from a mask or a formula: bytes are those of files and storages,
speed is paired timing.
"""

from modicum.evaluate.agreement import Agreement, agreement
from modicum.evaluate.coding import CodedGroupRecord, CodingRecord
from modicum.evaluate.compare import compare
from modicum.evaluate.comparison import Comparison, LayerRecord, Measurements, Sample
from modicum.evaluate.environment import environment
from modicum.evaluate.generation import continue_text
from modicum.evaluate.memory import PeakMemory, peak_memory
from modicum.evaluate.perplexity import Perplexity, perplexity
from modicum.evaluate.protocol import Protocol
from modicum.evaluate.size import DiskSize, by_layer, disk_size, memory_size
from modicum.evaluate.speed import Speed, Spread, paired_speed

__all__ = [
    "Agreement",
    "CodedGroupRecord",
    "CodingRecord",
    "Comparison",
    "DiskSize",
    "LayerRecord",
    "Measurements",
    "PeakMemory",
    "Perplexity",
    "Protocol",
    "Sample",
    "Speed",
    "Spread",
    "agreement",
    "by_layer",
    "compare",
    "continue_text",
    "disk_size",
    "environment",
    "memory_size",
    "paired_speed",
    "peak_memory",
    "perplexity",
]
