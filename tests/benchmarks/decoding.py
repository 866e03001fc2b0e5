"""One token at a time, batch 1, the whole mega200M: beside reading its weights once at copy bandwidth."""

from __future__ import annotations

import time
from statistics import median

import torch
from megalodon_core import Megalodon, MegalodonConfig
from megalodon_core.bench import ceilings
from megalodon_core.bench.timing import Sample, interleave
from torch import Tensor

VOCAB = 32000
PROMPT = 16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(seconds: float) -> dict[str, float]:
    """Figures `decode.<dtype>.{seconds, read_seconds, over_read}`.

    Of the embedding one row is read, so its matrix is not counted among the weights.
    """
    model = Megalodon(MegalodonConfig.preset("mega200M", vocab_size=VOCAB))
    weights = model.num_parameters() - model.embed.weight.numel()
    figures = {}
    for name, dtype in DTYPES.items():
        model.to(dtype)
        (read,) = ceilings.copy(dtype, read=weights)
        with model.constant_parameters():
            figures |= beside_reading(name, decoding(model), read, seconds)
    return figures


def beside_reading(name: str, step: Sample, read: Sample, seconds: float) -> dict[str, float]:
    """The figures of one kind of decoding: a token, and reading the weights, in turn."""
    for sample in (step, read):
        sample()
    taken = interleave({"step": step, "read": read}, seconds)
    token, reading = median(taken["step"]["token"]), median(taken["read"]["read"])
    return {
        f"decode.{name}.seconds": token,
        f"decode.{name}.read_seconds": reading,
        f"decode.{name}.over_read": token / reading,
    }


def decoding(model: Megalodon) -> Sample:
    """Each sample reads one more token of a stream that began with a short prompt."""
    with torch.no_grad():
        logits, state = model(torch.randint(VOCAB, (1, PROMPT)))

    @torch.no_grad()
    def sample() -> dict[str, float]:
        nonlocal logits, state
        token: Tensor = logits[:, -1:].argmax(-1)
        begin = time.perf_counter()
        logits, state = model(token, state, donate_state=True)
        return {"token": time.perf_counter() - begin}

    return sample
