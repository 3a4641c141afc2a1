"""Options: where a value comes from, what is refused, what is written back."""

import tomllib

import pytest
from conftest import ROOT

from utils import METHODS
from wgan.config import (
    FIELDS,
    SHORTHANDS,
    Parser,
    add_options,
    changes,
    parse_command_line,
    resolve,
    restore,
)
from wgan.data.table import DATASETS
from wgan_gp import MODELS


def parse(*arguments):
    parser = Parser(allow_abbrev=False)
    add_options(parser)
    return parse_command_line(parser, [str(argument) for argument in arguments])[0]


def test_a_flag_beats_the_file_which_beats_the_methods_settings(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('method = "wgan"\nlr = 1e-3\nclip = 0.5\n')
    config = parse("--config", file, "--clip", "0.25", "--lr-generator", "2e-3")
    assert config.method == "wgan"
    assert config.clip == 0.25
    assert (config.lr_critic, config.lr_generator) == (1e-3, 2e-3)
    assert config.optimizer == "rmsprop"
    assert parse("--config", file, "--lr", "5e-3").lr_critic == 5e-3


def test_methods_models_and_data_sets_bring_their_settings():
    # Gulrajani et al. 2017, algorithm 1; Arjovsky et al. 2017, algorithm 1.
    config = parse("--dataset", "mnist")
    assert (config.lr_critic, config.betas, config.n_critic) == (1e-4, (0.0, 0.9), 5)
    assert (config.gp_weight, config.optimizer, config.batch_size) == (10.0, "adam", 64)
    config = parse("--dataset", "mnist", "--method", "wgan")
    assert (config.lr_critic, config.clip, config.optimizer) == (5e-5, 0.01, "rmsprop")
    assert config.critic_norm == "batch"
    assert parse("--method", "wgan", "--model", "dense").critic_norm == "none"
    config = parse("--dataset", "grid")
    assert (config.model, config.width, config.gp_weight) == ("dense", 512, 0.1)
    assert parse("--dataset", "grid", "--method", "wgan-div").betas == (0.0, 0.9)


def test_settings_of_a_data_set_are_for_the_model_they_were_made_with():
    convolutions, dense = parse(), parse("--model", "dense")
    assert (convolutions.width, convolutions.critic_norm) == (32, "layer")
    assert (dense.width, dense.critic_norm, dense.lr_critic) == (512, "none", 1e-4)


def test_the_run_is_named_after_data_and_method(tmp_path):
    assert parse().run == "images/glyphs-wgan-gp"
    assert parse("--dataset", "ring", "--method", "wgan").run == "images/ring-wgan"
    assert parse("--dataset", f"{tmp_path}/my faces/").run == "images/my faces-wgan-gp"


def test_epochs_take_the_place_of_steps_and_back(tmp_path):
    assert (parse("--epochs", "3").steps, parse("--epochs", "3").epochs) == (0, 3.0)
    file = tmp_path / "a.toml"
    file.write_text("epochs = 3\n")
    assert parse("--config", file, "--steps", "7").epochs == 0
    for bad, message in (
        (["--epochs", "3", "--steps", "7"], "either steps or epochs"),
        (["--steps", "0"], "must be greater than 0"),
    ):
        with pytest.raises(ValueError, match=message):
            parse(*bad)


@pytest.mark.parametrize("run", ["x", 'quote " \\ tab \t newline \n', "üñí 画像 🖼", "\x7f\x01"])
def test_what_is_written_reads_back_the_same(run, tmp_path):
    config = parse("--betas", "0.25", "0.5", "--flip", "--lr", "1e-7", "--seed", 2**63 + 1)
    config = resolve(vars(config) | {"run": run}, {})
    (tmp_path / "c.toml").write_text(config.to_toml(), encoding="utf-8")
    assert resolve(tomllib.loads(config.to_toml()), {}) == config
    assert parse("--config", tmp_path / "c.toml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("n_critics = 5", "unknown option 'n_critics'; did you mean 'n_critic'?"),
        ('steps = "100"', "steps = '100': must be a whole number"),
        ("steps = 1.5", "must be a whole number"),
        ("steps = true", "must be a whole number"),
        ("image_size = -64", "image_size = '-64': image size '-64' is neither a side"),
        ("image_size = 64.5", "must be text"),
        ("steps = -1", "must be at least 0"),
        ("lr = inf", "must be a finite number"),
        ("lr = nan", "must be a finite number"),
        ("lr = []", "must be a finite number"),
        ("betas = 0.5", "must be two finite numbers"),
        ("betas = [0.5]", "must be two finite numbers"),
        ("betas = [0.5, 1.0]", "at least 0 and below 1"),
        ("flip = 1", "must be true or false"),
        ('method = "gan"', "must be one of wgan, wgan-gp, wgan-div"),
        ("method = 3", "must be text"),
        ('model = "densse"', "did you mean 'dense'?"),
        ("ema = 1.0", "below 1"),
        ("div_p = 1.0", "greater than 1"),
        ("batch_size = 0", "at least 1"),
        ("[table]", "unknown option 'table'"),
        ("no toml", "cannot be read"),
    ],
)
def test_a_files_bad_values_are_refused_by_name(text, message, tmp_path):
    (tmp_path / "bad.toml").write_text(text + "\n")
    with pytest.raises(ValueError) as error:
        parse("--config", tmp_path / "bad.toml")
    assert message in str(error.value)


