"""Text generation: prompts read in pieces through the constant-size state, then one token at a time.

Memory does not grow with what was read: a model remembers prompt and output in its `MegalodonState` alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megalodon_core.config import is_int, is_real
from megalodon_core.decoding import Decoder, dropout_off
from megalodon_core.model import Megalodon
from megalodon_core.state import MegalodonState

Prompt = Sequence[int] | Tensor


def generate(
    model: Megalodon,
    prompts: Iterable[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
    eos: int | None = None,
    prefill_chunk: int | None = None,
) -> list[list[int]]:
    """Continues each prompt by up to `max_new_tokens` tokens.

    Every token is drawn from softmax(logits / temperature), cut to the `top_k` likeliest tokens and then to
    the fewest of those whose probabilities together reach `top_p`. Prompts of different lengths go through
    the model as one batch, and each continues as it would alone. Dropout is off.

        generate(model, [[1, 2, 3], [4]], max_new_tokens=16, temperature=0.8, top_p=0.95, seed=0)

    Args:
        model: the model; it must have as many logits as token ids.
        prompts: sequences of token ids (lists or 1-D integer tensors), each of at least one token.
        max_new_tokens: at least 1.
        temperature: 0 takes the likeliest token (the first of equals), whatever `top_k`, `top_p` and `seed`.
        top_k: None, or at least 1.
        top_p: in (0, 1].
        seed: the same seed and prompts give the same tokens; None draws from torch's default generator.
        eos: a prompt's continuation ends with this token, if it comes up.
        prefill_chunk: prompt tokens per forward pass; None means `model.config.chunk_size`.

    Returns:
        The new tokens of each prompt, without the prompt.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    prompts = list(prompts)
    continuations: list[list[int]] = [[] for _ in prompts]
    for step in stream(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        eos=eos,
        prefill_chunk=prefill_chunk,
    ):
        for row, token in step.items():
            continuations[row].append(token)
    return continuations


def stream(
    model: Megalodon,
    prompts: Iterable[Prompt],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    seed: int | None = None,
    eos: int | None = None,
    prefill_chunk: int | None = None,
) -> Iterator[dict[int, int]]:
    """`generate`, one step at a time: yields the new token of every prompt that is still being continued.

    Arguments and errors are those of `generate`; arguments are checked at the call, before the first step.
    The model may be used otherwise between two steps, but its parameters must not change until the last.

        for step in stream(model, [prompt], max_new_tokens=100):
            print(step[0])
    """
    sampler = Sampler(temperature, top_k, top_p, seed)
    if model.config.num_logits != model.config.vocab_size:
        raise ValueError(
            f"generate: model: expected as many logits as token ids, got {model.config.num_logits} logits "
            f"and {model.config.vocab_size} ids"
        )
    _check_count("max_new_tokens", max_new_tokens)
    if prefill_chunk is None:
        prefill_chunk = model.config.chunk_size
    _check_count("prefill_chunk", prefill_chunk)
    if eos is not None and not (is_int(eos) and 0 <= eos < model.config.vocab_size):
        raise ValueError(
            f"generate: eos: expected None or a token id below {model.config.vocab_size}, got {eos!r}"
        )
    tokens, padding_mask = left_padded(list(prompts), model.config.vocab_size, model.embed.weight.device)
    return _steps(model, tokens, padding_mask, max_new_tokens, sampler, eos, prefill_chunk)


@torch.no_grad()
def prefill(
    model: Megalodon,
    tokens: Tensor,
    state: MegalodonState | None = None,
    *,
    padding_mask: Tensor | None = None,
    chunk: int | None = None,
) -> tuple[Tensor, MegalodonState]:
    """Reads tokens (B, L) in pieces of `chunk` and returns the last position's logits (B, V) and the state.

    Needs memory for one piece only. `chunk` None means `model.config.chunk_size`. Dropout is off.
    """
    chunk = model.config.chunk_size if chunk is None else chunk
    _check_count("chunk", chunk)
    logits, donate_state = None, False
    with dropout_off(model), model.constant_parameters():
        for start in range(0, tokens.shape[1], chunk):
            piece = slice(start, start + chunk)
            mask = None if padding_mask is None else padding_mask[:, piece]
            logits, state = model(
                tokens[:, piece], state, padding_mask=mask, logits_to_keep=1, donate_state=donate_state
            )
            donate_state = True  # of the first piece it is the caller's, later nobody else holds it
    if logits is None or state is None:
        raise ValueError(f"prefill: tokens: expected at least one, got shape {tuple(tokens.shape)}")
    return logits[:, -1], state


