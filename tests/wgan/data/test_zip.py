"""Zip archives of images: the same samples as the folder beside it, and what is wrong with them."""

import shutil
import struct
import subprocess
import zipfile

import numpy as np
import pytest
from helpers import assert_same_run, run_main
from PIL import Image

import evaluate
from wgan.data import ImageOptions, load_dataset

OPTIONS = ImageOptions((8, 8))


@pytest.fixture
def folder(tmp_path, random):
    """30 images in three subfolders, one with an accent in its name."""
    folder = tmp_path / "photos"
    for index in range(30):
        path = folder / ("birds", "cafés", "dogs")[index % 3] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(path)
    return folder


def pack(folder, path, around="", **options):
    """A zip archive of a folder, with its files below `around`."""
    with zipfile.ZipFile(path, "w", **options) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):  # in an order of its own
            archive.write(file, around + str(file.relative_to(folder)))
    return path


def load(path, options=OPTIONS):
    return load_dataset(str(path), path.parent, options)


def assert_same(one, other):
    assert one.identity() == other.identity()
    indices = np.arange(len(one))
    assert np.array_equal(one.read(indices), other.read(indices))
    assert one.class_names == other.class_names


@pytest.mark.parametrize("around", ["", "photos/", "a/b/"])
@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_holds_the_samples_of_its_folder(around, compression, folder, tmp_path):
    packed = pack(folder, tmp_path / "p.zip", around, compression=compression)
    assert_same(load(folder), load(packed))


@pytest.mark.skipif(not shutil.which("zip"), reason="needs the program zip")
def test_the_program_zip_writes_the_same_archive(folder, tmp_path):
    subprocess.run(["zip", "-qr", "p.zip", "photos"], cwd=tmp_path, check=True)
    assert_same(load(folder), load(tmp_path / "p.zip"))


def test_a_run_on_the_archive_resumes_from_the_folder_and_back(folder, tmp_path, capsys):
    packed = pack(folder, tmp_path / "p.zip", "photos/")
    assert run_main(folder, tmp_path / "whole", "--steps", 6, "--conditional") == 0
    for data, steps in ((packed, 2), (folder, 4), (packed, 6)):
        assert run_main(data, tmp_path / "run", "--steps", steps, "--conditional") == 0
    assert "byte-identical" not in capsys.readouterr().out
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_hidden_and_system_files_and_generated_images_are_left_out(folder, tmp_path, capsys):
    expected = load(folder)
    for name in (".hidden/a.png", "__MACOSX/photos/._1.png", "dogs/.DS_Store"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "made").mkdir()
    (folder / "made" / ".generated").touch()
    Image.new("RGB", (9, 9)).save(folder / "made" / "0.png")
    packed = pack(folder, tmp_path / "p.zip")
    capsys.readouterr()
    for path in (folder, packed):
        assert_same(expected, load(path))
        printed = capsys.readouterr().err
        assert "left out 1 of its folders" in printed
        assert "skipped" not in printed
    assert len(load(pack(folder / "made", tmp_path / "made.zip", "made/"))) == 1  # it was named


def test_only_changed_images_are_prepared_again(folder, tmp_path, capsys):
    load(pack(folder, tmp_path / "p.zip"))
    pack(folder, tmp_path / "p.zip", compression=zipfile.ZIP_DEFLATED)  # the same content
    capsys.readouterr()
    before = load(tmp_path / "p.zip")
    assert "preparing" not in capsys.readouterr().err
    path = folder / "birds" / "0.png"
    size = path.stat().st_size
    Image.new("RGB", (9, 9), "red").save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))  # of the same size
    after = load(pack(folder, tmp_path / "p.zip"))
    assert "preparing 1 new of 30 images" in capsys.readouterr().err
    assert after.identity() != before.identity()


# ---------------------------------------------------------------- wrong archives


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def change_byte(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 20] ^= 255
    path.write_bytes(content)


def encrypt(path):
    """Set the flag of encryption of the first entry."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def enlarge(path):
    """Claim that the first entry has 3 GiB."""
    content = bytearray(path.read_bytes())
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 3 * 2**30)
    path.write_bytes(content)


def compress_oddly(path):
    content = bytearray(path.read_bytes())
    struct.pack_into("<H", content, content.index(b"PK\x01\x02") + 10, 97)  # WavPack
    path.write_bytes(content)


def nest(path):
    path.rename(path.with_name("inner.zip"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(path.with_name("inner.zip"), "inner.zip")


def empty(path):
    zipfile.ZipFile(path, "w").close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "p.zip is incomplete or not a zip archive"),
        (lambda path: path.write_bytes(b"\x1f\x8bnot zip" * 99), "not a zip archive"),
        (empty, "none of the 0 files in .*p.zip is a readable image"),
        (nest, r"none of the 1 files"),
    ],
)
def test_a_wrong_archive_is_refused(damage, message, folder, tmp_path):
    damage(pack(folder, tmp_path / "p.zip"))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "p.zip")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change_byte, "cannot be unpacked (Bad CRC-32 for file"),
        (encrypt, "encrypted: unpack the archive with its password"),
        (enlarge, "too large (3,221,225,472 bytes)"),
        (compress_oddly, "cannot be unpacked (That compression method is not supported)"),
    ],
)
def test_wrong_entries_are_counted_and_named(damage, reason, folder, tmp_path, capsys):
    damage(pack(folder, tmp_path / "p.zip"))
    assert len(load(tmp_path / "p.zip")) == 29
    printed = capsys.readouterr().err
    assert "skipped 1 of 30 files that cannot be used" in printed
    assert reason in printed


def test_no_entry_reaches_a_path_outside(tmp_path, folder):
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("../up.png", "/absolute.png", "C:\\drive.png", "usual.png"):
            archive.write(folder / "birds" / "0.png", name)
    before = set(tmp_path.parent.iterdir()) | set(tmp_path.iterdir())
    assert len(load(tmp_path / "p.zip")) == 3  # ".." is hidden
    after = set(tmp_path.parent.iterdir()) | set(tmp_path.iterdir())
    assert after - before == {tmp_path / "prepared"}


def test_an_archive_is_evaluated_as_its_folder(folder, tmp_path, capsys):
    packed = pack(folder, tmp_path / "p.zip")
    options = ["--features", "random", "--data-root", str(tmp_path), "--device", "cpu"]
    tables = []
    for source in (folder, packed):
        assert evaluate.main([str(source), str(packed), *options]) == 0
        tables.append(capsys.readouterr().out.splitlines()[1:])
    assert tables[0] == tables[1]
