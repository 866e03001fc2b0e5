"""The golden files in data/: numbers on which the released implementation and a float64 loop agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"


def golden_files(pattern: str) -> list[Path]:
    found = sorted(DATA.glob(pattern))
    assert found, f"no golden file {pattern}"
    return found


def load_golden(path: Path) -> dict[str, Tensor]:
    """The arrays of a file, complex ones as real pairs."""
    with np.load(path) as arrays:
        loaded = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    return {name: torch.view_as_real(x) if x.is_complex() else x for name, x in loaded.items()}
