"""The cache of a folder: always the folder's images, whatever happened before."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import suppress

import numpy as np
import pytest
from conftest import ROOT
from filelock import FileLock
from PIL import Image

from wgan.data import cache as cache_module
from wgan.data.cache import FOOTER, FolderCache, Images, group
from wgan.data.images import image_to_bytes, open_image
from wgan.data.sources import FolderSource, ImageFile
from wgan.data.table import load_dataset

SIZE = (8, 8)
posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and names")


def save(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 9), (value % 256, value // 256, 7)).save(path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Twenty different images and three files that are not images, in 16 buckets."""
    monkeypatch.setattr(cache_module, "IMAGES_PER_BUCKET", 1.5)
    for index in range(20):
        save(tmp_path / "images" / f"{index:02}a.png", index)
    for name in ("03.txt", "10.txt", "99.txt"):
        (tmp_path / "images" / name).write_text("not an image")
    return tmp_path / "images"


@pytest.fixture
def decoded(monkeypatch):
    """The names of all images that are opened in this process."""
    names = []

    def open_and_note(self, name):
        names.append(name)
        return open_image(self.path / name)

    monkeypatch.setattr(FolderSource, "open", open_and_note)
    return names


def load(folder, root=None, size=SIZE, grey=False) -> Images:
    return FolderCache(FolderSource(folder), root or folder.parent, size, grey).load()


def pixels(images: Images) -> np.ndarray:
    return images.samples.read(np.arange(len(images.samples))).numpy()


def files_of(folder):
    (cache,) = (folder.parent / "prepared").iterdir()
    return sorted(cache.glob("*.rows"))


def buckets_of(folder):
    return group(FolderSource(folder).list())


def assert_right(images: Images, folder):
    """The bytes are those of the files, in the order of a fresh start, and no file is left over."""
    for name, sample in zip(images.names, pixels(images), strict=True):
        with open_image(folder / name) as image:
            assert np.array_equal(sample, image_to_bytes(image, SIZE, False)), name
    assert set(images.names) == {path.name for path in folder.iterdir() if path.suffix == ".png"}
    fresh = load(folder, folder.parent / f"fresh-{time.time_ns()}")
    assert (images.names, images.unreadable) == (fresh.names, fresh.unreadable)
    assert np.array_equal(pixels(images), pixels(fresh))
    assert len(files_of(folder)) == len(buckets_of(folder))


def assert_only_decoded(decoded, buckets, folder):
    """Just the images of these buckets were decoded, and not all images."""
    expected = [image.name for number in buckets for image in buckets_of(folder)[number]]
    assert sorted(decoded) == sorted(expected)
    assert len(expected) < len(FolderSource(folder).list())


# ---------------------------------------------------------------- what is cached


def test_the_files_begin_with_the_bytes_of_the_images(folder):
    images = load(folder)
    assert_right(images, folder)
    assert images.unreadable == dict.fromkeys(("03.txt", "10.txt", "99.txt"), "not an image")
    rows = b""
    for file, bucket in zip(files_of(folder), buckets_of(folder).values(), strict=True):
        count = sum(image.name in images.names for image in bucket)
        rows += file.read_bytes()[: count * 192]
    assert rows == pixels(images).tobytes()


def test_a_second_start_decodes_nothing(folder, decoded, capsys):
    first = load(folder)
    assert "preparing 23 images" in capsys.readouterr().err
    assert len(decoded) == 23
    second = load(folder)
    assert len(decoded) == 23
    assert np.array_equal(pixels(first), pixels(second))
    assert (first.names, first.unreadable) == (second.names, second.unreadable)
    assert capsys.readouterr().err == ""


