"""One layer of the 7B model beside a LLaMA-2-7B layer: training at several contexts, memory, one token.

Everything is on torch's default device, in bfloat16.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median

import llama
import torch
from decoding import beside_reading
from megalodon_core import MegalodonConfig
from megalodon_core.bench import ceilings
from megalodon_core.bench.harness import DisagreementError
from megalodon_core.bench.timing import Clock, Sample, interleave
from megalodon_core.nn import Block, ConstantParameters
from megalodon_core.state import LayerState
from sdpa import BACKENDS, accepts, under
from torch import Tensor, nn

DTYPE = torch.bfloat16
TOLERANCE = 0.1
"""Of a layer's output and the gradient of its input against the same layer in float64, as norms."""

Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Widths:
    """The layers to compare, and at how many sequences of which length."""

    config: MegalodonConfig
    llama_dim: int
    llama_hidden: int
    contexts: tuple[tuple[int, int], ...]


FULL = Widths(
    MegalodonConfig.preset("paper7B"),
    llama_dim=4096,
    llama_hidden=11008,
    contexts=((8, 4096), (1, 32768), (1, 131072)),
)
SMALL = Widths(
    MegalodonConfig.preset(
        "paper7B",
        model_dim=64,
        z_dim=32,
        value_dim=64,
        num_heads=2,
        ffn_hidden_dim=96,
        norm_num_groups=4,
        chunk_size=32,
    ),
    llama_dim=128,
    llama_hidden=160,
    contexts=((2, 32), (1, 64)),
)


def megalodon(widths: Widths) -> tuple[Block, Layer]:
    torch.manual_seed(0)
    block = Block(widths.config).to(DTYPE)
    return block, lambda x: block(x)[0]


def llama_layer(widths: Widths, length: int) -> tuple[llama.Layer, Layer]:
    torch.manual_seed(0)
    layer, rotation = llama.Layer(widths.llama_dim, widths.llama_hidden).to(DTYPE), llama.turns(length)
    rotation = rotation.to(DTYPE)
    return layer, lambda x: layer(x, rotation)


def compare(module: nn.Module, run: Callable[[nn.Module, Tensor], Tensor], x: Tensor) -> None:
    """Raises DisagreementError where a layer is far from itself in float64."""
    found = []
    for dtype in (DTYPE, torch.float64):
        leaf = x.to(dtype).requires_grad_()
        y = run(copy.deepcopy(module).to(dtype), leaf)
        (gradient,) = torch.autograd.grad(y.double().square().mean(), leaf)
        found.append((y.detach().double(), gradient.double()))
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    if not error <= TOLERANCE:
        raise DisagreementError(f"{type(module).__name__} in bfloat16 is {error:.1e} from float64")


def training(module: nn.Module, layer: Layer, x: Tensor, dy: Tensor) -> Sample:
    """Forward and backward, into the parameters' `grad`, which keep their memory."""

    def sample() -> dict[str, float]:
        leaf = x.detach().requires_grad_()
        clock = Clock()
        y = layer(leaf)
        clock.mark()
        y.backward(dy)
        clock.mark()
        forward, backward = clock.seconds()
        return {"forward": forward, "backward": backward, "both": forward + backward}

    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return sample


def peak_bytes(sample: Sample) -> int | None:
    """By how much the memory in use during a run exceeds that before it; None on the CPU."""
    if torch.get_default_device().type != "cuda":
        return None
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    sample()
    return torch.cuda.max_memory_allocated() - before


def measure(widths: Widths, seconds: float) -> dict[str, float]:
    """Figures `layer.<context>.<who>.{forward, backward, both}`, `.<who>.bytes` and `.over_llama`.

    `<who>` is megalodon or llama through one of torch's backends; LLaMA's fastest counts.
    """
    block, layer = megalodon(widths)
    compare(block, lambda module, x: module(x)[0], torch.randn(1, 64, widths.config.model_dim))
    figures: dict[str, float] = {}
    for batch, length in widths.contexts:
        samples = dict(_sides(widths, block, layer, batch, length))
        figures.update(_context(f"layer.{length}", samples, batch * length, seconds))
        samples.clear()
        if torch.get_default_device().type == "cuda":
            torch.cuda.empty_cache()
    return figures


