"""Every test in this folder runs on every instruction set or on the GPU, over memory that starts as NaN."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import frontends
import megalodon_core.frontends.numpy
import megalodon_core.frontends.torch
import numpy as np
import pytest
import torch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "frontend" in metafunc.fixturenames:
        both = frontends.served()
        metafunc.parametrize("frontend", both, ids=[one.name for one in both], scope="session")


@pytest.fixture(scope="session", autouse=True)
def every_isa(isa: str) -> None:
    """Every test of an operator runs on every instruction set."""


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


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="session", params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param
