"""Where the value of an option comes from."""

from dataclasses import replace

import pytest
from helpers import parse

from utils import METHODS
from wgan.checkpoints import config_of
from wgan.cli import make_parser, parse_command_line
from wgan.config import options_of_method
from wgan.data import DATASETS
from wgan.recipes import RECIPES, read_recipe


def resolved(*arguments):
    """The configuration of a command line, with the sources of the values."""
    return parse_command_line(make_parser(), [str(argument) for argument in arguments])[0]


def test_a_flag_beats_the_file_which_beats_the_methods_settings(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('dataset = "mnist"\nmethod = "wgan"\nlr = 1e-3\nclip = 0.5\n')
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
    config = parse("--dataset", "mnist", "--method", "wgan", "--model", "residual")
    assert (config.lr_critic, config.clip, config.optimizer) == (5e-5, 0.01, "rmsprop")
    assert config.critic_norm == "batch"
    assert parse("--dataset", "mnist", "--method", "wgan", "--model", "dense").critic_norm == "none"


@pytest.mark.parametrize("dataset", ["glyphs", "mnist", "folder"])
@pytest.mark.parametrize("method", METHODS)
def test_a_recipes_networks_and_training_hold_with_every_method(method, dataset, tmp_path):
    """So that methods can be compared; only the methods' own options differ."""
    dataset = tmp_path if dataset == "folder" else dataset
    recipe, other = parse("--dataset", dataset), resolved("--dataset", dataset, "--method", method)
    own = {*options_of_method(recipe.method), *options_of_method(method), "method", "run"}
    assert {k: v for k, v in vars(other.config).items() if k not in own} == {
        k: v for k, v in vars(recipe).items() if k not in own
    }
    for option in options_of_method(method) - options_of_method(recipe.method):
        assert other.sources[option] in (f"method {method}", "default")


def test_a_recipe_is_for_its_model_only():
    assert (parse().model, parse().generator_width, parse().steps) == ("mixed", 32, 2800)
    other = resolved("--model", "residual")
    assert (other.config.width, other.config.steps, other.recipe) == (64, 2000, None)


@pytest.mark.parametrize("method", METHODS)
def test_options_of_another_method_in_a_named_recipe_are_dropped(method, tmp_path):
    config = parse("--config", "images", "--dataset", tmp_path, "--method", method)
    assert (config.width, config.n_critic) == (256, 1)
    file = tmp_path / "a.toml"
    file.write_text('dataset = "mnist"\nmodel = "dcgan"\npatch_features = 32\n')
    with pytest.raises(ValueError, match=rf"patch_features = 32 \({file}\) has no effect with"):
        parse("--config", file)
    assert parse("--config", file, "--model", "residual").model == "residual"
    assert parse("--config", file, "--model", "dense").patch_features == 32


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
    assert (config.model, config.patch_features, config.steps) == ("mixed", 32, 0)
    assert config.max_seconds > 0
    dcgan = parse("--dataset", tmp_path, "--model", "dcgan")
    assert (dcgan.critic_norm, dcgan.max_seconds) == ("layer", config.max_seconds)


def test_on_cuda_a_recipe_may_have_other_values(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    on_cuda = resolved("--dataset", tmp_path)
    on_cpu = resolved("--dataset", tmp_path, "--device", "cpu")
    assert on_cuda.sources["width"] == "configs/images.toml [cuda]"
    assert on_cpu.sources["width"] == on_cuda.sources["gp_weight"] == "configs/images.toml"
    assert (on_cpu.config.model, on_cuda.config.model) == ("mixed", "dcgan")
    assert resolved("--config", "images", "--dataset", tmp_path).config == replace(
        on_cuda.config, run=f"images/images-{tmp_path.name}"
    )
    dcgan = parse("--dataset", tmp_path, "--model", "dcgan")
    assert dcgan == on_cuda.config
    assert parse("--dataset", tmp_path, "--width", "7").width == 7


def test_with_classes_a_recipe_may_have_other_values(tmp_path):
    def updates(*options):
        return parse("--dataset", "mnist", *options).n_critic

    assert updates() == updates("--conditional", "--n-critic", 1) == 1
    assert updates("--conditional") == updates("--conditional", "--config", "images") == 2
    file = tmp_path / "own.toml"
    file.write_text("n_critic = 1\n[conditional]\nn_critic = 3\n")
    assert (updates("--config", file), updates("--config", file, "--conditional")) == (1, 3)


@pytest.mark.parametrize("recipe", ["images", "arjovsky-2017", "points-wgan-gp"])
def test_a_recipe_for_several_data_sets_needs_one(recipe):
    with pytest.raises(ValueError, match=f"{recipe} names no data set: add --dataset"):
        parse("--config", recipe)
    assert parse("--config", recipe, "--dataset", "ring", "--model", "dense").dataset == "ring"
    assert parse("--config", "glyphs").dataset == "glyphs"


@pytest.mark.parametrize("paper", ["arjovsky-2017", "gulrajani-2017", "wu-2018"])
def test_nothing_is_mixed_into_a_papers_recipe(paper):
    alone = parse("--config", paper, "--dataset", "swissroll-images", "--run", "x")
    for dataset in ("fashion-mnist", "glyphs"):
        config = parse("--config", paper, "--dataset", dataset, "--run", "x")
        assert config == replace(alone, dataset=dataset)


def test_the_source_of_each_value_is_known(tmp_path):
    (tmp_path / "a.toml").write_text('dataset = "celeba"\nema = 0.5\n')
    sources = resolved("--config", tmp_path / "a.toml", "--seed", "3").sources
    assert sources["seed"] == "command line"
    assert sources["ema"] == str(tmp_path / "a.toml")
    assert sources["flip"] == "dataset celeba"
    assert sources["betas"] == "method wgan-gp"
    assert sources["log_every"] == "default"
    assert resolved().sources["width"] == resolved().recipe == "configs/glyphs.toml"


def test_every_recipe_of_a_data_set_exists_and_does_not_name_another_one():
    for name, entry in DATASETS.items():
        for recipe in entry.recipes:
            values = read_recipe(RECIPES / f"{recipe}.toml").values
            assert values.get("dataset", name) == name


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
    file.write_text('dataset = "mnist"\nepochs = 3\n')
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
    for config in (limited, both):
        assert config_of({"config": config.applicable()}).applicable() == config.applicable()
    with pytest.raises(ValueError, match="max_seconds = 3: must be 0, or at least 10"):
        parse("--max-seconds", "3")


def test_the_run_is_named_after_data_and_method(tmp_path):
    assert parse().run == "images/glyphs-wgan-gp"
    assert parse("--dataset", "ring", "--method", "wgan").run == "images/ring-wgan"
    assert parse("--dataset", f"{tmp_path}/my faces/").run == "images/my faces-wgan-gp"


def test_with_a_file_the_run_is_named_after_it_and_what_flags_change(tmp_path):
    (tmp_path / "a.toml").write_text('dataset = "mnist"\nrun = "b"\n')
    (tmp_path / "c.toml").write_text("seed = 1\n")
    assert parse("--config", tmp_path / "a.toml").run == "b"
    for arguments, run in (
        (["grid-best"], "grid-best"),
        (["configs/grid-best.toml", "--seed", "1"], "grid-best"),
        (["grid-best", "--run", "other"], "other"),
        (["grid-best", "--method", "wgan-gp"], "grid-best-wgan-gp"),
        (["images", "--dataset", "lsun", "--width", "9"], "images-lsun"),
        ([tmp_path / "c.toml", "--dataset", "lsun", "--method", "wgan"], "c-lsun-wgan"),
        (["points-wgan", "--dataset", "ring"], "points-wgan-ring"),
        (["images", "--dataset", f"{tmp_path}/faces/"], "images-faces"),
    ):
        expected = run if run == "other" else f"images/{run}"
        assert parse("--config", *arguments).run == expected
