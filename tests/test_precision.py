"""Every operator and gradient is as precise as docs/precision.md says, on every instruction set and GPU."""

from pathlib import Path

import precision
import pytest
from calls import OPERATORS

DOCUMENTED = precision.documented(Path(__file__).parent.parent / "docs" / "precision.md")


pytestmark = pytest.mark.usefixtures("isa")


@pytest.mark.parametrize("dtype", precision.DTYPES)
@pytest.mark.parametrize("op", OPERATORS)
def test_precision_is_as_documented(op, dtype):
    rows = precision.measure(op, precision.DTYPES[dtype])
    assert {(dtype, op, row.array) for row in rows} == {key for key in DOCUMENTED if key[:2] == (dtype, op)}
    assert not precision.excesses(dtype, rows, DOCUMENTED)
