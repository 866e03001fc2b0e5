"""One token at a time, batch 1, the whole mega200M: beside reading its weights once at copy bandwidth.

Two more times show what stands between them: torch's sum of each weight matrix, which reads it and hardly
does anything else, and a token of a model of as many layers that lies in cache, which is its calls.
"""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median

import torch
from megalodon_core import Megalodon, MegalodonConfig
from megalodon_core.bench import ceilings
from megalodon_core.bench.timing import Sample, interleave, stopwatch
from megalodon_core.decoding import Decoder

VOCAB = 32000
PROMPT = 16
IN_A_ROW = 8  # tokens, as a stream has them
NARROW = {"model_dim": 64, "z_dim": 16, "value_dim": 128, "ffn_hidden_dim": 160, "vocab_size": 256}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure(seconds: float) -> dict[str, float]:
    """Figures `decode.<dtype>.{seconds, calls_seconds, sums_seconds, read_seconds, over_read}`.

    Of the embedding one row is read, so its matrix is not counted among the weights.
    """
    config = MegalodonConfig.preset("mega200M", vocab_size=VOCAB)
    model, narrow = Megalodon(config), Megalodon(replace(config, **NARROW))
    weights = model.num_parameters() - model.embed.weight.numel()
    figures = {}
    for name, dtype in DTYPES.items():
        model.to(dtype)
        narrow.to(dtype)
        (read,) = ceilings.copy(dtype, read=weights)
        figures |= beside_reading(name, decoding(model), read, seconds, sums=summing(model))
        step = decoding(narrow)
        step()
        figures[f"decode.{name}.calls_seconds"] = median(interleave({"": step}, seconds / 8)[""]["token"])
    return figures


def beside_reading(
    name: str, step: Sample, read: Sample, seconds: float, **others: Sample
) -> dict[str, float]:
    """The figures of one kind of decoding: a token, reading the weights and what else is given, in turn."""
    samples = {"step": step, "read": read, **others}
    for sample in samples.values():
        sample()
    taken = interleave(samples, seconds)
    token, reading = median(taken["step"]["token"]), median(taken["read"]["read"])
    return {
        f"decode.{name}.seconds": token,
        f"decode.{name}.read_seconds": reading,
        f"decode.{name}.over_read": token / reading,
        **{f"decode.{name}.{other}_seconds": median(taken[other][other]) for other in others},
    }


def summing(model: Megalodon) -> Sample:
    """Sums every weight matrix, read as float32 whatever its type, since torch adds those fastest."""
    linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
    matrices = [module.weight.detach().view(torch.float32) for module in linear]

    def sum_each() -> None:
        for matrix in matrices:
            matrix.sum()

    return stopwatch("sums", sum_each)


def decoding(model: Megalodon) -> Sample:
    """Each sample reads a few more tokens of a stream that began with a short prompt: seconds of one."""
    with torch.no_grad():
        logits, state = model(torch.randint(model.config.vocab_size, (1, PROMPT)))

    decoder, logits = Decoder(model, state), logits[:, -1]

    def sample() -> dict[str, float]:
        nonlocal logits
        begin = time.perf_counter()
        for _ in range(IN_A_ROW):
            logits = decoder(logits.argmax(-1))
        return {"token": (time.perf_counter() - begin) / IN_A_ROW}

    return sample
