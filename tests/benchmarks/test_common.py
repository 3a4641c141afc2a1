"""The files of the benchmarks, and options that they refuse."""

import pytest

from benchmarks import quality, speed
from benchmarks.common import check_writable, write_json


def test_results_are_written_only_where_a_file_may_be(tmp_path):
    check_writable(None)
    check_writable(str(tmp_path / "new.json"))
    write_json(str(tmp_path / "new.json"), {"a": 1})
    check_writable(str(tmp_path / "new.json"))
    for path in (tmp_path, tmp_path / "no" / "new.json"):
        with pytest.raises(ValueError, match="cannot write"):
            check_writable(str(path))


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (speed, ["--method", "wgan-gpp"], "did you mean 'wgan-gp'"),
        (speed, ["--image-size", "30", "--compile", "off"], "--image-size"),
        (speed, ["--image-size", "0"], "0"),
        (speed, ["--channels", "2"], "--channels"),
        (speed, ["--seconds", "soon"], "invalid float"),
        (speed, ["--seconds", "inf"], "--seconds must be between"),
        (speed, ["--json", "no/such/folder/x.json"], "no/such/folder"),
        (speed, ["--nonsense"], "unknown argument '--nonsense'"),
        (quality, ["--marks", "60", "soon"], "--marks"),
        (quality, ["--loops", "plain", "best"], "invalid choice: 'best'"),
        (quality, ["--plot", "no/such/folder/x.png"], "no/such/folder"),
        (quality, ["--plot", "."], "cannot write ."),
    ],
)
def test_bad_options_end_with_one_line(program, arguments, message, capsys):
    assert program.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
