"""One budget over many layers: how much of it each of them gets."""

from modicum.allocate.cache_size import Budget, kv_nbytes, parse_budget
from modicum.allocate.cache_tokens import CacheBudget, first_pruned, scale_aware

__all__ = [
    "Budget",
    "CacheBudget",
    "first_pruned",
    "kv_nbytes",
    "parse_budget",
    "scale_aware",
]
