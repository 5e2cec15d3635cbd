"""What `--extend` lets through, what it refuses, and which rates the steps of an extended run have."""

from pathlib import Path

import pytest

from pipeline.config import Config, OptimConfig
from pipeline.errors import ConfigError, PipelineError, WorldStateError
from pipeline.launch.extension import with_extension
from pipeline.launch.run_folder import identity, refuse_other_run, write_json
from pipeline.settings import from_dict, to_dict, with_settings
from pipeline.train.optim import learning_rate


def config(steps: int, **settings: object) -> Config:
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return with_settings(Config(), {"train.steps": steps} | named)


def record(run_dir: Path, held: Config, done: int | None) -> None:
    """A run that was recorded with that config, and finished with so many steps."""
    run_dir.mkdir(exist_ok=True)
    write_json(run_dir / "config.json", identity(held, {"manifest_id": "m"}))
    if done is not None:
        write_json(run_dir / "result.json", {"step": done})


def goes_on(run_dir: Path, typed: Config, *, extend: bool) -> Config:
    """The config that a job of these words trains by, after all refusals."""
    wanted, before = with_extension(typed, run_dir, extend=extend)
    refuse_other_run(run_dir, identity(before, {"manifest_id": "m"}))
    write_json(run_dir / "config.json", identity(wanted, {"manifest_id": "m"}))
    return wanted


def test_finished_run_goes_on_with_more_steps_again_and_again(tmp_path: Path) -> None:
    run_dir = tmp_path / "x"
    record(run_dir, config(20), done=20)
    assert goes_on(run_dir, config(40), extend=True) == config(40, train__extended_at="20")
    for extend in (True, False):  # stopped and typed again, by either words
        assert goes_on(run_dir, config(40), extend=extend) == config(40, train__extended_at="20")
    write_json(run_dir / "result.json", {"step": 40})
    assert goes_on(run_dir, config(60), extend=True) == config(60, train__extended_at="20+40")
    with_launch = config(60, launch__max_failures=9)
    assert goes_on(run_dir, with_launch, extend=False).train.extended_at == "20+40"


def test_run_that_is_there_needs_no_extension_to_be_repeated(tmp_path: Path) -> None:
    assert goes_on_fresh(tmp_path) == config(20)
    record(tmp_path / "x", config(20), done=20)
    assert goes_on(tmp_path / "x", config(20), extend=True) == config(20)
    assert goes_on(tmp_path / "x", config(20), extend=False) == config(20)


def goes_on_fresh(folder: Path) -> Config:
    return with_extension(config(20), folder / "none", extend=False)[0]


@pytest.mark.parametrize(
    ("held", "done", "typed", "extend", "error", "words"),
    [
        (None, None, config(40), True, ConfigError, "there is none at "),
        (config(20), None, config(40), True, WorldStateError, "has not done its 20 steps yet: finish it"),
        (config(40, train__extended_at="20"), 20, config(60), True, WorldStateError, "not done its 40 steps"),
        (config(20), 20, config(10), True, WorldStateError, "has 20 steps: type a --train.steps above"),
        (config(20), 20, config(40), False, WorldStateError, "add --extend to go on to 40"),
        (config(20), 20, config(10), False, WorldStateError, "--train.steps 20, now 10"),
        (config(20), None, config(40), False, WorldStateError, "--train.steps 20, now 40"),
        (config(20), 20, config(40, optim__lr=0.5), True, WorldStateError, "--optim.lr 0.01, now 0.5"),
        (config(20), 20, config(20, optim__lr=0.5), True, WorldStateError, "--optim.lr 0.01, now 0.5"),
        (config(20), 20, config(40, train__batch_global=4), True, WorldStateError, "--train.batch_global 16"),
        (config(20), 20, config(20, train__extended_at="9"), True, WorldStateError, "--train.extended_at "),
    ],
)
def test_what_is_no_extension_is_refused_with_one_line(
    tmp_path: Path, held: Config | None, done, typed: Config, extend: bool, error: type[PipelineError], words
) -> None:
    if held is not None:
        record(tmp_path / "x", held, done)
    with pytest.raises(error) as refused:
        goes_on(tmp_path / "x", typed, extend=extend)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
    assert "--train.steps 40" not in str(refused.value).partition(words)[0], (
        "only what may not differ is named"
    )


@pytest.mark.parametrize("text", ["0", "40", "50", "20+10", "20+20", "x", "20+", "+", "-3", "20,30"])
def test_ends_that_do_not_rise_to_the_number_of_steps_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"train\.extended_at takes rising numbers"):
        config(40, train__extended_at=text)


def test_each_step_keeps_the_rate_of_the_schedule_that_it_was_taken_by() -> None:
    optim = OptimConfig(lr=0.1, min_lr=0.0, poly_power=1.0)
    train = config(40, train__extended_at="10+20").train
    rates = [learning_rate(optim, step, train.schedule_steps(step)) for step in range(40)]
    by_hand = [0.1 * (1 - s / (10 if s < 10 else 20 if s < 20 else 40)) for s in range(40)]
    assert rates == pytest.approx(by_hand)
    assert rates[10] > 4 * rates[9], "it jumps up where the run had ended"


def test_recorded_config_of_an_extended_run_repeats_it() -> None:
    extended = config(40, train__extended_at="10+20")
    assert from_dict(to_dict(extended)) == extended
