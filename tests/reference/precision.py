"""The float type in which the references compute: float64, or less to learn what naive torch loses in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_dtype = torch.float64


def cast(x: Tensor) -> Tensor:
    """`x` in the type in which the references compute."""
    return x.to(_dtype)


@contextmanager
def precision(dtype: torch.dtype) -> Iterator[None]:
    """Inside this context every intermediate of a reference has the type `dtype`."""
    global _dtype
    before, _dtype = _dtype, dtype
    try:
        yield
    finally:
        _dtype = before
