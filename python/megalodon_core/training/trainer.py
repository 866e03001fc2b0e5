"""Training by truncated back-propagation through time, resumable bit for bit.

A step reads one segment per row (`windows`), continues from the rows' carried states, and takes one AdamW
step under a warmed-up cosine schedule with the gradient's norm clipped. The states cross segments as values;
gradients stop at the segment's beginning. So a model learns with long histories behind it at the cost of
short segments.

Everything the next step depends on is in a checkpoint: parameters, both Adam moments, carried states, torch's
generator and the step. On the same machine with the same number of threads a resumed run computes exactly the
numbers of an uninterrupted one.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from megalodon_core.checkpoint import from_pretrained, save_pretrained
from megalodon_core.errors import UserError
from megalodon_core.files import read_json, write_json
from megalodon_core.model import Megalodon
from megalodon_core.state import MegalodonState
from megalodon_core.training.windows import Windows

PRECISIONS = ("float32", "bfloat16")
"""In what a step multiplies matrices; parameters, states and the optimizer are float32 in both."""


@dataclass(frozen=True)
class TrainSettings:
    """How a run trains. `carry` is how many segments a row reads before it starts from an empty state."""

    steps: int
    batch_size: int = 16
    segment_length: int = 256
    carry: int = 1
    learning_rate: float = 6e-3
    final_learning_rate: float = 2e-4
    warmup_steps: int = 50
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    gradient_clip: float = 1.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "segment_length", "carry"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "gradient_clip"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: expected a positive number, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise UserError(f"precision: expected one of {PRECISIONS}, got {self.precision!r}")

    def learning_rate_at(self, step: int) -> float:
        """Linear warmup, then half a cosine from `learning_rate` down to `final_learning_rate`."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        span = self.learning_rate - self.final_learning_rate
        return self.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * progress))


class Trainer:
    """A model in training at `self.step` of `settings.steps`, on a 1-D array of tokens."""

    def __init__(self, model: Megalodon, tokens: np.ndarray, settings: TrainSettings) -> None:
        self.model, self.settings, self.step = model, settings, 0
        self._windows = Windows(
            tokens, settings.batch_size, settings.segment_length, settings.carry, settings.seed
        )
        self._state: MegalodonState | None = None
        self._optimizer = _adamw(model, settings)

    def advance(self) -> float:
        """Take one step; return the segment's mean loss in nats per token."""
        segment = self._windows.segment(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.step)
        self.model.train()
        state = None if self._state is None else _emptied(self._state, torch.from_numpy(segment.fresh))
        with torch.autocast("cpu", torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            logits, state = self.model(torch.from_numpy(segment.inputs), state)
            loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(segment.targets).flatten())
        self._optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.gradient_clip)
        self._optimizer.step()
        self._state = state.detach()
        self.step += 1
        return loss.item()

    def save(self, directory: Path) -> None:
        """Write the model (as `save_pretrained` does) and all that the next step depends on."""
        save_pretrained(self.model, directory)
        tensors = {f"optimizer.{key}": value for key, value in self._optimizer_tensors().items()}
        if self._state is not None:
            for index, leaf in enumerate(self._state.tensors()):
                tensors[f"state.{index}"] = leaf.contiguous()
        tensors["generator"] = torch.get_rng_state()
        save_file(tensors, directory / "training.safetensors")
        write_json(directory / "training.json", {"step": self.step, "settings": asdict(self.settings)})

    @classmethod
    def restored(cls, directory: Path, tokens: np.ndarray, settings: TrainSettings) -> Trainer:
        """The trainer that `save` wrote down, about to take the step that comes next."""
        model = from_pretrained(directory)
        for parameter in model.parameters():
            # A file's tensors lie at its offsets; matrix products may round differently at another alignment.
            parameter.data = parameter.data.clone()
        trainer = cls(model, tokens, settings)
        trainer.step = read_json(directory / "training.json")["step"]
        tensors = load_file(directory / "training.safetensors")
        parameters = dict(model.named_parameters())
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == "optimizer":
                field, _, name = rest.partition("/")
                trainer._optimizer.state[parameters[name]][field] = value
        with torch.no_grad():
            _, state = model(torch.zeros(settings.batch_size, 1, dtype=torch.int64))
        indices = count()
        trainer._state = state.map(lambda _: tensors[f"state.{next(indices)}"])
        torch.set_rng_state(tensors["generator"])
        return trainer

    def _optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """`field/parameter name` -> tensor for every moment and step count."""
        return {
            f"{field}/{name}": value
            for name, parameter in self.model.named_parameters()
            for field, value in self._optimizer.state[parameter].items()
        }


def _adamw(model: Megalodon, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW that decays the matrices and leaves norms, biases and the EMA's coefficients alone."""
    named = list(model.named_parameters())
    is_matrix = {name: name.endswith(".weight") and parameter.ndim == 2 for name, parameter in named}
    matrices = [parameter for name, parameter in named if is_matrix[name]]
    others = [parameter for name, parameter in named if not is_matrix[name]]
    groups = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(settings.beta1, settings.beta2))


def _emptied(state: MegalodonState, fresh: torch.Tensor) -> MegalodonState:
    """`state` with zeros in the rows marked in `fresh (rows,)`: the state of a row that has read nothing."""
    if not fresh.any():
        return state
    return state.map(lambda leaf: leaf.masked_fill(fresh.view(-1, *[1] * (leaf.ndim - 1)), 0))
