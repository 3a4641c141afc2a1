"""Several ranks train one model, with the same result as one, and end together."""

import errno
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from helpers import arguments_for, assert_same_run, contents, run_main
from torch import nn

import train
from utils import METHODS
from wgan import acceleration, distributed, monitor, setup
from wgan import budget as budget_module
from wgan.budget import Budget
from wgan.checkpoints import read_checkpoint
from wgan.data import Batches, RowReader
from wgan.errors import BadInput
from wgan.losses import Losses
from wgan.run_folder import RunFolder
from wgan.state import NETWORKS

pytestmark = pytest.mark.slow

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or os.name == "nt",
    reason="torch.distributed with Gloo, and POSIX processes",
)

# ---------------------------------------------------------------- ranks in processes


def draw_nothing(run):
    """Replaces curves and timelapse, which take longer than the steps."""


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    monkeypatch.setattr(RunFolder, "save_plots", draw_nothing)


def as_rank(rank, ranks, port, errors, function, arguments):
    """Set up a process as torchrun does, with its standard error in a file."""
    torch.set_num_threads(1)
    os.environ.update(
        TORCHELASTIC_RUN_ID="test",
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(ranks),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    sys.stderr = open(errors, "w", buffering=1)
    RunFolder.save_plots = draw_nothing
    sys.exit(function(*arguments))


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(processes, folder, function, *arguments, ranks=2):
    started, port = [], free_port()
    for rank in range(ranks):
        errors = folder / f"errors-{rank}"
        process = processes.Process(
            target=as_rank, args=(rank, ranks, port, errors, function, arguments)
        )
        process.start()
        started.append(process)
    return started


def end_of(started):
    for process in started:
        process.join(60)
        if process.exitcode is None:
            process.kill()
    return [process.exitcode for process in started]


def errors_of(folder):
    return [path.read_text() for path in sorted(folder.glob("errors-*"))]


def assert_close_networks(one, other, tolerance=1e-5, left_out=None):
    states = [read_checkpoint(run / "checkpoint.pt") for run in (one, other)]
    for name in NETWORKS:
        mine, theirs = (state[name] for state in states)
        assert mine.keys() == theirs.keys()
        for key in mine.keys() - {left_out}:
            torch.testing.assert_close(mine[key], theirs[key], rtol=0, atol=tolerance)


# ---------------------------------------------------------------- the same training


DENSE = ["--model", "dense", "--width", 16, "--flip"]
DENSE += ["--precision", "fp32", "--sample-every", 20, "--checkpoint-every", 10, "--steps", 20]


def method_options(method):
    generator_batch = [] if METHODS[method].relativistic else ["--generator-batch", 12]
    return ["--method", method, *generator_batch]


def compile_only_by_tracing():
    compiled = Losses.compiled
    backend = "aot_eager_decomp_partition"
    Losses.compiled = lambda self, **more: compiled(self, backend=backend, **more)
    acceleration.can_compile = lambda device: True


def train_all(folder, runs, ports, compiled):
    """Every method in one process, as each start costs seconds."""
    if compiled:
        compile_only_by_tracing()
    for method, port in ports.items():
        torch.compiler.reset()
        os.environ["MASTER_PORT"] = str(port)
        options = [*method_options(method), "--compile", "on" if compiled else "off"]
        if code := train.main(arguments_for(folder, runs / method, *DENSE, *options)):
            return code
    return 0


@pytest.mark.parametrize(
    ("methods", "compiled"),
    [
        (["wgan-gp", "r3gan"], False),
        pytest.param(METHODS, False, marks=pytest.mark.nightly),
        pytest.param(["wgan-gp"], True, marks=pytest.mark.nightly),
    ],
    ids=["two", "all", "compiled"],
)
def test_two_ranks_train_as_one(methods, compiled, processes, image_folder, tmp_path):
    ports = {method: free_port() for method in methods}
    started = start_ranks(
        processes, tmp_path, train_all, image_folder, tmp_path / "two", ports, compiled
    )
    for method in methods:
        options = [*method_options(method), "--compile", "off"]
        assert run_main(image_folder, tmp_path / "one" / method, *DENSE, *options) == 0
    assert end_of(started) == [0, 0], errors_of(tmp_path)
    for method in methods:
        one, two = tmp_path / "one" / method, tmp_path / "two" / method
        # Some gradients of a relativistic loss are zero but for rounding errors, which Adam scales:
        # the level of the scores is free.
        relaxed = {"tolerance": 2e-4, "left_out": "score.bias"}
        assert_close_networks(one, two, **relaxed if METHODS[method].relativistic else {})
        logs = [contents(run)[0] for run in (one, two)]
        assert len(logs[0]) == 10
        for mine, theirs in zip(*logs, strict=True):
            values = [[float(v) for v in row.values() if v] for row in (mine, theirs)]
            assert values[0] == pytest.approx(values[1], rel=1e-3, abs=1e-4)


def train_with_the_first_ranks_centres(arguments):
    if distributed.rank():  # another rank has no use for this
        setup.find_centres = None
    return train.main(arguments)


def test_all_ranks_have_the_first_ones_clusters(processes, image_folder, tmp_path):
    options = [*DENSE[:-1], 2, "--clusters", 4]
    arguments = arguments_for(image_folder, tmp_path / "two", *options)
    started = start_ranks(processes, tmp_path, train_with_the_first_ranks_centres, arguments)
    assert run_main(image_folder, tmp_path / "one", *options) == 0
    assert end_of(started) == [0, 0], errors_of(tmp_path)
    one, two = (read_checkpoint(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    assert torch.equal(one["ema"]["centres"], two["ema"]["centres"])
    assert one["class_counts"] == two["class_counts"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ranks_slices_make_up_one_ranks_batches(ranks, cpu, random, monkeypatch):
    samples = RowReader.from_array(random.integers(0, 256, (40, 1, 2, 2)).astype("uint8"))
    whole = Batches(samples, 8, 0, cpu)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    slices = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        slices.append(distributed.rank_slice(8))
    parts = [Batches(samples, 8, 0, cpu, own) for own in slices]
    epoch = []
    for step in range(5):
        indices = [part.indices(step) for part in parts]
        assert torch.equal(torch.cat(indices), whole.indices(step))
        epoch += torch.cat(indices).tolist()
    assert sorted(epoch) == list(range(40))  # each sample once
    several = torch.stack([part(3, 2).unflatten(0, (2, -1)) for part in parts], 1)
    assert torch.equal(several.flatten(0, 2), whole(3, 2))  # several batches at once


# ---------------------------------------------------------------- collectives


def try_collectives(folder):
    with distributed.process_group():
        rank = distributed.rank()
        results = {"max": distributed.all_max(rank, -rank, 5)}
        network = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        for parameter in network.parameters():
            parameter.data.fill_(1)
            parameter.grad = torch.full_like(parameter, rank + 1.0)
        network[1].running_mean.fill_(4.0 * rank)
        results["equal"] = distributed.all_equal(network.parameters())
        network[0].bias.data[1] += rank * 1e-7
        results["unequal"] = distributed.all_equal(network.parameters())
        distributed.average_gradients(network)
        results["gradients"] = {float(v) for p in network.parameters() for v in p.grad.flatten()}
        results["running_mean"] = network[1].running_mean
        with distributed.single_rank():
            results["alone"] = distributed.world_size()
        values = {"a": torch.tensor(rank + 0.0), "b": torch.tensor(1.0)}
        results["mean"] = distributed.all_mean(values)
        os.environ["TORCHELASTIC_RESTART_COUNT"] = str(rank)  # one machine alone counts it
        results["restarted"] = distributed.restarted()
        results["from_first"] = distributed.broadcast_from_first(lambda: {"by": torch.tensor(rank)})
        turns = folder / "turns"
        with distributed.first_rank_first():
            time.sleep(0.2 * (1 - rank))
            with open(turns, "a") as file:
                file.write(f"{rank} ")
        budget = Budget(4 - rank, 0)  # over for the second rank alone
        signals = SimpleNamespace(stop_signal=15 * rank, take_save_request=lambda: rank)
        results["status"] = vars(budget.status(3, signals))
        torch.save(results, folder / f"results-{rank}")


def test_collectives(processes, tmp_path):
    assert end_of(start_ranks(processes, tmp_path, try_collectives, tmp_path)) == [0, 0]
    seconds = []
    for rank in range(2):
        results = torch.load(tmp_path / f"results-{rank}", weights_only=True)
        assert results["max"] == (1, 0, 5)
        assert results["equal"] and not results["unequal"]
        assert results["gradients"] == {1.5}
        assert results["running_mean"].tolist() == [2, 2, 2]
        assert results["alone"] == 1 and results["restarted"]
        assert results["mean"] == {"a": 0.5, "b": 1.0}
        assert results["from_first"] == {"by": 0}
        # The first rank's clock, anybody's signals.
        expected = {"step": 3, "finished": False, "stop_signal": 15, "save_requested": True}
        seconds.append(results["status"].pop("seconds"))
        assert results["status"] == expected | {"progress": 0.75}
    assert seconds[0] == seconds[1] > 0
    assert (tmp_path / "turns").read_text() == "0 1 "


def train_with_late_ranks(arguments):
    """The ranks' clocks differ by hours, and lines and checkpoints are due by the time."""
    monitor.MAX_SECONDS_WITHOUT_LINE, monitor.MAX_SECONDS_UNSAVED = 0.02, (0.02, 600)
    clock = budget_module.seconds_since_start
    late = 10_000 * distributed.rank()
    for module in (budget_module, monitor):
        module.seconds_since_start = lambda: clock() + late
    sys.exit(train.main(arguments))


def test_ranks_with_different_clocks_save_at_the_same_steps(processes, image_folder, tmp_path):
    arguments = arguments_for(image_folder, tmp_path / "r", "--steps", 30)
    arguments += ["--log-every", "100", "--checkpoint-every", "100"]
    assert end_of(start_ranks(processes, tmp_path, train_with_late_ranks, arguments)) == [0, 0]
    assert read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == 30


# ---------------------------------------------------------------- faults


def test_restarts_with_torchruns_shared_store_are_refused(monkeypatch):
    """A restarted rank may wait forever for one that was killed."""
    names = ["TORCHELASTIC_RUN_ID", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_MAX_RESTARTS"]
    values = {**dict.fromkeys(names, "1"), "RANK": "0", "WORLD_SIZE": "2"}
    for name, value in (values | {"TORCHELASTIC_USE_AGENT_STORE": "True"}).items():
        monkeypatch.setenv(name, value)
    with (
        pytest.raises(BadInput, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"),
        distributed.process_group(),
    ):
        pass


def fail_at(step, arguments):
    """Train; the second rank runs out of memory at that step."""
    make = train.train_step

    def step_or_fail(state, *more):
        if state.step == step and distributed.rank() == 1:
            raise torch.OutOfMemoryError("out of memory")
        return make(state, *more)

    train.train_step = step_or_fail
    return train.main(arguments)


@pytest.mark.parametrize(("model", "saved"), [("dense", 3), ("dcgan", 2)])
def test_an_error_on_one_rank_ends_all_with_its_message(
    model, saved, processes, image_folder, tmp_path
):
    arguments = arguments_for(image_folder, tmp_path / "r", "--steps", 100000, "--model", model)
    assert end_of(start_ranks(processes, tmp_path, fail_at, 3, arguments)) == [1, 1]
    first, second = errors_of(tmp_path)
    assert "another rank failed" in first
    assert second.startswith("error on rank 1: out of memory: use --accumulate")
    # The last whole step, or the last checkpoint, if batch normalisation is half a step ahead.
    assert read_checkpoint(tmp_path / "r" / "checkpoint.pt")["step"] == saved


def fill_the_disk(arguments):
    def save(run, state):
        raise OSError(errno.ENOSPC, "No space left on device")

    RunFolder.save = save
    return train.main(arguments)


def find_other_data(folder, arguments):
    """The second rank has one different image."""
    if distributed.rank() == 1:
        arguments[arguments.index("--dataset") + 1] = folder
    return train.main(arguments)


def test_ranks_that_find_other_data_are_refused(processes, image_folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(image_folder, other)
    shutil.copy(other / "1.png", other / "0.png")
    arguments = arguments_for(image_folder, tmp_path / "r", "--steps", 2)
    codes = end_of(start_ranks(processes, tmp_path, find_other_data, str(other), arguments))
    assert codes == [2, 1]
    assert "the ranks find different data" in errors_of(tmp_path)[0]


class FakeEvaluation:
    """A slow evaluation, on the first rank only."""

    def __init__(self, run, saver):
        assert distributed.is_first()

    def measure(self):
        time.sleep(0.2)
        return 1.5


def measure_in_no_time(arguments):
    monitor.Evaluation = FakeEvaluation
    return train.main(arguments)


def test_measuring_finishing_and_beginning_with_others_weights(processes, image_folder, tmp_path):
    for kind, names in (("a", "01234"), ("b", "56789")):
        (tmp_path / "classes" / kind).mkdir(parents=True)
        for name in names:
            shutil.copy(image_folder / f"{name}.png", tmp_path / "classes" / kind)
    options = ["--steps", 5, "--eval-every", 3]
    arguments = arguments_for(tmp_path / "classes", tmp_path / "r", *options)
    for _ in ("trained", "finished already"):
        started = start_ranks(processes, tmp_path, measure_in_no_time, arguments)
        assert end_of(started) == [0, 0], errors_of(tmp_path)
    rows = contents(tmp_path / "r")[0]
    measured = {row["step"]: row["frechet_distance"] for row in rows if row["frechet_distance"]}
    assert measured == {"3": "1.5", "5": "1.5"}
    more = arguments_for(
        image_folder, tmp_path / "more", "--steps", 1, "--init-from", tmp_path / "r",
        "--lr", 1e-12, "--ema", 0,
    )  # fmt: skip
    assert end_of(start_ranks(processes, tmp_path, train.main, more)) == [0, 0]
    states = [read_checkpoint(tmp_path / run / "checkpoint.pt") for run in ("r", "more")]
    for name, weight in states[0]["critic"].items():
        torch.testing.assert_close(weight, states[1]["critic"][name])


@pytest.mark.parametrize("steps", [100000, 3])  # in training, and at its end
def test_a_full_disk_of_the_first_rank_ends_all(steps, processes, image_folder, tmp_path):
    arguments = arguments_for(image_folder, tmp_path / "r", "--steps", steps)
    assert end_of(start_ranks(processes, tmp_path, fill_the_disk, arguments)) == [1, 1]
    first, second = errors_of(tmp_path)
    assert first.count("could not write the checkpoint") == 3
    assert "3 times in a row" in first
    assert not second.startswith("error")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch-size", 7], "batch_size (7) is not divisible by 2 rank(s)"),
        (["--generator-batch", 3], "generator_batch (3) is not divisible by 2 rank(s)"),
        (["--batch-size", 2], "two samples per rank and part of a batch"),
        (["--n-critic", 0], "n_critic = 0"),
    ],
)
def test_bad_input_is_reported_once(arguments, message, processes, image_folder, tmp_path):
    arguments = arguments_for(image_folder, tmp_path / "r", "--steps", 2, *arguments)
    codes = end_of(start_ranks(processes, tmp_path, train.main, arguments))
    first, second = errors_of(tmp_path)
    assert codes[0] == 2 and codes[1] in (1, 2)
    assert message in first and first.count("\n") == 1
    assert not second.startswith("error")


def test_a_signal_to_one_rank_stops_all_and_they_resume_exactly(processes, image_folder, tmp_path):
    """At whichever step it arrives."""
    run = tmp_path / "stopped"
    arguments = arguments_for(image_folder, run, "--steps")
    started = start_ranks(processes, tmp_path, train.main, [*arguments, "100000"])
    while not (run / "checkpoint.pt").exists():
        time.sleep(0.01)
    started[1].terminate()
    assert end_of(started) == [128 + signal.SIGTERM] * 2
    steps = read_checkpoint(run / "checkpoint.pt")["step"] + 3
    steps += steps % 2
    assert end_of(start_ranks(processes, tmp_path, train.main, [*arguments, str(steps)])) == [0, 0]
    whole = arguments_for(image_folder, tmp_path / "whole", "--steps", steps)
    assert end_of(start_ranks(processes, tmp_path, train.main, whole)) == [0, 0]
    assert_same_run(run, tmp_path / "whole")


def test_resuming_with_another_number_of_ranks_is_reported(
    processes, image_folder, tmp_path, capsys
):
    options = [*DENSE[:-1], 10]
    arguments = arguments_for(image_folder, tmp_path / "r", *options)
    assert end_of(start_ranks(processes, tmp_path, train.main, arguments)) == [0, 0]
    assert run_main(image_folder, tmp_path / "r", *DENSE) == 0
    assert "ranks was 2 and is 1: results will not be byte-identical" in capsys.readouterr().out
    assert run_main(image_folder, tmp_path / "one", *DENSE) == 0
    assert_close_networks(tmp_path / "r", tmp_path / "one")


KILLED = """
import os, signal
import train
from wgan import distributed
make = train.train_step

def step_or_die(state, *more):
    first_start = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    if state.step == 7 and first_start and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return make(state, *more)

train.train_step = step_or_die
distributed.exit_process(train.main)
"""


@pytest.mark.nightly
def test_torchrun_restarts_after_a_kill_and_nothing_is_lost(processes, image_folder, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    arguments = arguments_for(image_folder, tmp_path / "killed", "--steps", 10, "--fresh")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    torchrun += ["--nproc-per-node=2", "--max-restarts=1", "--monitor-interval=0.1", "--"]
    child = subprocess.Popen(
        [*torchrun, str(script), *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=tmp_path,
    )
    whole = arguments_for(image_folder, tmp_path / "whole", "--steps", 10)
    assert end_of(start_ranks(processes, tmp_path, train.main, whole)) == [0, 0]
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0, output
    # From the step that the other rank saved or from the last checkpoint, in spite of --fresh.
    assert re.search("resumed at step [67], to step 10", output), output
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert not Path(f"{tmp_path / 'killed'}.old-1").exists()


# Slurm's commands, for a job on two nodes that are both this machine.
STAND_INS = {
    "torchrun": f'exec "{sys.executable}" -m torch.distributed.run --monitor-interval=0.1 "$@"',
    "srun": """
        while [[ $1 == -* ]]; do shift; done
        : > "$WORK/tasks"
        for node in 1 2; do "$@" & echo $! >> "$WORK/tasks"; done
        wait -n && wait -n""",
    "scancel": '[[ "$*" == "--signal=TERM 17" ]] && kill -TERM $(cat "$WORK/tasks")',
    "scontrol": """
        case "$*" in
            "show hostnames here[1-2]") echo localhost; echo localhost ;;
            "requeue 17") cp "$WORK/run/checkpoint.pt" "$WORK/at-requeue.pt" ;;
        esac""",
}


@pytest.fixture
def slurm_job(image_folder, tmp_path):
    """Starts the script of docs/multi-gpu.md."""
    document = (ROOT / "docs" / "multi-gpu.md").read_text(encoding="utf-8")
    script = re.search(r"```bash\n(#!/bin/bash\n#SBATCH.*?)```", document, re.S)[1]
    arguments = arguments_for(image_folder, tmp_path / "run", *LONG)
    command = shlex.join([str(ROOT / "train.py"), *arguments])
    for text, replacement in {
        "--nproc-per-node=8": "--nproc-per-node=1",
        ":29500": f":{free_port()}",
        "train.py --dataset path/to/folder --batch-size 1024": command,
    }.items():
        assert script.count(text) == 1
        script = script.replace(text, replacement)
    for name, code in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{code}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "17", "SLURM_NNODES": "2", "SLURM_CPUS_PER_TASK": "1"}
    job |= {"SLURM_JOB_NODELIST": "here[1-2]", "WORK": str(tmp_path)}
    job |= {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    return lambda: subprocess.Popen(["bash", "-c", script], env=os.environ | job)


LONG = ["--steps", 200, "--sample-every", 100, "--log-every", 10, "--checkpoint-every", 1000]


@pytest.mark.nightly
def test_the_slurm_script_stops_requeues_and_resumes_exactly(
    slurm_job, processes, image_folder, tmp_path
):
    log, at_requeue = tmp_path / "run" / "log.csv", tmp_path / "at-requeue.pt"
    stopped = slurm_job()
    while not log.exists() or log.read_text().count("\n") < 3:
        assert stopped.poll() is None
        time.sleep(0.01)
    stopped.send_signal(signal.SIGUSR2)
    stopped.wait(120)
    assert 10 < read_checkpoint(at_requeue)["step"] < 200
    at_requeue.unlink()
    assert slurm_job().wait(120) == 0
    assert not at_requeue.exists()  # requeued once
    whole = arguments_for(image_folder, tmp_path / "whole", *LONG)
    assert end_of(start_ranks(processes, tmp_path, train.main, whole)) == [0, 0]
    assert_same_run(tmp_path / "run", tmp_path / "whole")
