"""The cache of a folder: always the folder's images, whatever happened before."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
from conftest import ROOT
from filelock import FileLock
from PIL import Image

from wgan.data import ImageOptions, load_dataset
from wgan.data import cache as cache_module
from wgan.data.cache import FOOTER, FolderCache, Images, group
from wgan.data.images import image_to_bytes, open_image
from wgan.data.sources import FolderSource, ImageFile

pytestmark = pytest.mark.slow

OPTIONS = ImageOptions((8, 8))
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
def opened(monkeypatch):
    """The names of all files that are opened in this process, in order."""
    names = []

    def open_and_note(self, name):
        names.append(name)
        return open_image(self.path / name)

    monkeypatch.setattr(FolderSource, "open", open_and_note)
    return names


def load(folder, root=None, options=OPTIONS) -> Images:
    return FolderCache(FolderSource(folder), root or folder.parent, options).load()


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
            assert np.array_equal(sample, image_to_bytes(image, OPTIONS)), name
    assert set(images.names) == {path.name for path in folder.iterdir() if path.suffix == ".png"}
    fresh = load(folder, folder.parent / f"fresh-{time.time_ns()}")
    assert (images.names, images.unreadable) == (fresh.names, fresh.unreadable)
    assert np.array_equal(pixels(images), pixels(fresh))
    assert len(files_of(folder)) == len(buckets_of(folder))


def assert_only_opened(opened, buckets, folder):
    """Just the images of these buckets were opened, and not all images."""
    expected = {image.name for number in buckets for image in buckets_of(folder)[number]}
    assert set(opened) == expected
    assert len(expected) < len(FolderSource(folder).list())


# ---------------------------------------------------------------- what is cached


def test_the_files_begin_with_the_bytes_of_the_images(folder):
    images = load(folder)
    assert_right(images, folder)
    assert images.unreadable == dict.fromkeys(
        ("03.txt", "10.txt", "99.txt"), "not an image that Pillow reads"
    )
    rows = b""
    for file, bucket in zip(files_of(folder), buckets_of(folder).values(), strict=True):
        count = sum(image.name in images.names for image in bucket)
        rows += file.read_bytes()[: count * 192]
    assert rows == pixels(images).tobytes()


def test_a_second_start_opens_nothing(folder, opened, capsys):
    first = load(folder)
    assert "preparing 23 images" in capsys.readouterr().err
    assert len(opened) == 2 * 23  # to look for more than 8 bits, and to decode
    second = load(folder)
    assert len(opened) == 2 * 23
    assert np.array_equal(pixels(first), pixels(second))
    assert (first.names, first.unreadable) == (second.names, second.unreadable)
    assert capsys.readouterr().err == ""


def test_only_new_and_changed_images_are_opened(folder, opened, capsys):
    load(folder)
    save(folder / "new.png", 100)  # added
    (folder / "05a.png").unlink()  # removed
    save(folder / "07a.png", 102)  # changed, of the same size
    os.utime(folder / "07a.png", ns=(1, 1))
    (folder / "11a.png").rename(folder / "11b.png")
    opened.clear()
    images = load(folder)
    assert {name for name in opened if name.endswith("png")} == {"07a.png", "11b.png", "new.png"}
    assert re.search("preparing [3-6] new of 23 images", capsys.readouterr().err)
    assert_right(images, folder)


def test_more_buckets_take_over_the_images_of_fewer(folder, opened):
    load(folder)
    for index in range(20, 60):
        save(folder / f"{index:02}a.png", index)
    opened.clear()
    images = load(folder)
    assert sum(name.endswith("png") for name in opened) == 2 * 40
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


def test_exchanged_images_of_the_same_size_and_time_are_noticed(folder, opened):
    Image.new("RGB", (9, 9), "red").save(folder / "05a.bmp")
    Image.new("RGB", (9, 9), "blue").save(folder / "06a.bmp")
    first, times = load(folder), (folder / "05a.bmp").stat()
    for name in ("05a.bmp", "06a.bmp"):
        os.utime(folder / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    load(folder)
    time.sleep(0.02)  # the clock of a file system is coarse
    (folder / "05a.bmp").rename(folder / "other")
    (folder / "06a.bmp").rename(folder / "05a.bmp")
    (folder / "other").rename(folder / "06a.bmp")
    opened.clear()
    second = load(folder)
    assert {"05a.bmp", "06a.bmp"} <= set(opened) and first.digest != second.digest
    rows = [images.samples.read([images.names.index("05a.bmp")]) for images in (first, second)]
    assert (rows[0][0, :, 0, 0] - rows[1][0, :, 0, 0]).tolist() == [255, 0, 1]


def test_the_digest_covers_all_images_and_does_not_depend_on_the_system(folder):
    accented = folder / "e\u0301.png"  # as macOS writes it
    save(accented, 33)
    first = load(folder)
    accented.rename(folder / "\u00e9.png")
    second = load(folder)
    assert first.digest == second.digest and first.names != second.names
    assert np.array_equal(pixels(first), pixels(second))
    save(folder / "07a.png", 102)
    assert load(folder).digest != first.digest


def test_sizes_and_colours_have_caches_of_their_own(folder):
    shapes = [
        load(folder, options=ImageOptions(size, grey)).samples.sample_shape
        for size in ((8, 8), (8, 16))
        for grey in (False, True)
    ]
    assert shapes == [(3, 8, 8), (1, 8, 8), (3, 8, 16), (1, 8, 16)]
    assert len(list((folder.parent / "prepared").iterdir())) == 4


def test_a_data_root_among_the_images_is_left_out(folder, opened):
    for _ in range(2):
        assert len(load_dataset(str(folder.parent), folder.parent, OPTIONS)) == 20
    assert len(set(opened)) == 23


# ---------------------------------------------------------------- deep images


def save_deep(path, low, high):
    values = np.linspace(low, high, 64).round().astype(np.int32).reshape(8, 8)
    Image.fromarray(values).save(path)


def assert_as_fresh(images, folder):
    fresh = load(folder, folder.parent / f"fresh-{time.time_ns()}")
    assert (images.names, images.scale) == (fresh.names, fresh.scale)
    assert np.array_equal(pixels(images), pixels(fresh))


def test_deep_images_may_be_added_to_others(folder, opened):
    assert load(folder).scale is None
    for index in range(4):
        save_deep(folder / f"{index}.tif", 0, 1000 + index)
    opened.clear()
    images = load(folder)
    assert images.scale == (0, 1003)
    assert not any(name.endswith(".png") for name in opened)
    assert_as_fresh(images, folder)
    opened.clear()
    assert load(folder).scale == (0, 1003)
    assert opened == []


def test_deep_images_are_decoded_again_if_their_range_changes(folder, opened):
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
        opened.clear()
        images = load(folder)
        names = {name for name in opened if not name.endswith(".txt")}
        deep = {name for name in images.names if name.endswith(".tif")}
        assert names == deep if scale else names <= {"in.tif"}
        assert scale in (None, images.scale)
        assert_as_fresh(images, folder)
        assert len(files_of(folder)) == len(buckets_of(folder))


# ---------------------------------------------------------------- unusual folders


@posix
def test_a_loop_of_links_ends(folder):
    (folder / "loop").symlink_to(folder)
    assert len(FolderSource(folder).list()) == 23


@posix
def test_links_to_nothing_are_counted_and_named(folder, capsys):
    (folder / "gone.png").symlink_to(folder / "nowhere.png")
    (folder / "circle.png").symlink_to(folder / "circle.png")
    assert len(load_dataset(str(folder), folder.parent, OPTIONS)) == 20
    printed = capsys.readouterr().err
    assert "skipped 5 of 25 files" in printed
    assert load(folder).unreadable["gone.png"].startswith("FileNotFoundError")
    save(folder / "nowhere.png", 77)
    images = load(folder)
    assert "gone.png" in images.names
    assert "circle.png" in images.unreadable


# ---------------------------------------------------------------- unreadable images


def test_an_unreadable_image_is_tried_again_when_it_has_changed(folder, opened):
    content = (folder / "00a.png").read_bytes()
    (folder / "half.png").write_bytes(content[:40])
    Image.fromarray(np.arange(1024, dtype=np.uint16).reshape(32, 32)).save(folder / "deep.png")
    (folder / "deep.png").write_bytes((folder / "deep.png").read_bytes()[:-40])
    unreadable = load(folder).unreadable
    assert "half.png" in unreadable and "truncated" in unreadable["deep.png"]
    opened.clear()
    load(folder)
    assert opened == []
    (folder / "half.png").write_bytes(content)
    (folder / "deep.png").write_bytes(content)
    assert_right(load(folder), folder)


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize("fault", ["short", "missing", "row", "flipped", "empty", "text", "huge"])
def test_a_corrupt_file_is_made_again(fault, folder, opened):
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
    opened.clear()
    images = load(folder)
    assert_only_opened(opened, [number], folder)
    assert_right(images, folder)
    assert len(list(file.parent.iterdir())) == len(files_of(folder)) + 1  # the lock


def test_files_of_another_version_are_made_again(folder, opened, monkeypatch):
    load(folder)
    monkeypatch.setattr(cache_module, "VERSION", cache_module.VERSION + 1)
    opened.clear()
    images = load(folder)
    assert len(set(opened)) == 23
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


SLOW = """
import pathlib, sys, time
sys.path.insert(0, sys.argv[1])
from wgan.data import cache, sources
cache.IMAGES_PER_BUCKET, cache.thread_count = 1.5, lambda: 1
decode = cache.FolderCache.decode
def slowly(self, file):
    time.sleep(0.02)
    sys.stdout.write("decoded\\n")
    sys.stdout.flush()
    return decode(self, file)
