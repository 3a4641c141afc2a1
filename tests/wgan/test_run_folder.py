"""A run's folder: checkpoints that survive damage, and a log without gaps."""

import errno
import io
import os
import shutil
from contextlib import closing

import pytest
import torch
from filelock import FileLock
from helpers import parse, run_main

from wgan import checkpoints, files, run_folder
from wgan.checkpoints import add_digest, pack_checkpoint, read_checkpoint
from wgan.run_folder import LOG_COLUMNS, RunFolder, move_aside
from wgan.stored_run import read_run, set_corrupt_aside


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    yield run
    run.close()


def save(run, step, **values):
    run.save(pack_checkpoint({"step": step} | values, parse("--dataset", "mnist")))


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
        "\0" + ",1" * 9,
    ],
    ids="abcde",
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

    buffer = io.BytesIO()
    torch.save({"format": 2, "x": Evil()}, buffer)
    run.checkpoint.write_bytes(add_digest(buffer.getvalue()))
    with pytest.raises(ValueError, match="contains pickled code"):
        read_checkpoint(run.checkpoint)
    assert not (tmp_path / "owned").exists()


def test_another_format_is_refused(run, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_FORMAT", 99)
    save(run, 1)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"has format 99, but this version reads format \d"):
        read_checkpoint(run.checkpoint)


def test_a_failed_write_leaves_the_old_file_and_no_other(run, monkeypatch):
    save(run, 1)

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        save(run, 2)
    assert restore(run)["step"] == 1
    assert not list(run.path.glob("*.tmp"))


def test_the_log_is_cut_back_to_the_checkpoint_and_a_torn_line_dropped(run):
    run.start_log(0)
    for step in (10, 20, 30):
        run.log(row(step))
    with open(run.log_file, "a") as file:
        file.write("40,1.5,1.")  # the power went off here
    run.start_log(20)
    run.log(row(30))
    assert [entry["step"] for entry in run.read_log()] == ["10", "20", "30"]
    run.start_log(0)
    assert run.read_log() == []


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
    assert "cannot move the current folder" in capsys.readouterr().err
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
    leftovers = ["checkpoint.pt.123.tmp", "samples/000100.png.123.tmp", "curves.png.123.tmp"]
    others = ["neighbours.png.123.tmp", "mine.tmp"]
    for name in leftovers + others:
        (tmp_path / "run" / name).write_text("x")
    assert move_aside(tmp_path / "run") is None  # nothing of a run so far
    (tmp_path / "run" / "config.toml").touch()
    RunFolder(tmp_path / "run").close()
    assert not any((tmp_path / "run" / name).exists() for name in leftovers)
    assert all((tmp_path / "run" / name).exists() for name in others)


def test_a_checkpoint_that_cannot_be_read_is_not_called_corrupt(run, monkeypatch):
    save(run, 1)
    save(run, 2)

    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(type(run.path), "read_bytes", broken)
    with pytest.raises(OSError, match="Input/output error"):
        restore(run)
    monkeypatch.undo()
    assert restore(run)["step"] == 2


def test_lines_that_could_not_be_written_come_later_and_whole(run, monkeypatch):
    run.start_log(0)
    run.log(row(10))
    monkeypatch.setattr(run_folder, "open", lambda *a, **k: FullDisk(run.log_file), raising=False)
    for step in (20, 30):
        with pytest.raises(OSError):
            run.log(row(step))
    monkeypatch.undo()
    assert [entry["step"] for entry in run.read_log()] == ["10"]
    run.log(row(40))
    assert [entry["step"] for entry in run.read_log()] == ["10", "20", "30", "40"]


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
