"""Options: where a value comes from, what is refused, what is stored."""

import tomllib
from pathlib import Path

import pytest
from helpers import parse

from utils import METHODS
from wgan.checkpoints import config_of
from wgan.config import FIELDS, keyword_parameters, without_effect
from wgan.recipes import resolve
from wgan_gp import MODELS

# ---------------------------------------------------------------- options without effect


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--optimizer", "rmsprop", "--betas", "0", "0.9"], "optimizer rmsprop"),
        (["--dataset", "ring", "--image-size", "64"], "dataset ring"),
        (["--dataset", "grid", "--grey"], "dataset grid"),
        (["--dataset", "grid", "--range", "0", "1"], "dataset grid"),
        (["--dataset", "mnist", "--range", "0", "1"], "dataset mnist"),
        (["--dataset", "swissroll", "--flip"], "dataset swissroll"),
        (["--dataset", "ring", "--augment", "cutout"], "dataset ring"),
        (["--dataset", "ring", "--coarse", "0.5"], "dataset ring"),
        (["--model", "dense", "--upsampling", "nearest"], "model dense"),
        (["--model", "residual", "--patch-features", "2"], "model residual"),
        (["--model", "dense", "--texture-features", "4"], "patch_features 0"),
        (["--method", "wgan", "--gp-weight", "3"], "method wgan"),
        (["--method", "wgan-gp", "--clip", "0.5"], "method wgan-gp"),
        (["--method", "wgan-gp", "--div-p", "6"], "method wgan-gp"),
    ],
)
def test_a_given_option_without_effect_is_refused(arguments, reason):
    option = next(name for name in without_effect_names(arguments))
    with pytest.raises(ValueError, match=f"^{option} = .* has no effect with {reason}: remove it"):
        parse(*arguments)


def test_only_a_critic_that_is_bounded_otherwise_may_be_without_clipping():
    assert parse("--method", "wgan", "--clip", "0", "--critic-norm", "spectral").clip == 0
    with pytest.raises(ValueError, match="clip = 0 leaves the critic unbounded"):
        parse("--method", "wgan", "--clip", "0")


def without_effect_names(arguments):
    """The option at issue: the one that is neither a method, a model, ... nor a value."""
    others = ("dataset", "method", "model", "optimizer", "generator_norm")
    names = [a[2:].replace("-", "_") for a in arguments if a.startswith("--")]
    return [name for name in names if name not in others]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_what_applies_is_what_is_stored_and_can_be_given_again(method, model, tmp_path):
    config = parse("--method", method, "--model", model)
    stored = tomllib.loads(config.to_toml())
    assert stored.keys() == FIELDS.keys() - without_effect(config).keys()
    assert config_of({"config": stored}).applicable() == config.applicable()
    (tmp_path / "a.toml").write_text(config.to_toml())
    assert parse("--config", tmp_path / "a.toml").applicable() == config.applicable()


def test_the_stored_options_of_points_can_be_given_again(tmp_path):
    config = parse("--dataset", "ring")
    (tmp_path / "a.toml").write_text(config.to_toml())  # has the options of images, too
    assert parse("--config", tmp_path / "a.toml") == config


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_of_networks_are_options(name):
    for network in (MODELS[name].generator, MODELS[name].critic):
        assert set(keyword_parameters(network)) <= FIELDS.keys()


def test_a_network_parameter_that_is_no_option_is_an_error():
    class Network:
        def __init__(self, sample_shape, widht=3):
            pass

    with pytest.raises(TypeError, match="widht"):
        keyword_parameters(Network)


# ---------------------------------------------------------------- values and files


