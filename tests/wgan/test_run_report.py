"""report.html and the comparison, also in a real browser if there is one."""

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from helpers import run_main
from PIL import Image

import evaluate
from wgan import report
from wgan.command import run_script
from wgan.report import compare, thin, write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OFFLINE = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
HOSTILE = "</script><img src=x onerror=alert(1)>&\"'"


def data_of(page):
    """The JSON in a page."""
    return json.loads(re.search(r'id="data">(.*?)</script>', page.read_text("utf-8"), re.S)[1])


@pytest.fixture
def run(trained_run, tmp_path):
    """A copy of a trained run, whose options contain markup."""
    run = shutil.copytree(trained_run, tmp_path / "run <b>")
    config = run / "config.toml"
    config.write_text(config.read_text() + f"# {HOSTILE}\n", "utf-8")
    write_report(run)
    return run


def test_training_writes_the_report_and_the_command(trained_run):
    (content,) = data_of(trained_run / "report.html")["runs"]
    assert content["facts"][-1].startswith("4 steps in ")
    assert [step for step, _ in content["grids"]] == [0, 2, 4]
    steps, means = content["curves"]["wasserstein"]
    assert steps == [2, 4] and len(means) == 2
    assert any(line.startswith("train.py --dataset") for line in content["origin"])
    assert [label for label, _ in content["pictures"]] == ["real"]


def test_everything_inserted_is_text(run):
    page = (run / "report.html").read_text("utf-8")
    assert page.count("</script>") == 2 and "<img src=x" not in page
    (content,) = data_of(run / "report.html")["runs"]
    assert HOSTILE in content["origin"] and content["name"] == "run <b>"
    assert not re.search(r"innerHTML|https?://(?!www.w3.org/2000/svg)", page)


def test_grids_that_are_too_large_are_reduced(run, random, monkeypatch):
    """Noise, which compresses worst."""
    monkeypatch.setattr(report, "GRIDS_SIZE", 100_000)
    for path in (run / "samples").iterdir():
        noise = random.integers(0, 256, (400, 400, 3)).astype(np.uint8)
        Image.fromarray(noise).save(path)
    write_report(run)
    (content,) = data_of(run / "report.html")["runs"]
    assert 50_000 < sum(len(url) for _, url in content["grids"]) <= 100_000
    assert [step for step, _ in content["grids"]] == [0, 2, 4]


def test_curves_are_thinned_and_without_what_was_not_measured():
    values = np.linspace(0.0, 1.0, 5000)
    values[::2] = np.nan
    steps, means = thin(np.arange(5000.0), values)
    assert len(steps) == len(means) == report.POINTS
    assert steps[0] == 1 and steps[-1] == 4999 and means[-1] == pytest.approx(1, abs=0.02)
    assert thin(np.arange(9.0), np.zeros(9)) == []


def test_an_evaluation_adds_its_metrics_and_neighbours(run, capsys):
    assert evaluate.main([str(run), "--features", "random"]) == 0
    (content,) = data_of(run / "report.html")["runs"]
    assert "recall" in content["metrics"] and content["metrics"] in capsys.readouterr().out
    assert [label for label, _ in content["pictures"]] == ["real", "samples, nearest real"]


def test_a_corrupt_file_is_no_end_of_training(run, image_folder, capsys):
    (run / "real.png").write_text("no picture")
    assert run_main(image_folder, run, "--steps", 5, "--log-every", 1) == 0
    assert "could not write the report: cannot identify" in capsys.readouterr().err


def test_a_folder_without_a_run_is_bad_input(tmp_path, capsys):
    assert run_script(lambda: compare([str(tmp_path), "--out", str(tmp_path / "c.html")])) == 2
    assert "contains no run" in capsys.readouterr().err


# ---------------------------------------------------------------- in a browser


def browse(page, tmp_path, *options):
    """What the browser prints for a page: its DOM, and on standard error its console."""
    command = [CHROMIUM, *OFFLINE, f"--user-data-dir={tmp_path / 'profile'}", *options]
    command += ["--virtual-time-budget=2000", page.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in result.stderr, result.stderr
    return result.stdout


def with_script(page, script):
    """A copy of a page that runs a script and then shows what it returns."""
    copy = page.with_name("copy.html")
    script = (
        f"<script>document.body.dataset.result = JSON.stringify((() => {{{script}}})())</script>"
    )
    copy.write_text(page.read_text("utf-8") + script, "utf-8")
    return copy


def result_in(dom):
    text = re.search(r'data-result="(.*?)"', dom)[1]
    return json.loads(
        text.replace("&quot;", '"').replace("&amp;", "&").replace("&gt;", ">").replace("&lt;", "<")
    )


MOVE = """
const input = document.querySelector("input"), image = document.querySelector("img");
const before = image.src, label = document.querySelector("output");
input.value = 0;
input.dispatchEvent(new Event("input"));
const chart = document.querySelector("svg"), box = chart.getBoundingClientRect();
const place = { clientX: box.right - 1, clientY: box.top + 5 };
chart.dispatchEvent(new PointerEvent("pointermove", place));
return { changed: before !== image.src, label: label.textContent,
  value: chart.nextSibling.textContent,
  injected: document.querySelectorAll("b, [onerror]").length };
"""
browser = pytest.mark.skipif(not CHROMIUM, reason="needs the browser chromium")


@browser
@pytest.mark.slow
def test_the_slider_and_the_pointer_work_in_a_browser(run, tmp_path):
    result = result_in(browse(with_script(run / "report.html", MOVE), tmp_path, "--dump-dom"))
    (content,) = data_of(run / "report.html")["runs"]
    value = content["curves"]["wasserstein"][1][-1]
    assert result["changed"] and result["label"] == "generated, step 0" and result["injected"] == 0
    assert result["value"].startswith("step 4: ")
    assert float(re.search(r": (\S+)$", result["value"])[1]) == pytest.approx(value, rel=0.01)


@browser
@pytest.mark.slow
def test_a_comparison_shows_all_runs_in_a_browser(run, trained_run, tmp_path):
    page, picture = tmp_path / "compare.html", tmp_path / "page.png"
    compare([str(run), str(trained_run), "--out", str(page)])
    script = """return { thumbnails: document.querySelectorAll("td img").length,
      lines: document.querySelector("svg").querySelectorAll("path").length,
      injected: document.querySelectorAll("b, [onerror]").length };"""
    copy = with_script(page, script)
    screenshot = ["--window-size=800,600", f"--screenshot={picture}"]
    result = result_in(browse(copy, tmp_path, "--dump-dom", *screenshot))
    assert result == {"thumbnails": 2, "lines": 2, "injected": 0}
    colours = Image.open(picture).convert("RGB").quantize(64).getcolors()
    assert max(count for count, _ in colours) < 0.98 * 800 * 600  # not blank
