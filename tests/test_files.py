import os
import subprocess
import sys
from pathlib import Path

from ls_keras import files

import pytest

ROOT = str(Path(__file__).parents[1])


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("content", ["ä line\n", b"\x00\xff"])
def test_a_file_is_replaced_by_text_or_bytes(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(b"old and longer than the new content")
    files.replace(str(path), content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode("utf-8"))
    assert entries(tmp_path) == ["file"]


def test_a_folder_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "model" / "variables").mkdir(parents=True)
    (tmp_path / "model" / "variables" / "old").write_bytes(b"old")
    with files.beside(tmp_path / "model") as temporary:
        assert temporary.name == "model"
        temporary.mkdir()
        (temporary / "new").write_bytes(b"new")
        assert entries(tmp_path / "model") == ["variables"]
    assert entries(tmp_path) == ["model"]
    assert entries(tmp_path / "model") == ["new"]


@pytest.mark.parametrize("problem", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_content_and_nothing_else(tmp_path, problem):
    (tmp_path / "file").write_bytes(b"old")

    def write(path):
        with files.beside(path) as temporary:
            temporary.write_bytes(b"half")
            raise problem

    for name in ("file", "new"):
        with pytest.raises(type(problem)):
            write(tmp_path / name)
    assert entries(tmp_path) == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_missing_folder_is_named_and_not_made(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"'.*missing' of 'file'.*create it first"):
        files.replace(tmp_path / "missing" / "file", b"")
    assert entries(tmp_path) == []


def test_a_written_file_has_the_rights_of_any_new_file(tmp_path):
    files.replace(tmp_path / "ours", b"1")
    Path(tmp_path / "theirs").write_bytes(b"1")
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


KILLED = """
import os, sys
from ls_keras import files
with files.beside(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os._exit(9)
"""


def test_what_killed_processes_left_is_removed_while_others_write(tmp_path):
    path = tmp_path / "logits-1.npz"
    for _ in range(2):
        subprocess.run([sys.executable, "-c", KILLED, path], env={**os.environ, "PYTHONPATH": ROOT}, check=False)
    others = [".cache", ".logits-1.npz.0a1b2c3d-1-x"]  # a user's, and another host's
    for name in others:
        (tmp_path / name).mkdir()
    assert len(entries(tmp_path)) == 4
    with files.beside(path) as temporary:
        temporary.write_bytes(b"whole")
        files.remove_abandoned(tmp_path)
        assert entries(tmp_path) == sorted([*others, temporary.parent.name])
    assert path.read_bytes() == b"whole"