@pytest.mark.parametrize("run", ["x", 'quote " \\ tab \t newline \n', "üñí 画像 🖼", "\x7f\x01"])
def test_what_is_written_reads_back_the_same(run, tmp_path):
    flags = {"betas": [0.25, 0.5], "flip": True, "lr": 1e-7, "seed": 2**63 + 1, "run": run}
    config = resolve(flags).config
    (tmp_path / "c.toml").write_text(config.to_toml(), encoding="utf-8")
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
        ("epochs = 1e308", "epochs = 1e+308: must be at least 0 and at most 1e+09"),
        ("lr = inf", "must be a finite number"),
        ("lr = nan", "must be a finite number"),
        ("lr = []", "must be a finite number"),
        ("betas = 0.5", "must be two finite numbers"),
        ("betas = [0.5]", "must be two finite numbers"),
        ("betas = [0.5, 1.0]", "at least 0 and below 1"),
        ("flip = 1", "must be true or false"),
        ("range = [5, 5]", "range = (5.0, 5.0): must be LOW below HIGH, or 0 0"),
        ("range = [2, -1]", "must be LOW below HIGH"),
        ("range = [0, inf]", "must be two finite numbers"),
        ('method = "gan"', f"must be one of {', '.join(METHODS)}"),
        ("method = 3", "must be text"),
        ('model = "densse"', "did you mean 'dense'?"),
        ("ema = 1.0", "below 1"),
        ("div_p = 1.0", "greater than 1"),
        ('augment = "cutouts"', "must be none, or some of color,translation,cutout"),
        ('augment = "color,color"', "must name each of them once"),
        ("batch_size = 0", "at least 1"),
        ("[table]", "unknown option 'table'"),
        ("[cuda]\nwidht = 3", "unknown option 'widht'; did you mean 'width'?"),
        ("no toml", "cannot read the configuration file"),
        (f"seed = {'[' * 9999}", "cannot read the configuration file"),
        (f"seed = {'{a = ' * 9999}", "it must be TOML"),
        ("categories = 9\nnoise_dim = 8", "categories (9) must not exceed noise_dim (8)"),
    ],
)
def test_a_files_bad_values_are_refused_by_name(text, message, tmp_path):
    (tmp_path / "bad.toml").write_text(text + "\n")
    with pytest.raises(ValueError) as error:
        parse("--config", tmp_path / "bad.toml", "--dataset", "mnist")
    assert message in str(error.value)


def test_a_square_image_size_may_be_a_number(tmp_path):
    (tmp_path / "a.toml").write_text("image_size = 64\n")
    assert parse("--config", tmp_path / "a.toml", "--dataset", "mnist").image_size == "64"


def test_a_recipe_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("configs/grid-best.toml", "configs/grid-best", "grid-best.toml", "grid-best"):
        assert parse("--config", name).dataset == "grid"
    (tmp_path / "grid-best").mkdir()  # such as a folder of images
    assert parse("--config", "grid-best").dataset == "grid"
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "grid-best.toml").write_text('dataset = "ring"')
    assert parse("--config", "configs/grid-best.toml").dataset == "ring"  # the user's own first


def test_a_missing_file_names_the_nearest_recipe():
    with pytest.raises(ValueError, match=r"did you mean 'points-wgan-gp'"):
        parse("--config", "configs/points-wgan-pg.toml")


def test_only_a_close_name_is_suggested():
    for name in ("missing.toml", "configs/celebrities.toml", "notes/readme.md"):
        with pytest.raises(ValueError, match="no configuration file") as error:
            parse("--config", name)
        assert "did you mean" not in str(error.value)


def test_a_file_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.toml").write_text("seed = 3\n", encoding="utf-8-sig")
    assert parse("--config", tmp_path / "a.toml", "--dataset", "mnist").seed == 3


def test_a_file_that_is_not_toml_is_called_that(tmp_path):
    for content in (b"# Title\n\nSome text", b"\xff\xfe\x00"):
        (tmp_path / "a.md").write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.md': it must be TOML"):
            parse("--config", tmp_path / "a.md")


def test_the_home_folder_in_every_path(tmp_path, monkeypatch):
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(tmp_path))
    names = ("dataset", "data_root", "run", "init_from")
    file = tmp_path / "a.toml"
    file.write_text("".join(f'{name} = "~/{name}"\n' for name in names))
    flags = [part for name in names for part in (f"--{name.replace('_', '-')}", f"~/{name}")]
    for config in (parse("--config", "~/a.toml"), parse(*flags)):
        for name in names:
            assert Path(getattr(config, name)) == tmp_path / name


@pytest.mark.parametrize("name", ["dataset", "run", "data_root", "init_from"])
@pytest.mark.parametrize("value", ["a\udcff", "a\0b"])
def test_names_that_no_file_can_store_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name} = .*: must be text in valid UTF-8 without NUL"):
        resolve({name: value})
