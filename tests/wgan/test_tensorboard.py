"""--tensorboard: the events of a resumed run are those of an uninterrupted one."""

import csv

import pytest
from helpers import run_main


def test_without_the_package_the_error_says_what_to_install(
    image_folder, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("wgan.setup.find_spec", lambda name: None)
    assert run_main(image_folder, tmp_path / "r", "--steps", 2, "--tensorboard") == 2
    assert "pip install tensorboard" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def events_of(run):
    """Steps and values of a scalar, steps of the grids, and the text of the options."""
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = loader.EventAccumulator(
        str(run / "tensorboard"), size_guidance={"images": 0, "scalars": 0}
    )
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("wasserstein")]
    text = events.Tensors("options/text_summary")[-1].tensor_proto.string_val[0].decode()
    return scalars, [event.step for event in events.Images("samples")], text


@pytest.mark.slow
def test_a_resumed_run_has_each_event_once(image_folder, tmp_path):
    """The run is stopped after the events of step 6, and its checkpoint is of step 4."""
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    run, options = tmp_path / "r", ["--tensorboard", "--checkpoint-every", 4]
    run_main(image_folder, run, *options, "--steps", 6)
    (run / "checkpoint.previous.pt").replace(run / "checkpoint.pt")
    run_main(image_folder, run, *options, "--steps", 8)
    scalars, grids, text = events_of(run)
    rows = list(csv.DictReader((run / "log.csv").open()))
    assert [step for step, _ in scalars] == [2, 4, 6, 8]
    expected = [float(row["wasserstein"]) for row in rows]
    assert [value for _, value in scalars] == pytest.approx(expected, rel=1e-5)
    assert grids == [0, 2, 4, 6, 8]
    assert 'method = "wgan-gp"' in text


@pytest.mark.slow
def test_a_failed_write_is_no_end_of_training(image_folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("tensorboard", reason="needs the package tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    def fail(*arguments, **options):
        raise OSError("no space left")

    monkeypatch.setattr(SummaryWriter, "add_scalar", fail)
    assert run_main(image_folder, tmp_path / "r", "--steps", 4, "--tensorboard") == 0
    assert capsys.readouterr().err.count("could not write the events") == 1
