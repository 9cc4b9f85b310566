"""Fewer blocks: groups to choose from, switches for a while, removal for good."""

from modicum.models.depth.gating import GatedBlock, gate, ungate
from modicum.models.depth.groups import Groups, GroupSetting, as_groups, candidates, last_of_groups, spans
from modicum.models.depth.removal import check_kept, keep_blocks, split

__all__ = [
    "GatedBlock",
    "GroupSetting",
    "Groups",
    "as_groups",
    "candidates",
    "check_kept",
    "gate",
    "keep_blocks",
    "last_of_groups",
    "spans",
    "split",
    "ungate",
]
