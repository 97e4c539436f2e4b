"""One run at a time writes to an output folder."""

from __future__ import annotations

import errno
import fcntl
import subprocess
import sys

import pytest

from salience_detr.engine.run_folder import LOCK_NAME, is_gone, locked_folder

HOLD = """
import sys
from salience_detr.engine.run_folder import locked_folder
with locked_folder(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other_run(tmp_path):
    """Start a process that holds the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_until_the_first_one_is_gone(tmp_path, other_run):
    message = rf"another run is writing to .* \(process {other_run.pid} on .*\); wait until it ends"
    with pytest.raises(OSError, match=message), locked_folder(tmp_path):
        pass

    # However it ends.
    other_run.kill()
    other_run.wait()
    with locked_folder(tmp_path):
        pass


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch, caplog):
    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", refuse)
    with locked_folder(tmp_path):
        (tmp_path / "log.txt").touch()
    assert "cannot be locked (No locks available)" in caplog.text


def test_a_folder_is_gone_when_it_was_deleted_moved_or_made_anew(tmp_path):
    folder = tmp_path / "out"
    with locked_folder(folder):
        assert not is_gone(folder)

        folder.rename(tmp_path / "moved")
        assert is_gone(folder)

        (folder / "inference").mkdir(parents=True)
        assert is_gone(folder)


def test_files_of_a_run_may_be_deleted(tmp_path):
    with locked_folder(tmp_path):
        (tmp_path / "log.txt").touch()
        (tmp_path / LOCK_NAME).unlink()
        assert not is_gone(tmp_path)
