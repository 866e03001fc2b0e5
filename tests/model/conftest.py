"""Models small enough for a test, with no parameter at a value that hides a mistake."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from frontends import PLACE
from megalodon_core.config import MegalodonConfig
from megalodon_core.model import Megalodon
from torch import Tensor

DATA = Path(__file__).parents[1] / "data"

TINY = MegalodonConfig(
    num_layers=2,
    model_dim=12,
    z_dim=8,
    value_dim=20,
    num_heads=2,
    ffn_hidden_dim=18,
    cema_ndim=3,
    chunk_size=5,
    vocab_size=19,
    norm_num_groups=3,
)


class GoldenModel(NamedTuple):
    """What `tests/data/model_*.npz` holds: a released model, and numbers it computed."""

    config: MegalodonConfig
    parameters: dict[str, Tensor]
    gradients: dict[str, Tensor]
    arrays: dict[str, Tensor]

    def model(self) -> Megalodon:
        model = Megalodon(self.config)
        model.load_state_dict(self.parameters, strict=True)
        return model.to(PLACE.type)


@pytest.fixture(scope="module", autouse=True)
def default_device() -> Iterator[None]:
    """What a test makes is where the operators run."""
    torch.set_default_device(PLACE.device)
    yield
    torch.set_default_device(None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" in metafunc.fixturenames:
        files = sorted(DATA.glob("model_*.npz"))
        assert files, f"no golden models in {DATA}"
        metafunc.parametrize("golden", [path.stem for path in files], indirect=True)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> GoldenModel:
    with np.load(DATA / f"{request.param}.npz") as file:
        config = MegalodonConfig.from_dict(json.loads(str(file["config"])))
        tensors = {n: torch.from_numpy(file[n]).to(PLACE.type) for n in file.files if n != "config"}
    named = {"param.": {}, "grad.": {}, "": {}}
    for name, tensor in tensors.items():
        prefix = next(prefix for prefix in named if name.startswith(prefix))
        named[prefix][name.removeprefix(prefix)] = tensor
    return GoldenModel(config, *named.values())


@pytest.fixture(scope="session")
def tiny():
    """Builds a tiny model, `tiny(dtype=..., chunk_size=..., ...)`: the same arguments, the same model."""

    def build(*, dtype: torch.dtype = torch.float32, **changes: Any) -> Megalodon:
        torch.manual_seed(0)
        with torch.device("cpu"), torch.no_grad():
            model = Megalodon(dataclasses.replace(TINY, **changes), dtype=torch.float64)
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model.to(PLACE.type, dtype)

    return build


@pytest.fixture
def tokens() -> Tensor:
    """A batch of two rows that crosses two chunk boundaries of the tiny model."""
    generator = torch.Generator("cpu").manual_seed(1)
    return torch.randint(TINY.vocab_size, (2, 13), generator=generator, device="cpu").to(PLACE.type)
