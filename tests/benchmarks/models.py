"""Two layers of mega200M's width beside a LLaMA of as many parameters: time, memory, and decoding.

Memory, and the time of a long pass, are those of a process of its own: `python models.py {memory,seconds}
KIND DTYPE LENGTH` builds a model, runs a short pass, and prints what it finds about one forward + backward.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import llama
import torch
from megalodon_core import Megalodon, MegalodonConfig, runtime
from megalodon_core.bench import ceilings
from megalodon_core.bench.harness import DisagreementError
from megalodon_core.bench.operators import FULL, causal_pairs
from megalodon_core.bench.timing import Sample, interleave
from megalodon_core.training.memory import peak_resident_bytes
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = 256
LAYERS = 2
PAIRS = 3
ENOUGH_BYTES = 4 << 30
"""More than a pass over the longer sequence takes."""
LENGTHS = SHORT, LONG = 4096, 16384
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALONE = [("megalodon", "float32"), ("megalodon", "bfloat16"), ("llama", "float32")]
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}
"""Of logits and the loss's gradient against the same model in float64, relative to their norms."""


def config() -> MegalodonConfig:
    return replace(MegalodonConfig.preset("mega200M", vocab_size=VOCAB), num_layers=LAYERS)


def build(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    megalodon = Megalodon(config())
    if kind == "megalodon":
        return megalodon.to(dtype)
    shape = {"vocab_size": VOCAB, "dim": megalodon.config.model_dim, "layers": LAYERS}
    return llama.of_size(megalodon.num_parameters(), max_length=LONG, **shape).to(dtype)


def gemm_flops(length: int) -> float:
    """Operations of one forward of the Megalodon model: matrix products and the causal half of attention."""
    c = config()
    into = 2 * c.value_dim + c.z_dim + c.model_dim + c.ffn_hidden_dim  # wv, wr, wz, wh1, fc1
    back = c.value_dim + c.ffn_hidden_dim  # wh2, fc2
    products = length * c.model_dim * (LAYERS * (into + back) + VOCAB)
    pairs = causal_pairs(replace(FULL, length=length, chunk_size=c.chunk_size))
    return 2.0 * (products + LAYERS * pairs * (c.z_dim + c.value_dim))


def gemm_flops_backward(length: int) -> float:
    """Two products for each of forward, and attention's scores once more, since they are not stored."""
    c = config()
    pairs = causal_pairs(replace(FULL, length=length, chunk_size=c.chunk_size))
    return 2 * gemm_flops(length) + 2.0 * LAYERS * pairs * c.z_dim


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    return model(tokens, return_state=False)[0] if isinstance(model, Megalodon) else model(tokens)


def training_sample(model: nn.Module, tokens: Tensor) -> Sample:
    """Cross entropy of the next token, forward and backward, into the parameters' `grad`."""

    def sample() -> dict[str, float]:
        for parameter in model.parameters():
            parameter.grad = None
        begin = time.perf_counter()
        loss = F.cross_entropy(logits_of(model, tokens)[0, :-1], tokens[0, 1:])
        middle = time.perf_counter()
        loss.backward()
        end = time.perf_counter()
        return {"recorded": middle - begin, "backward": end - middle, "both": end - begin}

    return sample


def forward_sample(model: nn.Module, tokens: Tensor) -> Sample:
    @torch.no_grad()
    def sample() -> dict[str, float]:
        begin = time.perf_counter()
        logits_of(model, tokens)
        return {"forward": time.perf_counter() - begin}

    return sample


def compare(kind: str, dtype: str) -> float:
    """The largest relative error of logits and gradients beside float64; DisagreementError if too large."""
    tokens = torch.randint(VOCAB, (1, 192))
    found = []
    for working in (DTYPES[dtype], torch.float64):
        model = build(kind, DTYPES[dtype]).to(working)
        logits = logits_of(model, tokens)
        F.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
        gradient = torch.cat([p.grad.double().flatten() for p in model.parameters()])
        found.append((logits.detach().double(), gradient))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    if not error <= TOLERANCE[dtype]:
        raise DisagreementError(f"{kind} in {dtype} is {error:.1e} from float64")
    return error


def measure() -> dict[str, float]:
    """Figures `model.<kind>.<dtype>.<length>.<direction>.<quantity>` and `memory....`."""
    for kind, dtype in ALONE:
        compare(kind, dtype)
    figures = dict(_short())
    for kind, dtype in ALONE:
        figures.update(_alone(kind, dtype))
    for dtype in DTYPES:
        name = f"memory.megalodon.{dtype}"
        figures[f"{name}.growth"] = figures[f"{name}.{LONG}.gigabytes"] / figures[f"{name}.{SHORT}.gigabytes"]
    figures.update(_ratios(figures))
    return figures


def _short() -> Iterator[tuple[str, float]]:
    """All models at L = 4096 in turn, beside the time of their operations at the GEMM rate."""
    tokens = torch.randint(VOCAB, (1, SHORT))
    flops = {"forward": gemm_flops(SHORT), "backward": gemm_flops_backward(SHORT)}
    samples: dict[tuple[str, ...], Sample] = {}
    for kind, dtype in ALONE:
        model = build(kind, DTYPES[dtype])
        samples[kind, dtype, "inference"] = forward_sample(model, tokens)
        samples[kind, dtype, "training"] = training_sample(model, tokens)
        forward_sample(model, tokens[:, :256])()
    for dtype, kind in DTYPES.items():
        samples["floor", dtype, ""] = ceilings.gemm(kind, **flops)
    taken = interleave(samples, 0.0, least=PAIRS, patience=math.inf)
    for (kind, dtype, _), parts in taken.items():
        for part, values in parts.items():
            yield f"model.{kind}.{dtype}.{SHORT}.{part}.seconds", median(values)
            yield f"model.{kind}.{dtype}.{SHORT}.{part}.runs", len(values)


def _alone(kind: str, dtype: str) -> Iterator[tuple[str, float]]:
    """Memory at both lengths, the LLaMA's at the shorter, and the time of one pass at L = 16384."""
    for length in LENGTHS if kind == "megalodon" else (SHORT,):
        found = _in_a_process("memory", kind, dtype, length)
        yield f"memory.{kind}.{dtype}.{length}.gigabytes", found["bytes"] / 1e9
    found = _in_a_process("seconds", kind, dtype, LONG)
    yield f"model.{kind}.{dtype}.{LONG}.forward.seconds", found["recorded"]
    yield f"model.{kind}.{dtype}.{LONG}.both.seconds", found["both"]


def _in_a_process(what: str, kind: str, dtype: str, length: int) -> dict[str, float]:
    command = [sys.executable, __file__, what, kind, dtype, str(length)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(process.stdout)
    return found


def _ratios(figures: dict[str, float]) -> Iterator[tuple[str, float]]:
    for dtype in DTYPES:
        floor = f"model.floor.{dtype}.{SHORT}"
        forward, backward = (figures[f"{floor}.{part}.seconds"] for part in ("forward", "backward"))
        name = f"model.megalodon.{dtype}.{SHORT}"
        yield f"{name}.forward.share", forward / figures[f"{name}.forward.seconds"]
        yield f"{name}.both.share", (forward + backward) / figures[f"{name}.both.seconds"]
    for length in (SHORT, LONG):
        for direction in ("forward", "both"):
            own, half, peer = (
                figures[f"model.{kind}.{dtype}.{length}.{direction}.seconds"] for kind, dtype in ALONE
            )
            yield f"model.megalodon.float32.{length}.{direction}.llama", peer / own
            yield f"model.megalodon.bfloat16.{length}.{direction}.over_float32", half / own
        own, half = (figures[f"memory.megalodon.{dtype}.{length}.gigabytes"] for dtype in DTYPES)
        yield f"memory.megalodon.bfloat16.{length}.over_float32", half / own


def prepared(kind: str, dtype: str, length: int) -> Sample:
    """A training sample whose model has run once, over a few tokens."""
    model = build(kind, DTYPES[dtype])
    training_sample(model, torch.randint(VOCAB, (1, 256)))()
    model.zero_grad(set_to_none=True)
    return training_sample(model, torch.randint(VOCAB, (1, length)))


def memory(kind: str, dtype: str, length: int) -> dict[str, float]:
    """By how much the largest resident set during the pass exceeds what was resident before it."""
    sample = prepared(kind, dtype, length)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew at what is resident now
    before = peak_resident_bytes()
    sample()
    return {"bytes": peak_resident_bytes() - before}


def seconds(kind: str, dtype: str, length: int) -> dict[str, float]:
    """The time of the pass in memory that the process already has, as it is for a step of a training run."""
    runtime.keep_freed_memory()
    sample = prepared(kind, dtype, length)
    torch.zeros(ENOUGH_BYTES, dtype=torch.uint8)
    return sample()


if __name__ == "__main__":
    torch.set_num_threads(2)
    what = {"memory": memory, "seconds": seconds}[sys.argv[1]]
    print(json.dumps(what(sys.argv[2], sys.argv[3], int(sys.argv[4]))))
