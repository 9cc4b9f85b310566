"""Packed integers: the tensors of compressed-tensors, and a 4-bit kernel that agrees with the expansion."""

from __future__ import annotations

import pytest
import torch
from compressed_tensors.compressors.pack_quantized import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from modicum.errors import CheckpointError
from modicum.kernels import int4
from modicum.kernels.grids import IntegerScheme
from modicum.weights import PackedWeight

needs_kernel = pytest.mark.skipif(
    not int4.suits(16, 32, IntegerScheme(4, 32)), reason="this processor has no 4-bit kernel"
)


def normal(rows: int, columns: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def their_scheme(scheme: IntegerScheme) -> QuantizationScheme:
    grouped = scheme.group_size != -1
    args = QuantizationArgs(
        num_bits=scheme.bits,
        symmetric=scheme.symmetric,
        strategy="group" if grouped else "channel",
        group_size=scheme.group_size if grouped else None,
    )
    return QuantizationScheme(targets=["Linear"], weights=args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_tensors_equal_those_of_compressed_tensors(
    bits: int, group_size: int, symmetric: bool, dtype: torch.dtype
) -> None:
    scheme = IntegerScheme(bits, group_size, symmetric)
    form = PackedWeight.from_dense(normal(37, 96, dtype) + 0.2, scheme)
    state = {"weight": form.to_dense().float(), "weight_scale": form.weight_scale}
    zero_point = form.zero_point()
    assert (zero_point is None) == symmetric
    if zero_point is not None:
        state["weight_zero_point"] = zero_point.to(torch.int8)
    theirs = PackedQuantizationCompressor.compress(state, their_scheme(scheme))
    if dtype == torch.float32:  # bfloat16 rounds the products, which may move a code when it is found again
        assert torch.equal(form.weight_packed, theirs["weight_packed"])
    ours = form.tensors()
    assert set(ours) == set(theirs)
    for suffix in set(ours) - {"weight_packed"}:
        assert torch.equal(ours[suffix], theirs[suffix])
    expanded = PackedQuantizationCompressor.decompress(ours, their_scheme(scheme))["weight"]
    assert torch.equal(expanded, form.to_dense())


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 70),
    scheme=st.builds(IntegerScheme, st.integers(2, 8), st.sampled_from([-1, 1, 7, 32, 64]), st.booleans()),
    seed=st.integers(0, 99),
)
def test_codes_and_zero_points_survive(rows: int, columns: int, scheme: IntegerScheme, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = scheme.groups(columns)
    codes = torch.randint(scheme.lowest, scheme.highest + 1, (rows, columns), generator=generator)
    zero = torch.randint(scheme.lowest, scheme.highest + 1, (rows, groups), generator=generator)
    scale = torch.rand(rows, groups, generator=generator) + 0.1
    zero_point = None if scheme.symmetric else zero.to(torch.int32)
    form = PackedWeight.from_codes(codes.to(torch.int8), scale, zero_point, scheme)
    form.check()
    assert torch.equal(form.codes(), codes.to(torch.int8))
    spread = torch.arange(columns) // scheme.span(columns)
    steps = codes - (0 if zero_point is None else zero[:, spread])
    torch.testing.assert_close(form.to_dense(), steps * scale[:, spread])
    found = form.zero_point()
    assert (found is None) == (zero_point is None)
    if found is not None and zero_point is not None:
        assert torch.equal(found, zero_point)


def test_the_weight_expands_to_another_dtype_than_its_scale_when_asked() -> None:
    scheme = IntegerScheme(8, 32)
    reference = PackedWeight.from_dense(normal(8, 64), scheme)
    form = PackedWeight.from_codes(
        reference.codes(), reference.weight_scale, None, scheme, dtype=torch.bfloat16
    )
    assert form.weight_scale.dtype == torch.float32
    assert torch.equal(form.to_dense(), reference.to_dense().bfloat16())


@pytest.mark.parametrize(("bits", "share"), [(2, 0.14), (3, 0.20), (4, 0.27), (8, 0.52)])
def test_bytes_are_bits_plus_one_scale_per_group(bits: int, share: float) -> None:
    weight = normal(256, 1024, torch.bfloat16)
    form = PackedWeight.from_dense(weight, IntegerScheme(bits, 128))
    assert form.nbytes == 256 * 1024 * bits // 8 + 256 * 8 * 2 + 16
    assert form.nbytes <= share * weight.nbytes


def test_a_wrong_stored_shape_is_noticed() -> None:
    form = PackedWeight.from_dense(normal(4, 64), IntegerScheme(4))
    form.weight_shape[0] = 1 << 40
    with pytest.raises(CheckpointError, match="weight_shape"):
        form.check()


def test_a_scale_that_is_not_finite_is_noticed() -> None:
    form = PackedWeight.from_dense(normal(4, 64), IntegerScheme(4))
    form.weight_scale[0] = float("nan")
    with pytest.raises(CheckpointError, match="weight_scale"):
        form.check()


@needs_kernel
class TestKernel:
    @staticmethod
    def form(bias: bool = True) -> PackedWeight:
        shift = normal(1, 64, torch.bfloat16)[0] if bias else None
        return PackedWeight.from_dense(
            normal(64, 256, torch.bfloat16), IntegerScheme(4, 64, symmetric=False), shift
        )

    @pytest.mark.parametrize("bias", [True, False])
    def test_few_tokens_take_the_kernel_and_agree(self, bias: bool) -> None:
        form = self.form(bias)
        x = normal(6, 256, torch.bfloat16, seed=2).view(2, 3, 256)
        result = form(x).float()
        assert "kernel_codes" in dict(form.named_buffers())
        shift = None if form.bias is None else form.bias.float()
        expected = F.linear(x.float(), form.to_dense().float(), shift)
        assert float((result - expected).norm() / expected.norm()) < 6e-3

    def test_many_tokens_do_not(self) -> None:
        form = self.form()
        form(normal(500, 256, torch.bfloat16))
        assert "kernel_codes" not in dict(form.named_buffers())

    def test_gradients_flow_to_the_input(self) -> None:
        form = self.form()
        x = normal(2, 256, torch.bfloat16).requires_grad_()
        form(x).sum().backward()
        assert x.grad is not None
        torch.testing.assert_close(x.grad[0], form.to_dense().sum(0), rtol=0.1, atol=0.2)

    def test_the_repacked_copy_is_not_saved_and_not_kept_beyond_new_weights(self) -> None:
        form, other = self.form(), self.form()
        x = normal(1, 256, torch.bfloat16)
        form(x)
        assert set(form.state_dict()) == set(form.tensors())
        other.weight_scale *= 2
        form.load_state_dict(other.state_dict())
        assert torch.equal(form(x), other(x))

    def test_a_cast_model_leaves_the_kernel(self) -> None:
        form = self.form()
        form(normal(1, 256, torch.bfloat16))
        form.float()
        x = normal(1, 256)
        assert torch.equal(form(x), F.linear(x, form.to_dense(), form.bias))

    @pytest.mark.parametrize("rows", [64, 80, 96, 192])
    def test_the_kernels_layout_replaces_the_stored_one_and_gives_it_back(self, rows: int) -> None:
        form = PackedWeight.from_dense(normal(rows, 256, torch.bfloat16), IntegerScheme(4, 64))
        stored = {name: tensor.clone() for name, tensor in form.state_dict().items()}
        dense, nbytes = form.to_dense(), form.nbytes
        form(normal(1, 256, torch.bfloat16))
        held = {name for name, _ in form.named_buffers()}
        assert ("weight_packed" in held) == (rows % int4.TILE != 0)
        assert torch.equal(form.to_dense(), dense)
        assert form.nbytes == nbytes
        assert all(torch.equal(form.state_dict()[name], tensor) for name, tensor in stored.items())
        form(normal(1, 256, torch.bfloat16))
        form.load_state_dict(stored)
        assert torch.equal(form.to_dense(), dense)
