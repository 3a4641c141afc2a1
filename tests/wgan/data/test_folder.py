"""Prepared pictures: always those of the folder, whatever happened before."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from wgan import files
from wgan.data import decoding
from wgan.data import folder as prepared
from wgan.data.folder import Pictures, arrange, prepare
from wgan.data.images import FolderSource, open_picture, picture_to_bytes
from wgan.data.table import load_dataset

SIZE = (8, 8)
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and rights")


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (value % 256, value // 256, 7)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures that differ, and three files that are none."""
    for index in range(20):
        save(tmp_path / "pictures" / f"{index:02}.png", index)
    for name in ("03.txt", "10.txt", "99.txt"):
        (tmp_path / "pictures" / name).write_text("no picture")
    return tmp_path / "pictures"


@pytest.fixture
def decoded(monkeypatch):
    """The names of all pictures that are opened, in this process."""
    names = []

    def open_and_note(self, name):
        names.append(name)
        return open_picture(self.path / name)

    monkeypatch.setattr(FolderSource, "open", open_and_note)
    return names


def load(folder, root=None) -> Pictures:
    return prepare(FolderSource(folder), SIZE, False, root or folder.parent)


def cache_of(folder):
    (cache,) = (folder.parent / "prepared").iterdir()
    return cache


def assert_right(pictures: Pictures, folder):
    """The bytes are those of the files, in the order of a fresh start."""
    for name, sample in zip(pictures.names, pictures.samples, strict=True):
        with open_picture(folder / name) as picture:
            assert np.array_equal(sample, picture_to_bytes(picture, SIZE, False)), name
    readable = {path.name for path in folder.iterdir() if path.suffix == ".png"}
    assert set(pictures.names) == readable
    fresh = prepare(FolderSource(folder), SIZE, False, folder.parent / f"fresh-{time.time_ns()}")
    assert pictures.names == fresh.names
    assert pictures.unreadable == fresh.unreadable
    assert pictures.samples.tobytes() == fresh.samples.tobytes()


# ---------------------------------------------------------------- what is kept


def test_the_array_is_a_map_of_the_decoded_pictures(folder):
    pictures = load(folder)
    assert isinstance(pictures.samples, np.memmap)
    assert not pictures.samples.flags.writeable
    assert_right(pictures, folder)
    assert list(pictures.unreadable) == ["03.txt", "10.txt", "99.txt"]
    assert set(pictures.unreadable.values()) == {"no picture"}
    rows = cache_of(folder) / "rows-1"
    assert sorted(os.listdir(rows.parent)) == ["lock", "manifest.npz", "rows-1"]
    assert rows.read_bytes() == pictures.samples.tobytes()


def test_the_last_rows_fill_the_places_of_unreadable_pictures():
    assert arrange(6, []).tolist() == [0, 1, 2, 3, 4, 5]
    assert arrange(6, [1, 4]).tolist() == [0, 5, 2, 3]
    assert arrange(6, [4, 0, 5]).tolist() == [3, 1, 2]
    assert arrange(2, [0, 1]).tolist() == []


def test_a_second_start_decodes_nothing(folder, decoded, capsys):
    first = load(folder)
    assert "preparing 23 pictures" in capsys.readouterr().err
    assert len(decoded) == 23
    second = load(folder)
    assert len(decoded) == 23
    assert np.array_equal(first.samples, second.samples)
    assert (first.names, first.unreadable) == (second.names, second.unreadable)
    assert capsys.readouterr().err == ""


def test_only_what_changed_is_decoded_again(folder, decoded):
    load(folder)
    save(folder / "00a.png", 100)  # added
    save(folder / "zz.png", 101)
    (folder / "05.png").unlink()  # removed
    save(folder / "07.png", 102)  # changed, and of the same size
    os.utime(folder / "07.png", ns=(1, 1))
    save(folder / "20.png", 103)  # into the place of one that cannot be read
    (folder / "10.txt").write_text("changed, and still no picture")
    (folder / "11.png").rename(folder / "11b.png")
    decoded.clear()
    pictures = load(folder)
    assert sorted(decoded) == ["00a.png", "07.png", "10.txt", "11b.png", "20.png", "zz.png"]
    assert_right(pictures, folder)
    assert sorted(os.listdir(cache_of(folder))) == ["lock", "manifest.npz", "rows-2"]


