"""Every test in this folder runs on every instruction set or on the GPU, over memory that starts as NaN."""

from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import frontends
import numpy as np
import pytest
import torch
from megalodon_core.frontends import numpy as numpy_frontend
from megalodon_core.frontends import torch as torch_frontend


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
        poison(patch, numpy_frontend, "empty", lambda array: array.view(np.uint8).fill(0xFF))
        for name in ("empty", "empty_like"):
            poison(patch, torch_frontend, name, lambda tensor: tensor.view(torch.uint8).fill_(0xFF))
        for name, device in (("_frontend", "cpu"), ("_cuda_frontend", "cuda")):
            patch.setattr(torch_frontend, name, torch_frontend.make_frontend(torch_frontend._DIRECT, device))
        yield


def poison(patch: pytest.MonkeyPatch, frontend: ModuleType, name: str, fill: Callable[[Any], Any]) -> None:
    make = getattr(frontend, name)

    def poisoned(*description: Any) -> Any:
        array = make(*description)
        if 0 not in array.shape:
            fill(array)
        return array

    patch.setattr(frontend, name, poisoned)


DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="session", params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request) -> torch.dtype:
    return request.param
