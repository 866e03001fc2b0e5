"""Released models: same names, same logits, same gradients, same streaming, same training."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from frontends import assert_the_backend_ran
from megalodon_core.model import Megalodon
from tolerance import relative_error

LOGITS = 2e-5
GRADIENTS = 2e-4
LOSSES = 1e-4


@pytest.fixture
def on_every_isa(isa) -> Iterator[None]:
    """Runs a test on every instruction set of this CPU; it fails if another one ran."""
    yield
    assert_the_backend_ran()


def loss_of(model, golden):
    logits, _ = model(golden.arrays["tokens"], return_state=False)
    return F.cross_entropy(logits.flatten(0, 1), golden.arrays["targets"].flatten())


def test_state_dict_has_the_released_names_shapes_and_types(golden):
    ours = {name: (tensor.shape, tensor.dtype) for name, tensor in golden.model().state_dict().items()}
    assert ours == {name: (tensor.shape, tensor.dtype) for name, tensor in golden.parameters.items()}


def test_rope_frequencies_are_the_released_ones(golden):
    torch.testing.assert_close(Megalodon(golden.config).rope.freqs, golden.parameters["rope.freqs"])


@pytest.mark.usefixtures("on_every_isa")
def test_logits_and_loss(golden):
    model = golden.model().eval()
    logits, _ = model(golden.arrays["tokens"])
    assert logits.dtype == torch.float32
    assert relative_error(logits, golden.arrays["logits"]) < LOGITS
    assert loss_of(model, golden).item() == pytest.approx(golden.arrays["loss"].item(), rel=LOGITS)


@pytest.mark.usefixtures("on_every_isa")
def test_gradients(golden):
    model = golden.model()
    loss_of(model, golden).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert gradients.keys() == golden.gradients.keys()
    errors = {name: relative_error(gradients[name], golden.gradients[name]) for name in gradients}
    assert max(errors.values()) < GRADIENTS, errors


@pytest.mark.usefixtures("on_every_isa")
def test_streaming(golden):
    model, tokens = golden.model().eval(), golden.arrays["tokens"]
    prompt = int(golden.arrays["stream_prompt_len"])
    with torch.no_grad():
        pieces, state = model(tokens[:, :prompt])
        logits = [pieces]
        for t in range(prompt, tokens.shape[1]):
            step, state = model(tokens[:, t : t + 1], state)
            logits.append(step)
    assert relative_error(torch.cat(logits, dim=1), golden.arrays["stream_logits"]) < LOGITS


@pytest.mark.usefixtures("on_every_isa")
def test_eight_adamw_steps(golden):
    model = golden.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    losses = []
    for _ in range(len(golden.arrays["adamw_losses"])):
        loss = loss_of(model, golden)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == pytest.approx(golden.arrays["adamw_losses"].tolist(), rel=LOSSES)
