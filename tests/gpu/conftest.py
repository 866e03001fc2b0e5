"""What is tested of a GPU alone, whatever `--backend` says."""

from __future__ import annotations

import pytest
import torch
from frontends import why_no_gpu


@pytest.fixture(scope="session")
def gpu() -> torch.device:
    """The GPU; skips the test where there is none, and says why."""
    reason = why_no_gpu()
    if reason:
        pytest.skip(reason)
    return torch.device("cuda", 0)


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU, or the CPU where there is none."""
    return torch.device("cpu") if why_no_gpu() else torch.device("cuda", 0)
