"""When two arrays are near enough: errors are norms over a whole array, and NaN never passes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

GOLDEN = 1e-10
"""Relative error allowed in float64 against the golden numbers and against the references."""

NAIVE_MULTIPLE = 2
"""In lower precision an operator may lose this many times what naive torch loses in that precision."""


def error_norm(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| in float64; infinite where anything in either is not finite."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    return _norm(actual.double() - expected.double())


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """|actual - expected| / |expected|; against zeros the error itself."""
    return error_norm(actual, expected) / (_norm(expected) or 1.0)


def assert_close(actual: Tensor | None, expected: Tensor | None, rtol: float, name: str = "array") -> None:
    """Floats within `rtol` in relative norm, with a floor of `rtol / 1000` per element for zeros.

    Integers must be equal, and None matches only None.
    """
    if actual is None or expected is None:
        assert actual is expected, f"{name}: got {actual}, expected {expected}"
    elif not expected.is_floating_point():
        assert torch.equal(actual, expected), f"{name}: got {actual}, expected {expected}"
    else:
        allowed = rtol * (_norm(expected) + 1e-3 * math.sqrt(expected.numel()))
        _assert_within(error_norm(actual, expected), allowed, name)


def assert_as_good_as_naive(actual: Tensor, exact: Tensor, naive: Tensor, name: str = "array") -> None:
    """|actual - exact| is at most `NAIVE_MULTIPLE` times (|naive - exact| + one rounding of `exact`).

    `exact` is the float64 reference, `naive` the same formulas computed in less and given in `naive.dtype`.
    """
    rounding = torch.finfo(naive.dtype).eps * (_norm(exact) + 1e-3 * math.sqrt(exact.numel()))
    allowed = NAIVE_MULTIPLE * (error_norm(naive, exact) + rounding)
    assert math.isfinite(allowed), f"{name}: the naive result is not finite"
    _assert_within(error_norm(actual, exact), allowed, name)


def _norm(x: Tensor) -> float:
    norm = torch.linalg.vector_norm(x.double()).item()
    return norm if math.isfinite(norm) else math.inf


def _assert_within(error: float, allowed: float, name: str) -> None:
    assert math.isfinite(error), f"{name}: not finite"
    assert error <= allowed, f"{name}: error {error:.3g} exceeds {allowed:.3g}"


def assert_all_close(actual: dict, expected: dict, rtol: float) -> None:
    """`assert_close` of every named array; the names must be the same."""
    assert actual.keys() == expected.keys()
    for name in expected:
        assert_close(actual[name], expected[name], rtol, str(name))


def assert_bitwise_equal(actual: dict, expected: dict) -> None:
    """Every named array has the same type and the same values, and no NaN."""
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        if array is None or actual[name] is None:
            assert actual[name] is array, name
        else:
            assert actual[name].dtype == array.dtype, name
            assert torch.equal(actual[name], array), name