def test_only_new_and_changed_files_are_decoded(folder, decoded, capsys):
    load(folder)
    save(folder / "new.png", 100)  # added
    (folder / "05a.png").unlink()  # removed
    save(folder / "07a.png", 102)  # changed, of the same size
    os.utime(folder / "07a.png", ns=(1, 1))
    (folder / "10.txt").write_text("changed, and still not an image")
    (folder / "11a.png").rename(folder / "11b.png")
    decoded.clear()
    images = load(folder)
    assert sorted(decoded) == ["07a.png", "10.txt", "11b.png", "new.png"]
    assert "preparing 4 new of 23 images" in capsys.readouterr().err
    assert_right(images, folder)


def test_more_buckets_take_over_the_images_of_fewer(folder, decoded):
    load(folder)
    for index in range(20, 60):
        save(folder / f"{index:02}a.png", index)
    decoded.clear()
    images = load(folder)
    assert len(decoded) == 40
    assert_right(images, folder)


def test_the_number_of_buckets_is_a_power_of_two_up_to_1024():
    def count(images):
        return len(group([ImageFile(str(index), 0, 0) for index in range(images)]))

    assert [count(images) for images in (0, 1, 20, 500)] == [0, 1, 1, 32]
    assert count(16_000) == count(50_000) == 1024


def test_random_changes_always_give_what_a_fresh_start_gives(folder, random):
    for step in range(12):
        for value in random.integers(0, 40, 6).tolist():
            path = folder / f"{value:02}a.png"
            if path.exists() and value % 2:
                path.unlink()
            else:
                save(path, value + 40 * step)
        (folder / f"{random.integers(40):02}.txt").write_text(str(step))
        assert_right(load(folder), folder)


def test_sizes_and_colours_have_caches_of_their_own(folder):
    shapes = [
        load(folder, size=size, grey=grey).samples.sample_shape
        for size in ((8, 8), (8, 16))
        for grey in (False, True)
    ]
    assert shapes == [(3, 8, 8), (1, 8, 8), (3, 8, 16), (1, 8, 16)]
    assert len(list((folder.parent / "prepared").iterdir())) == 4


def test_a_data_root_among_the_images_is_left_out(folder, decoded):
    for _ in range(2):
        assert len(load_dataset(str(folder.parent), folder.parent, "8")) == 20
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


def test_that_no_image_is_readable_is_cached_too(tmp_path, decoded):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "a.txt").write_text("x")
    for _ in range(2):
        with pytest.raises(ValueError, match="none of the 1 files"):
            load_dataset(str(tmp_path / "p"), tmp_path)
    assert decoded == ["a.txt"]


# ---------------------------------------------------------------- deep images


def save_deep(path, low, high):
    values = np.linspace(low, high, 64).round().astype(np.int32).reshape(8, 8)
    Image.fromarray(values).save(path)


def assert_as_fresh(images, folder):
    fresh = load(folder, folder.parent / f"fresh-{time.time_ns()}")
    assert (images.names, images.scale) == (fresh.names, fresh.scale)
    assert np.array_equal(pixels(images), pixels(fresh))


def test_images_of_8_bits_are_opened_once_and_deep_ones_once_more(folder, decoded, capsys):
    images = load(folder)
    assert images.scale is None
    assert len(decoded) == 23
    for index in range(4):
        save_deep(folder / f"{index}.tif", 0, 1000 + index)
    decoded.clear()
    images = load(folder)
    assert images.scale == (0, 1003)
    assert {name[-4:] for name in decoded} == {".tif"}
    assert_as_fresh(images, folder)
    decoded.clear()
    assert load(folder).scale == (0, 1003)
    assert decoded == []


def test_deep_images_are_decoded_again_if_their_range_changes(folder, decoded):
    for index in range(6):
        save_deep(folder / f"{index}.tif", 0, 1000)
    load(folder)
    for change, scale in (
        (lambda: save_deep(folder / "in.tif", 10, 500), None),
        (lambda: save_deep(folder / "bright.tif", 0, 4000), (0, 4000)),
        (lambda: save_deep(folder / "negative.tif", -50, 10), (-50, 4000)),
        (lambda: save_deep(folder / "bright.tif", 0, 2000), (-50, 2000)),
        (lambda: (folder / "negative.tif").unlink(), (0, 2000)),
        (lambda: (folder / "bright.tif").unlink(), (0, 1000)),
        (lambda: (folder / "in.tif").unlink(), None),
    ):
        change()
        decoded.clear()
        images = load(folder)
        names = set(decoded)
        assert not any(name.endswith((".png", ".txt")) for name in names)
        deep = {name for name in images.names if name.endswith(".tif")}
        assert names == deep if scale else names <= {"in.tif"}
        assert scale in (None, images.scale)
        assert_as_fresh(images, folder)
        assert len(files_of(folder)) == len(buckets_of(folder))


