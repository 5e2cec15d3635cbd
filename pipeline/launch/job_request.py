"""What is typed for a job that trains, be it one run or a search: what to begin from, shards, runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from pipeline.config import Config, require
from pipeline.launch.command_line import parse_with_settings
from pipeline.launch.paths import resolve_path, resolve_runs, resolve_settings
from pipeline.launch.preflight import check_addresses, check_model_name
from pipeline.launch.run_folder import recorded_config
from pipeline.recipes import recipe
from pipeline.settings import with_settings

MODEL_NAME = "tracking.registered_model"


class JobFlags(Protocol):
    """The flags that such jobs share."""

    @property
    def shards(self) -> str:
        """Folder or address of the packed data set."""
        ...

    @property
    def recipe(self) -> str | None:
        """Name of the settings to begin from."""
        ...

    @property
    def config(self) -> str | None:
        """Path of recorded settings to begin from."""
        ...

    @property
    def runs(self) -> str:
        """Folder or address of all runs."""
        ...

    @property
    def register(self) -> str | None:
        """Name to register a model under, instead of the config's."""
        ...


FlagsT = TypeVar("FlagsT", bound=JobFlags)


@dataclass(frozen=True)
class JobRequest(Generic[FlagsT]):
    """What was typed, resolved."""

    flags: FlagsT
    config: Config
    """With the typed settings, the typed model's name and absolute paths."""
    shards: str
    """Absolute path, or address."""
    runs: str
    """Address at which the runs are kept; "" where `runs_dir` is their place."""
    runs_dir: Path


def read_job_request(flags_type: type[FlagsT], argv: Sequence[str]) -> JobRequest[FlagsT]:
    """The request that was typed; raises ConfigError, one line."""
    flags, config = parse_with_settings(flags_type, argv, _base_config)
    if flags.register is not None:
        config = with_settings(config, {MODEL_NAME: flags.register})
    check_model_name(config.tracking.registered_model)
    shards, config = resolve_path("--shards", flags.shards), resolve_settings(config)
    check_addresses(shards, flags.runs, config.data.unindexed_train)
    return JobRequest(flags, config, shards, *resolve_runs(flags.runs, config))


def _base_config(flags: JobFlags) -> Config:
    if flags.config is None:
        return recipe(flags.recipe or "laptop")
    require(flags.recipe is None, "--recipe and --config both say what to begin from; leave out one of them")
    return recorded_config(Path(resolve_path("--config", flags.config)))
