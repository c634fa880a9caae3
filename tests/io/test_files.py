"""All or nothing: every way that a write can end, and what then stands under the final name."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from svdcli.errors import InputError, MachineError, UsageError
from svdcli.io.files import atomic_folder, atomic_path, check_writable, remove_unfinished, require_file


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_success_renames_and_leaves_nothing_else(tmp_path):
    with atomic_path(tmp_path / "clip.mp4") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path
        assert temporary.name.startswith(".") and temporary.suffix == ".mp4"
        assert not (tmp_path / "clip.mp4").exists()
    assert names(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "clip.mp4"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["clip.mp4"]


def test_killed_process_leaves_nothing_under_the_final_name(tmp_path):
    code = (
        "import os, signal, sys; from svdcli.io.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as t:\n t.write_text('half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    source = Path(__file__).parents[2] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "clip.mp4"], env={**os.environ, "PYTHONPATH": str(source)}
    )
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "clip.mp4").exists()
    assert [name[:6] for name in names(tmp_path)] == [".clip."]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk(tmp_path):
    with (
        pytest.raises(MachineError, match="disk is full") as caught,
        atomic_path(tmp_path / "a.bin") as temporary,
    ):
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 100)
    assert caught.value.exit_code == 5 and caught.value.hint
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.ENOSPC, MachineError),
        (errno.EDQUOT, MachineError),
        (errno.EIO, MachineError),
        (errno.EACCES, UsageError),
        (errno.EROFS, UsageError),
    ],
)
def test_system_errors_become_sentences(tmp_path, monkeypatch, number, expected):
    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    for manager in (atomic_path, atomic_folder):
        with pytest.raises(expected, match="clip"), manager(tmp_path / "clip") as temporary:
            (temporary / "f" if temporary.is_dir() else temporary).write_text("x")
    assert names(tmp_path) == []


def test_errors_about_other_files_pass_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.bin"):
        (tmp_path / "else" / "where.txt").read_text()


@pytest.mark.parametrize("manager", [atomic_path, atomic_folder])
def test_bad_places_are_usage_errors(tmp_path, manager):
    (tmp_path / "file").write_text("x")
    for bad in (
        tmp_path / "missing" / "a.mp4",
        tmp_path / "file" / "a.mp4",
        tmp_path / ("n" * 300),
        Path("/dev/null"),
    ):
        with pytest.raises(UsageError) as caught, manager(bad):
            pytest.fail("the block must not run")
        assert caught.value.hint
        with pytest.raises(UsageError):
            check_writable(bad)
    assert names(tmp_path) == ["file"]


def test_a_folder_is_not_a_file_nor_the_reverse(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="is a folder"), atomic_path(tmp_path / "folder"):
        pass
    with pytest.raises(UsageError, match="is a file"), atomic_folder(tmp_path / "file"):
        pass


def test_link_keeps_pointing(tmp_path):
    (tmp_path / "real.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to("real.txt")
    with atomic_path(tmp_path / "link.txt") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real.txt").read_text() == "new"


def test_folder_replaces_whole_or_not_at_all(tmp_path):
    target = tmp_path / "frames"
    with atomic_folder(target) as temporary:
        (temporary / "0.png").write_text("a")
        (temporary / "1.png").write_text("b")
    with pytest.raises(ValueError), atomic_folder(target) as temporary:
        (temporary / "0.png").write_text("half")
        raise ValueError
    assert names(target) == ["0.png", "1.png"]
    with atomic_folder(target) as temporary:
        (temporary / "0.png").write_text("new")
    assert names(target) == ["0.png"] and names(tmp_path) == ["frames"]


def test_check_writable_leaves_no_trace(tmp_path):
    check_writable(tmp_path / "a.mp4")
    assert names(tmp_path) == []
    check_writable(tmp_path / "x" / "y" / "a.mp4", parents=True)
    assert names(tmp_path / "x") == ["y"] and names(tmp_path / "x" / "y") == []
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="part of that path is a file"):
        check_writable(tmp_path / "file" / "y" / "a.mp4", parents=True)


def test_check_writable_finds_a_full_disk(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(MachineError, match="disk is full"):
        check_writable(tmp_path / "a.mp4")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_check_writable_finds_missing_rights(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(UsageError, match="permission denied"):
        check_writable(tmp_path / "a.mp4")


def test_require_file(tmp_path):
    (tmp_path / "photo.png").write_text("x")
    (tmp_path / "empty.png").touch()
    assert require_file(tmp_path / "photo.png", "picture") == tmp_path / "photo.png"
    with pytest.raises(InputError, match="There is no file") as caught:
        require_file(tmp_path / "phto.png", "picture")
    assert "photo.png" in caught.value.hint
    with pytest.raises(InputError, match="is a folder, not a picture"):
        require_file(tmp_path, "picture")
    with pytest.raises(InputError, match="0 bytes"):
        require_file(tmp_path / "empty.png", "picture")
    with pytest.raises(InputError, match="not a regular file"):
        require_file("/dev/null", "picture")


def test_what_a_killed_process_was_writing_is_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    code = (
        "import os, sys; from svdcli.io.files import atomic_path\n"
        "with atomic_path(sys.argv[1]) as path: path.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    for name in ("checkpoint.pt", "inner/000000004-0.05.safetensors"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    kept = ["whole.pt", ".lock", ".hidden.txt"]
    for name in kept:
        (tmp_path / name).write_bytes(b"")
    assert len([p for p in tmp_path.rglob("*") if p.is_file()]) == 2 + len(kept)
    remove_unfinished(tmp_path)
    assert sorted(p.name for p in tmp_path.rglob("*") if p.is_file()) == sorted(kept)