def test_an_interruption_while_measuring_leaves_no_wrong_scale(folder, monkeypatch):
    for index in range(8):
        save_deep(folder / f"{index}.tif", 0, 1000 + 100 * index)
    for stop in range(1, 40, 3):
        opened = []

        def open_or_stop(self, name, opened=opened, stop=stop):
            opened.append(name)
            if len(opened) == stop:
                raise KeyboardInterrupt
            return open_image(self.path / name)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(FolderSource, "open", open_or_stop)
            load(folder)
    assert_as_fresh(load(folder), folder)


def test_deep_images_without_a_cache_have_the_same_scale(folder, capsys):
    for index in range(6):
        save_deep(folder / f"{index}.tif", 0, 1000 + index)
    (folder.parent / "file").write_text("in the way")
    in_memory = load(folder, folder.parent / "file")
    assert in_memory.samples.in_memory
    assert in_memory.scale == (0, 1005)
    assert_as_fresh(in_memory, folder)


# ---------------------------------------------------------------- unusual folders


@posix
def test_a_loop_of_links_ends(folder):
    (folder / "loop").symlink_to(folder)
    assert len(FolderSource(folder).list()) == 23


@posix
def test_links_to_nothing_are_counted_and_named(folder, capsys):
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    assert len(load_dataset(str(folder), folder.parent, "8")) == 20
    printed = capsys.readouterr().err
    assert "skipped 5 of 25 files" in printed
    assert load(folder).unreadable["gone.png"].startswith("FileNotFoundError")
    save(folder / "nowhere.png", 77)
    images = load(folder)
    assert "gone.png" in images.names
    assert "circle.png" in images.unreadable


# ---------------------------------------------------------------- unreadable images


def test_what_the_system_refused_is_tried_again(folder, monkeypatch):
    refused, opened = {"04a.png", "19a.png"}, []

    def open_or_refuse(self, name):
        opened.append(name)
        if name in refused:
            raise PermissionError(errno.EACCES, "Permission denied", name)
        return open_image(self.path / name)

    monkeypatch.setattr(FolderSource, "open", open_or_refuse)
    assert len(load(folder).names) == 18
    before = [file.stat().st_mtime_ns for file in files_of(folder)]
    opened.clear()
    assert len(load(folder).names) == 18
    assert sorted(opened) == ["04a.png", "19a.png"]
    assert [file.stat().st_mtime_ns for file in files_of(folder)] == before  # nothing was written
    refused.remove("19a.png")
    assert len(load(folder).names) == 19
    refused.clear()
    assert_right(load(folder), folder)


def test_a_broken_image_is_not_tried_again(folder, decoded):
    content = (folder / "00a.png").read_bytes()
    (folder / "half.png").write_bytes(content[:40])
    assert "half.png" in load(folder).unreadable
    decoded.clear()
    load(folder)
    assert decoded == []
    (folder / "half.png").write_bytes(content)
    assert_right(load(folder), folder)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["short", "missing", "row", "flipped", "empty", "text", "huge"])
