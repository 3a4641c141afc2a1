"""What several test modules need. Nothing here or in the tests touches a network."""

import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
# Networks this small lose more to a second thread than they gain, in child processes too.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def processes():
    """Starts processes from a server that has already imported torch, including what its optimizers
    and its deterministic mode import on first use."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        map(str, [ROOT, ROOT / "tests", ROOT / "tests" / "wgan"])
    )
    context = multiprocessing.get_context("forkserver")
    modules = ["torch._dynamo", "torch._inductor", "test_distributed", "test_faults", "test_train"]
    context.set_forkserver_preload(modules)
    return context


@pytest.fixture(scope="session", autouse=True)
def away_from_the_checkout(tmp_path_factory):
    """Run in a temporary folder, so that `datasets` and `images` of the user are not touched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("working"))
        yield


@pytest.fixture
def random():
    return np.random.default_rng(0)


@pytest.fixture
def cpu():
    return torch.device("cpu")


class LinearCritic(nn.Module):
    """f(x) = w . x, whose input gradient is w everywhere."""

    def __init__(self, weights):
        super().__init__()
        self.weights = nn.Parameter(torch.as_tensor(weights, dtype=torch.float32))

    def forward(self, samples, labels=None):
        return samples.flatten(1) @ self.weights


class ShiftGenerator(nn.Module):
    """G(z) = z + s: a Gaussian whose mean is the only thing to learn."""

    def __init__(self, shift):
        super().__init__()
        self.shift = nn.Parameter(torch.as_tensor(shift, dtype=torch.float32))

    def forward(self, noise, labels=None):
        return noise + self.shift


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty folder of downloaded weights, as on a machine without Inception's."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """40 small colour images, red at the top and blue at the bottom."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for index in range(40):
        pixels = random.integers(0, 40, (16, 16, 3)).astype(np.uint8)
        pixels[:8, :, 0] += 200
        pixels[8:, :, 2] += 200
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="session")
def trained_run(image_folder, tmp_path_factory):
    """A run of four steps on the image folder."""
    from helpers import run_main

    run = tmp_path_factory.mktemp("trained") / "run"
    assert run_main(image_folder, run, "--steps", 4) == 0
    return run


@pytest.fixture(scope="session")
def class_folder(tmp_path_factory):
    """24 bright images in the folder `day`, 8 dark ones in `night`."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("classes")
    random = np.random.default_rng(0)
    for name, count, level in (("day", 24, 200), ("night", 8, 30)):
        (folder / name).mkdir()
        for index in range(count):
            pixels = random.integers(level, level + 20, (16, 16)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder
