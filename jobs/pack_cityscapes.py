"""Pack a tree in Cityscapes' layout: `python jobs/pack_cityscapes.py --root TREE --out DIR`; see --help."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

from pipeline.data.packing.pack import pack_cityscapes
from pipeline.launch.command_line import parse_flags
from pipeline.launch.job import Result, run_job
from pipeline.launch.pack_job import FIELDS, run_packing
from pipeline.launch.paths import resolve_path


@dataclass(frozen=True)
class Flags:
    """A tree with leftImg8bit/ and gtFine/ → WebDataset shards with a manifest.

    Where RAY_ADDRESS is set the cluster's nodes work, else the cores of this machine.
    """

    root: str
    """Folder that holds leftImg8bit/<split>/<city>/ and gtFine/<split>/<city>/."""
    out: str
    """Folder, s3://BUCKET/PATH or gs://…: new, empty, or packed from this tree before (then what lacks is
    added)."""
    splits: tuple[str, ...] = ("train", "val")
    """Splits to pack."""
    codec: str = "striped"
    """striped: lossless, crops decode alone (JPEGs are kept); keep: the images' own bytes; jpeg:Q: lossy."""
    processes: int = 0
    """Processes that work; 0 takes one a core."""


def pack(result: Result, argv: list[str]) -> None:
    """Fills in the job's RESULT."""
    flags = parse_flags(Flags, argv)
    root, out = resolve_path("--root", flags.root), resolve_path("--out", flags.out)
    run_packing(
        result,
        flags.processes,
        out,
        lambda map_tasks: pack_cityscapes(root, out, flags.splits, flags.codec, map_tasks=map_tasks),
    )


if __name__ == "__main__":
    sys.exit(run_job("pack", partial(pack, argv=sys.argv[1:]), FIELDS))
