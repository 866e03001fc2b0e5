"""Checkpoints: what is saved is what loads, whatever interrupts, and released checkpoints load too."""

from __future__ import annotations

import dataclasses
import json
import os

import pytest
import torch
from megalodon_core import checkpoint
from megalodon_core.checkpoint import (
    from_pretrained,
    load_released,
    merge_shards,
    save_pretrained,
)
from megalodon_core.model import Megalodon

pytestmark = pytest.mark.cpu("files, which load there")


def assert_same_model(actual, expected):
    assert actual.config == expected.config
    ours, theirs = actual.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


@pytest.mark.parametrize("changes", [{}, {"share_emb": True, "swiglu": True}, {"dtype": torch.bfloat16}])
def test_round_trip(tiny, tokens, tmp_path, changes):
    model = tiny(**changes)
    model.save_pretrained(tmp_path / "new" / "model")
    loaded = Megalodon.from_pretrained(tmp_path / "new" / "model")
    assert_same_model(loaded, model)
    assert not loaded.training
    assert torch.equal(loaded(tokens)[0], model.eval()(tokens)[0])
    assert (loaded.output.output.weight is loaded.embed.weight) == model.config.share_emb
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(path.name for path in (tmp_path / "new" / "model").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_load_into_another_type(tiny, tmp_path):
    save_pretrained(tiny(), tmp_path)
    assert from_pretrained(tmp_path, dtype=torch.bfloat16).embed.weight.dtype == torch.bfloat16


def test_config_json_is_the_configuration(tiny, tmp_path):
    model = tiny()
    save_pretrained(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == model.config.to_dict()


@pytest.mark.parametrize("moment", ["writing", "renaming"])
def test_an_interrupted_save_leaves_the_former_checkpoint(tiny, tmp_path, monkeypatch, moment):
    former = tiny()
    save_pretrained(former, tmp_path)

    def interrupted(*args, **kwargs):
        if moment == "writing":
            args[1].write_bytes(b"half of a file")
        raise KeyboardInterrupt

    monkeypatch.setattr(*((checkpoint, "save_file") if moment == "writing" else (os, "replace")), interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_pretrained(tiny(swiglu=True), tmp_path)
    monkeypatch.undo()
    assert_same_model(from_pretrained(tmp_path), former)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_first_save_interrupted_between_its_files_is_not_loaded(tiny, tmp_path):
    save_pretrained(tiny(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path)


def test_files_of_two_models_are_not_loaded(tiny, tmp_path):
    save_pretrained(tiny(), tmp_path / "a")
    save_pretrained(tiny(chunk_size=6), tmp_path / "b")
    os.replace(tmp_path / "b" / "config.json", tmp_path / "a" / "config.json")
    with pytest.raises(ValueError, match="different configurations"):
        from_pretrained(tmp_path / "a")


@pytest.mark.parametrize("keep", [0, 7, 100, 5000])
def test_a_cut_file_is_not_loaded(tiny, tmp_path, keep):
    save_pretrained(tiny(), tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        from_pretrained(tmp_path)


def test_missing_and_damaged_files_are_named(tiny, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        from_pretrained(tmp_path)
    save_pretrained(tiny(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not JSON"):
        from_pretrained(tmp_path)
    save_pretrained(tiny(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        from_pretrained(tmp_path)


def released_directory(path, golden, shards=None):
    """What released consolidation leaves: weights, the run's configuration, and how it was consolidated."""
    shards = [golden.parameters] if shards is None else shards
    names = (
        ["consolidated.pth"]
        if len(shards) == 1
        else [f"consolidated.{i:02d}.pth" for i in range(len(shards))]
    )
    for name, shard in zip(names, shards, strict=True):
        torch.save({key: tensor.clone() for key, tensor in shard.items()}, path / name)
    model = golden.config.to_dict() | {"vocab_size": -1}
    (path / "config.json").write_text(json.dumps({"model": model, "tokenizer": {"path": None}}))
    (path / "consolidate_config.json").write_text(
        json.dumps({"model_parallel_size": len(shards), "dtype": "fp32"})
    )


def test_released_directory(golden, tmp_path):
    released_directory(tmp_path, golden)
    loaded = load_released(tmp_path)
    assert_same_model(loaded, golden.model())
    assert not loaded.training
    assert_same_model(load_released(tmp_path / "consolidated.pth"), golden.model())


def test_released_file_with_a_given_configuration(golden, tmp_path):
    torch.save(golden.parameters, tmp_path / "weights.pth")
    assert_same_model(load_released(tmp_path / "weights.pth", config=golden.config), golden.model())
    loaded = load_released(tmp_path / "weights.pth", config=golden.config, dtype=torch.bfloat16)
    assert loaded.embed.weight.dtype == torch.bfloat16
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_released(tmp_path / "weights.pth")


CUT_BY_OUTPUT = ("timenorm.", "final_norm.", "cema.", "wv.", "wz.", "wr.", "wh1.", "fc1.", "fc3.")
CUT_BY_INPUT = ("embed.", "output.output.", "wh2.", "fc2.", "mega.gamma", "mega.beta")


def shard(parameters, count):
    """What each rank of the released model parallelism holds of a whole state dict."""
    shards = [{} for _ in range(count)]
    for name, tensor in parameters.items():
        if "prior_count" not in name and any(part in name for part in CUT_BY_OUTPUT):
            parts = tensor.chunk(count, dim=0)
        elif any(part in name for part in CUT_BY_INPUT):
            parts = tensor.chunk(count, dim=1)
        else:
            parts = [tensor] * count
        for target, part in zip(shards, parts, strict=True):
            target[name] = part
    return shards


def test_model_parallel_shards_are_merged(golden, tmp_path):
    released_directory(tmp_path, golden, shard(golden.parameters, 2))
    assert_same_model(load_released(tmp_path), golden.model())


def test_missing_shard(golden, tmp_path):
    released_directory(tmp_path, golden, shard(golden.parameters, 4))
    (tmp_path / "consolidated.02.pth").unlink()
    with pytest.raises(ValueError, match=r"consolidated\.00\.pth to consolidated\.03\.pth, got 3 shards"):
        load_released(tmp_path)


def test_shards_of_two_models_are_not_merged(golden):
    first, second = shard(golden.parameters, 2)
    changed = second | {"layers.0.mega.rmsnorm.weight": second["layers.0.mega.rmsnorm.weight"] + 1}
    with pytest.raises(ValueError, match=r"rmsnorm\.weight: expected the same values"):
        merge_shards([first, changed])
    for shards in ([first, {}], [{}, second]):
        with pytest.raises(ValueError, match="got it in some"):
            merge_shards(shards)


def test_weights_of_another_configuration(golden, tmp_path):
    torch.save(golden.parameters, tmp_path / "weights.pth")
    other = dataclasses.replace(golden.config, num_layers=golden.config.num_layers + 1)
    with pytest.raises(ValueError, match="not the weights of this configuration"):
        load_released(tmp_path / "weights.pth", config=other)


def test_unusable_released_files(tiny, tmp_path):
    config = tiny().config
    with pytest.raises(FileNotFoundError, match="no released checkpoint"):
        load_released(tmp_path)
    torch.save({"a": 1}, tmp_path / "model.ckpt.00000.pth")
    with pytest.raises(ValueError, match="FSDP"):
        load_released(tmp_path)
    with pytest.raises(ValueError, match="expected a state dict"):
        load_released(tmp_path / "model.ckpt.00000.pth", config=config)
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(ValueError, match="not a torch file"):
        load_released(tmp_path / "damaged.pth", config=config)


class Payload:
    """Unpickling this would run a command, which `weights_only` must refuse."""

    def __reduce__(self):
        return os.mkdir, ("payload-was-run",)


def test_code_in_a_checkpoint_is_not_run(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"embed.weight": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="not a torch file of plain tensors"):
        load_released(tmp_path / "evil.pth", config=tiny().config)
    assert not (tmp_path / "payload-was-run").exists()
