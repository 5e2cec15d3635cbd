import json
from dataclasses import dataclass

import pytest

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.launch.command_line import parse_flags, parse_with_settings
from pipeline.launch.setting_flags import field_docstrings, settings_help, split_settings
from pipeline.launch.train_job import train
from pipeline.recipes import RECIPES, recipe
from pipeline.settings import flatten


@dataclass(frozen=True)
class Flags:
    """Does something."""

    shards: str
    """Folder of shards."""
    recipe: str = "laptop"
    """Settings to begin from."""
    workers: int | None = None
    """Ranks."""
    preflight_only: bool = False
    """Check, then end."""


def parse(*argv: str) -> tuple[Flags, Config]:
    return parse_with_settings(Flags, argv, lambda flags: recipe(flags.recipe))


def test_flags_and_settings_may_be_mixed_in_any_order_and_both_spellings() -> None:
    flags, config = parse(
        "--train.steps", "7", "--shards=a b", "--optim.lr=0.5", "--preflight-only", "--workers", "2",
        "--model.head.lambda-inter", "0.25", "--recipe", "camvid",
    )  # fmt: skip
    assert flags == Flags("a b", "camvid", 2, True)
    assert (config.train.steps, config.optim.lr, config.model.head.lambda_inter) == (7, 0.5, 0.25)
    untouched = {
        name for name in flatten(config) if flatten(config)[name] != flatten(RECIPES["camvid"]())[name]
    }
    assert untouched == {"train.steps", "optim.lr", "model.head.lambda_inter"}


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), ["--shards"]),
        (("--shards",), ["--shards"]),
        (("--shards", "a", "--worker", "2"), ["--worker", "did you mean --workers?"]),
        (("--shards", "a", "--workers", "two"), ["--workers", "'two'"]),
        (("--shards", "a", "--recipe", "camvit"), ["camvit", "did you mean camvid?"]),
        (("--shards", "a", "--train.step", "2"), ["train.step", "did you mean train.steps?"]),
        (("--shards", "a", "--train.steps", "many"), ["--train.steps", "int", "'many'"]),
        (("--shards", "a", "--train.steps", "0"), ["train.steps", "at least 1", "0"]),
        (("--shards", "a", "--train.steps"), ["--train.steps", "takes a value"]),
        (("--shards", "a", "--train.steps", "--workers", "2"), ["--train.steps", "takes a value"]),
        (("--shards", "a", "--train.steps", "2", "--train.steps=3"), ["typed twice"]),
        (("--shards", "a", "--recipe", "laptop", "--recipe=camvid"), ["--recipe", "typed twice"]),
        (("--shards", "a", "--preflight-only", "--preflight_only"), ["--preflight-only", "typed twice"]),
        (("--shards", "a", "--steps", "2"), ["--steps", "did you mean --train.steps?"]),
        (("--shards", "a", "stray"), ["stray"]),
        (
            ("--shards", "a", "--model.head.kind", "plain", "--model.head.tau", "9"),
            ["model.head.tau", "plain"],
        ),
    ],
)
def test_what_is_typed_wrong_is_one_line_that_names_it(argv: tuple[str, ...], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        parse(*argv)
    message = str(error.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("typed", "chosen"),
    [
        ((), "laptop"),
        (("--recipe", "cityscapes-r101"), "cityscapes-r101"),
        (("--recipe", "cityscapes-r101", "--shards", "a"), "cityscapes-r101"),
        (("--shards",), "laptop"),
    ],
)
def test_help_shows_every_flag_and_every_setting_with_the_recipes_value(
    capsys: pytest.CaptureFixture[str], typed: tuple[str, ...], chosen: str
) -> None:
    with pytest.raises(SystemExit) as end:
        parse("--help", *typed)
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "--preflight-only" in text
    for name, value in flatten(RECIPES[chosen]()).items():
        assert f"--{name} {value}\n" in text


def test_help_of_the_train_job_alone_shows_the_default_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train({}, ["--help"])
    assert f"--train.batch_global {RECIPES['laptop']().train.batch_global}\n" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--bogus", "--x", "--steady"])
def test_a_flag_that_resembles_none_gets_no_hint(flag: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse("--shards", "a", flag)
    assert flag in str(error.value)
    assert "did you mean" not in str(error.value)


def test_every_setting_has_a_docstring_that_help_shows() -> None:
    text = " ".join(settings_help(Config()).split())
    for name in flatten(Config()):
        owner: object = Config()
        for section in name.split(".")[:-1]:
            owner = getattr(owner, section)
        docstring = field_docstrings(type(owner))[name.rpartition(".")[2]]
        assert docstring
        assert docstring in text


def test_jobs_without_settings_refuse_them() -> None:
    assert parse_flags(Flags, ["--shards", "x"]) == Flags("x")
    with pytest.raises(ConfigError, match=r"--train\.steps"):
        parse_flags(Flags, ["--shards", "x", "--train.steps", "3"])


def test_jobs_without_settings_refuse_a_flag_typed_twice() -> None:
    with pytest.raises(ConfigError, match="--shards was typed twice"):
        parse_flags(Flags, ["--shards", "x", "--shards=y"])


def test_negative_values_are_values() -> None:
    rest, settings = split_settings(["--model.head.delta", "-0.5", "--shards", "a"])
    assert (rest, settings) == (["--shards", "a"], {"model.head.delta": "-0.5"})
    assert json.dumps(settings)
