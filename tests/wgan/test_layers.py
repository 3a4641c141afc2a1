"""Where the value of an option comes from."""

from dataclasses import replace

import pytest
from helpers import parse

from utils import METHODS
from wgan.cli import make_parser, parse_command_line
from wgan.config import stored_config
from wgan.data import DATASETS
from wgan.layers import recipes_of, unused_recipe
from wgan_gp import MODELS


def test_a_flag_beats_the_file_which_beats_the_methods_settings(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('method = "wgan"\nlr = 1e-3\nclip = 0.5\n')
    config = parse("--config", file, "--clip", "0.25", "--lr-generator", "2e-3")
    assert config.method == "wgan"
    assert config.clip == 0.25
    assert (config.lr_critic, config.lr_generator) == (1e-3, 2e-3)
    assert config.optimizer == "rmsprop"
    assert parse("--config", file, "--lr", "5e-3").lr_critic == 5e-3


def test_methods_and_models_bring_their_settings():
    # Gulrajani et al. 2017, algorithm 1; Arjovsky et al. 2017, algorithm 1.
    config = parse("--dataset", "mnist", "--model", "residual")
    assert (config.lr_critic, config.betas, config.n_critic) == (1e-4, (0.0, 0.9), 5)
    assert (config.gp_weight, config.optimizer, config.batch_size) == (10.0, "adam", 64)
    config = parse("--dataset", "mnist", "--method", "wgan")
    assert (config.lr_critic, config.clip, config.optimizer) == (5e-5, 0.01, "rmsprop")
    assert config.critic_norm == "batch"
    assert parse("--dataset", "mnist", "--method", "wgan", "--model", "dense").critic_norm == "none"


def test_a_data_sets_recipe_applies_with_its_method_and_model_only():
    assert (parse().width, parse().critic_norm, parse().steps) == (32, "layer", 2800)
    for others in (["--model", "dense"], ["--method", "wgan"]):
        config = parse(*others)
        assert (config.width, config.steps) == (
            MODELS[config.model].settings.get("width", 64),
            2000,
        )
        line = unused_recipe(config)
        assert "configs/glyphs.toml is for wgan-gp and dcgan" in line
        assert f"no recipe for {config.method} and {config.model}" in line
    assert unused_recipe(parse()) is None
    assert unused_recipe(parse("--dataset", "no data")) is None


def test_points_have_a_recipe_for_each_papers_method():
    config = parse("--dataset", "grid")
    assert (config.model, config.width, config.gp_weight) == ("dense", 512, 0.1)
    assert parse("--dataset", "ring", "--method", "wgan-div").betas == (0.0, 0.9)
    assert parse("--dataset", "ring", "--method", "wgan").optimizer == "rmsprop"
    assert all(parse("--dataset", "ring", "--method", m).model == "dense" for m in METHODS)


def test_a_data_sets_settings_are_for_all_methods():
    for method in METHODS:
        assert parse("--dataset", "celeba", "--method", method).flip
    assert not parse("--dataset", "celeba", "--no-flip").flip


def test_a_folder_of_images_has_our_recipe(tmp_path):
    config = parse("--dataset", tmp_path)
    assert (config.model, config.critic_norm, config.steps) == ("dcgan", "layer", 0)
    assert config.max_seconds > 0


def test_on_cuda_a_recipe_may_be_another(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    (_, sources), _ = parse_command_line(make_parser(), ["--dataset", str(tmp_path)])
    assert sources["width"] == "configs/images-cuda.toml"
    (_, sources), _ = parse_command_line(
        make_parser(), ["--dataset", str(tmp_path), "--device", "cpu"]
    )
    assert sources["width"] == "configs/images.toml"


def test_classes_need_two_critic_updates_unless_someone_decided_otherwise(tmp_path):
    def updates(*options):
        return parse("--dataset", "mnist", *options).n_critic

    file = tmp_path / "own.toml"
    file.write_text('method = "wgan-gp"\nn_critic = 1\nconditional = true\n')
    assert updates() == updates("--conditional", "--n-critic", 1) == 1
    assert updates("--config", file) == 1
    assert updates("--conditional") == updates("--conditional", "--config", "images") == 2
    assert updates("--conditional", "--method", "wgan") == 5  # no recipe fits, and 5 are enough
    file.write_text('method = "wgan-gp"\nn_critic = 1\n')
    assert updates("--config", file, "--conditional") == 1  # a file of one's own
    best = ["--dataset", "fashion-mnist", "--conditional", "--config", "fashion-mnist-best"]
    assert parse(*best).n_critic == 1  # a dense network


@pytest.mark.parametrize("recipe", ["images", "images-cuda", "arjovsky-2017", "points-wgan-gp"])
def test_a_recipe_for_several_data_sets_needs_one(recipe):
    with pytest.raises(ValueError, match=f"{recipe} is for (images|points): add --dataset"):
        parse("--config", recipe)
    assert parse("--config", "glyphs").dataset == "glyphs"


@pytest.mark.parametrize("paper", ["arjovsky-2017", "gulrajani-2017", "wu-2018"])
def test_nothing_is_mixed_into_a_papers_recipe(paper):
    alone = parse("--config", paper, "--dataset", "swissroll-images", "--run", "x")
    for dataset in ("fashion-mnist", "glyphs"):
        config = parse("--config", paper, "--dataset", dataset, "--run", "x")
        assert config == replace(alone, dataset=dataset)


def test_the_source_of_each_value_is_known(tmp_path):
    (tmp_path / "a.toml").write_text("ema = 0.5\n")
    arguments = ["--config", tmp_path / "a.toml", "--seed", "3"]
    _, sources = parse_command_line(make_parser(), [*map(str, arguments)])[0]
    assert sources["seed"] == "command line"
    assert sources["ema"] == str(tmp_path / "a.toml")
    assert sources["width"] == "configs/glyphs.toml"
    assert sources["betas"] == "method wgan-gp"
    assert sources["log_every"] == "default"


def test_every_recipe_of_a_data_set_exists_and_does_not_name_another_one():
    for name, entry in DATASETS.items():
        for layer in recipes_of(name):
            assert layer.values.get("dataset", name) == name
        assert len(recipes_of(name)) == len(entry.recipes)


def test_a_value_that_conflicts_with_a_recipe_names_the_recipe():
    message = (
        r"categories \(20\) must not exceed noise_dim \(16\).*categories is from configs/glyphs"
    )
    with pytest.raises(ValueError, match=message):
        parse("--noise-dim", "16")
    assert parse("--noise-dim", "16", "--categories", "0").noise_dim == 16


def test_epochs_replace_steps_and_vice_versa(tmp_path):
    assert (parse("--epochs", "3").steps, parse("--epochs", "3").epochs) == (0, 3.0)
    file = tmp_path / "a.toml"
    file.write_text("epochs = 3\n")
    assert parse("--config", file, "--steps", "7").epochs == 0
    for bad, message in (
        (["--epochs", "3", "--steps", "7"], "either steps or epochs"),
        (["--steps", "0", "--max-seconds", "0"], "must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(*bad)


def test_given_steps_replace_a_recipes_time_limit(tmp_path):
    config = parse("--dataset", tmp_path, "--steps", "7")
    assert (config.steps, config.max_seconds) == (7, 0)


def test_a_time_limit_replaces_a_default_number_of_steps_but_not_a_given_one():
    limited = parse("--max-seconds", "60")
    assert (limited.steps, limited.epochs, limited.max_seconds) == (0, 0, 60)
    both = parse("--max-seconds", "60", "--steps", "7")
    assert (both.steps, both.max_seconds) == (7, 60)
    assert stored_config(limited.applicable()) == limited
    assert stored_config(both.applicable()) == both
    with pytest.raises(ValueError, match="max_seconds = 3: must be 0, or at least 10"):
        parse("--max-seconds", "3")


def test_the_run_is_named_after_data_and_method(tmp_path):
    assert parse().run == "images/glyphs-wgan-gp"
    assert parse("--dataset", "ring", "--method", "wgan").run == "images/ring-wgan"
    assert parse("--dataset", f"{tmp_path}/my faces/").run == "images/my faces-wgan-gp"


def test_with_a_file_the_run_is_named_after_it_and_what_flags_change(tmp_path):
    (tmp_path / "a.toml").write_text('run = "b"\n')
    (tmp_path / "c.toml").write_text("seed = 1\n")
    assert parse("--config", tmp_path / "a.toml").run == "b"
    for arguments, run in (
        (["grid-best"], "grid-best"),
        (["configs/grid-best.toml", "--seed", "1"], "grid-best"),
        (["grid-best", "--run", "other"], "other"),
        (["grid-best", "--dataset", "grid", "--method", "wgan-gp"], "grid-best"),
        (["images", "--dataset", "lsun", "--width", "9"], "images-lsun"),
        ([tmp_path / "c.toml", "--dataset", "lsun", "--method", "wgan"], "c-lsun-wgan"),
        (["points-wgan", "--dataset", "ring"], "points-wgan-ring"),
        (["images", "--dataset", f"{tmp_path}/faces/"], "images-faces"),
    ):
        expected = run if run == "other" else f"images/{run}"
        assert parse("--config", *arguments).run == expected
