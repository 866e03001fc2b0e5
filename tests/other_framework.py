"""A framework that the package has never heard of: arrays around torch tensors, known by DLPack alone.

Like CuPy it makes arrays on its current device, uses its current stream, and copies nothing unasked.
"""

from __future__ import annotations

from typing import Any

import torch

float16, bfloat16, float32, float64 = torch.float16, torch.bfloat16, torch.float32, torch.float64
int32, int64, bool = torch.int32, torch.int64, torch.bool
current_device = torch.device("cpu")
exported_to: list[int | None] = []
"""The streams for which arrays were exported."""


class Array:
    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor

    dtype = property(lambda self: self.tensor.dtype)
    shape = property(lambda self: tuple(self.tensor.shape))

    def __dlpack__(self, *, stream: int | None = None) -> Any:
        exported_to.append(stream)
        return self.tensor.__dlpack__(stream=stream)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.tensor.__dlpack_device__()

    def __setitem__(self, key: Any, value: Array) -> None:
        self.tensor[key] = value.tensor


def empty(shape: tuple[int, ...], dtype: torch.dtype) -> Array:
    return Array(torch.empty(shape, dtype=dtype, device=current_device))


def from_dlpack(array: Any) -> Array:
    return Array(torch.from_dlpack(array))
