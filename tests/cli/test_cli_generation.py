"""`generate`: the text on the terminal is what the model's generation gives."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from megalodon_core import Megalodon
from megalodon_core.cli.completion import print_text
from megalodon_core.generation import generate
from megalodon_core.training.run import load_model, small_config


def test_generate_prints_the_continuation(program, trained):
    model, _ = load_model(trained, pytest.fail)
    expected = bytes(generate(model, [list(b"12 squ")], max_new_tokens=9, temperature=0.7, seed=3)[0])
    outcome = program("generate", trained, "--prompt", "12 squ", "--max-new-tokens", 9, "--seed", 3)
    assert outcome.code == 0
    assert outcome.out == expected.decode(errors="replace") + "\n"


def test_a_prompt_can_come_from_a_file(program, trained, tmp_path):
    (tmp_path / "prompt").write_text("12 squ")
    options = ["--max-new-tokens", 5, "--temperature", 0]
    from_file = program("generate", trained, "--prompt-file", tmp_path / "prompt", *options)
    assert from_file == program("generate", trained, "--prompt", "12 squ", *options)


def test_a_model_of_other_outputs_gets_one_line(program, tmp_path):
    config = replace(small_config(1, 16, 4, 256), output_size=3)
    Megalodon(config).save_pretrained(tmp_path)
    outcome = program("generate", tmp_path, "--prompt", "a")
    assert outcome.code == 2
    assert "as many logits as token ids, got 3 logits and 256 ids" in outcome.err
    assert outcome.err.count("\n") == 1


def test_characters_appear_once_they_are_whole():
    output = io.StringIO()
    text = "né\N{SHARK}"
    print_text(iter(text.encode() + b"\xf0"), output)
    assert output.getvalue() == text + "\N{REPLACEMENT CHARACTER}\n"
