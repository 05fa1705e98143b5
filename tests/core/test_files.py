import errno
import json
import os
import stat
from pathlib import Path

import numpy as np
import pytest

from jaxlm.core.errors import UserError
from jaxlm.core.files import (
    append_bytes,
    atomic_write_json,
    atomic_write_text,
    cache_directory,
    inside,
    read_json,
    read_text,
    remove_half_written,
)


def test_text_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "status.json"
    atomic_write_text(path, "old")
    atomic_write_text(path, "né\r\nw")
    assert path.read_bytes() == "né\r\nw".encode()
    assert list(path.parent.iterdir()) == [path]


def test_what_a_killed_write_left_is_removed_when_it_is_old(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            atomic_write_text(tmp_path / "status.json", "new")
    (tmp_path / ".mine.tmp").touch()
    remove_half_written(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # it may be another process's
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    remove_half_written(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".mine.tmp"]


def test_appending_to_a_full_disk_names_the_file(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full on this system")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: '.*metrics\.jsonl'"):
        append_bytes(tmp_path / "metrics.jsonl", b"line")


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    atomic_write_text(path, "old")

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"no space left: '.*status\.json'"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_are_readable_by_whom_the_umask_allows(tmp_path):
    path = tmp_path / "status.json"
    before = os.umask(0o022)
    try:
        atomic_write_text(path, "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_json_round_trips(tmp_path):
    value = {"f1": 0.9, "types": ["PER", "LOC"], "none": None, "umlaut": "ü"}
    atomic_write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


def test_not_a_number_is_written_as_null(tmp_path):
    value = {"a": float("nan"), "b": [float("inf"), np.float32("nan")]}
    atomic_write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == {"a": None, "b": [None, None]}


def test_arrays_and_paths_are_written_plainly(tmp_path):
    value = {"a": np.arange(2), "b": np.float32(0.5), "c": np.True_, "d": Path("x")}
    atomic_write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == {
        "a": [0, 1],
        "b": 0.5,
        "c": True,
        "d": "x",
    }


def test_an_unknown_object_is_our_bug(tmp_path):
    with pytest.raises(TypeError):
        atomic_write_json(tmp_path / "a.json", {"a": object()})
    assert list(tmp_path.iterdir()) == []


def test_broken_json_is_named_with_line_and_column(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{\n  "a": oops}')
    with pytest.raises(UserError, match=r"a\.json:2:8: broken JSON"):
        read_json(path)


@pytest.mark.parametrize("text", ["", "[" * 100_000])
def test_hopeless_json_is_a_user_error(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match="broken JSON"):
        read_json(path)


def test_an_absent_file_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"b\.json: cannot be read: No such file"):
        read_json(tmp_path / "b.json")


def test_other_encodings_are_named(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("ab\xe9".encode("latin-1"))
    with pytest.raises(UserError, match="not UTF-8 at byte 2"):
        read_text(path)


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps([1]).encode())
    assert read_json(path) == [1]


@pytest.mark.parametrize("relative", ["a.txt", "a/b.txt", "a/./b..txt"])
def test_paths_below_the_root_are_inside(tmp_path, relative):
    assert inside(tmp_path, relative) == tmp_path / relative


@pytest.mark.parametrize(
    "relative",
    ["../a", "a/../../b", "/etc/passwd", "", "..", "a\\..\\b", "C:\\a", "C:a", "a\0b"],
)
def test_paths_that_could_leave_the_root_are_refused(tmp_path, relative):
    with pytest.raises(UserError, match="must be relative"):
        inside(tmp_path, relative)


def test_a_link_that_leads_outside_is_refused(tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="symbolic link"):
        inside(tmp_path / "root", "link/a.txt")


def test_a_link_that_stays_inside_is_followed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(tmp_path, "link/a.txt") == tmp_path / "link" / "a.txt"


@pytest.mark.parametrize(
    ("own", "shared", "expected"),
    [
        ("/own", "/shared", "/own"),
        ("", "/shared", "/shared/jaxlm"),
        ("", "", "/home/me/.cache/jaxlm"),
    ],
)
def test_the_cache_follows_the_environment(monkeypatch, own, shared, expected):
    monkeypatch.setenv("JAXLM_CACHE", own)
    monkeypatch.setenv("XDG_CACHE_HOME", shared)
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_directory() == Path(expected)
