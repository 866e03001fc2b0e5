"""Continuing a prompt on the terminal, each token as soon as it is known."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from megalodon_core.errors import UserError
from megalodon_core.generation import stream
from megalodon_core.model import Megalodon


def continued(model: Megalodon, prompt: list[int], max_new_tokens: int, **sampling: Any) -> Iterator[int]:
    """The tokens that follow `prompt`; `sampling` is passed to `generation.stream`."""
    if not prompt:
        raise UserError("the prompt is empty")
    if max(prompt) >= model.config.vocab_size:
        raise UserError(
            f"the prompt holds {max(prompt)}, but the model's vocabulary is {model.config.vocab_size}"
        )
    try:
        steps = stream(model, [prompt], max_new_tokens=max_new_tokens, **sampling)
    except ValueError as error:  # a model without a logit for every token id
        raise UserError(str(error)) from error
    return (step[0] for step in steps)


def print_text(tokens: Iterable[int], output: TextIO) -> None:
    """Write byte values as the UTF-8 text they spell, as soon as a character is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in tokens:
        print(decoder.decode(bytes([token])), end="", file=output, flush=True)
    print(decoder.decode(b"", final=True), file=output)


def print_ids(tokens: Iterable[int], output: TextIO) -> None:
    """Write token ids, separated by spaces."""
    for token in tokens:
        print(token, end=" ", file=output, flush=True)
    print(file=output)
