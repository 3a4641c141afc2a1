"""Faults, injected: kills, full disks, broken and hostile files, two processes at once."""

import errno
import io
import os
import random as python_random
import signal
import struct
import subprocess
import sys
import time
import zlib
from contextlib import suppress
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from helpers import SMALL, arguments_for, assert_same_run, run_main, write_with_digest
from PIL import Image

import evaluate
import generate
import train
from wgan import setup
from wgan.checkpoints import (
    DIGEST_LENGTH,
    config_of,
    describe_other_data,
    hash_start,
    read_checkpoint,
    save_with_digest,
)
from wgan.config import FIELDS, SHORTHANDS
from wgan.data import ImageOptions, load_dataset
from wgan.data.glyphs import read_cache
from wgan.data.sources import FolderSource, ImageFile
from wgan.recipes import resolve
from wgan.run_folder import RunFolder
from wgan.state import build_state

pytestmark = pytest.mark.slow

posix = pytest.mark.skipif(os.name == "nt", reason="POSIX signals and limits")


# ---------------------------------------------------------------- processes to kill


def start(processes, arguments, **faults):
    """Train in a new process."""
    process = processes.Process(target=child, args=(arguments,), kwargs=faults)
    process.start()
    return process


def child(arguments, fatal_call=0, file_limit=0, errors=os.devnull):
    """Train; die before the given call that syncs or names a file; or on a small disk."""
    torch.set_num_threads(1)
    sys.stderr = open(errors, "w", buffering=1)
    if fatal_call:
        die_at_call(fatal_call)
    if file_limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.exit(train.main(arguments))


def die_at_call(fatal_call):
    calls = 0

    def counted(function):
        def call(*arguments):
            nonlocal calls
            calls += 1
            if calls == fatal_call:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*arguments)

        return call

    os.replace, os.fsync, os.link = map(counted, (os.replace, os.fsync, os.link))


def last_written(path):
    return path.stat().st_mtime_ns if path.exists() else None


@pytest.mark.nightly
@posix
def test_kills_at_any_moment_lose_nothing(processes, image_folder, tmp_path):
    run, checkpoint = tmp_path / "killed", tmp_path / "killed" / "checkpoint.pt"
    often = ["--checkpoint-every", 1, "--log-every", 2, "--sample-every", 5]
    endless = arguments_for(image_folder, run, *often, "--steps", 100_000)
    generator = python_random.Random(0)
    # Every sync and rename of a new run's files, then of resumed runs' first checkpoints.
    fatal_calls = [*range(1, 13), *range(1, 11)]
    torn, steps_seen = 0, []
    for fatal_call in [*fatal_calls, 0, 0, 0, 0]:
        before = last_written(checkpoint)
        process = start(processes, endless, fatal_call=fatal_call)
        if not fatal_call:  # some time after the first checkpoint of this process
            wait_for(lambda before=before: last_written(checkpoint) != before)
            time.sleep(generator.uniform(0, 0.3))
            process.kill()
        process.join(60)
        assert process.exitcode == -signal.SIGKILL
        torn += bool(list(run.rglob("*.tmp")))
        if checkpoint.exists():
            steps_seen.append(read_checkpoint(checkpoint)["step"])
    assert torn >= 5  # kills that did hit a file half-way
    assert steps_seen == sorted(steps_seen)
    assert steps_seen[-1] > steps_seen[0]
    for name in ("killed", "whole"):
        steps = ["--steps", steps_seen[-1] + 3]
        assert run_main(image_folder, tmp_path / name, *often, *steps) == 0
    assert_same_run(run, tmp_path / "whole")
    assert not list(run.rglob("*.tmp"))


@posix
@pytest.mark.parametrize(
    "options", [["--checkpoint-every", 1], ["--checkpoint-every", 100, "--steps", 5]]
)
def test_a_full_disk_keeps_the_last_checkpoint_and_fails_after_three_tries(
    options, processes, image_folder, tmp_path
):
    run = tmp_path / "r"
    assert run_main(image_folder, run, "--steps", 2) == 0
    before = (run / "checkpoint.pt").read_bytes()
    limit = len(before) // 2  # a real limit of the system: larger files cannot be written
    arguments = arguments_for(image_folder, run, "--steps", 100, *options)
    process = start(processes, arguments, file_limit=limit, errors=tmp_path / "errors")
    process.join(60)
    assert process.exitcode == 1
    errors = (tmp_path / "errors").read_text()
    assert errors.count("could not write the checkpoint") == 3
    assert "3 times in a row" in errors
    assert (run / "checkpoint.pt").read_bytes() == before
    assert not list(run.rglob("*.tmp"))