def test_a_damaged_file_is_made_again(fault, folder, decoded):
    load(folder)
    number, file = list(buckets_of(folder))[3], files_of(folder)[3]
    content = bytearray(file.read_bytes())
    if fault == "missing":
        file.unlink()
    else:
        flipped = bytearray(content)
        flipped[content.index(b".png")] ^= 1
        changed = {"short": content[:-1], "row": content[192:], "flipped": flipped, "empty": b""}
        changed |= {"text": b"not a cache", "huge": content[:-40] + b"\xff" * 40}
        file.write_bytes(changed[fault])
    (file.parent / "0001.12345.tmp").write_bytes(b"left by a process that was killed")
    decoded.clear()
    images = load(folder)
    assert_only_decoded(decoded, [number], folder)
    assert_right(images, folder)
    assert len(list(file.parent.iterdir())) == len(files_of(folder)) + 1  # and the lock


def test_files_of_another_version_are_made_again(folder, decoded, monkeypatch):
    load(folder)
    monkeypatch.setattr(cache_module, "VERSION", cache_module.VERSION + 1)
    decoded.clear()
    images = load(folder)
    assert len(decoded) == 23
    assert_right(images, folder)


def test_no_mutated_file_leads_to_wrong_images(folder, random):
    """Anything may happen to a file but a change of rows that keeps its length."""
    expected = load(folder)
    expected_pixels = pixels(expected)
    for step in range(120):
        file = random.choice(files_of(folder))
        content = bytearray(file.read_bytes())
        rows = len(content) - FOOTER.size - FOOTER.unpack(content[-FOOTER.size :])[0]
        start = random.integers(rows, len(content))
        if step % 3 == 0:
            content[start] ^= 1 << random.integers(8)
        elif step % 3 == 1:
            content[start : start + random.integers(1, 30)] = random.bytes(random.integers(0, 30))
        else:  # lost bytes, also of rows
            start = random.integers(len(content) - 20)
            del content[start : start + random.integers(1, 20)]
        file.write_bytes(content)
        images = load(folder)
        assert np.array_equal(pixels(images), expected_pixels)
        assert (images.names, images.unreadable) == (expected.names, expected.unreadable)


@posix
def test_a_reader_of_outdated_files_still_finds_its_images(folder):
    outdated = load(folder)
    expected = pixels(outdated)
    save(folder / "07a.png", 300)
    changed = load(folder)
    assert np.array_equal(pixels(outdated), expected)
    assert not np.array_equal(pixels(changed), expected)


def test_an_interruption_costs_at_most_the_buckets_in_progress(
    folder, decoded, monkeypatch, capsys
):
    monkeypatch.setattr(cache_module, "thread_count", lambda: 1)  # one bucket is in progress
    load(folder)
    for index in range(14):
        save(folder / f"{index:02}a.png", index + 50)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        opened = []

        def open_or_stop(self, name):
            opened.append(name)
            if len(opened) == 9:
                raise KeyboardInterrupt
            return open_image(self.path / name)

        patch.setattr(FolderSource, "open", open_or_stop)
        load(folder)
    assert "run the same command to continue" in capsys.readouterr().err
    assert 9 <= len(opened) < 14  # the thread may open more before it is told to stop
    cache = FolderCache(FolderSource(folder), folder.parent, SIZE, False)
    finished, _ = cache.find(buckets_of(folder))
    kept = {image.name for number in finished for image in buckets_of(folder)[number]}
    assert len(set(opened) & kept) >= 8 - max(map(len, buckets_of(folder).values()))
    decoded.clear()
    images = load(folder)
    assert set(decoded) == {f"{index:02}a.png" for index in range(14)} - kept
    assert_right(images, folder)


SLOW = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from wgan.data import cache
cache.IMAGES_PER_BUCKET, cache.thread_count = 1.5, lambda: 1
open_image = cache.FolderSource.open
def slowly(self, name):
    time.sleep(0.02)
    sys.stdout.write("opened\\n")
    sys.stdout.flush()
    return open_image(self, name)
