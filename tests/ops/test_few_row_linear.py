"""The linear map of a few rows, and when a model uses it."""

import pytest
import torch
import torch.nn.functional as F
from frontends import assert_the_backend_ran
from megalodon_core import _core
from megalodon_core.frontends.torch import few_row_linear
from megalodon_core.nn import Linear
from tolerance import relative_error

pytestmark = pytest.mark.cpu("a GPU has no such operator")


@pytest.mark.parametrize("rows", range(1, _core.few_rows + 1))
@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (7, 5), (64, 3), (129, 66)])
@pytest.mark.parametrize("bias", [True, False])
def test_it_is_the_product(dtype, rows, inputs, outputs, bias):
    generator = torch.Generator().manual_seed(rows)
    shapes = [(rows, inputs), (outputs, inputs), (outputs,)]
    x, weight, shift = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    y = few_row_linear(x, weight, shift if bias else None)
    assert_the_backend_ran()
    expected = F.linear(x.double(), weight.double(), shift.double() if bias else None)
    assert y.shape == expected.shape
    assert y.dtype == dtype
    assert relative_error(y, expected) < 4 * torch.finfo(dtype).eps


def test_leading_axes_and_strides():
    x, weight = torch.randn(3, 2, 1).transpose(0, 2), torch.randn(3, 4).T
    y = few_row_linear(x, weight, None)
    assert y.shape == (1, 2, 4)
    assert relative_error(y, F.linear(x.double(), weight.double())) < 1e-6


@pytest.mark.parametrize("shape", [(6,), (1, 1, 6), (2, 1, 2, 6)])
def test_any_rank(shape):
    x, weight = torch.randn(shape), torch.randn(3, 6)
    y = few_row_linear(x, weight, None)
    assert y.shape == (*shape[:-1], 3)
    assert relative_error(y, F.linear(x.double(), weight.double())) < 1e-6


def test_nan_and_infinity_stay_in_their_row_and_column():
    x, weight = torch.randn(2, 9), torch.randn(4, 9)
    x[0, 3], weight[2, 8] = torch.nan, torch.inf
    y = few_row_linear(x, weight, None)
    assert y[0].isnan().all()
    assert y[1, [0, 1, 3]].isfinite().all()
    assert not y[1, 2].isfinite()


def test_what_torch_must_do():
    x, layer = torch.randn(1, 6), Linear(6, 5, bias=True, init=torch.nn.init.ones_)
    assert few_row_linear(x, layer.weight, layer.bias) is None  # wants a gradient
    with torch.no_grad():
        assert few_row_linear(x, layer.weight, layer.bias) is not None
        assert few_row_linear(x.expand(_core.few_rows + 1, 6), layer.weight, layer.bias) is None
        assert few_row_linear(x[:0], layer.weight, layer.bias) is None
        assert few_row_linear(x.to("meta"), layer.weight, layer.bias) is None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert few_row_linear(x, layer.weight, layer.bias) is None


def test_a_layer_maps_any_number_of_rows():
    layer = Linear(6, 5, bias=True, init=torch.nn.init.xavier_uniform_)
    x = torch.randn(3 * _core.few_rows, 6)
    whole = layer(x)
    whole.sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        rows = torch.cat([layer(row[None]) for row in x])
    assert relative_error(rows, whole.double()) < 1e-6


@pytest.mark.parametrize(
    ("x", "weight", "bias", "message"),
    [
        ((1, 3), (2, 4), None, "weight: expected shape"),
        ((1, 3), (3,), None, "weight: expected shape"),
        ((1, 3), (2, 3), (3,), "bias: expected shape"),
        ((_core.few_rows + 1, 2), (2, 12), None, "weight: expected shape"),
    ],
)
def test_wrong_shapes(x, weight, bias, message):
    tensors = [None if shape is None else torch.randn(shape) for shape in (x, weight, bias)]
    with pytest.raises(ValueError, match=f"few_row_linear: {message}"):
        few_row_linear(*tensors)


def test_wrong_types():
    with pytest.raises(TypeError, match=r"few_row_linear: weight: expected float32 .*, got float64"):
        few_row_linear(torch.randn(1, 3), torch.randn(2, 3).double(), None)
