"""`info` says what is installed, and needs none of the optional packages."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

from megalodon_core import runtime

WITHOUT_EXTRAS = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "safetensors", "rich", "matplotlib"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])

sys.meta_path.insert(0, Missing())
from megalodon_core.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


def test_info_prints_what_runs_here(program):
    outcome = program("info")
    assert outcome.code == 0
    assert platform.python_version() in outcome.out
    assert runtime.isa() in outcome.out


def test_info_as_json(program):
    facts = json.loads(program("info", "--json").out)
    assert facts["instruction_set"] == runtime.isa()
    assert facts["instruction_set"] in facts["instruction_sets"]
    assert facts["frameworks"]["numpy"] is not None
    assert facts["threads"] >= 1


def test_info_works_without_torch():
    result = _without_extras("info")
    assert result.returncode == 0
    assert "instruction set in use" in result.stdout


def test_a_command_that_needs_torch_says_how_to_get_it():
    result = _without_extras("eval", "model")
    assert result.returncode == 2
    assert "pip install 'megalodon-core[train]'" in result.stderr
    assert result.stderr.count("\n") == 1


def _without_extras(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS, *arguments], capture_output=True, text=True)
