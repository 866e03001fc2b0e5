"""`eval`: its figures are those of one plain pass, and it writes them as a table, JSON and a picture."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from megalodon_core.training import data
from megalodon_core.training.evaluation import evaluate
from megalodon_core.training.plots import short_count
from megalodon_core.training.run import load_model
from torch.nn import functional as F


@pytest.fixture
def model(trained):
    return load_model(trained, pytest.fail)[0]


@pytest.fixture
def stream(text):
    return data.held_out_stream(data.load(data.DataSource((str(text),))), 90)


def test_pieces_and_marks_add_up_to_one_plain_pass(model, stream):
    values = torch.from_numpy(stream.astype(np.int64))
    with torch.no_grad():
        logits, _ = model(values[None, :-1])
    bits = F.cross_entropy(logits[0], values[1:], reduction="none").double().numpy() / math.log(2)
    result = evaluate(model, stream, piece=16, marks=(5, 40, 1000))
    assert [mark.position for mark in result.marks] == [5, 40, 90]
    assert [mark.bits_inside for mark in result.marks] == pytest.approx(
        [bits[:5].mean(), bits[5:40].mean(), bits[40:].mean()], rel=1e-5
    )
    assert [mark.bits_so_far for mark in result.marks] == pytest.approx(
        [bits[:5].mean(), bits[:40].mean(), bits.mean()], rel=1e-5
    )
    assert result.bits == pytest.approx(bits.mean(), rel=1e-5)
    assert [piece.position for piece in result.pieces] == [5, 16, 32, 40, 48, 64, 80, 90]


def test_the_same_pieces_from_an_empty_state(model, stream):
    whole = evaluate(model, stream, piece=30, marks=(), compare=True)
    apart = [evaluate(model, stream[start : start + 31], piece=30, marks=()).bits for start in (0, 30, 60)]
    assert [piece.bits_afresh for piece in whole.pieces] == pytest.approx(apart)
    assert whole.pieces[0].bits == whole.pieces[0].bits_afresh
    assert whole.marks[0].bits_inside_afresh == pytest.approx(np.mean(apart))


def test_the_state_does_not_grow_with_the_stream(model, stream):
    assert evaluate(model, stream, piece=16).state_bytes == evaluate(model, stream[:41], piece=16).state_bytes


def test_eval_writes_a_table_json_and_a_picture(program, trained, tmp_path):
    figures, picture = tmp_path / "e.json", tmp_path / "e.png"
    outcome = program(
        "eval", trained, "--length", 600, "--piece", 64, "--json", figures, "--plot", picture, "--compare"
    )
    assert outcome.code == 0
    written = json.loads(figures.read_text())
    assert (written["length"], written["unit"], len(written["pieces"])) == (600, "byte", 10)
    assert f"{written['marks'][-1]['bits_so_far']:.4f}" in outcome.out
    assert str(picture) in outcome.out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_eval_of_other_text_reads_all_of_it(program, trained, text, tmp_path):
    outcome = program("eval", trained, "--data", text, "--length", 5999, "--json", tmp_path / "e.json")
    assert outcome.code == 0
    assert json.loads((tmp_path / "e.json").read_text())["length"] == 5999


def test_eval_of_a_saved_model(program, model, text, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    assert program("eval", tmp_path / "saved", "--data", text, "--length", 50).code == 0


@pytest.mark.parametrize(
    ("count", "name"), [(4096, "4K"), (1 << 20, "1M"), (1_000_000, "1,000,000"), (12, "12")]
)
def test_positions_are_named_as_one_says_them(count, name):
    assert short_count(count) == name
