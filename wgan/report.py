"""report.html: one self-contained page about a run; `python -m wgan.report` compares several.

    python -m wgan.report images/RUN images/OTHER --out compare.html

A page is wgan/report.html with the runs' data as JSON, which its script inserts as text, never as
markup.
"""

import base64
import io
import json
import os
import sys
import tomllib
from pathlib import Path

import numpy as np
from PIL import Image

from wgan import distributed, plots
from wgan.checkpoints import config_of
from wgan.command import Parser, run_script
from wgan.evaluation.report import format_report
from wgan.files import check_output, write_whole
from wgan.reading import advise
from wgan.run_folder import OPTIONS, NullRunFolder, RunFolder, is_run, read_columns, sample_grids

TEMPLATE = Path(__file__).with_suffix(".html")
# Characters of all grids of a page, and of another picture: together less than 3 MB.
GRIDS_SIZE, PICTURE_SIZE = 2_300_000, 200_000
SIDE, THUMBNAIL_SIDE = 820, 300  # pixels
POINTS = 600  # of a curve
PICTURES = {"real": "real.png", "samples, nearest real": "neighbours.png", "columns": "columns.png"}


def refresh(folder: RunFolder | NullRunFolder, progress: float) -> list[str]:
    """Draw the curves, the timelapse and the page of a run; returns the advice on the page. A
    failure is reported."""
    try:
        folder.save_plots()
        return write_report(folder.path, progress) if distributed.is_first() else []
    except (OSError, ValueError, LookupError, SyntaxError) as error:  # the last is a broken PNG's
        print(f"could not write the report: {error}", file=sys.stderr)
        return []


def write_report(run: Path, progress: float | None = None, result: dict | None = None) -> list[str]:
    """Write the page of a run; the arguments and the returned sentences are those of `advise`."""
    data, frames = describe_run(run, progress, result), list(plots.frames_of(sample_grids(run)))
    data["grids"] = [[step, jpeg(image, SIDE, GRIDS_SIZE / len(frames))] for step, image in frames]
    paths = {label: run / name for label, name in PICTURES.items()}
    pictures = [(label, Image.open(path)) for label, path in paths.items() if path.exists()]
    data["pictures"] = [[label, jpeg(image, SIDE, PICTURE_SIZE)] for label, image in pictures]
    data["metrics"] = format_report(result) if result else ""
    write_whole(run / TEMPLATE.name, page([data]))
    return data["advice"]


def page(runs: list[dict]) -> bytes:
    """The page of one run, or of several runs without pictures."""
    content = json.dumps({"runs": runs, "panels": plots.PANELS}, allow_nan=False)
    content = content.replace("<", "\\u003c")  # the script element ends at the first </script
    return TEMPLATE.read_text("utf-8").replace("DATA", content, 1).encode()


def describe_run(run: Path, progress: float | None = None, result: dict | None = None) -> dict:
    """What a page says about a run."""
    text, log = (run / OPTIONS).read_text("utf-8"), read_columns(run)
    options = tomllib.loads(text)
    config = config_of({"config": options})
    step, seconds = (log[name][-1:].sum() for name in ("step", "seconds"))
    speed = f"{step:,.0f} steps in {seconds:,.0f} s ({step / max(seconds, 1e-3):.3g} per second)"
    return {
        "name": run.resolve().name,
        "facts": [config.dataset, config.method, config.model, speed],
        "advice": advise(log, config, progress, result),
        "curves": {name: thin(log["step"], log[name]) for name in plots.PANELS},
        "options": {name: str(value) for name, value in options.items()},
        "origin": [line[2:] for line in text.splitlines()[1:] if line.startswith("# ")],
    }


def jpeg(image: Image.Image, side: int, size: float) -> str:
    """The URL of a picture, reduced to a side, and further until it is not longer than `size`."""
    image, buffer = image.convert("L" if image.mode == "L" else "RGB"), io.BytesIO()
    image.thumbnail((side, side))
    image.save(buffer, "JPEG", quality=80)
    url = f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    smaller = int(max(image.size) * min(0.9, (size / len(url)) ** 0.5))
    return url if len(url) <= size else jpeg(image, smaller, size)


def thin(steps: np.ndarray, values: np.ndarray) -> list[list[float]]:
    """Up to `POINTS` steps and running means of a curve; none if all values are zero."""
    measured = np.flatnonzero(np.isfinite(values))
    columns = steps[measured], plots.running_mean(values[measured])
    shown = np.linspace(0, len(measured) - 1, min(len(measured), POINTS)).round().astype(int)
    return [[float(f"{v:.6g}") for v in c[shown]] for c in columns] if columns[1].any() else []


def compare(argv: list[str] | None = None) -> None:
    parser = Parser(prog="python -m wgan.report", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    parser.add_argument("--out", metavar="FILE", default="compare.html", type=os.path.expanduser)
    options = parser.parse_args(argv)
    target, runs = check_output("--out", options.out), []
    for run in options.runs:
        if not is_run(run):
            raise ValueError(f"{run} contains no run: name the folder of a run")
        last = [Image.open(path) for path in sample_grids(run)[-1:]]
        thumbnails = [jpeg(image, THUMBNAIL_SIDE, PICTURE_SIZE) for image in last]
        runs.append(describe_run(run) | {"thumbnail": thumbnails})
    write_whole(target, page(runs))


if __name__ == "__main__":
    sys.exit(run_script(compare))