cache.FolderCache.decode = slowly
path, options = pathlib.Path(sys.argv[2]), cache.ImageOptions((8, 8))
images = cache.FolderCache(sources.FolderSource(path), path.parent, options).load()
print(len(images.names))
"""


def start(folder):
    return subprocess.Popen(
        [sys.executable, "-c", SLOW, str(ROOT), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.nightly
@posix
def test_a_kill_costs_at_most_the_buckets_in_progress(folder):
    decoded = []
    for kill_after in (8, 8, 1000):
        process = start(folder)
        lines = []
        for line in process.stdout:
            lines.append(line)
            if len(lines) == kill_after:
                process.kill()
        errors = process.communicate()[1]
        decoded.append(lines.count("decoded\n"))
    assert process.returncode == 0, errors
    assert decoded[0] >= 8 and decoded[1] >= 8
    in_progress = max(map(len, buckets_of(folder).values()))
    assert sum(decoded) <= 23 + 2 * in_progress
    assert_right(load(folder), folder)


def test_two_processes_at_once_prepare_once(folder):
    cache = FolderCache(FolderSource(folder), folder.parent, OPTIONS).folder
    cache.mkdir(parents=True)
    with FileLock(cache / "lock"):
        started = [start(folder), start(folder)]
        for process in started:
            assert "waiting for another process to prepare" in process.stderr.readline()
    ended = [process.communicate(timeout=60) for process in started]
    output, errors = ("".join(texts) for texts in zip(*ended, strict=True))
    assert output.count("decoded") == 23
    assert output.replace("decoded\n", "").split() == ["20", "20"]
    assert errors.count("preparing 23 images") == 1


@pytest.mark.nightly
@posix
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
    assert "run the command again to continue" in errors
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
    folder, monkeypatch, opened
):
    fsync, calls = os.fsync, []

    def fill(descriptor):
        calls.append(descriptor)
        if len(calls) > 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        with pytest.raises(ValueError, match=r"No space left.*--data-root, free some.*continue"):
            load(folder)
    finished = {int(file.name[:4]) for file in files_of(folder)}
    assert len(finished) == 6
    assert len(list(files_of(folder)[0].parent.iterdir())) == 7  # and the lock
    opened.clear()
    images = load(folder)
    assert_only_opened(opened, buckets_of(folder).keys() - finished, folder)
    assert_right(images, folder)


@pytest.mark.parametrize("fault", ["folder", "lock", "file"])
def test_a_root_that_cannot_be_written_is_an_error_with_advice(fault, folder, monkeypatch):
    def refuse(*arguments, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    if fault == "folder":
        (folder.parent / "other").write_text("in the way")
    else:
        where = (cache_module, "acquire_lock") if fault == "lock" else (os, "replace")
        monkeypatch.setattr(*where, refuse)
    with pytest.raises(ValueError, match=r"cannot be prepared in .*another --data-root"):
        load(folder, folder.parent / "other")


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
