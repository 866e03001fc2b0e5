"""Decoding: one token at a time from a state on, as calls of the core that Python makes only once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from megalodon_core.frontends.torch import is_observed
from megalodon_core.model import Megalodon
from megalodon_core.nn import operator_dtype
from megalodon_core.recording import Recording
from megalodon_core.state import MegalodonState


class Decoder:
    """Reads a token for each row of a state, again and again. Dropout is off.

        logits, state = model(prompt)
        decoder = Decoder(model, state)
        for token in tokens:
            logits = decoder(token)    # of model(token[:, None], state), which makes the next state

    The second call is recorded, and from the third on the core repeats it without Python. Where it does not
    compute all of a token (on a GPU, for more than four rows, with hooks, under autocast, in a compiled
    model), every call runs the model as usual, and `obstacle` says why.

    The parameters of the model must not change while a decoder is in use, nor may two threads share one.

    Args:
        model: the model.
        state: what it returned, of R rows.
        donate_state: `state` is not used again, so that its memory may become the decoder's.

    Raises:
        TypeError: `state` is no MegalodonState.
    """

    def __init__(self, model: Megalodon, state: MegalodonState, *, donate_state: bool = False) -> None:
        if not isinstance(state, MegalodonState):
            raise TypeError(f"Decoder: state: expected a MegalodonState, got {type(state).__name__}")
        self.obstacle: str | None = None
        self._model = model
        self._constant = model.constant_parameters()
        state = state.detach()
        self._state = state if donate_state else state.map(Tensor.clone)
        self._is_steady = False  # whether the state has the shape and memory that it keeps
        self._recorded: tuple[Recording, Tensor, Tensor] | None = None  # with its input and output

    @property
    def state(self) -> MegalodonState:
        """What was read so far, in memory that the next call updates: `select` rows or clone to keep it."""
        return self._state

    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (R, output_size) of what follows `tokens` (R,), float32 (float64 if the model is).

        Raises:
            TypeError, ValueError: `tokens` are not R integers in [0, vocab_size).
        """
        rows = self._state.num_rows
        if not isinstance(tokens, Tensor):
            raise TypeError(f"Decoder: tokens: expected a torch tensor, got {type(tokens).__name__}")
        if tokens.shape != (rows,):
            raise ValueError(f"Decoder: tokens: expected shape ({rows},), got {tuple(tokens.shape)}")
        if self._recorded is not None:
            recording, x, logits = self._recorded
            x.copy_(self._model.embedded(tokens[:, None]))
            recording.replay()
        else:
            with dropout_off(self._model), self._constant:
                logits = self._record(tokens) if self._is_steady else self._run(tokens)
            self._is_steady = True
        return logits[:, -1].to(operator_dtype(logits), copy=True)

    def _run(self, tokens: Tensor) -> Tensor:
        logits: Tensor
        logits, self._state = self._model(tokens[:, None], self._state, logits_to_keep=1, donate_state=True)
        return logits

    def _record(self, tokens: Tensor) -> Tensor:
        self.obstacle = self.obstacle or _obstacle(self._model)
        if self.obstacle is not None:
            return self._run(tokens)
        x = self._model.embedded(tokens[:, None])
        state: Any  # never None, since it is asked for
        with Recording() as recording:
            logits, state = self._model.run(x, self._state, logits_to_keep=1, donate_state=True)
            for kept, new in zip(self._state.tensors(), state.tensors(), strict=True):
                if new is not kept:
                    kept.copy_(new)
        self.obstacle = recording.foreign
        if self.obstacle is None:
            self._recorded = recording, x, logits
        return logits


def _obstacle(model: nn.Module) -> str | None:
    """What would be lost in a recording of the model; what it computes shows in the recording itself."""
    if is_observed():
        return "a mode, transform, tracer, profiler or autocast of torch"
    for module in model.modules():
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a hook of {type(module).__name__}"
        if module._compiled_call_impl is not None:
            return f"a compiled {type(module).__name__}"
    return None


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and each module in its own one afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