class SmallDisk(io.BytesIO):
    """A file on a disk of some bytes."""

    def __init__(self, size):
        super().__init__()
        self.size = size

    def write(self, content):
        if self.tell() + len(content) > self.size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(content)


def test_a_disk_that_is_full_at_any_byte_is_an_os_error():
    content, file = {"a": torch.zeros(1000), "b": torch.zeros(3)}, SmallDisk(10**6)
    save_with_digest(content, file)
    length = len(file.getvalue())
    for size in (*range(0, length, 97), length - 1):
        with pytest.raises(OSError, match="No space left"):
            save_with_digest(content, SmallDisk(size))


def test_two_failed_saves_are_survived(image_folder, tmp_path, monkeypatch, capsys):
    run_main(image_folder, tmp_path / "whole", "--steps", 8)
    save, calls = RunFolder.save, []

    def failing_save(self, checkpoint):
        calls.append(1)
        if len(calls) in (1, 2, 4, 8):  # of which 8 is the last step
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, checkpoint)

    monkeypatch.setattr(RunFolder, "save", failing_save)
    assert run_main(image_folder, tmp_path / "r", "--steps", 8, "--checkpoint-every", 1) == 0
    assert capsys.readouterr().err.count("No space left on device") == 4
    assert_same_run(tmp_path / "r", tmp_path / "whole")


@posix
def test_usr1_saves_and_training_continues(processes, image_folder, tmp_path):
    run = tmp_path / "r"
    rare = ["--checkpoint-every", 10**6, "--sample-every", 10**6, "--log-every", 1]
    process = start(processes, arguments_for(image_folder, run, *rare, "--steps", 10**6))
    wait_for(lambda: lines(run / "log.csv") > 3)
    os.kill(process.pid, signal.SIGUSR1)
    wait_for(lambda: (run / "checkpoint.pt").exists())
    step = read_checkpoint(run / "checkpoint.pt")["step"]
    wait_for(lambda: lines(run / "log.csv") > step + 3)
    process.kill()
    process.join(60)
    assert step > 0


@posix
def test_usr1_before_training_is_survived(image_folder, tmp_path, monkeypatch):
    original = setup.load_data

    def load_data(config):
        signal.raise_signal(signal.SIGUSR1)
        return original(config)

    monkeypatch.setattr(setup, "load_data", load_data)
    before = signal.getsignal(signal.SIGUSR1)
    assert run_main(image_folder, tmp_path / "r", "--steps", 1) == 0
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize(
    ("place", "saved"),
    [
        ("sample_inputs", 3),
        ("sample_fakes", 3),
        ("critic_step", 2),  # after batch normalisation changed in `sample_fakes`
        ("generator_step", 2),
        ("update_ema", 2),
    ],
)
@pytest.mark.parametrize(
    ("error", "method"),
    [(OSError("Input/output error"), "wgan-gp"), (RuntimeError("out of memory"), "wgan")],
)
def test_an_error_loses_no_step_that_was_whole(
    error, method, place, saved, image_folder, tmp_path, monkeypatch, capsys
):
    """With a checkpoint every two steps: after an error within the updates, the last one counts."""
    original, calls = getattr(train, place), []

    def fail_in_the_fourth_step(*arguments):
        calls.append(1)
        if len(calls) == (7 if place == "critic_step" else 4):  # two critic updates a step
            raise error
        return original(*arguments)

    monkeypatch.setattr(train, place, fail_in_the_fourth_step)
    run, options = tmp_path / "r", ["--method", method, "--steps", 6]  # Adam, RMSProp
    assert run_main(image_folder, run, *options) == 1
    assert str(error) in capsys.readouterr().err
    assert read_checkpoint(run / "checkpoint.pt")["step"] == saved
    monkeypatch.undo()
    for name in ("r", "whole"):
        assert run_main(image_folder, tmp_path / name, *options) == 0
    assert_same_run(run, tmp_path / "whole")