cache.FolderSource.open = slowly
path = pathlib.Path(sys.argv[2])
images = cache.FolderCache(cache.FolderSource(path), path.parent, (8, 8), False).load()
print(len(images.names))
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(ROOT), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@posix
@pytest.mark.slow
def test_a_kill_costs_at_most_the_buckets_in_progress(folder):
    opened = []
    for kill_after in (8, 8, 1000):
        process = start(folder)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) == kill_after:
                process.kill()
        errors = process.communicate()[1]
        opened.append(lines.count("opened\n"))
    assert process.returncode == 0, errors
    assert opened[0] >= 8 and opened[1] >= 8
    most = max(len(images) for images in buckets_of(folder).values())
    assert sum(opened) <= 23 + 2 * most
    assert_right(load(folder), folder)


@pytest.mark.slow
def test_two_processes_at_once_prepare_once(folder):
    cache = FolderCache(FolderSource(folder), folder.parent, SIZE, False).folder
    cache.mkdir(parents=True)
    with FileLock(cache / "lock"):
        started = [start(folder), start(folder)]
        for process in started:
            assert "waiting for another process to prepare" in process.stderr.readline()
    ended = [process.communicate(timeout=60) for process in started]
    output, errors = ("".join(texts) for texts in zip(*ended, strict=True))
    assert output.count("opened") == 23
    assert output.replace("opened\n", "").split() == ["20", "20"]
    assert errors.count("preparing 23 images") == 1


@posix
@pytest.mark.slow
def test_ctrl_c_while_preparing_ends_the_command_with_130(folder, tmp_path):
    code = f"""
import runpy, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
sys.path.insert(0, {str(ROOT)!r})
from wgan.data import sources
sources.open_image = lambda path: time.sleep(0.3)
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
    assert "preparing 23 images" in first
    assert process.returncode == 130
    assert "run the same command to continue" in errors
    assert "Traceback" not in errors


# ---------------------------------------------------------------- disks


def test_a_disk_too_small_is_refused_with_advice(folder, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 23 * 192 - 1))
    with pytest.raises(ValueError, match=r"need .* of disk in .* are free.*--data-root"):
        load(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**30, 2**30, 23 * 192))
    assert_right(load(folder), folder)
    assert "preparing 23 images of" in capsys.readouterr().err


def test_a_disk_that_becomes_full_is_an_error_and_the_next_start_continues(
    folder, monkeypatch, decoded
):
    fsync, calls = os.fsync, []

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        with pytest.raises(ValueError, match=r"disk is full.*No space left.*--data-root.*continue"):
            load(folder)
    finished = {int(file.name[:4]) for file in files_of(folder)}
    assert len(finished) == 6
    assert len(list(files_of(folder)[0].parent.iterdir())) == 7  # and the lock
    decoded.clear()
    images = load(folder)
    assert_only_decoded(decoded, buckets_of(folder).keys() - finished, folder)
    assert_right(images, folder)


@pytest.mark.parametrize("fault", ["folder", "lock", "file"])
def test_a_root_that_cannot_be_written_costs_only_the_cache(fault, folder, monkeypatch, capsys):
    cached, root = load(folder), folder.parent / "other"

    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    if fault == "folder":
        root.write_text("in the way")
    else:
        where = (cache_module, "acquire_lock") if fault == "lock" else (os, "replace")
        monkeypatch.setattr(*where, refuse)
    in_memory = load(folder, root)
    assert "cannot cache the images" in capsys.readouterr().err
    assert in_memory.samples.in_memory and not cached.samples.in_memory
    assert np.array_equal(pixels(cached), pixels(in_memory))
    assert (cached.names, cached.unreadable) == (in_memory.names, in_memory.unreadable)


def test_a_current_cache_needs_neither_lock_nor_write_access(folder, monkeypatch, capsys):
    expected = pixels(load(folder))
    opened = open

    def open_to_read(path, mode="r", *arguments, **options):
        assert not set(mode) & set("wax+"), f"{path} is opened to write"
        return opened(path, mode, *arguments, **options)

    monkeypatch.setattr("builtins.open", open_to_read)
    monkeypatch.setattr(cache_module, "acquire_lock", lambda path: pytest.fail("locked"))
    capsys.readouterr()
    assert np.array_equal(pixels(load(folder)), expected)
    assert capsys.readouterr().err == ""
