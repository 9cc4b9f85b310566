"""Searches that drive the pipeline: a candidate is made, tried out on a model, and bred if it is good."""

from modicum.search.evolution import Evolution, Exhausted
from modicum.search.genotype import Genotype, Space, Variation
from modicum.search.grammar import Grammar, Trees
from modicum.search.individual import Draft, Individual, Outcome
from modicum.search.log import Log
from modicum.search.loop import evolve

__all__ = [
    "Draft",
    "Evolution",
    "Exhausted",
    "Genotype",
    "Grammar",
    "Individual",
    "Log",
    "Outcome",
    "Space",
    "Trees",
    "Variation",
    "evolve",
]
