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
from wgan.files import check_output, try_to_write, write_whole
from wgan.reading import advise
from wgan.run_folder import OPTIONS, NullRunFolder, RunFolder, read_columns, sample_grids

TEMPLATE = Path(__file__).with_suffix(".html")
GRIDS_SIZE = 2_600_000  # characters of all grids in a page, which has at most 3 MB
QUALITIES = 85, 60, 35  # of JPEG
SIDE, THUMBNAIL_SIDE = 820, 300  # pixels
POINTS = 600  # of a curve
PICTURES = {
    "real.png": "real samples",
    "neighbours.png": "left: samples; right: the real images nearest to each",
    "columns.png": "columns, real and generated",
}


def refresh(folder: RunFolder | NullRunFolder, progress: float) -> None:
    """Draw the curves, the timelapse and the page of a run. A failure is reported."""
    if distributed.is_first():
        try_to_write("curves and timelapse", folder.save_plots)
        try_to_write("report", write_report, folder.path, progress)


def write_report(run: Path, progress: float | None = None, result: dict | None = None) -> list[str]:
    """Write the page of a run; the arguments and the returned sentences are those of `advise`."""
    data = describe_run(run, progress, result) | {"grids": embed_grids(sample_grids(run))}
    paths = {label: run / name for name, label in PICTURES.items()}
    data["pictures"] = [[n, jpeg(Image.open(p))] for n, p in paths.items() if p.exists()]
    data["metrics"] = format_report(result) if result else ""
    write_whole(run / TEMPLATE.name, page([data]))
    return data["advice"]


def page(runs: list[dict]) -> bytes:
    """The page of one run, or of several runs without pictures."""
    panels = [[name, *texts] for name, texts in plots.PANELS.items()]
    content = json.dumps({"runs": runs, "panels": panels}, ensure_ascii=False, allow_nan=False)
    content = content.replace("<", "\\u003c")  # the script element ends at the first </script
    return TEMPLATE.read_text("utf-8").replace("DATA", content, 1).encode()


def describe_run(run: Path, progress: float | None = None, result: dict | None = None) -> dict:
    """What a page says about a run; OSError if one of its files is missing or corrupt."""
    text, log = (run / OPTIONS).read_text("utf-8"), read_columns(run)
    try:
        options = tomllib.loads(text)
        config = config_of({"config": options})
    except ValueError as error:
        raise OSError(f"{run / OPTIONS} is corrupt ({error})") from error
    step, seconds = (log[name][-1:].sum() for name in ("step", "seconds"))
    speed = f"{step:,.0f} steps in {seconds:,.0f} s ({step / max(seconds, 1e-3):.3g} per second)"
    facts = {"data": config.dataset, "method": config.method, "model": config.model, "speed": speed}
    return {
        "name": run.resolve().name,
        "facts": facts,
        "advice": advise(log, config, progress, result),
        "curves": {name: thin(log["step"], log[name]) for name in plots.PANELS},
        "options": [[name, str(value)] for name, value in options.items()],
        "origin": [line[2:] for line in text.splitlines()[1:] if line.startswith("# ")],
    }


def embed_grids(grids: list[Path]) -> list[tuple[int, str]]:
    """Steps and URLs of at most as many grids as the timelapse has: the files themselves, or if
    they are too large, JPEGs of a lower quality, or fewer."""
    files = plots.evenly_spaced(grids)
    if sum(path.stat().st_size for path in files) * 4 / 3 <= GRIDS_SIZE:
        return [(int(path.stem), url("png", path.read_bytes())) for path in files]
    frames = list(plots.frames_of(grids))
    while True:
        for quality in QUALITIES:
            urls = [(step, jpeg(image, quality=quality)) for step, image in frames]
            if sum(len(text) for _, text in urls) <= GRIDS_SIZE:
                return urls
        frames = frames[::-2][::-1]  # with the last one


def jpeg(image: Image.Image, side: int = SIDE, quality: int = 85) -> str:
    """The URL of a picture, reduced to a side."""
    image, buffer = image.convert("L" if image.mode == "L" else "RGB"), io.BytesIO()
    image.thumbnail((side, side))
    image.save(buffer, "JPEG", quality=quality)
    return url("jpeg", buffer.getvalue())


def url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def thin(steps: np.ndarray, values: np.ndarray) -> list[list[float]]:
    """Up to `POINTS` steps, values and running means of a curve; none if all values are zero."""
    measured = np.isfinite(values)
    columns = steps[measured], values[measured], plots.running_mean(values[measured])
    shown = np.linspace(0, measured.sum() - 1, min(measured.sum(), POINTS)).round().astype(int)
    return [[float(f"{v:.6g}") for v in c[shown]] for c in columns] if columns[1].any() else []


def compare(argv: list[str] | None) -> None:
    parser = Parser(prog="python -m wgan.report", description=__doc__)
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="folder of a run")
    parser.add_argument("--out", metavar="FILE", default="compare.html", type=os.path.expanduser)
    options = parser.parse_args(argv)
    target, runs = check_output("--out", options.out), []
    for run in options.runs:
        last = [jpeg(Image.open(path), THUMBNAIL_SIDE) for path in sample_grids(run)[-1:]]
        runs.append(describe_run(run) | {"thumbnail": last})
    write_whole(target, page(runs))


def main(argv: list[str] | None = None) -> int:
    """Exit codes: 0 done, 2 bad input."""
    return run_script(lambda: compare(argv))


if __name__ == "__main__":
    sys.exit(main())
