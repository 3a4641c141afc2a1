"""What README.md and CONTRIBUTING.md show is what the code does."""

import importlib
import json
import re

import pytest
import torch
from conftest import ROOT, LinearCritic

import utils
import wgan_gp
from train import main
from utils import METHODS
from wgan.cli import make_parser
from wgan.data import DATASETS, points, table
from wgan.recipes import RECIPES
from wgan.run_folder import FILES
from wgan_gp import MODELS

README, CONTRIBUTING = (
    (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CONTRIBUTING.md")
)
SMALL = ["--batch-size", "8", "--n-critic", "1", "--steps", "2", "--device", "cpu"]
SMALL += ["--compile", "off", "--precision", "fp32"]


def test_the_loop_in_the_readme_moves_samples_towards_the_data():
    code = re.search(r"## A loop of your own.*?```python\n(.*?)```", README, re.S)[1]
    assert code.count("range(500)") == 1
    loop = {}
    exec(code.replace("range(500)", "range(30)"), loop)
    fake = loop["generator"](torch.randn(64, 8))
    assert fake.mean(0)[0] > 0.3  # from about 0 to 3
    assert loop["losses"].wasserstein > 0


def test_the_readme_names_every_recipe_and_data_set():
    section = README[README.index("## Recipes and options") : README.index("## Output")]
    names = set(re.findall(r"`([\w-]+)`", section))
    names |= {f"fashion-mnist{name}" for name in names if name.startswith("-")}
    assert {path.stem for path in RECIPES.glob("*.toml")} <= names
    assert {*DATASETS, *METHODS, *MODELS} <= names


def test_the_documents_name_every_file_of_a_run():
    text = README + (ROOT / "docs" / "resume.md").read_text(encoding="utf-8")
    for name in FILES:
        assert name.replace("samples/*", "samples/000100").replace("-*.pt", "-000500.pt") in text


def test_the_readme_names_only_flags_that_exist():
    flags = set(re.findall(r"(?<![-\w])--[a-z][a-z-]+", README))
    known = set(re.findall(r"--[a-z][a-z-]+", make_parser().format_help()))
    for script in ("generate.py", "evaluate.py", "benchmarks/speed.py", "benchmarks/quality.py"):
        known |= set(re.findall(r'"(--[a-z][a-z-]+)"', (ROOT / script).read_text("utf-8")))
    known |= {"--standalone", "--nproc-per-node", "--nnodes", "--rdzv-backend", "--rdzv-endpoint"}
    known |= {"--max-restarts"}  # torchrun's
    assert flags <= known, flags - known


# ---------------------------------------------------------------- the notebook

NOTEBOOK = ROOT / "docs" / "start.ipynb"


def pictures(cells):
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    assert not any(output["output_type"] == "error" for output in outputs)
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_the_notebook_shows_its_pictures_and_no_paths_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    cells = json.loads(text)["cells"]
    assert pictures(cells) >= 9
    assert len(text) < 600_000
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    printed = "".join("".join(output.get("text", "")) for output in outputs)
    assert printed
    assert not re.search(r"""(^|[\s"'(=])(/\w|[A-Z]:\\)""", printed)


@pytest.mark.nightly
def test_the_notebook_runs(tmp_path, monkeypatch):
    client = pytest.importorskip("nbclient", reason="needs pip install nbclient ipykernel")
    pytest.importorskip("ipykernel", reason="needs pip install ipykernel")
    for name in ("START_SHORT", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path))
    notebook = importlib.import_module("nbformat").read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
    folder = {"metadata": {"path": str(NOTEBOOK.parent)}}
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    assert pictures(notebook.cells) >= 9


# ---------------------------------------------------------------- examples of CONTRIBUTING.md


def example(title, *modules):
    """The names that an example defines in a module."""
    names = {name: value for module in modules for name, value in vars(module).items()}
    code = re.search(rf"\*\*{title}\*\*.*?```python\n(.*?)```", CONTRIBUTING, re.S)[1]
    exec(code, names)
    return names


def new_entry(table, example_table, monkeypatch):
    """The entry of an example, which is then in the table, too; its name is in the help."""
    ((name, entry),) = ((n, e) for n, e in example_table.items() if n not in table)
    monkeypatch.setitem(table, name, entry)
    assert name in make_parser().format_help()
    return name, entry


def test_the_method_of_the_example_penalises_every_norm(tmp_path, monkeypatch):
    name, method = new_entry(METHODS, example("A method", utils)["METHODS"], monkeypatch)
    for norm, penalty in ((3.0, 4.5), (0.5, 0.125)):
        samples, critic = torch.randn(4, 2), LinearCritic([norm, 0.0])
        losses = method(gamma=1.0).critic_loss(critic, samples, samples, torch.rand(4))
        assert losses.penalty.item() == pytest.approx(penalty)
    assert main(["--method", name, "--dataset", "ring", *SMALL, "--run", str(tmp_path / "r")]) == 0


def test_the_model_of_the_example_trains(image_folder, tmp_path, monkeypatch):
    name, _ = new_entry(MODELS, example("A model", wgan_gp)["MODELS"], monkeypatch)
    arguments = ["--model", name, "--dataset", str(image_folder), "--image-size", "16"]
    assert main([*arguments, *SMALL, "--run", str(tmp_path / "r")]) == 0


def test_the_data_set_of_the_example_trains(tmp_path, monkeypatch):
    name, _ = new_entry(DATASETS, example("A data set", table, points)["DATASETS"], monkeypatch)
    arguments = ["--dataset", name, "--conditional", "--width", "4"]
    assert main([*arguments, *SMALL, "--run", str(tmp_path / "r")]) == 0
