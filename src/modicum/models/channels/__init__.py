"""Channels that can only be removed together: found by following them through the graph of a model, then cut.

Removing one channel of a convolution forces removals elsewhere: the next layer's inputs, the batch norm, whatever is
added to it, its place in a concatenation. Every channel of every tensor gets a number when it is made; whatever ties
two channels (an addition, a depthwise convolution) ties their numbers, and every parameter remembers the numbers along
its axes. What is connected goes or stays as one.

The idea of dependency graphs is that of Fang et al., DepGraph: Towards Any Structural Pruning, CVPR 2023, arXiv
2301.12900; here single channels are followed instead of layers, so that index arithmetic over concatenations, splits
and paddings does not arise.
"""

from modicum.models.channels.coupling import Channels, Slot
from modicum.models.channels.surgery import cut, zero
from modicum.models.channels.trace import couple

__all__ = ["Channels", "Slot", "couple", "cut", "zero"]
