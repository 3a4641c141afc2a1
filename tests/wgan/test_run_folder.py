"""A run's folder: checkpoints that survive damage, and a log without gaps."""

import errno
import io
import os
import shutil
import tracemalloc
from contextlib import closing
from functools import partial

import pytest
import torch
from filelock import FileLock
from helpers import assert_same_run, parse, run_main, write_with_digest

from wgan import checkpoints, files, run_folder
from wgan.checkpoints import read_checkpoint, write_checkpoint
from wgan.run_folder import LOG_COLUMNS, OPTIONS_MARK, RunFolder, move_aside, read_log
from wgan.stored_run import read_run, set_corrupt_aside


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    yield run
    run.close()


def save(run, step, **values):
    run.save(partial(write_checkpoint, {"step": step} | values, parse("--dataset", "mnist")))


def restore(run):
    """The newest intact checkpoint of the folder, as a resumed run takes it."""
    stored = read_run(run.path)
    set_corrupt_aside(stored)
    return stored.checkpoint


def row(step):
    return dict.fromkeys(LOG_COLUMNS, 1.5) | {"step": step}


def test_a_checkpoint_comes_back_and_the_one_before_is_kept(run):
    assert read_run(run.path) is None
    for step in (1, 2, 3):
        save(run, step, weights=torch.full((3,), float(step)))
    assert restore(run)["step"] == 3
    assert read_checkpoint(run.previous)["weights"].tolist() == [2.0] * 3
    assert not list(run.path.glob("*.tmp"))


def test_anyone_can_load_a_checkpoint_without_this_project(run):
    save(run, 1)
    assert torch.load(run.checkpoint, weights_only=True)["step"] == 1


@pytest.mark.parametrize("damage", ["bit", "cut", "empty", "gone"])
def test_a_broken_checkpoint_falls_back_to_the_one_before(run, damage, capsys):
    save(run, 1)
    save(run, 2)
    content = bytearray(run.checkpoint.read_bytes())
    if damage == "gone":
        run.checkpoint.unlink()
    else:
        content[len(content) // 2] ^= 1
        broken = {"bit": content, "cut": content[:-1], "empty": b""}[damage]
        run.checkpoint.write_bytes(broken)
    assert restore(run)["step"] == 1
    if damage != "gone":
        assert "is corrupt and is now checkpoint.broken.pt" in capsys.readouterr().out
    # The next save must not push the good one out for the broken one.
    save(run, 3)
    assert restore(run)["step"] == 3
    assert read_checkpoint(run.previous)["step"] == 1


def test_two_broken_checkpoints_are_an_error_and_kept(run):
    save(run, 1)
    save(run, 2)
    for path in (run.checkpoint, run.previous):
        path.write_bytes(b"x")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"no checkpoint of .* can be read"):
            restore(run)
    assert run.checkpoint.read_bytes() == run.previous.read_bytes() == b"x"


@pytest.mark.parametrize(
    "line",
    [
        "1,a,b,c,d,e,f,g,h,i",
        "1" + ",1" * 20,
        "x" + "," * 9,
        "1" + ",1" * 8 + "," + "x" * 200_000,
    ],
    ids="abcd",
)
def test_a_log_with_other_lines_is_refused_and_left_alone(line, run):
    run.start_log(0)
    run.log(row(1))
    with open(run.log_file, "a") as file:
        file.write(line + "\n")
    content = run.log_file.read_bytes()
    with pytest.raises(ValueError, match=r"log.csv was not written by this project"):
        run.start_log(5)
    assert run.log_file.read_bytes() == content


def test_other_pictures_among_the_samples_do_no_harm(run):
    (run.path / "samples" / "best.png").write_text("mine")
    run.save_plots()


def test_every_single_byte_is_covered(run):
    save(run, 1)
    content = run.checkpoint.read_bytes()
    for position in [*range(0, len(content), 7), *range(len(content) - 70, len(content))]:
        broken = bytearray(content)
        broken[position] ^= 0x10
        run.checkpoint.write_bytes(broken)
        with pytest.raises(ValueError):
            read_checkpoint(run.checkpoint)


def test_code_in_a_checkpoint_is_not_run(run, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "owned"), "w"))

    write_with_digest(run.checkpoint, {"format": 2, "x": Evil()})
    with pytest.raises(ValueError, match="contains pickled code"):
        read_checkpoint(run.checkpoint)
    assert not (tmp_path / "owned").exists()


