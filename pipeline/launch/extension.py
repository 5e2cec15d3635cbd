"""A finished run that goes on with more steps: what `--extend` may change, and what it may not.

`train.steps` alone may change, and only grow. Where the run was to end before is recorded in
`train.extended_at`, from which the schedule of learning rates follows; so the recorded config still
says all that decides the run's numbers, and `--config` repeats an extended run bit for bit.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pipeline.config import Config
from pipeline.errors import ConfigError, WorldStateError
from pipeline.launch.run_folder import finished_result, recorded_config
from pipeline.settings import with_settings

STEPS, EXTENDED_AT = "train.steps", "train.extended_at"


def with_extension(
    config: Config, run_dir: Path, *, extend: bool, to_extend: str = "add --extend"
) -> tuple[Config, Config]:
    """The config to train by, and the one that the run must have recorded: they differ as it is extended.

    A run that was extended already is gone on with, or repeated, by its new number of steps, with
    `--extend` or without. `to_extend` is what to type where it is missing. Raises ConfigError where there
    is no run to extend, WorldStateError where it is not finished, or has as many steps.
    """
    recorded = _recorded(run_dir)
    if recorded is None:
        if extend:
            raise ConfigError(
                f"--extend goes on with a finished run, and there is none at {run_dir}; type its --name and "
                "--runs, or leave out --extend"
            )
        return config, config
    held, wanted = recorded.train.steps, config.train.steps
    if wanted == held:
        known = config.train.extended_at or recorded.train.extended_at
        return (same := with_settings(config, {EXTENDED_AT: known})), same
    finished = finished_result(run_dir, held) is not None
    if not extend:
        if finished and wanted > held:
            raise WorldStateError(
                f"run {run_dir.name} was finished with {held} steps: {to_extend} to go on to {wanted}, "
                f"--train.steps {held} to see what it gave, or choose another --name"
            )
        return config, config  # refused, with all that differs
    if wanted < held:
        raise WorldStateError(f"run {run_dir.name} has {held} steps: type a --train.steps above that")
    if not finished:
        raise WorldStateError(
            f"run {run_dir.name} has not done its {held} steps yet: finish it with --train.steps {held} and "
            "without --extend, then extend it"
        )
    before = with_settings(config, {STEPS: held, EXTENDED_AT: recorded.train.extended_at})
    ends = "+".join(str(end) for end in (*recorded.train.earlier_ends(), held))
    return with_settings(config, {EXTENDED_AT: ends}), before


def _recorded(run_dir: Path) -> Config | None:
    """What config.json has; None without one, and for one that cannot be read, which is told elsewhere."""
    if (run_dir / "config.json").exists():
        with suppress(ConfigError):
            return recorded_config(run_dir / "config.json")
    return None
