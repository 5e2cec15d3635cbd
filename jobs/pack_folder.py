"""Pack any images and labels: `python jobs/pack_folder.py --images DIR --labels DIR …`; see --help."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout or the job's copy of it

from pipeline.data.packing.class_file import read_class_file
from pipeline.data.packing.codec import parse_codec
from pipeline.data.packing.pack import pack_folder
from pipeline.data.packing.shard_plan import PackOptions
from pipeline.launch.command_line import parse_flags
from pipeline.launch.job import Result, run_job
from pipeline.launch.pack_job import FIELDS, run_packing
from pipeline.launch.paths import resolve_path


@dataclass(frozen=True)
class Flags:
    """A folder of images and one of labels, paired by name → WebDataset shards with a manifest.

    Where RAY_ADDRESS is set the cluster's nodes work, else the cores of this machine.
    """

    images: str
    """Folder of PNGs and JPEGs; each folder in it is a split, or type --split."""
    labels: str
    """Folder of 8-bit grey PNGs of label ids, with the names of the images."""
    classes: str
    """YAML file: `classes:` is a list of {name: road, id: 7, color: [128, 64, 128]}, `ignored_ids:` one
    of ids; every id in the labels must be in one of them."""
    out: str
    """Folder, s3://BUCKET/PATH or gs://…: new, empty, or packed from these pictures before."""
    split: str = ""
    """Split that all pictures belong to; without it folders are splits."""
    codec: str = "striped"
    """striped: lossless, crops decode alone (JPEGs are kept); keep: the images' own bytes; jpeg:Q: lossy."""
    palette: bool = False
    """Labels may be palette PNGs, whose indices are the ids (as in VOC)."""
    processes: int = 0
    """Processes that work; 0 takes one a core."""


def pack(result: Result, argv: list[str]) -> None:
    """Fills in the job's RESULT."""
    flags = parse_flags(Flags, argv)
    images, labels = resolve_path("--images", flags.images), resolve_path("--labels", flags.labels)
    out, classes = resolve_path("--out", flags.out), resolve_path("--classes", flags.classes)
    options = PackOptions(read_class_file(Path(classes)), parse_codec(flags.codec), flags.palette)
    run_packing(result, flags.processes, out, partial(pack_folder, images, labels, out, options, flags.split))


if __name__ == "__main__":
    sys.exit(run_job("pack", partial(pack, argv=sys.argv[1:]), FIELDS))
