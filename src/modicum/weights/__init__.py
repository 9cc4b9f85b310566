"""Weight forms: how one compressed weight matrix is stored, multiplied, saved and read back.

Importing this package registers every form by its `kind`, so that a checkpoint can be opened from its specs
alone.
"""

from modicum.weights.base import FORMS, WeightForm, from_spec
from modicum.weights.dense import DenseWeight
from modicum.weights.masked import MaskedWeight
from modicum.weights.packed import PackedWeight
from modicum.weights.semi_structured import SemiStructuredWeight

__all__ = [
    "FORMS",
    "DenseWeight",
    "MaskedWeight",
    "PackedWeight",
    "SemiStructuredWeight",
    "WeightForm",
    "from_spec",
]
