"""The table of metrics that evaluate.py prints."""

HIGHER_IS_BETTER = ("precision", "recall", "inception_score", "classes", "smallest_class")
HIGHER_IS_BETTER += ("confident", "class_agreement", "modes", "good_samples", "density", "coverage")
FEW = 500  # samples
WIDTH = 45  # of the column of names


def format_report(result: dict) -> str:
    """The metrics of the samples ("generated") next to those of held-out real samples ("real"),
    with the direction in which each is better, if it has one."""
    features = f", features: {result['features']}" if result.get("features") else ""
    step = f", step {result['step']}" if result.get("step") is not None else ""
    other = f" and {result['reference']}" if "reference" in result else ""
    lines = [f"{result['source']}{other}{step}, {result['samples']} samples{features}", ""]
    lines.append(f"{'':<{WIDTH}}{'generated':>12}{'real, held out':>16}  better")
    for name, value in result["generated"].items():
        if name != "modes_in_all":
            floor = f"{result['real'][name]:.4g}" if name in result["real"] else ""
            label = name.replace("_", " ")
            if name == "modes":
                label += f" of {result['generated']['modes_in_all']}"
            direction = "higher" if name in HIGHER_IS_BETTER else "lower"
            if name == "nearest_distance":
                direction = "near the floor; far below it, samples are copies"
            if "wasserstein" in name and value < result["real"][name]:
                direction = "below the floor is not better: see energy distance, recall"
            if "estimate" in name or "critic" in name:
                direction, label = "", label + ", training data" * result["training_data"]
            lines.append(f"{label:<{WIDTH}}{value:>12.4g}{floor:>16}  {direction}".rstrip())
    if result["samples"] < FEW:
        lines += ["", f"fewer than {FEW} samples: the metrics depend much on which these are"]
    if "neighbours" in result:
        lines += ["", f"samples next to the real images nearest to them: {result['neighbours']}"]
    if "columns" in result:
        lines += ["", f"histograms and correlations of the columns: {result['columns']}"]
    return "\n".join(lines)
