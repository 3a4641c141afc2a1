"""The import rules of the repository, read from the syntax trees."""

import ast
import importlib
import sys
from functools import cache
from graphlib import TopologicalSorter
from unittest.mock import patch

import pytest
from conftest import ROOT

SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
FILES = [
    path
    for pattern in ("*.py", "wgan/**/*.py", "benchmarks/*.py")
    for path in sorted(ROOT.glob(pattern))
]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in FILES}


@cache
def imports_of(path):
    """The modules of this repository that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return {name for name in found if name in MODULES}


def test_there_are_five_scripts():
    assert {"train", "utils", "wgan_gp", "generate", "evaluate"} == SCRIPTS


@pytest.mark.parametrize("name", ["utils", "wgan_gp"])
def test_the_mathematics_and_the_networks_import_nothing_of_ours(name):
    assert imports_of(MODULES[name]) == set()


@pytest.mark.parametrize("name", [name for name in MODULES if name.split(".")[0] == "wgan"])
def test_the_package_imports_itself_and_the_two(name):
    for imported in imports_of(MODULES[name]):
        assert imported.split(".")[0] in ("wgan", "utils", "wgan_gp")


@pytest.mark.parametrize("name", sorted(SCRIPTS))
def test_scripts_do_not_import_each_other(name):
    for imported in imports_of(MODULES[name]):
        assert imported in ("utils", "wgan_gp") or imported.split(".")[0] == "wgan"


@pytest.mark.parametrize("name", ["utils", "wgan_gp"])
def test_another_module_of_the_same_name_is_reported(name, tmp_path, monkeypatch):
    """As in a project that has a `utils.py` of its own."""
    (tmp_path / f"{name}.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with patch.dict(sys.modules):
        for module in [n for n in sys.modules if n.split(".")[0] in ("wgan", name)]:
            del sys.modules[module]
        with pytest.raises(ImportError) as raised:
            importlib.import_module("wgan")
    assert str(tmp_path / f"{name}.py") in str(raised.value)
    assert f"wgan needs the {name}.py next to its folder" in raised.value.__notes__[0]


def test_imports_run_one_way():
    TopologicalSorter({name: imports_of(path) for name, path in MODULES.items()}).prepare()
