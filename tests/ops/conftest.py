"""Every test in this folder runs on every instruction set of this CPU, over memory that starts as NaN."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import megalodon_core.frontends.numpy
import megalodon_core.frontends.torch
import numpy as np
import pytest
import torch
from frontends import NUMPY, TORCH
from megalodon_core import runtime


@pytest.fixture(scope="session", params=runtime.available_isas(), autouse=True)
def isa(request) -> Iterator[str]:
    """The instruction set that is forced; frontends.py asserts after every operator that it ran."""
    before = runtime.isa()
    runtime.set_isa(request.param)
    assert runtime.isa() == request.param
    yield request.param
    runtime.set_isa(before)


@pytest.fixture(scope="session", autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Outputs start as NaN, or -1 where they are integers: what no kernel wrote is never near enough."""
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, megalodon_core.frontends.numpy, lambda array: array.view(np.uint8).fill(0xFF))
        poison(patch, megalodon_core.frontends.torch, lambda tensor: tensor.view(torch.uint8).fill_(0xFF))
        yield


def poison(patch: pytest.MonkeyPatch, frontend: ModuleType, fill: Callable[[Any], Any]) -> None:
    empty = frontend.empty

    def poisoned(shape: tuple[int, ...], code: int, *device: torch.device) -> Any:
        array = empty(shape, code, *device)
        if 0 not in shape:
            fill(array)
        return array

    patch.setattr(frontend, "empty", poisoned)


@pytest.fixture(scope="session", params=[TORCH, NUMPY], ids=lambda frontend: frontend.name)
def frontend(request):
    return request.param


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="session", params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param
