"""What holds for every weight form: exact expansion, a way through a file, sizes, damaged tensors refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor
from torch.nn import functional as F

from modicum.errors import CheckpointError, InvalidSetting, UnknownName
from modicum.kernels.grids import IntegerScheme
from modicum.kernels.selection import semi_structured
from modicum.weights import (
    DenseWeight,
    MaskedWeight,
    PackedWeight,
    SemiStructuredWeight,
    WeightForm,
    from_spec,
)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def normal(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def masked(weight: Tensor, bias: Tensor | None = None) -> MaskedWeight:
    return MaskedWeight.from_dense(
        weight, mask=normal(weight.shape[0], weight.shape[1], seed=7) > 0, bias=bias
    )


def two_of_four(weight: Tensor, bias: Tensor | None = None) -> SemiStructuredWeight:
    return SemiStructuredWeight.from_dense(
        weight, mask=~semi_structured(weight.abs().float(), 2, 4), bias=bias
    )


def four_bits(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    return PackedWeight.from_dense(weight, IntegerScheme(4, 32), bias)


def three_bits_with_zero_point(weight: Tensor, bias: Tensor | None = None) -> PackedWeight:
    return PackedWeight.from_dense(weight, IntegerScheme(3, 50, symmetric=False), bias)


MAKERS: list[Callable[..., WeightForm]] = [
    DenseWeight.from_dense,
    masked,
    two_of_four,
    four_bits,
    three_bits_with_zero_point,
]


def bits_of(tensor: Tensor) -> Tensor:
    """The raw bytes, which tell -0 from +0."""
    return tensor.contiguous().view(torch.uint8)


def empty_like(form: WeightForm) -> WeightForm:
    """What a reader makes from the JSON description alone."""
    with torch.device("meta"):
        return from_spec(json.loads(json.dumps(form.spec())))


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_a_form_survives_a_file(make: Callable[..., WeightForm], dtype: torch.dtype, with_bias: bool) -> None:
    form = make(normal(21, 52, dtype), normal(1, 21, dtype)[0] if with_bias else None)
    form.check()
    file = save(form.tensors())
    read = empty_like(form)
    assert all(tensor.is_meta for tensor in read.tensors().values())
    read.load_state_dict(load(file), assign=True)
    read.check()
    assert torch.equal(bits_of(read.to_dense()), bits_of(form.to_dense()))
    x = normal(3, 52, dtype, seed=3)
    assert torch.equal(read(x), form(x))
    assert read.spec() == form.spec()
    assert set(form.state_dict()) == set(form.tensors())


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_is_the_dense_product(make: Callable[..., WeightForm], dtype: torch.dtype) -> None:
    bias = normal(1, 21, dtype)[0]
    form = make(normal(21, 52, dtype), bias)
    x = normal(2 * 3, 52, dtype, seed=3).view(2, 3, 52)
    dense = form.to_dense()
    assert dense.dtype == form.dtype == dtype
    assert dense.shape == (form.out_features, form.in_features) == (21, 52)
    assert torch.equal(form(x), F.linear(x, dense, bias))


@pytest.mark.parametrize("make", MAKERS)
def test_a_form_follows_a_cast_of_its_model(make: Callable[..., WeightForm]) -> None:
    form = make(normal(21, 52, torch.bfloat16), normal(1, 21, torch.bfloat16)[0])
    before = form.to_dense()
    form.float()
    form.check()
    torch.testing.assert_close(form.to_dense(), before.float(), rtol=1e-2, atol=1e-2)
    assert form(torch.ones(1, 52)).dtype == torch.float32
    assert form.spec()["dtype"] == "float32"


@pytest.mark.parametrize("make", MAKERS)
def test_every_tensor_is_checked_for_shape_and_dtype(make: Callable[..., WeightForm]) -> None:
    whole = make(normal(21, 52), normal(1, 21)[0])
    for suffix, tensor in whole.tensors().items():
        for wrong in (tensor[:-1], tensor.unsqueeze(0), tensor.to(torch.float64), tensor.to(torch.int16)):
            form = copy.deepcopy(whole)
            if suffix == "bias":
                form.bias = torch.nn.Parameter(wrong, requires_grad=False)
            else:
                form.register_buffer(suffix, wrong)
            with pytest.raises(CheckpointError, match=suffix):
                form.check()


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3]},
        {"shape": [-4, 8]},
        {"shape": None},
        {"dtype": "int8"},
        {"dtype": "complex64"},
        {"version": 99},
        {"version": "new"},
        {"settings": 3},
    ],
)
def test_a_malformed_description_is_refused(
    make: Callable[..., WeightForm], change: dict[str, object]
) -> None:
    spec = {**make(normal(4, 8)).spec(), **change}
    with pytest.raises(CheckpointError):
        from_spec(spec)


@pytest.mark.parametrize(
    ("make", "value"),
    [
        *((make, value) for make in (two_of_four, four_bits) for value in (None, "x", -1, 0, 99, [1])),
        *((masked, value) for value in (None, "x", -1, [1])),
    ],
)
def test_malformed_settings_are_refused(make: Callable[..., WeightForm], value: object) -> None:
    spec = make(normal(4, 8)).spec()
    first = next(iter(spec["settings"]))
    with pytest.raises(CheckpointError):
        from_spec({**spec, "settings": {**spec["settings"], first: value}})


def test_missing_keys_are_refused() -> None:
    spec = four_bits(normal(4, 8)).spec()
    for key in ("shape", "dtype", "version", "settings"):
        with pytest.raises(CheckpointError, match=key):
            from_spec({k: v for k, v in spec.items() if k != key})


def test_an_unknown_kind_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match="masked"):
        from_spec({**masked(normal(4, 8)).spec(), "kind": "mask"})


def test_a_form_reads_only_its_own_kind() -> None:
    with pytest.raises(CheckpointError, match="masked"):
        DenseWeight.empty(masked(normal(4, 8)).spec(), bias=False)


class TestMasked:
    @settings(deadline=None, max_examples=50)
    @given(
        rows=st.integers(0, 6),
        columns=st.integers(1, 40),
        dtype=st.sampled_from(DTYPES),
        seed=st.integers(0, 999),
    )
    def test_expansion_is_exact_to_the_bit(
        self, rows: int, columns: int, dtype: torch.dtype, seed: int
    ) -> None:
        weight = normal(rows, columns, dtype, seed)
        weight[:, ::5] = -0.0
        mask = normal(rows, columns, seed=seed + 1) > 0
        form = MaskedWeight.from_dense(weight, mask=mask)
        form.check()
        expected = torch.where(mask, weight, torch.zeros_like(weight))
        assert torch.equal(bits_of(form.to_dense()), bits_of(expected))
        assert torch.equal(form.kept(), mask)

    def test_without_mask_zeros_of_either_sign_are_dropped(self) -> None:
        form = MaskedWeight.from_dense(torch.tensor([[0.0, -0.0, 3.0]]))
        assert form.weight_values.tolist() == [3.0]
        assert form.to_dense().tolist() == [[0.0, 0.0, 3.0]]

    @pytest.mark.parametrize("columns", [1024, 1000])
    def test_half_the_weights_take_nine_sixteenths(self, columns: int) -> None:
        weight = normal(64, columns, torch.bfloat16)
        mask = torch.zeros(64, columns, dtype=torch.bool)
        mask[:, ::2] = True
        assert MaskedWeight.from_dense(weight, mask=mask).nbytes <= 0.57 * weight.nbytes

    def test_a_flipped_bit_is_noticed(self) -> None:
        form = masked(normal(8, 20))
        form.weight_bitmask[3, 1] ^= 4
        with pytest.raises(CheckpointError, match="bits are set"):
            form.check()

    def test_a_bit_behind_the_last_column_is_noticed(self) -> None:
        form = masked(normal(8, 20))
        form.weight_bitmask[0, 2] |= 128
        with pytest.raises(CheckpointError, match="behind the last column"):
            form.check()


class TestSemiStructured:
    @settings(deadline=None, max_examples=50)
    @given(
        rows=st.integers(0, 6),
        groups=st.integers(1, 9),
        pattern=st.sampled_from([(2, 4), (1, 4), (4, 8), (3, 5), (4, 4)]),
        dtype=st.sampled_from(DTYPES),
        seed=st.integers(0, 999),
        given_mask=st.booleans(),
    )
    def test_expansion_is_exact_to_the_bit(
        self,
        rows: int,
        groups: int,
        pattern: tuple[int, int],
        dtype: torch.dtype,
        seed: int,
        given_mask: bool,
    ) -> None:
        n, m = pattern
        weight = normal(rows, groups * m, dtype, seed)
        mask = ~semi_structured(normal(rows, groups * m, seed=seed + 1), n, m)
        mask[:, ::3] = False  # some groups keep fewer than n
        expected = torch.where(mask, weight, torch.zeros_like(weight))
        form = SemiStructuredWeight.from_dense(
            weight if given_mask else expected, n, m, mask=mask if given_mask else None
        )
        form.check()
        assert torch.equal(bits_of(form.to_dense()), bits_of(expected))

    def test_kept_negative_zeros_survive(self) -> None:
        weight = torch.tensor([[-0.0, 1.0, 2.0, 3.0]])
        form = SemiStructuredWeight.from_dense(weight, mask=torch.tensor([[True, True, False, False]]))
        assert torch.equal(bits_of(form.to_dense()), bits_of(torch.tensor([[-0.0, 1.0, 0.0, 0.0]])))

    def test_two_of_four_takes_nine_sixteenths(self) -> None:
        weight = normal(64, 1024, torch.bfloat16)
        assert two_of_four(weight).nbytes == 0.5625 * weight.nbytes

    def test_a_fuller_group_is_refused(self) -> None:
        with pytest.raises(InvalidSetting, match="More than 2 of 4"):
            SemiStructuredWeight.from_dense(torch.tensor([[1.0, 2.0, 3.0, 0.0]]))

    @pytest.mark.parametrize(("n", "m", "columns"), [(2, 4, 6), (5, 4, 8), (0, 4, 8)])
    def test_an_impossible_pattern_is_refused(self, n: int, m: int, columns: int) -> None:
        with pytest.raises(InvalidSetting):
            SemiStructuredWeight.from_dense(torch.zeros(2, columns), n, m)

    def test_a_moved_bit_is_noticed(self) -> None:
        form = SemiStructuredWeight.from_dense(torch.tensor([[1.0, 2, 0, 0, 0, 0, 3, 4]]))
        form.weight_index.fill_(0b11100001)  # as many bits, in the wrong groups
        with pytest.raises(CheckpointError, match="2 of 4"):
            form.check()

    def test_a_bit_behind_the_last_column_is_noticed(self) -> None:
        form = two_of_four(normal(2, 12))
        form.weight_index[0, 1] |= 128
        with pytest.raises(CheckpointError, match="behind the last column"):
            form.check()
