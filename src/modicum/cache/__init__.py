"""Key-value cache policies of next-scale image models: what a layer carries from one token map to the next.

Each file is a method with one decision, which tokens stay; `eviction.py` says when and how many, `policy.py` is what
is attached to a model and saved.

    full        everything                                 sliding     the newest
    streaming   the first few and the newest               snapkv      what the newest queries attend to
    pyramidkv   the same, more of it in lower layers       h2o         what all queries so far attended to
    scalekv     what a grid of probes looks at, more of it in layers that need history
"""

from modicum.cache.policy import CacheMethod, CachePolicy, policy_from_json

__all__ = ["CacheMethod", "CachePolicy", "policy_from_json"]
