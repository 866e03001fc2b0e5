"""Every operator and gradient is as precise as docs/precision.md says, on every instruction set."""

from pathlib import Path

import precision
import pytest
from calls import OPERATORS
from megalodon_core import runtime

DOCUMENTED = precision.documented(Path(__file__).parent.parent / "docs" / "precision.md")


@pytest.fixture(params=runtime.available_isas(), autouse=True)
def isa(request):
    before = runtime.isa()
    runtime.set_isa(request.param)
    yield request.param
    runtime.set_isa(before)


@pytest.mark.parametrize("dtype", precision.DTYPES)
@pytest.mark.parametrize("op", OPERATORS)
def test_precision_is_as_documented(op, dtype):
    rows = precision.measure(op, precision.DTYPES[dtype])
    assert {(dtype, op, row.array) for row in rows} == {key for key in DOCUMENTED if key[:2] == (dtype, op)}
    assert not precision.excesses(dtype, rows, DOCUMENTED)
