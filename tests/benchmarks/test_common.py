"""Cases, files and processes of the benchmarks."""

import pytest

from benchmarks import quality, scaling, speed
from benchmarks.common import ROOT, check_writable, run_python, write_json


def test_a_process_finds_the_project_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "somewhere")
    output = run_python("-c", "import os, benchmarks; print(benchmarks.__file__, os.getcwd())",
                        output=True)  # fmt: skip
    file, folder = output.split()
    assert file == str(ROOT / "benchmarks" / "__init__.py")
    assert folder == str(tmp_path)
    assert run_python("-c", "import os; print(os.environ['X'])", output=True, X="1") == "1\n"


def test_results_are_written_only_where_a_file_may_be(tmp_path):
    check_writable(None)
    check_writable(str(tmp_path / "new.json"))
    write_json(str(tmp_path / "new.json"), {"a": 1})
    check_writable(str(tmp_path / "new.json"))
    for path in (tmp_path, tmp_path / "no" / "new.json"):
        with pytest.raises(ValueError, match="cannot write"):
            check_writable(str(path))


@pytest.mark.parametrize("program", [speed, scaling])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--method", "wgan-pg"], "did you mean 'wgan-gp'"),
        (["--image-size", "big"], "'big'"),
        (["--image-size", ""], "--image-size must be a size"),
        (["--channels", "2"], "--channels"),
        (["--seconds", "soon"], "invalid float"),
        (["--seconds", "inf"], "--seconds must be between"),
        (["--json", "no/such/folder/x.json"], "no/such/folder"),
        (["--nonsense"], "unknown argument '--nonsense'"),
    ],
)
def test_a_bad_case_ends_with_one_line(program, arguments, message, capsys):
    assert_refused(program, arguments, message, capsys)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (speed, ["--table", "--growth"], "not allowed with"),
        (speed, ["--image-size", "30", "--compile", "off"], "--image-size"),
        (quality, ["--seeds", "0"], "--seeds must be at least 1"),
        (quality, ["--seed", "-1"], "--seed at least 0"),
        (quality, ["--marks", "5,60"], "max_seconds = 5"),
        (quality, ["--marks", "60,soon"], "--marks must be seconds such as 60,120,300"),
        (quality, ["--loops", "plain,best"], "unknown name 'best'; use plain, fashion"),
        (quality, ["--plot", "no/such/folder/x.png"], "no/such/folder"),
        (quality, ["--plot", "."], "cannot write ."),
    ],
)
def test_bad_options_end_with_one_line(program, arguments, message, capsys):
    assert_refused(program, arguments, message, capsys)


def assert_refused(program, arguments, message, capsys):
    assert program.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
