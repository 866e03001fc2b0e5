"""The comparison helpers fail where they must."""

import math

import pytest
import torch
from tolerance import (
    assert_all_close,
    assert_as_good_as_naive,
    assert_bitwise_equal,
    assert_close,
    error_norm,
    relative_error,
)

ONES = torch.ones(4)
NAN = torch.tensor([1.0, 1.0, math.nan, 1.0])
INFINITE = torch.tensor([1.0, 1.0, math.inf, 1.0])


def test_errors_are_norms():
    assert error_norm(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])) == 5.0
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0])) == 0.75
    assert relative_error(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5


@pytest.mark.parametrize("bad", [NAN, INFINITE])
def test_what_is_not_finite_never_passes(bad):
    for actual, expected in ((bad, ONES), (ONES, bad), (bad, bad)):
        with pytest.raises(AssertionError):
            assert_close(actual, expected, rtol=1e300)
    with pytest.raises(AssertionError):
        assert_as_good_as_naive(bad, ONES, ONES)
    with pytest.raises(AssertionError):
        assert_as_good_as_naive(ONES, ONES, bad)
    with pytest.raises(AssertionError):
        assert_as_good_as_naive(bad, ONES, bad)


def test_nan_is_never_bitwise_equal():
    with pytest.raises(AssertionError):
        assert_bitwise_equal({"y": NAN}, {"y": NAN})


def test_broadcasting_does_not_hide_a_wrong_shape():
    with pytest.raises(AssertionError, match="shape"):
        assert_close(torch.ones(1), ONES, rtol=1.0)


def test_close_is_relative_to_the_norm():
    assert_close(ONES * (1 + 1e-6), ONES, rtol=2e-6)
    with pytest.raises(AssertionError, match="y: error"):
        assert_close(ONES * (1 + 1e-5), ONES, rtol=2e-6, name="y")


def test_zeros_leave_room_for_rounding_only():
    assert_close(ONES * 1e-15, ONES * 0, rtol=1e-10)
    with pytest.raises(AssertionError):
        assert_close(ONES * 1e-12, ONES * 0, rtol=1e-10)


def test_integers_are_equal_or_not():
    assert_close(torch.tensor([2**60]), torch.tensor([2**60]), rtol=0.1)
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([2**60 + 1]), torch.tensor([2**60]), rtol=0.1)


def test_none_matches_only_none():
    assert_close(None, None, rtol=0.0)
    for actual, expected in ((None, ONES), (ONES, None)):
        with pytest.raises(AssertionError):
            assert_close(actual, expected, rtol=1.0)


def test_names_must_agree():
    with pytest.raises(AssertionError):
        assert_all_close({}, {"y": ONES}, rtol=1.0)


def test_the_naive_loss_sets_the_budget():
    exact = torch.full((100,), 1.0, dtype=torch.float64)
    naive = (exact + 0.03125).to(torch.bfloat16)
    assert_as_good_as_naive(exact + 0.06, exact, naive)
    with pytest.raises(AssertionError):
        assert_as_good_as_naive(exact + 0.09, exact, naive)


def test_an_exact_naive_result_still_allows_a_rounding():
    exact = torch.full((100,), 1.0, dtype=torch.float64)
    assert_as_good_as_naive(exact * (1 + 2**-23), exact, exact.float())
    with pytest.raises(AssertionError):
        assert_as_good_as_naive(exact * (1 + 2**-21), exact, exact.float())
