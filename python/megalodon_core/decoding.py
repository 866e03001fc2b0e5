"""Decoding: one token at a time from a state on, as calls of the core that Python makes only once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megalodon_core.frontends.torch import is_observed
from megalodon_core.model import Megalodon
from megalodon_core.nn import Block, operator_dtype
from megalodon_core.recording import Recording
from megalodon_core.state import MegalodonState


class Decoder:
    """Reads a token for each row of a state, again and again. Dropout is off.

        logits, state = model(prompt)
        decoder = Decoder(model, state)
        for token in tokens:
            logits = decoder(token)    # of model(token[:, None], state), which makes the next state

    The second call is recorded, and then the core repeats it without Python. Every call runs the model as
    usual instead where an `obstacle` was found (a GPU, more than four rows, modules of other kinds or with
    hooks), and while something is to see what torch does (autocast, a profiler, a mode).

    While a decoder is in use, the parameters and modules of its model must stay as they are: it does not see
    changes. Two threads must not share one. After a call that raised within the model there is no going on.

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
        with torch.inference_mode(False), torch.no_grad():
            self._state = state.detach() if donate_state else state.map(Tensor.clone)
        self._is_steady = False  # whether the state has the shape and memory that it keeps
        self._is_broken = False
        self._recorded: _Recorded | None = None

    @property
    def state(self) -> MegalodonState:
        """What was read, in memory that the next call updates. `Decoder(model, state)` branches off."""
        return self._state

    @property
    def is_recorded(self) -> bool:
        """Whether the next call is the core's alone, if nothing is to see it."""
        return self._recorded is not None

    def select(self, rows: Tensor | Sequence[int]) -> Decoder:
        """A decoder that goes on with these rows; this one may go on too."""
        chosen = Decoder(self._model, self._state.select(rows), donate_state=True)
        chosen._constant = self._constant
        return chosen

    # Out of inference mode a recording sees what operators are made of, and its tensors may be written again.
    @torch.inference_mode(False)
    @torch.no_grad()
    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits (R, output_size) of what follows `tokens` (R,), float32 (float64 if the model is).

        Raises:
            TypeError, ValueError: `tokens` are not R integers in [0, vocab_size).
            RuntimeError: an earlier call raised within the model, so that the state is lost.
        """
        rows = self._state.num_rows
        if not isinstance(tokens, Tensor):
            raise TypeError(f"Decoder: tokens: expected a torch tensor, got {type(tokens).__name__}")
        if tokens.shape != (rows,):
            raise ValueError(f"Decoder: tokens: expected shape ({rows},), got {tuple(tokens.shape)}")
        self._model.check_tokens(tokens[:, None])
        if self._is_broken:
            raise RuntimeError("Decoder: an earlier call raised within the model, so that the state is lost")
        self._is_broken = True
        logits = self._next(tokens[:, None])
        self._is_broken = False
        return logits[:, -1].to(operator_dtype(logits), copy=True)

    def _next(self, tokens: Tensor) -> Tensor:
        if is_observed():
            self._recorded, self._is_steady = None, False
            return self._run(tokens)
        if self._recorded is not None:
            self._recorded.input.copy_(self._model.embedded(tokens))
            self._recorded.recording.replay()
            return self._recorded.output
        if self._is_steady and self.obstacle is None:
            self.obstacle = _obstacle(self._model)
            if self.obstacle is None:
                return self._record(tokens)
        self._is_steady = True
        return self._run(tokens)

    def _run(self, tokens: Tensor) -> Tensor:
        logits: Tensor
        with dropout_off(self._model), self._constant:
            logits, self._state = self._model(tokens, self._state, logits_to_keep=1, donate_state=True)
        return logits

    def _record(self, tokens: Tensor) -> Tensor:
        x = self._model.embedded(tokens)
        state: Any  # never None, since it is asked for
        with dropout_off(self._model), self._constant, Recording() as recording:
            logits, state = self._model.run(
                x, self._state, None, None, logits_to_keep=1, donate_state=True, return_state=True
            )
            for kept, new in zip(self._state.tensors(), state.tensors(), strict=True):
                if new is not kept:
                    kept.copy_(new)
        self.obstacle = recording.foreign
        if self.obstacle is None:
            # Aliases, since a parameter may be given other memory.
            weights = tuple(parameter.detach() for parameter in self._model.parameters())
            self._recorded = _Recorded(recording, x, logits, weights)
        return logits


class _Recorded(NamedTuple):
    recording: Recording
    input: Tensor
    output: Tensor
    weights: tuple[Tensor, ...]


_OWN = {Megalodon.__module__, Block.__module__}


def _obstacle(model: nn.Module) -> str | None:
    """What would be lost in a recording; what torch's operators compute shows in the recording itself."""
    for module in model.modules():
        kind = type(module).__name__
        own = type(module).__module__ in _OWN or type(module) is nn.ModuleList
        if not own or "forward" in module.__dict__:
            return f"another kind of module: {kind}"
        if module._forward_hooks or module._forward_pre_hooks:
            return f"a hook of {kind}"
        if module._compiled_call_impl is not None:
            return f"a compiled {kind}"
    if nn.modules.module._has_any_global_hook():
        return "a hook of all modules"
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
