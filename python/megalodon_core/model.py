"""The Megalodon language model (arXiv 2404.08801; released `megalodon/model/mega.py`)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from megalodon_core.config import MegalodonConfig
from megalodon_core.nn import (
    Block,
    ConstantParameters,
    Embedding,
    Linear,
    RotaryFrequencies,
    TimestepNorm,
    dropout,
    operator_dtype,
    truncated_normal_,
)
from megalodon_core.ops import TimestepNormState
from megalodon_core.state import LayerState, MegalodonState

__all__ = ["LayerState", "Megalodon", "MegalodonState"]


class OutputHead(nn.Module):
    """Timestep norm and output matrix: hidden states (B, L, D) to logits (B, K, output_size), same type."""

    def __init__(self, config: MegalodonConfig, **factory: Any) -> None:
        super().__init__()
        dim = config.model_dim
        self.final_norm = TimestepNorm(dim, config.norm_num_groups, config.norm_eps, **factory)
        init = partial(truncated_normal_, dim=dim)
        self.output = Linear(dim, config.num_logits, bias=False, init=init, **factory)

    def forward(
        self,
        x: Tensor,
        state: TimestepNormState | None,
        cu_seqlens: Tensor | None,
        padding_mask: Tensor | None,
        logits_to_keep: int | None,
    ) -> tuple[Tensor, TimestepNormState]:
        x, state = self.final_norm(x, state, cu_seqlens=cu_seqlens, padding_mask=padding_mask)
        if logits_to_keep is not None:
            x = x[:, -logits_to_keep:]
        return self.output(x), state


class Megalodon(nn.Module):
    """A Megalodon language model whose `state_dict` has the names and shapes of the released checkpoints.

        model = Megalodon(MegalodonConfig.preset("mega200M", vocab_size=256))
        logits, state = model(tokens)                # a whole sequence, or the first piece of a stream
        logits, state = model(more_tokens, state)    # the next piece: the same logits as one run over both

    Args:
        config: shape and behaviour; `vocab_size` must be set.
        device: where to put parameters; "meta" allocates nothing (fill it by `load_state_dict(assign=True)`).
        dtype: type of the parameters and so of the activations: float32, bfloat16, float16 or float64.

    Raises:
        ValueError: `config.vocab_size` is -1.
    """

    def __init__(
        self,
        config: MegalodonConfig,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if config.vocab_size < 1:
            raise ValueError(f"Megalodon: vocab_size: expected at least 1, got {config.vocab_size}")
        self.config = config
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embed = Embedding(config.vocab_size, config.model_dim, **factory)
        self.rope = RotaryFrequencies(config.z_dim // config.num_heads, config.rope_theta, device=device)
        self.layers = nn.ModuleList(Block(config, index, **factory) for index in range(config.num_layers))
        self.output = OutputHead(config, **factory)
        self._tie()
        retie = Megalodon._tie_after_loading
        self.register_load_state_dict_post_hook(retie)  # type: ignore[no-untyped-call]

    def forward(
        self,
        tokens: Tensor,
        state: MegalodonState | None = None,
        cu_seqlens: Tensor | None = None,
        padding_mask: Tensor | None = None,
        *,
        return_state: bool = True,
        logits_to_keep: int | None = None,
        donate_state: bool = False,
    ) -> tuple[Tensor, MegalodonState | None]:
        """Logits of the next token at every position, and what is needed to go on.

        Args:
            tokens: (B, L) int64 or int32, L >= 1, values in [0, vocab_size).
            state: what an earlier call returned, with B rows (n rows with `cu_seqlens`); None starts afresh.
            cu_seqlens: (n + 1,) int32 or int64 boundaries of n packed documents; needs B = 1.
            padding_mask: (B, L) bool, True at padding, anywhere in a row. Padding changes no state, and the
                logits there are 0. Not together with `cu_seqlens`.
            return_state: False returns None for the state, so that a training step holds none.
            logits_to_keep: number of last positions to compute logits for; None means all of them.
            donate_state: `state` is not used again, so that its memory may become that of the returned one:
                a token is then decoded without copying the keys and values of its chunk.

        Returns:
            logits (B, L or `logits_to_keep`, output_size), float32 (float64 if the model is), and the state.

        Raises:
            TypeError, ValueError: `tokens`, `state` or `logits_to_keep` is not as described, or an operator
                refuses `cu_seqlens` or `padding_mask`. The values of tokens are checked on the CPU in eager
                mode only; elsewhere the check would wait for the device.
        """
        self.check_tokens(tokens)
        for name, given in (("cu_seqlens", cu_seqlens), ("padding_mask", padding_mask)):
            if given is not None and not isinstance(given, Tensor):
                raise TypeError(f"Megalodon: {name}: expected a torch tensor, got {type(given).__name__}")
        if logits_to_keep is not None and not isinstance(logits_to_keep, int):
            raise TypeError(
                f"Megalodon: logits_to_keep: expected an int, got {type(logits_to_keep).__name__}"
            )
        if logits_to_keep is not None and logits_to_keep < 1:
            raise ValueError(f"Megalodon: logits_to_keep: expected at least 1, got {logits_to_keep}")
        if state is not None and not isinstance(state, tuple):
            raise TypeError(f"Megalodon: state: expected a MegalodonState, got {type(state).__name__}")
        if state is not None and len(state[0]) != len(self.layers):
            raise ValueError(f"Megalodon: state: expected {len(self.layers)} layers, got {len(state[0])}")
        x = dropout(self.embedded(tokens), self.config.dropout, self.training)
        logits, new_state = self.run(
            x, state, cu_seqlens, padding_mask, logits_to_keep, donate_state, return_state
        )
        return logits.to(operator_dtype(logits)), new_state

    def embedded(self, tokens: Tensor) -> Tensor:
        """The first block's input (B, L, D) for tokens (B, L)."""
        x: Tensor = self.embed(tokens)
        return x * math.sqrt(self.config.model_dim) if self.config.scale_emb else x

    def run(
        self,
        x: Tensor,
        state: MegalodonState | None,
        cu_seqlens: Tensor | None,
        padding_mask: Tensor | None,
        logits_to_keep: int | None,
        donate_state: bool,
        return_state: bool,
    ) -> tuple[Tensor, MegalodonState | None]:
        """`forward` from the first block's input on; logits in the type of activations."""
        layer_states, norm_state = (None, None) if state is None else state
        new_states: list[LayerState] = []
        for index, layer in enumerate(self.layers):
            run = self._checkpointed(layer)
            old = None if layer_states is None else layer_states[index]
            x, new = run(x, old, cu_seqlens, padding_mask, donate_state)
            if return_state:
                new_states.append(new)
        logits, norm_state = self.output(x, norm_state, cu_seqlens, padding_mask, logits_to_keep)
        return logits, MegalodonState(tuple(new_states), norm_state) if return_state else None

    def constant_parameters(self) -> ConstantParameters:
        """A promise that no parameter changes while it lasts, which saves a tenth of the time of a token.

        What operators take in the place of parameters (CEMA's coefficients, float32 copies) is then derived
        from them once, and not at every call. Calls that record gradients derive anew all the same.

            with torch.no_grad(), model.constant_parameters():
                for token in tokens:
                    logits, state = model(token, state, donate_state=True)
        """
        return ConstantParameters(self)

    def reset_parameters(self) -> None:
        """Draws all parameters anew and resets the buffers: for a model built on "meta" and `to_empty`-ed."""
        for module in self.modules():
            reset = getattr(module, "reset_parameters", None)
            if module is not self and callable(reset):
                reset()

    def num_parameters(self) -> int:
        """Number of learned values, a shared embedding counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Writes `model.safetensors` and `config.json`; see `checkpoint.save_pretrained`."""
        from megalodon_core.checkpoint import save_pretrained

        save_pretrained(self, directory)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike[str],
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Megalodon:
        """Reads what `save_pretrained` wrote; see `checkpoint.from_pretrained`."""
        from megalodon_core.checkpoint import from_pretrained

        return from_pretrained(directory, device=device, dtype=dtype)

    def _checkpointed(self, layer: nn.Module) -> Callable[..., Any]:
        if self.config.layerwise_ckpt and torch.is_grad_enabled():
            return partial(checkpoint, layer, use_reentrant=False)
        return layer

    def _tie(self) -> None:
        if self.config.share_emb:
            self.output.output.weight = self.embed.weight

    def _tie_after_loading(self, _: Any) -> None:
        self._tie()

    def _apply(self, *args: Any, **kwargs: Any) -> Megalodon:
        # `to_empty`, and moves between kinds of device, replace parameters singly: a shared pair would part.
        super()._apply(*args, **kwargs)  # type: ignore[no-untyped-call]
        self._tie()
        return self

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises what `forward` says of `tokens`."""
        if not isinstance(tokens, Tensor):
            raise TypeError(f"Megalodon: tokens: expected a torch tensor, got {type(tokens).__name__}")
        if tokens.dtype not in (torch.int64, torch.int32):
            raise TypeError(f"Megalodon: tokens: expected int64 or int32, got {tokens.dtype}")
        if tokens.dim() != 2 or tokens.numel() == 0:
            raise ValueError(
                f"Megalodon: tokens: expected shape (B, L), neither 0, got {tuple(tokens.shape)}"
            )
        if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = (int(bound) for bound in tokens.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                expected = f"values in [0, {self.config.vocab_size})"
                raise ValueError(f"Megalodon: tokens: expected {expected}, got {low} to {high}")
