"""The table of metrics that evaluate.py prints."""

DIRECTIONS = {  # of improvement
    "frechet_distance": "lower",
    "kernel_distance": "lower",
    "precision": "higher",
    "recall": "higher",
    "inception_score": "higher",
    "classes": "higher",
    "smallest_class": "higher",
    "class_divergence": "lower",
    "confident": "higher",
    "class_agreement": "higher",
    "within_class_frechet": "lower",
    "modes": "higher",
    "good_samples": "higher",
    "wasserstein_distance": "lower",
    "within_class_wasserstein": "lower",
    "critic_estimate": "lower",
    "critic_estimate_unbiased": "lower",
}


FEW = 500  # samples


def format_report(result: dict) -> str:
    """The metrics of the samples ("generated") next to those of held-out real samples ("real"),
    with the direction in which each is better."""
    features = f", features: {result['features']}" if result.get("features") else ""
    step = f", step {result['step']}" if result.get("step") is not None else ""
    other = f" and {result['reference']}" if "reference" in result else ""
    lines = [f"{result['source']}{other}{step}, {result['samples']} samples{features}", ""]
    lines.append(f"{'':<28}{'generated':>12}{'real, held out':>16}  better")
    for name, direction in DIRECTIONS.items():
        if name in result["generated"]:
            value, floor = (result[part].get(name) for part in ("generated", "real"))
            floor = "" if floor is None else f"{floor:.4g}"
            label = name.replace("_", " ")
            if name == "modes":
                label += f" of {result['generated']['modes_in_all']}"
            lines.append(f"{label:<28}{value:>12.4g}{floor:>16}  {direction}")
    if result["samples"] < FEW:
        lines += ["", f"fewer than {FEW} samples: the metrics depend much on which these are"]
    if "neighbours" in result:
        lines += ["", f"samples next to the real images nearest to them: {result['neighbours']}"]
    return "\n".join(lines)
