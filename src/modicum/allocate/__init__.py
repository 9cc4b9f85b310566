"""One budget over many layers: how much of it each of them gets."""

from modicum.allocate.budget_file import read_budget, write_budget
from modicum.allocate.cache_size import Budget, kv_nbytes, parse_budget
from modicum.allocate.cache_tokens import CacheBudget, pruned_scales, scale_aware

__all__ = [
    "Budget",
    "CacheBudget",
    "kv_nbytes",
    "parse_budget",
    "pruned_scales",
    "read_budget",
    "scale_aware",
    "write_budget",
]
