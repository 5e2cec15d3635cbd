"""Draw the mini data set in Cityscapes' layout: `python jobs/make_mini_city.py --out TREE`; see --help."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

from pipeline.data.mini_city.tree import MiniCityReport, make_mini_city
from pipeline.launch.command_line import parse_flags
from pipeline.launch.job import Result, run_job
from pipeline.launch.paths import resolve_path


@dataclass(frozen=True)
class Flags:
    """A small drawn city → a tree with leftImg8bit/ and gtFine/, ready to be packed."""

    out: str
    """Folder for the tree: new or empty."""
    train: int = 240
    """Pictures to train on."""
    val: int = 48
    """Pictures of other cities, in other light, to validate on."""
    seed: int = 0
    """The same seed draws the same city."""


def make(result: Result, argv: list[str]) -> None:
    """Fills in the job's RESULT."""
    flags = parse_flags(Flags, argv)
    out = resolve_path("--out", flags.out)
    report = make_mini_city(Path(out), flags.train, flags.val, flags.seed)
    result |= report._asdict()
    print(
        f"[done]  {report.train} pictures to train on and {report.val} to validate on in {out}; "
        f"now type: python jobs/pack_cityscapes.py --root {out} --out DIR"
    )


if __name__ == "__main__":
    sys.exit(run_job("make_mini_city", partial(make, argv=sys.argv[1:]), MiniCityReport._fields))
