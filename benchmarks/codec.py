"""What a training crop costs to decode, codec by codec: CPU time in one process, and bytes a file.

    make bench BENCH=codec ARGS="--root TREE --json FILE.json"

Crops of 512x1024 from pictures of 1024x2048, at seven scales from 0.5 to 2, where a seeded draw puts
them; the mean over pictures and scales. `OpenCV` decodes whole pictures, as an ordinary loader must.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the checkout, wherever this is started

from loaders.pictures import make_pictures
from report import write_report

from pipeline.data import jpeg_crop, striped_png
from pipeline.data.decode import decode_gray, decode_rgb

PACKAGES = ("numpy", "opencv-python", "isal")
HEIGHT, WIDTH = 1024, 2048
CROP = (512, 1024)
SCALES = np.linspace(0.5, 2.0, 7).tolist()

Decode = Callable[[bytes, slice, slice], NDArray[np.uint8] | None]


def main() -> int:
    """Measure; print a table; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--root", default="", help="tree in Cityscapes' layout; the drawn mini city without")
    parser.add_argument("--pictures", type=int, default=12)
    parser.add_argument("--quick", action="store_true", help="two pictures, once each: does it run at all")
    parser.add_argument("--json", help="write the rows there")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory(prefix="bench-codec-") as scratch:
        make_pictures(
            arguments.root, Path(scratch, "made"), HEIGHT, WIDTH, 2 if arguments.quick else arguments.pictures
        )
        rows = list(measure(Path(scratch, "made", "plain"), repeats=1 if arguments.quick else 3))
    show(rows)
    if arguments.quick:
        print("A smoke run: it is too short for its figures to mean anything.")
    if arguments.json:
        write_report(arguments.json, "codec", rows, PACKAGES)
    return 0


def measure(plain: Path, repeats: int) -> Iterator[dict[str, Any]]:
    """One row for each way to decode."""
    labels = [path.read_bytes() for path in sorted(plain.glob("*.label.png"))]
    jpegs = [path.read_bytes() for path in sorted(plain.glob("*.jpg"))]
    pngs = [path.read_bytes() for path in sorted(plain.glob("*[0-9].png"))]
    striped, encode_s = zip(*(_encoded(decode_rgb(png, "image")) for png in pngs), strict=True)
    striped_labels, _ = zip(*(_encoded(decode_gray(label, "label")) for label in labels), strict=True)
    yield _row("image", "PNG", "OpenCV", pngs, _opencv, repeats)
    yield _row("image", "striped", "OpenCV", striped, _opencv, repeats)
    yield _row("image", "striped", "crop", striped, striped_png.decode_region, repeats)
    with mock.patch.object(striped_png, "fast_zlib", return_value=zlib):
        yield _row("image", "striped", "crop, no isal", striped, striped_png.decode_region, repeats)
    yield _row("image", "JPEG", "OpenCV", jpegs, _opencv, repeats)
    if jpeg_crop.decode_region(jpegs[0], slice(0, 64), slice(0, 64)) is not None:
        yield _row("image", "JPEG", "crop", jpegs, jpeg_crop.decode_region, repeats)
    yield _row("label", "PNG", "OpenCV", labels, _opencv, repeats)
    yield _row("label", "striped", "crop", striped_labels, striped_png.decode_region, repeats)
    Console().print(f"encoding a striped image took {1e3 * statistics.mean(encode_s):.0f} ms")


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table; ratios are to OpenCV on the ordinary PNG of the same pictures."""
    table = Table("", "codec", "decoded by", "kB a file", "size", "ms a crop", "times faster")
    for row in rows:
        base = next(one for one in rows if one["what"] == row["what"])
        table.add_row(
            row["what"], row["codec"], row["by"], f"{row['bytes'] / 1e3:.1f}",
            f"{row['bytes'] / base['bytes'] - 1:+.1%}", f"{row['crop_ms']:.2f}",
            f"{base['crop_ms'] / row['crop_ms']:.1f}",
        )  # fmt: skip
    Console().print(table)


def _row(
    what: str, codec: str, by: str, files: Sequence[bytes], decode: Decode, repeats: int
) -> dict[str, Any]:
    generator, times = np.random.default_rng(0), []
    for data in files:
        for scale in SCALES:
            rows, columns = (
                _span(extent, crop / scale, generator.random())
                for extent, crop in zip((HEIGHT, WIDTH), CROP, strict=True)
            )
            times.append(min(_cpu_s(decode, data, rows, columns) for _ in range(repeats)))
    crop_ms = 1e3 * statistics.mean(times)
    return {
        "what": what,
        "codec": codec,
        "by": by,
        "bytes": statistics.mean(map(len, files)),
        "crop_ms": crop_ms,
    }


def _span(extent: int, wanted: float, where: float) -> slice:
    length = min(extent, round(wanted))
    start = int(where * (extent - length + 1))
    return slice(start, start + length)


def _cpu_s(decode: Decode, data: bytes, rows: slice, columns: slice) -> float:
    begin_s = time.process_time()
    region = decode(data, rows, columns)
    used_s = time.process_time() - begin_s
    assert region is not None
    return used_s


def _opencv(data: bytes, rows: slice, columns: slice) -> NDArray[np.uint8]:
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    return np.asarray(picture, np.uint8)[rows, columns]


def _encoded(picture: NDArray[np.uint8]) -> tuple[bytes, float]:
    begin_s = time.process_time()
    data = striped_png.encode(picture)
    return data, time.process_time() - begin_s


if __name__ == "__main__":
    sys.exit(main())
