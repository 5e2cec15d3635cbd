"""One rank of an attempt: the shipped program, with seams to be killed at and notes of what it does."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.chaos import notes
from tests.chaos.kill import Kill
from tests.chaos.points import Strike, strike_from_dict
from tests.chaos.seams_of_data import DataSeams
from tests.chaos.seams_of_ray import RaySeams
from tests.chaos.seams_of_saves import SaveSeams
from tests.chaos.seams_of_steps import StepSeams


@dataclass(frozen=True)
class Orders:
    """What happens to the ranks of a run."""

    folder: Path
    """Of the point: notes, log and strikes go there."""
    strikes: tuple[Strike | None, ...]
    """By attempt."""
    planted: str = ""
    """A bug of planted.py; none by default."""
    remote: bool = False
    """Whether the run is kept in an object store."""
    loader_workers: int = 0
    """Processes that read for each rank."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        strikes = [strike and asdict(strike) for strike in self.strikes]
        return vars(self) | {"folder": str(self.folder), "strikes": strikes}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> Orders:
        """What `to_dict` gave."""
        strikes = tuple(strike and strike_from_dict(strike) for strike in values["strikes"])
        return Orders(**values | {"folder": Path(values["folder"]), "strikes": strikes})


def prepare(orders: Orders) -> None:
    """Make this process one that notes what it does and dies as it was told."""
    if orders.planted:
        from tests.chaos.planted import BUGS

        BUGS[orders.planted]()
    notes.install(orders.folder / "notes")
    kill = Kill(orders.strikes, orders.folder)
    DataSeams(kill, pooled=orders.loader_workers > 0).install()
    StepSeams(kill).install()
    SaveSeams(kill).install()
    RaySeams(kill, orders.folder).install()
    if orders.remote:
        from tests.chaos.seams_of_uploads import UploadSeams  # which imports boto3

        UploadSeams(kill).install()
