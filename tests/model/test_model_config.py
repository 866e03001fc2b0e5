"""Configurations: released defaults, presets, and what is refused."""

from __future__ import annotations

import dataclasses
import json

import pytest
from megalodon_core.config import PRESETS, MegalodonConfig
from megalodon_core.model import Megalodon

PARAMETERS = {
    "mega200M": 220_627_968,
    "mega1.3B": 1_342_832_640,
    "mega1.3B_pg19": 1_327_628_288,
    "mega7.1B": 7_117_381_632,
    "mega7.3B": 7_385_817_088,
    "paper7B": 7_385_817_088,
}


def test_defaults_are_the_released_ones():
    assert MegalodonConfig().to_dict() == {
        "num_layers": 8,
        "model_dim": 1024,
        "z_dim": 256,
        "value_dim": 2048,
        "num_heads": 1,
        "ffn_hidden_dim": 2048,
        "cema_ndim": 16,
        "chunk_size": 2048,
        "efficient_attn": None,
        "init_mode": "he",
        "vocab_size": -1,
        "output_size": -1,
        "norm_num_groups": 32,
        "norm_affine": True,
        "norm_eps": 1e-5,
        "rope_base": None,
        "dropout": 0.0,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "swiglu": False,
        "rescale_nffn": False,
        "scale_emb": False,
        "share_emb": False,
        "layerwise_ckpt": False,
    }


def test_every_preset_has_a_parameter_count():
    assert PRESETS.keys() == PARAMETERS.keys()


@pytest.mark.parametrize("name", PARAMETERS)
def test_preset_parameter_count(name):
    model = Megalodon(MegalodonConfig.preset(name), device="meta")
    assert model.num_parameters() == PARAMETERS[name]
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_paper7b_has_the_papers_chunk_and_rope_base():
    config = MegalodonConfig.preset("paper7B")
    assert (config.chunk_size, config.rope_theta) == (4096, 1e5)
    assert MegalodonConfig.preset("mega7.3B").rope_theta == 1e4


def test_preset_overrides():
    config = MegalodonConfig.preset("mega200M", vocab_size=256, dropout=0.1)
    assert (config.vocab_size, config.dropout, config.num_layers) == (256, 0.1, 12)


def test_round_trip_through_json():
    config = MegalodonConfig.preset("mega1.3B_pg19")
    assert MegalodonConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"num_layers": 0}, ValueError),
        ({"num_layers": 2.0}, TypeError),
        ({"num_layers": True}, TypeError),
        ({"model_dim": 1}, ValueError),
        ({"model_dim": -4}, ValueError),
        ({"z_dim": 255}, ValueError),
        ({"num_heads": 3, "z_dim": 256}, ValueError),
        ({"value_dim": 2049, "num_heads": 2}, ValueError),
        ({"cema_ndim": 65}, ValueError),
        ({"chunk_size": 0}, ValueError),
        ({"efficient_attn": "flash"}, ValueError),
        ({"init_mode": "none"}, ValueError),
        ({"vocab_size": 0}, ValueError),
        ({"vocab_size": "256"}, TypeError),
        ({"output_size": -2}, ValueError),
        ({"norm_num_groups": 33}, ValueError),
        ({"norm_affine": 1}, TypeError),
        ({"norm_eps": 0.0}, ValueError),
        ({"norm_eps": float("nan")}, ValueError),
        ({"norm_eps": "1e-5"}, TypeError),
        ({"rope_base": 0.0}, ValueError),
        ({"rope_base": float("inf")}, ValueError),
        ({"dropout": 1.0}, ValueError),
        ({"hidden_dropout": -0.1}, ValueError),
        ({"attention_dropout": float("nan")}, ValueError),
        ({"share_emb": True, "vocab_size": 10, "output_size": 9}, ValueError),
        ({"unheard_of": 1}, ValueError),
    ],
)
def test_bad_fields_are_named(changes, error):
    with pytest.raises(error, match=f"MegalodonConfig: ({'|'.join(changes)}): expected .*, got "):
        MegalodonConfig.from_dict(changes)


def test_unknown_preset():
    with pytest.raises(ValueError, match=r"preset: name: expected one of .*mega200M.*, got 'mega9B'"):
        MegalodonConfig.preset("mega9B")


def test_a_model_needs_a_vocabulary():
    with pytest.raises(ValueError, match="vocab_size"):
        Megalodon(MegalodonConfig(), device="meta")


def test_config_cannot_change_under_a_model():
    with pytest.raises(dataclasses.FrozenInstanceError):
        MegalodonConfig().num_layers = 3
