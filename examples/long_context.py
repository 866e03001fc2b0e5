"""Read a long stream in pieces: what is carried from one to the next does not grow, and nothing is lost.

    python examples/long_context.py [LENGTH]

The model is untrained, so its predictions mean nothing; the point is that reading in pieces of 512 gives the
logits of one single pass, while memory and the time per piece stay where they were.
"""

import sys
import time

import torch
from megalodon_core import Megalodon, MegalodonConfig

PIECE = 512
CONFIG = MegalodonConfig(
    num_layers=2, model_dim=128, z_dim=64, value_dim=256, ffn_hidden_dim=256, chunk_size=256, vocab_size=256
)


@torch.no_grad()
def main(length: int) -> None:
    torch.manual_seed(0)
    model = Megalodon(CONFIG).eval()
    tokens = torch.randint(256, (1, length))

    state = None
    for start in range(0, length, PIECE):
        began = time.perf_counter()
        logits, state = model(tokens[:, start : start + PIECE], state)
        seconds = time.perf_counter() - began
        end = min(start + PIECE, length)
        if end & (end - 1) == 0 or end == length:  # powers of two, and the last
            print(f"{end:9,} tokens read   state {state.nbytes:,} bytes   last piece {1000 * seconds:.1f} ms")

    whole, _ = model(tokens, logits_to_keep=1)
    difference = (logits[:, -1] - whole[:, -1]).abs().max() / whole.abs().max()
    print(f"last logits against one pass over all {length:,} tokens: {difference:.1e} relative")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 65536)
