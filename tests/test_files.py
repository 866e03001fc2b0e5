"""Files are written whole and flushed, or not at all; what is no JSON object is named."""

from __future__ import annotations

import pytest
from megalodon_core import files
from megalodon_core.files import atomic_write, read_json, write_json


def test_atomic_write_keeps_the_old_file_on_failure(tmp_path):
    target = tmp_path / "file"
    target.write_text("old")

    def fail_halfway():
        with atomic_write(target) as path:
            path.write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert target.read_text() == "old"
    with atomic_write(target) as path:
        path.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_write_json_leaves_nothing_behind_on_failure(tmp_path):
    target = tmp_path / "file.json"
    write_json(target, {"a": 1})
    with pytest.raises(TypeError):
        write_json(target, {"a": object()})
    (tmp_path / "directory").mkdir()
    with pytest.raises(IsADirectoryError):
        write_json(tmp_path / "directory", {"a": 2})
    assert read_json(target) == {"a": 1}
    assert {path.name for path in tmp_path.iterdir()} == {"file.json", "directory"}


def test_write_json_flushes_the_file_and_then_its_directory(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(files, "flush", lambda path: flushed.append((path.parent, path.is_dir())))
    write_json(tmp_path / "file.json", {})
    assert flushed == [(tmp_path, False), (tmp_path.parent, True)]


@pytest.mark.parametrize(
    ("content", "complaint"), [(b"{", "not JSON"), (b"\xff", "not JSON"), (b"[1]", "a JSON object, got list")]
)
def test_what_is_no_json_object_is_named(tmp_path, content, complaint):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"file\.json: .*{complaint}"):
        read_json(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"file\.json"):
        read_json(tmp_path / "file.json")