def test_random_changes_always_give_what_a_fresh_start_gives(folder, random):
    for step in range(12):
        for value in random.integers(0, 40, 6).tolist():
            path = folder / f"{value:02}.png"
            if path.exists() and value % 2:
                path.unlink()
            else:
                save(path, value + 40 * step)
        (folder / f"{random.integers(40):02}.txt").write_text(str(step))
        assert_right(load(folder), folder)


def test_sizes_and_colours_have_arrays_of_their_own(folder):
    source, root = FolderSource(folder), folder.parent
    shapes = [
        prepare(source, size, grey, root).samples.shape[1:]
        for size in ((8, 8), (8, 16))
        for grey in (False, True)
    ]
    assert shapes == [(3, 8, 8), (1, 8, 8), (3, 8, 16), (1, 8, 16)]
    assert len(list((root / "prepared").iterdir())) == 4


def test_a_data_root_among_the_pictures_is_left_out(folder, decoded):
    for _ in range(2):
        dataset = load_dataset(str(folder.parent), folder.parent, "8")
        assert len(dataset.samples) == 20
    assert len(decoded) == 23


@posix
def test_names_of_every_kind_are_kept(folder):
    names = ["new\nline.png", "画像 ü.png", b"latin-\xe9.png".decode("utf-8", "surrogateescape")]
    for index, name in enumerate(names):
        save(folder / name, 200 + index)
    first = load(folder)
    assert set(names) < set(first.names)
    assert_right(first, folder)
    assert load(folder).names == first.names


def test_nothing_readable_is_remembered_too(tmp_path, decoded):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.txt").write_text("x")
    for _ in range(2):
        with pytest.raises(ValueError, match="none a readable picture"):
            load_dataset(str(tmp_path / "p"), tmp_path)
    assert decoded == ["a.txt"]


def test_classes_follow_the_pictures_into_other_rows(tmp_path):
    for value, kind in enumerate(["cats", "dogs", "cows"]):
        for index in range(3):
            save(tmp_path / "p" / kind / f"{index}.png", value)
    (tmp_path / "p" / "cats" / "0.txt").write_text("x")
    dataset = load_dataset(str(tmp_path / "p"), tmp_path, "8")
    kinds = np.unique(["cats", "cows", "dogs"])[dataset.labels]
    colours = [["cats", "dogs", "cows"][value] for value in dataset.samples[:, 0, 0, 0]]
    assert kinds.tolist() == colours
    assert kinds[1] == "dogs"


# ---------------------------------------------------------------- what may pass


def test_what_the_system_refused_is_tried_again(folder, monkeypatch, capsys):
    refused, opened = {"04.png", "19.png"}, []

    def open_or_refuse(self, name):
        opened.append(name)
        if name in refused:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return open_picture(self.path / name)

    monkeypatch.setattr(FolderSource, "open", open_or_refuse)
    first = load(folder)
    assert len(first.names) == 18
    before = (cache_of(folder) / "rows-1").stat()
    opened.clear()
    assert len(load(folder).names) == 18
    assert sorted(opened) == ["04.png", "19.png"]
    assert (cache_of(folder) / "rows-1").stat() == before  # and nothing was written again
    refused.remove("19.png")
    opened.clear()
    assert len(load(folder).names) == 19
    assert set(opened) == {"04.png", "19.png"}
    refused.clear()
    assert_right(load(folder), folder)