def test_another_format_is_refused(run, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_FORMAT", 99)
    save(run, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 99, but this version reads format \d"):
        read_checkpoint(run.checkpoint)


def refuse_to_sync(monkeypatch, code):
    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, "fsync", refuse)


def test_a_failed_write_leaves_the_old_file_and_no_other(run, monkeypatch):
    save(run, 1)
    refuse_to_sync(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError):
        save(run, 2)
    assert restore(run)["step"] == 1
    assert not list(run.path.glob("*.tmp"))


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_that_cannot_sync_or_link_is_written_all_the_same(code, run, monkeypatch):
    refuse_to_sync(monkeypatch, code)
    monkeypatch.setattr(files.os, "link", lambda *paths: os.fsync(0))
    for step in (1, 2, 3):
        save(run, step)
    assert restore(run)["step"] == 3
    assert read_checkpoint(run.previous)["step"] == 2


def test_the_log_is_on_the_disk_before_the_checkpoint_and_its_name_after_it(run, monkeypatch):
    run.start_log(0)
    order, replace, fsync = [], os.replace, os.fsync
    names = {os.stat(path).st_ino: path.name for path in (run.path, run.log_file)}

    def spy_on_sync(descriptor):
        order.append(names.get(os.fstat(descriptor).st_ino, "content"))
        fsync(descriptor)

    monkeypatch.setattr(files.os, "fsync", spy_on_sync)
    monkeypatch.setattr(files.os, "replace", lambda *a: order.append("rename") or replace(*a))
    save(run, 1)
    assert order == ["log.csv", "content", "rename", "run"]


def test_a_reader_finds_a_checkpoint_at_every_moment_of_a_save(run, monkeypatch):
    steps = []

    def look(function):
        def call(*arguments):
            steps.append(read_checkpoint(run.checkpoint)["step"])
            result = function(*arguments)
            steps.append(read_checkpoint(run.checkpoint)["step"])
            return result

        return call

    save(run, 1)
    for name in ("fsync", "unlink", "link", "replace"):
        monkeypatch.setattr(files.os, name, look(getattr(os, name)))
    save(run, 2)
    save(run, 3)
    assert steps == sorted(steps) and set(steps) == {1, 2, 3}


def test_a_checkpoint_is_not_copied_in_memory(run):
    weights = torch.zeros(2**20)
    tracemalloc.start()  # of Python's objects, not of tensors
    save(run, 1, weights=weights)
    run.close()
    assert run_folder.is_run(run.path) and read_run(run.path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * checkpoints.CHUNK + 2**20 < 4 * len(weights)


def test_temporary_names_do_not_depend_on_the_process(run):
    with files.replacing(run.path / "x") as one, files.replacing(run.path / "x") as other:
        assert one.name != other.name


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
def test_links_and_devices_are_written_to_and_not_replaced(tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old content")
    link.symlink_to(target)
    files.write_whole(link, b"new")
    assert link.is_symlink() and target.read_bytes() == b"new"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.write_whole(tmp_path / "pipe", b"new")
    assert os.read(reader, 9) == b"new" and (tmp_path / "pipe").is_fifo()
    os.close(reader)


def test_leftovers_of_the_data_root_are_removed_once_they_are_old(image_folder, tmp_path):
    root = tmp_path / "data"
    root.mkdir()
    names = ["glyphs.npz.0123abcd.tmp", "glyphs.npz.0123abce.tmp", "mine.tmp"]
    for name in names:
        (root / name).write_text("x")
    for name in (names[0], names[2]):
        os.utime(root / name, (1, 1))
    assert run_main(image_folder, tmp_path / "r", "--steps", 1, "--data-root", root) == 0
    assert [(root / name).exists() for name in names] == [False, True, True]


def test_the_log_is_cut_back_to_the_checkpoint_and_a_torn_line_dropped(run):
    run.start_log(0)
    for step in (10, 20, 30):
        run.log(row(step))
    with open(run.log_file, "a") as file:
        file.write("40,1.5,1.")  # the power went off here
    run.start_log(20)
    run.log(row(30))
    assert [entry["step"] for entry in read_log(run.path)] == ["10", "20", "30"]
    with open(run.log_file, "ab") as file:
        file.write(b"\0" * 50 + b"1.5\n50,1.5,1.5\n")  # here, too: a block was not written
    run.start_log(20)
    assert [entry["step"] for entry in read_log(run.path)] == ["10", "20"]
    run.start_log(0)
    assert read_log(run.path) == []


def test_a_run_is_moved_aside_to_a_free_name(tmp_path):
    for expected in ("run.old-1", "run.old-2"):
        with closing(RunFolder(tmp_path / "run")) as run:
            save(run, 1)
            with pytest.raises(ValueError, match="another process trains"):
                move_aside(tmp_path / "run")
        assert move_aside(tmp_path / "run").name == expected
    assert move_aside(tmp_path / "run") is None


def test_the_current_folder_is_not_moved_aside(image_folder, tmp_path, monkeypatch, capsys):
    run = tmp_path / "r"
    assert run_main(image_folder, run, "--steps", 1) == 0
    monkeypatch.chdir(run)
    assert run_main(image_folder, ".", "--steps", 1, "--fresh") == 2
    assert "the current folder, ., cannot be moved" in capsys.readouterr().err
    assert (run / "checkpoint.pt").exists()


def test_a_folder_is_for_one_process_at_a_time(run):
    with pytest.raises(ValueError, match="another process trains in"):
        RunFolder(run.path)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning(code, tmp_path, monkeypatch, capsys):
    def refuse(self):
        raise OSError(code, "No locks available")

    monkeypatch.setattr(FileLock, "_acquire", refuse)
    with closing(RunFolder(tmp_path / "run")) as run:
        save(run, 1)
    assert "cannot lock" in capsys.readouterr().err


def test_leftovers_of_a_killed_process_are_removed_and_other_files_kept(tmp_path):
    RunFolder(tmp_path / "run").close()
    written = "checkpoint.pt", "checkpoint-000100.pt", "samples/000100.png", "curves.png"
    leftovers = [f"{name}.0123abcd.tmp" for name in written]
    others = ["neighbours.png.0123abcd.tmp", "log.csv.mine.tmp", "mine.tmp"]
    for name in leftovers + others:
        (tmp_path / "run" / name).write_text("x")
    assert move_aside(tmp_path / "run") is None  # nothing of a run so far
    (tmp_path / "run" / "config.toml").write_bytes(OPTIONS_MARK)
    RunFolder(tmp_path / "run").close()
    assert not any((tmp_path / "run" / name).exists() for name in leftovers)
    assert all((tmp_path / "run" / name).exists() for name in others)


def test_a_checkpoint_that_cannot_be_read_is_not_called_corrupt(run, monkeypatch):
    save(run, 1)
    save(run, 2)

    def broken(*arguments):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(checkpoints, "open", broken, raising=False)
    with pytest.raises(OSError, match="Input/output error"):
        restore(run)
    monkeypatch.undo()
    assert restore(run)["step"] == 2


@pytest.mark.parametrize("fault", ["memory", "format"])
def test_a_checkpoint_that_cannot_be_used_now_stays_where_it_is(
    fault, image_folder, tmp_path, monkeypatch, capsys
):
    """Too little memory, or another version of this project: neither makes it corrupt."""
    run = tmp_path / "r"
    assert run_main(image_folder, run, "--steps", 4) == 0
    before = {path: path.read_bytes() for path in run.rglob("*.*")}

    def short(*arguments, **options):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 4 bytes")

    if fault == "memory":
        monkeypatch.setattr(torch, "load", short)
    else:
        monkeypatch.setattr(checkpoints, "CHECKPOINT_FORMAT", 4)
    assert run_main(image_folder, run, "--steps", 6) == (1 if fault == "memory" else 2)
    expected = {"memory": "out of memory while loading", "format": ", but this"}
    assert expected[fault] in capsys.readouterr().err
    assert {path: path.read_bytes() for path in run.rglob("*.*")} == before


def test_lines_that_could_not_be_written_come_later_and_whole(run, monkeypatch):
    run.start_log(0)
    run.log(row(10))
    monkeypatch.setattr(run_folder, "open", lambda *a, **k: FullDisk(run.log_file), raising=False)
    for step in (20, 30):
        with pytest.raises(OSError):
            run.log(row(step))
    monkeypatch.undo()
    assert [entry["step"] for entry in read_log(run.path)] == ["10"]
    run.log(row(40))
    assert [entry["step"] for entry in read_log(run.path)] == ["10", "20", "30", "40"]


class FullDisk(io.FileIO):
    """Accepts five bytes per write, like a disk that is almost full."""

    def __init__(self, path):
        super().__init__(path, "ab")

    def write(self, content):
        return super().write(content[:5])


def test_a_folder_with_only_a_checkpoint_is_a_run(image_folder, tmp_path, capsys):
    run, copy = tmp_path / "r", tmp_path / "copy"
    assert run_main(image_folder, run, "--steps", 1) == 0
    copy.mkdir()
    shutil.copy(run / "checkpoint.pt", copy)
    assert run_main(image_folder, copy, "--steps", 2, "--seed", 5) == 2
    assert "copy contains another run (seed was 0 and is 5)" in capsys.readouterr().err
    assert not (copy / "config.toml").exists()
    assert run_main(image_folder, copy, "--steps", 2) == 0
    assert read_checkpoint(copy / "checkpoint.pt")["step"] == 2
    (copy / "config.toml").unlink()
    assert move_aside(copy).name == "copy.old-1"


@pytest.mark.parametrize("content", ["", "dataset = 'gly", "seed = -1"])
def test_the_options_of_a_run_are_those_in_its_checkpoint(content, image_folder, tmp_path):
    """config.toml is for people: a resumed run writes it again."""
    run = tmp_path / "r"
    assert run_main(image_folder, run, "--steps", 1) == 0
    (run / "config.toml").write_text(content)
    assert run_main(image_folder, run, "--steps", 2) == 0
    assert "seed = 0" in (run / "config.toml").read_text()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.toml", 'baseURL = "https://example.org/"\n'),
        ("config.toml", "seed = 5\n"),  # by hand: not written by a run
        ("config.toml", ""),
        ("samples/000007.png", "of another program"),
    ],
)
def test_files_of_another_program_do_not_make_a_folder_a_run(name, content, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(ValueError, match="is not empty and contains no run"):
        RunFolder(tmp_path)
    assert move_aside(tmp_path) is None and path.read_text() == content


@pytest.mark.parametrize("last", ["checkpoint-000004.pt", "best.pt"])
def test_a_run_resumes_from_a_kept_checkpoint_if_there_is_no_newer_one(
    last, class_folder, tmp_path, capsys
):
    options = ["--keep-every", 2, "--eval-every", 2, "--steps"]
    for name in ("r", "whole"):
        assert run_main(class_folder, tmp_path / name, *options, 4) == 0
    run = tmp_path / "r"
    for path in {*run.glob("*.pt")} - {run / last}:
        path.unlink()
    content = (run / last).read_bytes()
    assert run_main(class_folder, run, *options, 6, "--seed", 9) == 2
    assert "contains another run (seed was 0 and is 9)" in capsys.readouterr().err
    assert (run / last).read_bytes() == content
    for name in ("r", "whole"):
        assert run_main(class_folder, tmp_path / name, *options, 6) == 0
    assert_same_run(run, tmp_path / "whole")


def test_the_samples_of_a_run_without_checkpoints_are_moved_aside(image_folder, tmp_path, capsys):
    run = tmp_path / "r"
    assert run_main(image_folder, run, "--steps", 4) == 0
    for path in run.glob("*.pt"):
        path.unlink()
    before = {path.name: path.read_bytes() for path in (run / "samples").iterdir()}
    assert run_main(image_folder, run, "--steps", 4, "--seed", 9) == 0
    moved = tmp_path / "r.old-1"
    assert f"moved the old run to {moved}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (moved / "samples").iterdir()} == before


def test_going_back_removes_later_samples_and_keeps_later_checkpoints(
    image_folder, tmp_path, capsys
):
    run, options = tmp_path / "r", ["--keep-every", 2, "--steps"]
    assert run_main(image_folder, run, *options, 6) == 0
    kept = (run / "checkpoint-000004.pt").read_bytes()
    (run / "checkpoint-000002.pt").rename(run / "checkpoint.pt")
    (run / "checkpoint.previous.pt").unlink()
    assert run_main(image_folder, run, *options, 4, "--sample-every", 3) == 0
    assert sorted(path.stem for path in (run / "samples").iterdir()) == [
        "000000", "000002", "000003", "000004",
    ]  # fmt: skip
    assert "checkpoint-000004.pt exists and is not replaced" in capsys.readouterr().out
    assert (run / "checkpoint-000004.pt").read_bytes() == kept


def test_fresh_does_not_move_the_weights_it_starts_from(image_folder, tmp_path, capsys):
    run = tmp_path / "r"
    assert run_main(image_folder, run, "--steps", 1) == 0
    for source in (run, run / "checkpoint.pt", run / ".." / "r"):
        assert run_main(image_folder, run, "--steps", 1, "--fresh", "--init-from", source) == 2
        assert "use another --run" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_a_foreign_checkpoint_does_not_make_a_folder_a_run(tmp_path):
    (tmp_path / "checkpoint.pt").write_bytes(b"of another project")
    with pytest.raises(ValueError, match="is not empty and contains no run"):
        RunFolder(tmp_path)
    assert move_aside(tmp_path) is None
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.skipif(os.name == "nt", reason="Windows does not delete files in use")
def test_a_folder_that_another_run_has_taken_over_is_left_alone(run):
    run.start_log(0)
    shutil.rmtree(run.path)
    for write in (lambda: save(run, 1), lambda: run.log(row(1)), lambda: run.start_log(0)):
        with closing(RunFolder(run.path)), pytest.raises(OSError, match="was deleted or replaced"):
            write()
    assert not (run.path / "checkpoint.pt").exists() and not run.log_file.exists()
