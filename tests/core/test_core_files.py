"""Catches: a device, pipe or link replaced by a file, and a refusal that comes after the work."""

import os
import stat
import threading

import pytest

import invariance as inv
from invariance.core._files import require_writable, write_atomically


def writer(name):
    """Every way in which the package writes a file that a user names."""
    from invariance.testing.project._session_report import write_session_report
    from invariance.testing.project._snapshot import save_snapshot

    return {
        "write": lambda path: write_atomically(path, "text"),
        "snapshot": lambda path: save_snapshot(path, {}),
        "session report": lambda path: write_session_report(path, [], 0),
    }[name]


@pytest.fixture(params=["write", "snapshot", "session report"])
def write(request):
    return writer(request.param)


def test_a_link_stays_a_link(write, tmp_path):
    target, link = tmp_path / "deep" / "target.json", tmp_path / "link.json"
    target.parent.mkdir()
    link.symlink_to("deep/target.json")
    for there in (False, True):  # dangling first
        assert target.exists() == there
        require_writable(link)
        write(link)
        assert link.is_symlink()
        assert target.read_text()
    assert sorted(os.listdir(tmp_path)) == ["deep", "link.json"]
    assert os.listdir(target.parent) == ["target.json"]


def test_a_pipe_is_written_into(write, tmp_path):
    pipe = tmp_path / "pipe.json"
    os.mkfifo(pipe)
    require_writable(pipe)  # does not wait for a reader
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()), daemon=True)
    reader.start()
    write(pipe)
    reader.join(10)
    assert read
    assert read[0]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_a_device_is_written_into(write, tmp_path):
    link = tmp_path / "nothing.json"
    link.symlink_to(os.devnull)  # were it replaced, only the link would be lost
    require_writable(link)
    write(link)
    assert link.is_symlink()
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device")
def test_a_full_device_is_a_sentence(write, tmp_path):
    link = tmp_path / "full.json"
    link.symlink_to("/dev/full")
    with pytest.raises(inv.UsageError, match="No space left"):
        write(link)
    assert link.is_symlink()


def test_the_file_that_standard_output_goes_to_is_added_to(tmp_path, capfd):
    path = tmp_path / "out"
    before = os.dup(1)
    try:
        with path.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.write(1, b"printed ")
            write_atomically(path, "written")
            os.write(1, b" printed")
    finally:
        os.dup2(before, 1)
        os.close(before)
    assert path.read_text() == "printed written printed"


def test_permissions_of_a_file_are_kept_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "secret"
    path.write_text("old")
    path.chmod(0o600)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["secret"]


def test_a_name_as_long_as_names_can_be(tmp_path):
    path = tmp_path / ("x" * 255)
    require_writable(path)
    write_atomically(path, "text")
    assert path.read_text() == "text"


def test_asking_makes_nothing(tmp_path):
    require_writable(tmp_path / "new" / "file")
    assert os.listdir(tmp_path) == []
    write_atomically(tmp_path / "new" / "file", "text")
    assert (tmp_path / "new" / "file").read_text() == "text"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("folder", "it is a folder"),
        ("file/below", "Not a directory"),
        ("loop", "symbolic links"),
        ("x" * 300, "too long"),
        ("x\0y", "null"),
    ],
)
def test_what_cannot_be_written_is_refused_before_and_by_the_writing(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("old")
    (tmp_path / "loop").symlink_to("loop")
    for attempt in (require_writable, lambda path: write_atomically(path, "text")):
        with pytest.raises(inv.UsageError, match=f"Cannot write.*{reason}"):
            attempt(tmp_path / name)
    assert (tmp_path / "file").read_text() == "old"


def test_a_read_only_file_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "kept"
    path.write_text("old")
    real = os.access  # as root, everything may be written
    monkeypatch.setattr(os, "access", lambda p, mode: real(p, mode) and str(p) != str(path))
    with pytest.raises(inv.UsageError, match="permission"):
        require_writable(path)


def test_an_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]