def _sides(
    widths: Widths, block: Block, layer: Layer, batch: int, length: int
) -> Iterator[tuple[str, Sample]]:
    """The layers at this context that run, each run once."""
    x = torch.randn(batch, length, widths.config.model_dim, dtype=DTYPE)
    own = training(block, layer, x, torch.randn_like(x))
    own()
    yield "megalodon", own
    peer, peer_layer = llama_layer(widths, length)
    rotation = llama.turns(64)
    small = torch.randn(1, 64, widths.llama_dim)
    compare(peer, lambda module, x: module(x, rotation.to(x.dtype)), small)
    x = torch.randn(batch, length, widths.llama_dim, dtype=DTYPE)
    dy = torch.randn_like(x)
    for name, backend in BACKENDS.items():
        sample = training(peer, under(backend, peer_layer), x, dy)
        if accepts(sample):
            yield f"llama_{name}", sample


def _context(name: str, samples: dict[str, Sample], tokens: int, seconds: float) -> dict[str, float]:
    figures: dict[str, float] = {}
    taken = interleave(samples, seconds, least=3, patience=math.inf)
    for who, parts in taken.items():
        figures |= {f"{name}.{who}.{part}": median(times) for part, times in parts.items()}
        figures[f"{name}.{who}.tokens_per_second"] = tokens / figures[f"{name}.{who}.both"]
        peak = peak_bytes(samples[who])
        if peak is not None:
            figures[f"{name}.{who}.bytes"] = peak
    peers = [who for who in samples if who != "megalodon"]
    if peers:
        best = min(peers, key=lambda who: figures[f"{name}.{who}.both"])
        figures[f"{name}.over_llama"] = figures[f"{name}.{best}.both"] / figures[f"{name}.megalodon.both"]
        if f"{name}.megalodon.bytes" in figures:
            own, other = (figures[f"{name}.{who}.bytes"] for who in ("megalodon", best))
            figures[f"{name}.memory_over_llama"] = own / other
    return figures


def decoding(widths: Widths, seconds: float) -> dict[str, float]:
    """Figures `decode.{start, half_chunk}.{seconds, read_seconds, over_read}`: one token in a layer.

    The stream has read 16 tokens before, or half a chunk. Reading the weights is timed as a copy of as many
    bytes, read and written together. On a GPU the step is a graph, as in a decoder that cares.
    """
    block, _ = megalodon(widths)
    weights = sum(parameter.numel() for parameter in block.parameters())
    figures = {}
    for name, before in (("start", 16), ("half_chunk", widths.config.chunk_size // 2)):
        (read,) = ceilings.copy(DTYPE, read=weights)
        with ConstantParameters(block):
            step = token(block, widths.config.model_dim, before)
            figures |= beside_reading(name, step, read, seconds)
    return figures


@torch.no_grad()
def token(block: Block, dim: int, before: int) -> Sample:
    """Each sample is one more token of a stream; keys and values stay where they are."""
    x = torch.randn(1, 1, dim, dtype=DTYPE)
    _, state = block(torch.randn(1, before, dim, dtype=DTYPE))
    _, state = block(x, state, donate_state=True)

    @torch.no_grad()
    def step() -> None:
        _, new = block(x, state, donate_state=True)
        for old, found in zip(_arrays(state), _arrays(new), strict=True):
            if found.data_ptr() != old.data_ptr():
                old.copy_(found)

    return timed_step(step)


def timed_step(step: Callable[[], None]) -> Sample:
    run = step if torch.get_default_device().type == "cpu" else graphed(step)

    def sample() -> dict[str, float]:
        clock = Clock()
        run()
        clock.mark()
        return {"token": clock.seconds()[0]}

    return sample


def graphed(step: Callable[[], None]) -> Callable[[], None]:
    """The step captured in a CUDA graph; running it replays the graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _arrays(state: LayerState) -> list[Tensor]:
    norm, cema, attention = state
    return [*norm, cema, *attention]