@dataclass(frozen=True)
class Sampler:
    """How a token is chosen from logits; the fields are those arguments of `generate`."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (is_real(self.temperature) and 0 <= self.temperature < math.inf):
            raise ValueError(
                f"generate: temperature: expected a finite number >= 0, got {self.temperature!r}"
            )
        if self.top_k is not None:
            _check_count("top_k", self.top_k)
        if not (is_real(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"generate: top_p: expected a number in (0, 1], got {self.top_p!r}")
        if self.seed is not None and not is_int(self.seed):
            raise TypeError(f"generate: seed: expected None or an int, got {self.seed!r}")

    def generator(self, device: torch.device) -> torch.Generator | None:
        """The source of randomness that `seed` asks for; None is torch's default generator."""
        return None if self.seed is None else torch.Generator(device).manual_seed(self.seed)

    def choose(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token id for each row of logits (B, V), as int64 (B,)."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        probabilities, ids = self.distribution(logits)
        return ids.gather(-1, torch.multinomial(probabilities, 1, generator=generator)).squeeze(-1)

    def distribution(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities (B, K) up to a factor, in falling order, and the token ids (B, K) they belong to.

        `top_p` keeps a token while the likelier ones together stay below it, so one token is always kept.
        """
        ordered, ids = logits.sort(dim=-1, descending=True, stable=True)
        ordered, ids = ordered[:, : self.top_k], ids[:, : self.top_k]
        probabilities = torch.softmax((ordered - ordered[:, :1]) / self.temperature, dim=-1)
        likelier = probabilities.cumsum(dim=-1) - probabilities
        return probabilities.masked_fill(likelier >= self.top_p, 0.0), ids


def left_padded(
    prompts: Sequence[Prompt], vocab_size: int, device: torch.device
) -> tuple[Tensor, Tensor | None]:
    """Prompts as one batch (B, L) that ends on each one's last token, and its padding mask if needed."""
    rows = [_prompt_tensor(index, prompt, vocab_size) for index, prompt in enumerate(prompts)]
    if not rows:
        raise ValueError("generate: prompts: expected at least one prompt, got none")
    lengths = torch.tensor([len(row) for row in rows])
    width = int(lengths.max())
    tokens = torch.stack([torch.cat((row.new_zeros(width - len(row)), row)) for row in rows]).to(device)
    if int(lengths.min()) == width:
        return tokens, None
    return tokens, (torch.arange(width) < (width - lengths)[:, None]).to(device)


@torch.no_grad()
def _steps(
    model: Megalodon,
    tokens: Tensor,
    padding_mask: Tensor | None,
    max_new_tokens: int,
    sampler: Sampler,
    eos: int | None,
    prefill_chunk: int,
) -> Iterator[dict[int, int]]:
    logits, state = prefill(model, tokens, padding_mask=padding_mask, chunk=prefill_chunk)
    decoder = Decoder(model, state, donate_state=True)
    generator = sampler.generator(logits.device)
    active = list(range(len(tokens)))  # the prompt that each remaining row continues
    for step in range(max_new_tokens):
        chosen = sampler.choose(logits, generator)
        ids: list[int] = chosen.tolist()
        yield dict(zip(active, ids, strict=True))
        going_on = [row for row, token in enumerate(ids) if token != eos]
        if not going_on or step + 1 == max_new_tokens:
            return
        if len(going_on) < len(active):
            active = [active[row] for row in going_on]
            decoder, chosen = decoder.select(going_on), chosen[going_on]
        logits = decoder(chosen)


def _prompt_tensor(index: int, prompt: Prompt, vocab_size: int) -> Tensor:
    name = f"generate: prompts[{index}]"
    if isinstance(prompt, Tensor):
        integral = prompt.dtype in (torch.int64, torch.int32)
        if not integral or prompt.dim() != 1 or len(prompt) == 0:
            raise ValueError(
                f"{name}: expected a 1-D int64 or int32 tensor of at least one token, "
                f"got {prompt.dtype} of shape {tuple(prompt.shape)}"
            )
        prompt = prompt.cpu().long()
        low, high = (int(bound) for bound in prompt.aminmax())
    else:
        if isinstance(prompt, (str, bytes)) or not isinstance(prompt, Sequence):
            raise TypeError(f"{name}: expected a sequence of token ids, got {type(prompt).__name__}")
        if not prompt or not all(is_int(token) for token in prompt):
            raise ValueError(f"{name}: expected at least one token id, all int, got {prompt!r:.60}")
        low, high = min(prompt), max(prompt)
    if low < 0 or high >= vocab_size:
        raise ValueError(f"{name}: expected token ids in [0, {vocab_size}), got {low} to {high}")
    return torch.as_tensor(prompt, dtype=torch.int64)


def _check_count(name: str, value: object) -> None:
    if not is_int(value):
        raise TypeError(f"generate: {name}: expected an int, got {value!r}")
    if value < 1:  # type: ignore[operator]
        raise ValueError(f"generate: {name}: expected at least 1, got {value}")
