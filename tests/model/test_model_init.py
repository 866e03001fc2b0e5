"""What a new model's parameters are, and how they are tied and moved."""

from __future__ import annotations

import math

import pytest
import torch
from megalodon_core import ops
from megalodon_core.config import MegalodonConfig
from megalodon_core.model import Megalodon
from megalodon_core.nn import TimestepNorm
from tolerance import relative_error

WIDE = {
    "num_layers": 2,
    "model_dim": 256,
    "z_dim": 128,
    "value_dim": 256,
    "num_heads": 2,
    "ffn_hidden_dim": 192,
    "vocab_size": 300,
    "rescale_nffn": True,
}


@pytest.fixture(scope="module")
def wide() -> Megalodon:
    torch.manual_seed(0)
    return Megalodon(MegalodonConfig(**WIDE))


def test_released_initialization(wide):
    for name, parameter in wide.named_parameters():
        *_, module, kind = name.split(".")
        values = parameter.detach()
        if name in ("embed.weight", "output.output.weight"):
            std = 1 / math.sqrt(256)
            assert values.abs().max() <= 3 * std
            # Cutting a normal at three standard deviations leaves 0.9866 of its own.
            assert values.std().item() == pytest.approx(0.9866 * std, rel=0.02)
        elif module == "cema" and kind in ("alpha", "delta"):
            assert values.std().item() == pytest.approx(0.2, rel=0.05)
        elif module == "cema" and kind == "gamma":
            assert values[..., 0].std().item() == pytest.approx(1.0, rel=0.05)
            assert not values[..., 1].any()
        elif module == "cema" and kind == "omega":
            assert values.abs().max() <= 1
            assert values.std().item() == pytest.approx(0.25, rel=0.15)
        elif module == "cema" and kind == "theta":
            frequencies = torch.exp(-torch.arange(1, 257) * math.log(256) / 256)
            torch.testing.assert_close(values.sigmoid().flatten().sort(descending=True).values, frequencies)
            assert not torch.equal(values.flatten(), values.flatten().sort(descending=True).values)
        elif kind == "alpha":
            layer = int(name.split(".")[1])
            assert torch.all(values == 0.1 * 0.5**layer)
        elif kind == "weight" and values.dim() == 2:
            assert values.std().item() == pytest.approx(math.sqrt(1 / (3 * values.shape[1])), rel=0.05), name
        else:
            assert not values.any(), name


@pytest.mark.parametrize(
    ("mode", "std"),
    [("bert", 0.02), ("xavier", math.sqrt(2 / (256 + 192))), ("gaussian", 0.9866)],
)
def test_other_init_modes(mode, std):
    model = Megalodon(MegalodonConfig(**{**WIDE, "num_layers": 1, "init_mode": mode}))
    assert model.layers[0].nffn.fc1.weight.std().item() == pytest.approx(std, rel=0.05)


def test_meta_model_is_filled_by_reset_parameters(tokens):
    config = MegalodonConfig(**{**WIDE, "num_layers": 1, "share_emb": True})
    model = Megalodon(config, device="meta").to_empty(device=tokens.device)
    model.reset_parameters()
    assert model.output.output.weight is model.embed.weight
    assert torch.isfinite(model(tokens)[0]).all()


def test_tied_embedding_survives_moves_and_loads(tiny):
    model = tiny(share_emb=True)
    assert model.output.output.weight is model.embed.weight
    assert model.bfloat16().output.output.weight is model.embed.weight
    for assign in (False, True):
        model.load_state_dict(tiny(share_emb=True).state_dict(), assign=assign)
        assert model.output.output.weight is model.embed.weight
    assert "output.output.weight" in model.state_dict()
    assert "output.output.weight" not in dict(model.named_parameters())


def test_loading_frequencies_of_another_rope_base_is_an_error(tiny):
    with pytest.raises(RuntimeError, match=r"rope\.freqs: expected those of rope_base = 10000\.0"):
        tiny().load_state_dict(tiny(rope_base=1e5).state_dict())


def test_prior_statistics_start_a_stream():
    torch.manual_seed(0)
    norm = TimestepNorm(12, 3, eps=1e-5)
    count, mean, logv = torch.tensor(7), torch.randn(3), torch.randn(3)
    norm.load_state_dict(norm.state_dict() | {"prior_count": count, "prior_mean": mean, "prior_logv": logv})
    x = torch.randn(2, 4, 12)
    start = ops.TimestepNormState(count.expand(2), mean.expand(2, -1), logv.exp().expand(2, -1))
    ones, zeros = torch.ones(12), torch.zeros(12)
    expected, _ = ops.timestep_norm(x, ones, zeros, 3, eps=1e-5, initial_state=start)
    y, state = norm(x)
    assert relative_error(y, expected) < 1e-6
    assert state.count.tolist() == [11, 11]
    assert relative_error(norm(x[:, 2:], norm(x[:, :2])[1])[0], y[:, 2:]) < 1e-5
    assert {name for name, _ in norm.named_parameters()} == {"weight", "bias"}


def test_norms_without_affine(tiny, tokens):
    model = tiny(norm_affine=False)
    names = model.state_dict().keys()
    assert not any("rmsnorm" in name or "nffn.norm" in name for name in names)
    assert torch.isfinite(model(tokens)[0]).all()


def test_output_size_other_than_the_vocabulary(tiny, tokens):
    assert tiny(output_size=7)(tokens)[0].shape == (2, 13, 7)
