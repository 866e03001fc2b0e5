"""Models on disk: this package's own format, and the checkpoints of the released code.

    DIR/model.safetensors    the state dict, and the configuration in the file's metadata
    DIR/config.json          the same configuration, to read and to build from

Each file is written beside its place, flushed to the disk and renamed into it, so a reader finds a whole
file or the one before it. Should a crash fall between the two renames, the two configurations tell: they must
agree to load.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from megalodon_core.config import MegalodonConfig
from megalodon_core.files import atomic_write, read_json, write_json
from megalodon_core.model import Megalodon

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
EMBEDDING = "embed.weight"
OUTPUT = "output.output.weight"

StateDict = dict[str, Tensor]
PathLike = str | os.PathLike[str]

SHARDED_DIMENSION: dict[str, int] = {
    "embed.weight": 1,
    "output.weight": 1,
    "final_norm.weight": 0,
    "final_norm.bias": 0,
    "final_norm.prior_mean": 0,
    "final_norm.prior_logv": 0,
    "timenorm.weight": 0,
    "timenorm.bias": 0,
    "timenorm.prior_mean": 0,
    "timenorm.prior_logv": 0,
    "cema.alpha": 0,
    "cema.delta": 0,
    "cema.theta": 0,
    "cema.gamma": 0,
    "cema.omega": 0,
    "mega.gamma": 1,
    "mega.beta": 1,
    "wv.weight": 0,
    "wv.bias": 0,
    "wz.weight": 0,
    "wz.bias": 0,
    "wr.weight": 0,
    "wr.bias": 0,
    "wh1.weight": 0,
    "wh1.bias": 0,
    "wh2.weight": 1,
    "fc1.weight": 0,
    "fc2.weight": 1,
    "fc3.weight": 0,
}
"""Dimension that released model parallelism cuts into equal parts in rank order, by a name's last two parts.

From the released modules: column-parallel weights and biases are cut along outputs (0), row-parallel weights
and the embedding along inputs (1), values per channel or group along those (0), the attention's affine map by
heads (1). Every other tensor (`rmsnorm`, `nffn.norm`, `nffn.alpha`, `prior_count`, `rope.freqs`) is whole in
every shard.
"""


def save_pretrained(model: Megalodon, directory: PathLike) -> None:
    """Writes `model` to `directory`, which is made if it does not exist, in the parameters' own types.

    A checkpoint that is there already is replaced; an interruption leaves it, or an error, never a mixture.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = model.config.to_dict()
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if model.config.share_emb:
        del tensors[OUTPUT]
    with atomic_write(directory / WEIGHTS_FILE) as path:
        save_file(tensors, path, metadata={"format": "pt", "config": json.dumps(config)})
    write_json(directory / CONFIG_FILE, config)


