"""What the machine can do, by torch's own fastest means: matrix products and copies.

Floors are made of these, measured in the same rounds as what they are a floor of, on torch's default device.
"""

from __future__ import annotations

import torch

from megalodon_core.bench.timing import Sample, stopwatch
from megalodon_core.linear import SLOW_TYPES

GEMM = {"cpu": (4096, 1024, 2560), "cuda": (8192, 8192, 8192)}
"""Rows, inner dimension and columns of the matrix product whose rate is called the GEMM rate, by device."""


def gemm(dtype: torch.dtype, **flops: float) -> Sample:
    """The matrix product of the GEMM rate, its result in a new tensor as everywhere in a model.

    Gives the seconds in which so many `flops` could be done at that rate, under their names. A type of which
    the CPU has no products is multiplied in float32, as `linear` does it.
    """
    if torch.get_default_device().type == "cpu" and dtype in SLOW_TYPES:
        dtype = torch.float32
    rows, inner, columns = GEMM[torch.get_default_device().type]
    a, b = torch.randn(rows, inner).to(dtype), torch.randn(inner, columns).to(dtype)
    product = stopwatch("gemm", torch.no_grad()(lambda: a @ b))

    def sample() -> dict[str, float]:
        seconds = product()["gemm"]
        return {name: seconds * count / (2.0 * rows * inner * columns) for name, count in flops.items()}

    return sample


def copy(dtype: torch.dtype, **elements: float) -> tuple[Sample, ...]:
    """Moving so many elements, a sample each: half are read, half written to memory that exists already."""

    def one(name: str, count: float) -> Sample:
        source = torch.zeros(round(count / 2), dtype=dtype)
        destination = torch.zeros_like(source)
        return stopwatch(name, lambda: destination.copy_(source))

    return tuple(one(name, count) for name, count in elements.items())


def clone(dtype: torch.dtype, **elements: float) -> tuple[Sample, ...]:
    """The same into memory allocated at each call, which is what an operator's output is."""

    def one(name: str, count: float) -> Sample:
        return stopwatch(name, torch.zeros(round(count / 2), dtype=dtype).clone)

    return tuple(one(name, count) for name, count in elements.items())