def test_an_error_does_not_save_weights_that_are_not_finite(image_folder, tmp_path, monkeypatch):
    def broken(state, *arguments):
        if state.step == 3:
            next(state.critic.parameters()).data[0] = float("nan")
            raise RuntimeError("out of memory")
        return original(state, *arguments)

    original = train.train_step
    monkeypatch.setattr(train, "train_step", broken)
    assert run_main(image_folder, tmp_path / "r", "--steps", 6) == 1
    assert read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 2


@posix
def test_a_second_process_is_refused_until_the_first_one_dies(
    processes, image_folder, tmp_path, capsys
):
    run = tmp_path / "r"
    process = start(processes, arguments_for(image_folder, run, "--steps", 10**6))
    wait_for(lambda: (run / "checkpoint.pt").exists())
    for options in ([], ["--fresh"]):
        assert run_main(image_folder, run, "--steps", 10**6, *options) == 2
        assert "another process trains in" in capsys.readouterr().err
    process.kill()
    process.join(60)
    step = read_checkpoint(run / "checkpoint.pt")["step"]
    assert run_main(image_folder, run, "--steps", step + 1) == 0


def lines(path):
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, "waited a minute"
        time.sleep(0.02)


@pytest.mark.nightly
def test_processes_that_draw_the_digits_at_once_do_not_harm_each_other(tmp_path):
    code = (
        "from wgan.data import glyphs, load_dataset; glyphs.GLYPH_COUNT = 3000;"
        f"dataset = load_dataset('glyphs', {str(tmp_path)!r});"
        "print(dataset.read(range(3000)).sum().item())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    sums = {process.communicate(timeout=120)[0] for process in started}
    assert len(sums) == 1 and int(sums.pop()) > 0
    assert os.listdir(tmp_path) == ["glyphs.npz"]
    assert read_cache(tmp_path / "glyphs.npz") is not None


# ---------------------------------------------------------------- starting from another run


def test_a_new_run_starts_from_anothers_weights(image_folder, tmp_path):
    run_main(image_folder, tmp_path / "a", "--steps", 2)
    source = tmp_path / "a" / "checkpoint.pt"
    rate = ["--lr", "1e-30"]  # so small that no weight moves, except a bias of 0
    for run, path in ((tmp_path / "b", source), (tmp_path / "c", source.parent)):
        assert run_main(image_folder, run, "--init-from", path, "--steps", 2, *rate) == 0
        old, new = read_checkpoint(source), read_checkpoint(run / "checkpoint.pt")
        assert new["step"] == 2
        for name, value in old["critic"].items():
            torch.testing.assert_close(new["critic"][name], value, rtol=0, atol=1e-20)
    # Resuming does not need the other run.
    source.rename(tmp_path / "moved")
    again = ["--init-from", source, "--steps", 4, *rate]
    assert run_main(image_folder, tmp_path / "b", *again) == 0


def test_weights_that_do_not_fit_are_refused(image_folder, tmp_path, capsys):
    run_main(image_folder, tmp_path / "a", "--steps", 2)
    for options, message in (
        (["--width", 16], "size mismatch"),
        (["--model", "dense"], "do not fit these networks"),
        (["--init-from", tmp_path / "none.pt"], "there is no checkpoint or run"),
        (["--init-from", image_folder / "0.png"], "is corrupt or was not written by this project"),
    ):
        arguments = ["--init-from", tmp_path / "a", *options, "--steps", 2]
        capsys.readouterr()
        assert run_main(image_folder, tmp_path / "b", *arguments) == 2
        error = capsys.readouterr().err
        assert message in error and error.startswith("error: ") and error.count("\n") == 1
        assert not (tmp_path / "b").exists()


# ---------------------------------------------------------------- mutated checkpoints


def mutated(content: bytes, generator: python_random.Random) -> bytes:
    """One random fault: a flipped bit, a cut, a lost, doubled, zeroed or random stretch."""
    start = generator.randrange(len(content))
    end = min(len(content), start + generator.choice([1, 8, 64, 512, 4096]))
    flipped = bytes([content[start] ^ (1 << generator.randrange(8))])
    return generator.choice(
        [
            content[:start] + flipped + content[start + 1 :],
            content[:start],
            content[:start] + content[end:],
            content[:end] + content[start:],
            content[:start] + bytes(end - start) + content[end:],
            content[:start] + generator.randbytes(end - start) + content[end:],
            content + generator.randbytes(end - start),
        ]
    )


def test_no_mutated_checkpoint_is_accepted(image_folder, tmp_path, capsys):
    run = tmp_path / "r"
    run_main(image_folder, run, "--steps", 2)
    content = (run / "checkpoint.pt").read_bytes()
    generator = python_random.Random(1)
    variants = [mutated(content, generator) for _ in range(600)]
    variants = [variant for variant in variants if variant != content]  # zeros that were zeroed
    assert len(variants) >= 500
    for index, variant in enumerate(variants):
        (run / "checkpoint.pt").write_bytes(variant)
        with pytest.raises(ValueError):
            read_checkpoint(run / "checkpoint.pt")
        if index % 60 == 0:
            assert run_main(image_folder, run, "--steps", 4) == 2
            assert "no checkpoint of" in capsys.readouterr().err


def test_no_forged_checkpoint_crashes(image_folder, tmp_path):
    """Each is loaded or refused. If the digest is correct, only the loader and the checks of the
    content remain."""
    run_main(image_folder, tmp_path / "r", "--steps", 2)
    content = (tmp_path / "r" / "checkpoint.pt").read_bytes()
    archive = content[: -DIGEST_LENGTH - 2] + b"\0\0"
    generator = python_random.Random(2)
    config = config_of(read_checkpoint(tmp_path / "r" / "checkpoint.pt"))

    def load(archive):
        comment = hash_start(io.BytesIO(archive), len(archive) - 2)
        (tmp_path / "forged.pt").write_bytes(archive[:-2] + comment)
        state = build_state(config, (3, 16, 16), torch.device("cpu"))
        state.restore(read_checkpoint(tmp_path / "forged.pt"))

    load(archive)
    for _ in range(150):
        with suppress(ValueError):
            load(mutated(archive, generator))


def test_well_formed_checkpoints_of_other_content_are_refused(image_folder, tmp_path, capsys):
    run = tmp_path / "r"
    run_main(image_folder, run, "--steps", 2)
    state = read_checkpoint(run / "checkpoint.pt")
    without_a_moment = deepcopy(state["critic_optimizer"])
    del without_a_moment["state"][1]["exp_avg"]
    for change in (
        {"critic": {}},
        {"critic": 3},
        {"generator": None},
        {"critic_optimizer": {"state": {}}},
        {"critic_optimizer": without_a_moment},
        {"step": "2"},
        {"step": None},
        {"class_names": 5},
        {"class_names": ("a",)},
        {"config": 5},
        {"format": "1"},
    ):
        write_with_digest(run / "checkpoint.pt", state | change)
        assert run_main(image_folder, run, "--steps", 4) == 2, change
        assert "error: " in capsys.readouterr().err


def test_a_tensor_in_the_description_of_the_data_is_other_data():
    now = {"samples": 3, "standardisation": {"mean": [1.0], "deviation": [1.0]}}
    trained = {"samples": 3, "standardisation": {"mean": [torch.ones(2)], "deviation": [1.0]}}
    assert "the same number of different ones" in describe_other_data(trained, now)


@pytest.mark.parametrize(
    ("command", "conditional", "change"),
    [
        (generate.main, True, {"class_counts": -1}),
        (generate.main, True, {"class_counts": (0, 0)}),
        (generate.main, False, {"data": {"standardisation": {"mean": [0, 0], "deviation": [1]}}}),
        (generate.main, False, {"ema": {}}),
        (evaluate.main, False, {"critic": 3}),
    ],
)
def test_other_commands_refuse_other_content(
    command, conditional, change, tmp_path, monkeypatch, capsys, random
):
    monkeypatch.chdir(tmp_path)
    np.savez("vectors.npz", x=random.random((40, 3)), y=np.arange(40) % 2)
    flags = ["--conditional" if conditional else "--no-conditional", "--steps", "1", "--run", "r"]
    arguments = ["--dataset", "vectors.npz", *SMALL, "--device", "cpu", *flags]
    assert train.main(arguments) == 0
    write_with_digest(tmp_path / "other.pt", read_checkpoint(Path("r/checkpoint.pt")) | change)
    capsys.readouterr()
    assert command(["other.pt", "--device", "cpu"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and len(error) < 300


# ---------------------------------------------------------------- mutated options


STRANGE = [
    0, -1, 1, 10**18, 10**400, -(2**70), 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"),
    True, False, "", " ", "x", "wgan", "64x96", "é\n\0", "-1", "1e5", "nan", "none", [], [1],
    [0.5, 0.5], [0.5, "x"], [[], []], {}, {"a": 1}, None,
]  # fmt: skip


def test_no_random_options_crash_and_a_refusal_names_one_of_them():
    generator = python_random.Random(3)
    names = [*FIELDS, *SHORTHANDS, "unknown", "lr_", ""]
    for _ in range(5000):
        options = {
            generator.choice(names): generator.choice(STRANGE)
            for _ in range(generator.randint(1, 3))
        }
        try:
            resolve(options)
        except ValueError as error:
            named = [name for name in options if name.split("_")[0] in str(error)]
            assert named or "steps or epochs" in str(error) or "embedded null" in str(error)


def test_no_random_command_line_crashes():
    """Each ends with exit code 0 or 2."""
    generator = python_random.Random(4)
    words = [f"--{name.replace('_', '-')}" for name in [*FIELDS, *SHORTHANDS]]
    words += ["--no-flip", "--config", "--", "-", "--x", "-q1", "--lr=3", "--betas=0,1"]
    values = [str(value) for value in STRANGE]
    codes = set()
    for _ in range(1000):
        flags = generator.choices(words, k=generator.randint(1, 4))
        argv = [word for flag in flags for word in (flag, generator.choice(values))]
        codes.add(train.main(["--dry-run", *argv]))
    assert codes == {0, 2}


def test_no_mutated_file_of_options_crashes(tmp_path):
    generator = python_random.Random(5)
    content = (ROOT / "configs" / "grid-best.toml").read_bytes()
    file, codes = tmp_path / "options.toml", set()
    for _ in range(1000):
        file.write_bytes(mutated(content, generator))
        codes.add(train.main(["--dry-run", "--dataset", "ring", "--config", str(file)]))
    assert codes == {0, 2}


# ---------------------------------------------------------------- mutated images


def png_that_claims(width, height):
    """One pixel, but another size in the header, which has a checksum."""
    buffer = io.BytesIO()
    Image.new("RGB", (1, 1)).save(buffer, "png")
    content = bytearray(buffer.getvalue())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    return bytes(content)


def test_mutated_images_are_read_or_skipped(tmp_path, random, capsys):
    generator = python_random.Random(6)
    image = Image.fromarray(random.integers(0, 256, (24, 24, 3)).astype(np.uint8))
    for kind in ("png", "jpg", "gif", "webp", "bmp", "tiff"):
        image.save(tmp_path / f"original.{kind}")
        content = (tmp_path / f"original.{kind}").read_bytes()
        for index in range(60):
            (tmp_path / f"{index}.{kind}").write_bytes(mutated(content, generator))
        (tmp_path / f"random.{kind}").write_bytes(generator.randbytes(500))
    count = len(os.listdir(tmp_path))
    readable = len(load_dataset(str(tmp_path), options=ImageOptions((16, 16))))
    assert 6 <= readable < count
    assert f"{count - readable} of {count} files" in capsys.readouterr().err


def test_absurd_files_and_names(tmp_path, monkeypatch, capsys):
    deep = tmp_path.joinpath(*["d"] * 30)
    deep.mkdir(parents=True)
    names = ["with space.png", "ünïcödé 画像.png", "x" * 200 + ".png"]
    if os.name != "nt":
        names += ["new\nline.png", b"latin-\xe9.png".decode("utf-8", "surrogateescape")]
    for name in names:
        Image.new("RGB", (1, 1), "white").save(deep / name)
    for name, size in (("bomb", (100_000, 100_000)), ("flat", (100, 0)), ("max", (2**31 - 1, 1))):
        (tmp_path / f"{name}.png").write_bytes(png_that_claims(*size))
    listed = FolderSource.list
    vanished = ImageFile("vanished.png", 0, 0)  # between listing and reading
    monkeypatch.setattr(FolderSource, "list", lambda self: [*listed(self), vanished])
    dataset = load_dataset(str(tmp_path), options=ImageOptions((8, 8)))
    assert len(dataset) == len(names)
    assert (dataset.read(np.arange(len(names))) == 255).all()
    assert "4 of" in capsys.readouterr().err


def test_a_size_beyond_the_disk_is_refused(image_folder, tmp_path):
    with pytest.raises(ValueError, match=r"need .* GiB of disk .*a smaller --image-size"):
        load_dataset(str(image_folder), tmp_path, ImageOptions((99_999, 99_999)))