def from_pretrained(
    directory: PathLike, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> Megalodon:
    """Reads a model that `save_pretrained` wrote, in eval mode.

    Args:
        directory: where it was saved.
        device: where to put it; None means the CPU.
        dtype: type of the parameters; None keeps the saved one.

    Raises:
        FileNotFoundError: there is no `config.json` or no `model.safetensors`.
        ValueError: one of them is damaged, or they are not of one model.
    """
    directory = Path(directory)
    config = MegalodonConfig.from_dict(read_json(directory / CONFIG_FILE))
    path = directory / WEIGHTS_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            saved_config = (file.metadata() or {}).get("config")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file: {error}") from error
    if saved_config is not None and json.loads(saved_config) != config.to_dict():
        raise ValueError(f"{directory}: {CONFIG_FILE} and {WEIGHTS_FILE} hold different configurations")
    if config.share_emb and EMBEDDING in tensors:
        tensors[OUTPUT] = tensors[EMBEDDING]
    return _assemble(config, tensors, path, device, dtype)


def load_released(
    path: PathLike,
    *,
    config: MegalodonConfig | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Megalodon:
    """Reads a checkpoint of the released code, in eval mode. No code in the file is run (`weights_only`).

    Args:
        path: a state dict file (`.pth`), or a directory of the released layout: `consolidated.pth`, or one
            `consolidated.XX.pth` per model-parallel rank, which are merged (see `SHARDED_DIMENSION`); with
            `config.json`, whose "model" entry is the configuration.
        config: the configuration, instead of the one in `config.json` beside the weights.
        device: where to put the model; None means the CPU.
        dtype: type of the parameters; None keeps the checkpoint's.

    Raises:
        FileNotFoundError: there are no weights, or no configuration.
        ValueError: the weights are damaged, are not those of the configuration, or are the shards of a fully
            sharded (FSDP) training run, which the released code consolidates before use.
    """
    path = Path(path)
    directory = path if path.is_dir() else path.parent
    tensors = merge_shards([_load_pth(file) for file in _released_files(path)])
    if config is None:
        config = _released_config(directory / CONFIG_FILE, tensors)
    if config.share_emb and EMBEDDING in tensors:
        output = tensors.setdefault(OUTPUT, tensors[EMBEDDING])
        if not torch.equal(output, tensors[EMBEDDING]):
            raise ValueError(
                f"{path}: {OUTPUT}: expected {EMBEDDING}, because share_emb is True, got other values"
            )
    return _assemble(config, tensors, path, device, dtype)


def merge_shards(shards: list[StateDict]) -> StateDict:
    """One state dict from those of all model-parallel ranks, in rank order; see `SHARDED_DIMENSION`.

    Raises:
        ValueError: the shards do not hold the same names, or differ in a tensor that every rank holds whole.
    """
    if len(shards) == 1:
        return shards[0]
    merged: StateDict = {}
    for name, first in shards[0].items():
        if any(name not in shard for shard in shards):
            raise ValueError(f"merge_shards: {name}: expected in all {len(shards)} shards, got it in some")
        parts = [shard[name] for shard in shards]
        dimension = SHARDED_DIMENSION.get(".".join(name.split(".")[-2:]))
        if dimension is not None:
            merged[name] = torch.cat(parts, dim=dimension)
        elif all(torch.equal(first, part) for part in parts):
            merged[name] = first
        else:
            raise ValueError(f"merge_shards: {name}: expected the same values in every shard, got others")
    extra = sorted(set().union(*shards) - set(merged))
    if extra:
        raise ValueError(f"merge_shards: {extra[0]}: expected in all {len(shards)} shards, got it in some")
    return merged


def _assemble(
    config: MegalodonConfig,
    tensors: Mapping[str, Tensor],
    source: Path,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Megalodon:
    """A model that owns `tensors` without a copy of them, where device and type allow."""
    model = Megalodon(config, device="meta")
    try:
        model.load_state_dict(tensors, strict=True, assign=True)
    except RuntimeError as error:
        raise ValueError(f"{source}: not the weights of this configuration: {error}") from error
    return model.to(device=device, dtype=dtype).eval()


def _released_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    whole = path / "consolidated.pth"
    if whole.is_file():
        return [whole]
    shards = sorted(path.glob("consolidated.[0-9][0-9].pth"))
    if shards:
        expected = [path / f"consolidated.{rank:02d}.pth" for rank in range(_shard_count(path, len(shards)))]
        if shards != expected:
            raise ValueError(
                f"{path}: expected {expected[0].name} to {expected[-1].name}, got {len(shards)} shards"
            )
        return shards
    if any(path.glob("model.ckpt.*.pth")):
        raise ValueError(
            f"{path}: expected a consolidated checkpoint, got the shards of an FSDP training run"
        )
    raise FileNotFoundError(
        f"{path}: no released checkpoint (a .pth file, or consolidated.pth in a directory)"
    )


def _shard_count(directory: Path, found: int) -> int:
    """Model-parallel ranks according to the released `consolidate_config.json`; without it, those found."""
    path = directory / "consolidate_config.json"
    return int(read_json(path)["model_parallel_size"]) if path.is_file() else found


def _load_pth(path: Path) -> StateDict:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: not a torch file of plain tensors: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise ValueError(f"{path}: expected a state dict (names to tensors), got {type(value).__name__}")
    return value


def _released_config(path: Path, tensors: StateDict) -> MegalodonConfig:
    """The "model" entry of a released `config.json`; old ones leave the vocabulary size to the tokenizer."""
    fields = read_json(path)
    fields = dict(fields.get("model", fields))
    if fields.get("vocab_size", -1) == -1 and EMBEDDING in tensors:
        fields["vocab_size"] = tensors[EMBEDDING].shape[0]
    return MegalodonConfig.from_dict(fields)