def test_flags_take_numbers_in_every_usual_form():
    config = parse("--steps", "1e3", "--lr", ".001", "--batch-size", "8")
    assert (config.steps, config.lr_critic, config.batch_size) == (1000, 0.001, 8)
    assert type(config.steps) is int


def test_a_square_image_size_may_be_a_number(tmp_path):
    (tmp_path / "a.toml").write_text("image_size = 64\n")
    assert parse("--config", tmp_path / "a.toml").image_size == "64"


def test_a_missing_file_names_the_nearest(monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=r"did you mean 'configs/grid-wgan-gp\.toml'"):
        parse("--config", "configs/grid-wgan-pg.toml")


def test_help_shows_every_option_with_its_default_and_every_name():
    parser = Parser()
    add_options(parser)
    text = " ".join(parser.format_help().split())
    for name in FIELDS:
        assert "--" + name.replace("_", "-") in text
    assert text.count("(default: ") == len(FIELDS)
    words = set(text.replace(",", " ").replace(":", " ").split())
    assert words >= {*METHODS, *MODELS, *DATASETS}
    for name in SHORTHANDS:
        assert f"--{name} " in text


def test_only_options_that_alter_the_result_count_as_changes():
    old = vars(parse("--dataset", "mnist"))
    harmless = ("--steps", "9", "--log-every", "7", "--device", "cpu", "--run", "x")
    assert changes(old, parse("--dataset", "mnist", *harmless)) == []
    assert changes(old, parse("--dataset", "mnist", "--seed", "5")) == ["seed was 0 and is 5"]
    older = {name: value for name, value in old.items() if name != "flip"}
    assert changes(older, parse("--dataset", "mnist")) == []
    assert changes(older, parse("--dataset", "mnist", "--flip")) == ["flip was False and is True"]
    decayed = vars(parse("--lr-decay", "--steps", "5"))
    assert changes(decayed, parse("--lr-decay", "--steps", "9")) == ["steps was 5 and is 9"]


CONFIGS = sorted((ROOT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_recipe_is_valid(path):
    config = parse("--config", path)
    assert config.steps or config.epochs or config.max_seconds


@pytest.mark.parametrize("option", ["--pyramid", "--patch-features"])
def test_an_option_of_other_networks_is_refused(option):
    name = option[2:].replace("-", "_")
    with pytest.raises(ValueError, match=f"{name} = 2 does nothing with model 'dcgan'"):
        parse("--model", "dcgan", option, "2")
    assert getattr(parse("--model", "dense", option, "2"), name) == 2


def test_the_recipes_cover_the_methods_and_models():
    recipes = [parse("--config", path) for path in CONFIGS]
    for dataset, model in (("fashion-mnist", "dcgan"), ("grid", "dense")):
        methods = {r.method for r in recipes if (r.dataset, r.model) == (dataset, model)}
        assert methods == set(METHODS)


def test_a_limit_in_time_takes_the_place_of_a_default_number_of_steps_but_not_of_a_given_one():
    limited = parse("--max-seconds", "60")
    assert (limited.steps, limited.epochs, limited.max_seconds) == (0, 0, 60)
    both = parse("--max-seconds", "60", "--steps", "7")
    assert (both.steps, both.max_seconds) == (7, 60)
    assert resolve(vars(limited), {}) == limited
    assert resolve(vars(both), {}) == both
    with pytest.raises(ValueError, match="max_seconds = 3: must be 0, or at least 10"):
        parse("--max-seconds", "3")


def test_a_stored_run_keeps_the_defaults_of_options_that_were_added_since():
    stored = vars(resolve({}, {}))
    del stored["categories"]
    assert resolve(stored, {}).categories == DATASETS["glyphs"].settings["categories"] > 0
    assert restore(stored).categories == 0
    assert vars(restore(stored)) == {**stored, "categories": 0}


def test_there_are_no_more_categories_than_numbers_of_noise():
    with pytest.raises(ValueError, match="categories = 9: there are only 8 numbers of noise"):
        resolve({"categories": 9, "noise_dim": 8}, {})
    assert resolve({"noise_dim": 8}, {}).categories == 0  # the data set's 20 give way
    assert resolve({"noise_dim": 20}, {}).categories == 20
