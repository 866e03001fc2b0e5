"""Train a byte-level model on one file for a minute or two, then let it continue the file's last line.

    python examples/train_bytes.py FILE [STEPS]

The file is read as a stream: each step takes the next piece and starts from the state of the last one, so the
model sees further back than one piece. Gradients stop at the pieces' borders (truncated back-propagation).
"""

import math
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from megalodon_core import Megalodon, MegalodonConfig, generate

CONFIG = MegalodonConfig(
    num_layers=2,
    model_dim=128,
    z_dim=64,
    value_dim=256,
    num_heads=2,
    ffn_hidden_dim=256,
    cema_ndim=8,
    chunk_size=128,
    norm_num_groups=8,
    vocab_size=256,
    swiglu=True,
)
ROWS, LENGTH = 8, 256


def main(path: Path, steps: int) -> None:
    text = path.read_bytes()
    pieces = (len(text) - 1) // (ROWS * LENGTH)
    if pieces < 1:
        sys.exit(f"{path}: needs more than {ROWS * LENGTH} bytes, has {len(text)}")
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    used = ROWS * pieces * LENGTH
    inputs, targets = data[:used].view(ROWS, -1), data[1 : used + 1].view(ROWS, -1)

    torch.manual_seed(0)
    model = Megalodon(CONFIG)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    print(f"{model.num_parameters():,} parameters, {steps} steps of {ROWS} x {LENGTH} bytes")

    state = None
    for step in range(steps):
        piece = step % pieces
        if piece == 0:
            state = None  # back at the beginning of the rows
        window = slice(piece * LENGTH, (piece + 1) * LENGTH)
        logits, state = model(inputs[:, window], state)
        loss = F.cross_entropy(logits.flatten(0, 1), targets[:, window].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        state = state.detach()
        if step % 20 == 0 or step == steps - 1:
            print(f"step {step:4}  {loss.item() / math.log(2):.3f} bits per byte (training text)")

    prompt = list(text.rstrip().splitlines()[-1] or b"\n")
    (continuation,) = generate(model, [prompt], max_new_tokens=80, temperature=0.7, top_p=0.95, seed=0)
    print((bytes(prompt) + b"|" + bytes(continuation)).decode("utf-8", errors="replace"))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) == 3 else 200)