def test_a_broken_picture_is_not_tried_again(folder, decoded):
    content = (folder / "00.png").read_bytes()
    (folder / "half.png").write_bytes(content[:40])
    assert "half.png" in load(folder).unreadable
    decoded.clear()
    load(folder)
    assert decoded == []
    (folder / "half.png").write_bytes(content)
    pictures = load(folder)
    assert decoded == ["half.png"]
    assert_right(pictures, folder)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "fault", ["short", "missing", "flipped", "cut", "empty", "text", "version"]
)
def test_a_damaged_cache_is_made_again(fault, folder, monkeypatch, capsys):
    load(folder)
    rows, manifest = cache_of(folder) / "rows-1", cache_of(folder) / "manifest.npz"
    content = bytearray(manifest.read_bytes())
    if fault == "short":
        os.truncate(rows, rows.stat().st_size - 1)
    elif fault == "missing":
        rows.unlink()
    elif fault == "flipped":
        content[content.index(b"05.png")] ^= 1
        manifest.write_bytes(content)
    elif fault == "cut":
        manifest.write_bytes(content[: len(content) // 2])
    elif fault == "version":
        monkeypatch.setattr(prepared, "VERSION", 2)
    else:
        manifest.write_bytes(b"" if fault == "empty" else b"\x80\x04no picture")
    capsys.readouterr()
    pictures = load(folder)
    assert "prepared anew" in capsys.readouterr().err
    assert_right(pictures, folder)
    assert len(os.listdir(cache_of(folder))) == 3
    load(folder)
    assert "anew" not in capsys.readouterr().err


def test_no_mutated_file_leads_to_wrong_pictures(folder, random):
    load(folder)
    expected = load(folder).samples.tobytes()
    for _ in range(30):
        manifest = cache_of(folder) / "manifest.npz"
        content = bytearray(manifest.read_bytes())
        at = random.integers(len(content))
        content[at : at + random.integers(1, 30)] = random.bytes(random.integers(0, 30))
        manifest.write_bytes(content)
        assert load(folder).samples.tobytes() == expected


def interrupted_after(count, fault, monkeypatch):
    """Let so many pictures be decoded and noted, then let the fault happen."""
    monkeypatch.setattr(prepared, "SECONDS_BETWEEN_SYNCS", 0)
    monkeypatch.setattr(decoding, "CHUNK_PICTURES", 1)
    put, calls = prepared.Writer.put, []

    def put_or_fail(self, places, rows):
        calls.extend(places)
        if len(calls) > count:
            raise fault
        put(self, places, rows)

    monkeypatch.setattr(prepared.Writer, "put", put_or_fail)


def test_ctrl_c_loses_nothing(folder, monkeypatch, capsys):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(12, KeyboardInterrupt, patch)
        load(folder)
    assert "the same command goes on from there" in capsys.readouterr().err
    opened = []
    monkeypatch.setattr(
        FolderSource, "open", lambda self, name: opened.append(name) or open_picture(folder / name)
    )
    pictures = load(folder)
    assert len(opened) <= 23 - 12 - 1  # nor was a file that is no picture looked at again
    assert_right(pictures, folder)


def test_an_interrupted_preparation_of_what_changed_since_goes_on(folder, decoded, monkeypatch):
    load(folder)
    for index in range(10):
        save(folder / f"{index:02}.png", index + 50)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupted_after(6, KeyboardInterrupt, patch)
        load(folder)
    save(folder / "000.png", 200)  # by which all others come one place later
    (folder / "15.png").unlink()
    decoded.clear()
    pictures = load(folder)
    assert len(decoded) == 10 - 6 + 1
    assert_right(pictures, folder)


@posix
def test_a_kill_costs_what_was_not_noted_yet(tmp_path):
    folder = tmp_path / "p"
    for index in range(40):
        save(folder / f"{index}.png", index)
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import pathlib
from wgan.data import decoding, folder as prepared, images as pictures
opening = pictures.FolderSource.open
def slowly(self, name):
    time.sleep(0.02)
    sys.stdout.write(name + "\\n")
    sys.stdout.flush()
    return opening(self, name)
pictures.FolderSource.open = slowly
prepared.SECONDS_BETWEEN_SYNCS = 0
decoding.CHUNK_PICTURES = 1
folder = pathlib.Path({str(folder)!r})
prepared.prepare(pictures.FolderSource(folder), {SIZE}, False, folder.parent)
"""
    seen = []
    for kill_after in (10, 20, 1000):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        names = []
        for line in process.stdout:
            names.append(line)
            if len(names) == kill_after:
                process.kill()
        process.wait()
        process.stdout.close()
        seen.append(len(names))
    assert process.returncode == 0
    assert seen[0] >= 10 and seen[1] >= 20
    assert sum(seen) < 40 + 20  # a few were under way at each kill
    assert_right(load(folder), folder)


@pytest.mark.parametrize("step", ["part.npz", "manifest.npz", "truncate", "remove"])
def test_a_kill_at_each_step_of_the_end_is_mended(step, folder, monkeypatch, decoded):
    load(folder)
    save(folder / "00.png", 77)
    save(folder / "21.png", 78)
    with monkeypatch.context() as patch, pytest.raises(SystemError):

        def die(*arguments):
            raise SystemError

        def write(path, content):
            if path.name == step:
                die()
            files.write_whole(path, content)

        patch.setattr(prepared, "write_whole", write)
        if step == "truncate":
            patch.setattr(os, "truncate", die)
        if step == "remove":
            patch.setattr(os, "truncate", lambda *a: patch.setattr("pathlib.Path.unlink", die))
        load(folder)
    decoded.clear()
    pictures = load(folder)
    assert len(decoded) == (2 if step == "part.npz" else 0)
    assert_right(pictures, folder)


# ---------------------------------------------------------------- disks


def test_a_disk_too_small_is_refused_with_what_to_do(folder, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 23 * 192 - 1))
    with pytest.raises(ValueError, match=r"are needed in .* free: free some space.*--data-root"):
        load(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 23 * 192))
    assert_right(load(folder), folder)
    assert "preparing 23 pictures of" in capsys.readouterr().err


def test_a_disk_that_becomes_full_is_an_error_and_the_next_start_goes_on(
    folder, monkeypatch, decoded
):
    write_at, calls = prepared.write_at, []

    def write(file, offset, content):
        calls.append(offset)
        if len(calls) > 9:
            file.write(memoryview(content).cast("B")[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        write_at(file, offset, content)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "write_at", write)
        patch.setattr(decoding, "CHUNK_PICTURES", 1)
        with pytest.raises(ValueError, match=r"disk became full.*No space left.*--data-root"):
            load(folder)
    decoded.clear()
    pictures = load(folder)
    assert len(decoded) <= 23 - 9
    assert_right(pictures, folder)


def test_a_root_that_cannot_be_written_costs_only_the_cache(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    kept, not_kept = load(folder), load(folder, tmp_path / "file")
    assert "cannot keep the pictures" in capsys.readouterr().err
    assert not isinstance(not_kept.samples, np.memmap)
    assert np.array_equal(kept.samples, not_kept.samples)
    assert (kept.names, kept.unreadable) == (not_kept.names, not_kept.unreadable)


def test_a_finished_array_needs_no_rights_to_write(folder, monkeypatch, capsys):
    expected = load(folder)

    def refuse(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(prepared, "wait_for_lock", refuse)
    capsys.readouterr()
    assert np.array_equal(load(folder).samples, expected.samples)
    assert capsys.readouterr().err == ""


# ---------------------------------------------------------------- several processes


def test_two_processes_at_once_prepare_it_once(folder):
    code = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
import pathlib
from wgan.data import folder as prepared, images as pictures
opening = pictures.FolderSource.open
def slowly(self, name):
    time.sleep(0.05)
    sys.stdout.write("opened\\n")
    return opening(self, name)
pictures.FolderSource.open = slowly
folder = pathlib.Path({str(folder)!r})
found = prepared.prepare(pictures.FolderSource(folder), {SIZE}, False, folder.parent)
print(found.samples.sum())
"""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([sys.executable, "-c", code], **options) for _ in range(2)]
    ended = [process.communicate(timeout=60) for process in started]
    output, errors = ("".join(texts) for texts in zip(*ended, strict=True))
    assert output.count("opened") == 23
    assert errors.count("another process prepares") == 1
    assert output.replace("opened\n", "").split() == [str(load(folder).samples.sum())] * 2


@posix
def test_ctrl_c_while_preparing_ends_the_command_with_130(folder, tmp_path):
    code = f"""
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.insert(0, {str(ROOT)!r})
from wgan.data import images as pictures
pictures.open_picture = lambda path: time.sleep(0.3)
runpy.run_path({str(ROOT / "train.py")!r}, run_name="__main__")
"""
    arguments = ["--dataset", folder, "--data-root", tmp_path, "--run", tmp_path / "run"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments), "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
    )
    first = process.stderr.readline()
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    assert "preparing 23 pictures" in first
    assert process.returncode == 130
    assert "the same command goes on from there" in errors
    assert "Traceback" not in errors
