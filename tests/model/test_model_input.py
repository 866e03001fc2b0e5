"""Bad arguments of a model's forward are named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

GOOD = torch.zeros(2, 4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("tokens", "error"),
    [
        ([[1, 2]], TypeError),
        (np.zeros((2, 4), dtype=np.int64), TypeError),
        (GOOD.float(), TypeError),
        (GOOD.bool(), TypeError),
        (GOOD.to(torch.int16), TypeError),
        (GOOD[0], ValueError),
        (GOOD[None], ValueError),
        (GOOD[:, :0], ValueError),
        (GOOD[:0], ValueError),
        (GOOD - 1, ValueError),
        (GOOD + 19, ValueError),
    ],
)
def test_bad_tokens(tiny, tokens, error):
    with pytest.raises(error, match=r"Megalodon: tokens: expected .*, got "):
        tiny()(tokens)


def test_int32_tokens(tiny, tokens):
    model = tiny()
    assert torch.equal(model(tokens.int())[0], model(tokens)[0])


def test_state_of_another_model(tiny, tokens):
    _, state = tiny(num_layers=1)(tokens)
    with pytest.raises(ValueError, match="state: expected 2 layers, got 1"):
        tiny()(tokens, state)


def test_state_of_another_batch(tiny, tokens):
    model = tiny()
    _, state = model(tokens)
    with pytest.raises(ValueError, match="initial_"):
        model(tokens[:1], state)


@pytest.mark.parametrize(
    ("name", "value"),
    [("cu_seqlens", [0, 4]), ("padding_mask", [[False] * 4]), ("state", 5), ("logits_to_keep", 1.5)],
)
def test_arguments_of_other_types(tiny, tokens, name, value):
    with pytest.raises(TypeError, match=f"Megalodon: {name}: expected .*, got {type(value).__name__}"):
        tiny()(tokens, **{name: value})


@pytest.mark.parametrize("count", [0, -1])
def test_bad_logits_to_keep(tiny, tokens, count):
    with pytest.raises(ValueError, match="logits_to_keep"):
        tiny()(tokens, logits_to_keep=count)


@pytest.mark.cpu("a GPU's data is not waited for")
def test_operators_refuse_bad_offsets(tiny, tokens):
    with pytest.raises(ValueError, match="cu_seqlens"):
        tiny()(tokens[:1], cu_seqlens=torch.tensor([0, 5, 12]))


def test_operators_refuse_bad_rows(tiny, tokens):
    model = tiny()
    with pytest.raises(ValueError, match="padding_mask"):
        model(tokens, padding_mask=torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"cu_seqlens|padding_mask"):
        model(tokens[:1], cu_seqlens=torch.tensor([0, 13]), padding_mask=torch.zeros(1, 13, dtype=torch.bool))
