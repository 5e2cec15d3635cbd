"""Pictures on disk → masks and overlays on disk: which files are meant, and where results may go."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.data.decode import decode_rgb, refuse_broken_png
from pipeline.data.labels import ClassTable
from pipeline.errors import ConfigError, WorldStateError
from pipeline.inference.export import encode_png

SUFFIXES = (".png", ".jpg", ".jpeg")
MASK_NAME, OVERLAY_NAME = "{}_labelIds.png", "{}_overlay.png"
OVERLAY_SHARE = 0.5
"""Of the class colours in an overlay; the rest is the picture."""

Predict = Callable[[NDArray[np.uint8]], NDArray[np.uint8]]


def find_pictures(inputs: Sequence[str], out: Path) -> list[Path]:
    """The pictures that files, folders (with what is below them) and globs name, each once, in order.

    What lies in `out` is not taken from a folder or glob, so predicting twice does not predict masks.
    Raises ConfigError for an input that names nothing, and where two results would get one name.
    """
    if not inputs:
        raise ConfigError("nothing to predict: type pictures, a folder or a glob")
    found: dict[Path, Path] = {}
    for text in inputs:
        for path in _expand(text, out):
            found.setdefault(path.resolve(), path)
    pictures = list(found.values())
    taken: dict[str, Path] = {}
    for path in pictures:
        other = taken.setdefault(path.stem, path)
        if other is not path:
            raise ConfigError(
                f"{other} and {path} would both be written as {MASK_NAME.format(path.stem)}; "
                "predict them into two different --out folders"
            )
    return pictures


def prepare_out(out: Path, pictures: Sequence[Path]) -> None:
    """Make the folder for results; raises WorldStateError where that is refused.

    Raises ConfigError where a result would overwrite a picture that is to be predicted.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".write-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise WorldStateError(
            f"cannot write to --out {out}: {error.strerror}; choose another folder"
        ) from error
    sources = {path.resolve() for path in pictures}
    for path in pictures:
        for name in (MASK_NAME, OVERLAY_NAME):
            if (out / name.format(path.stem)).resolve() in sources:
                raise ConfigError(
                    f"the result of {path} would overwrite the picture {out / name.format(path.stem)}; "
                    "choose another --out"
                )


def predict_file(path: Path, out: Path, predict: Predict, classes: ClassTable) -> None:
    """Write the mask of label ids and the colour overlay of one picture, at the picture's own size.

    Raises DatasetError for a file that is no picture, WorldStateError where the disk refuses.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    refuse_broken_png(data, str(path))  # the decoder would write a line of its own to standard error
    image_HW3 = decode_rgb(data, str(path))
    mask_HW = predict(image_HW3)
    colours_HW3 = classes.colorize(mask_HW)
    overlay_HW3 = cv2.addWeighted(image_HW3, 1 - OVERLAY_SHARE, colours_HW3, OVERLAY_SHARE, 0)
    results = {MASK_NAME: classes.to_label_ids(mask_HW), OVERLAY_NAME: np.asarray(overlay_HW3, np.uint8)}
    for name, image in results.items():
        target = out / name.format(path.stem)
        try:
            target.write_bytes(encode_png(image))
        except OSError as error:
            target.unlink(missing_ok=True)
            raise WorldStateError(f"cannot write {target}: {error.strerror}; choose another --out") from error


def _expand(text: str, out: Path) -> list[Path]:
    if "://" in text:
        raise ConfigError(f"{text}: this version predicts files on this machine; download it first")
    path = Path(text).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _pictures_among(path.rglob("*"), out)
        if not found:
            raise ConfigError(f"{path} holds no picture; {_taken(out)}")
        return found
    if any(sign in text for sign in "*?["):
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        pattern = str(path.relative_to(path.anchor)) if path.is_absolute() else str(path)
        try:
            found = _pictures_among(anchor.glob(pattern), out)
        except ValueError as error:
            raise ConfigError(f"{text} is no glob: {error}; type `**` alone between slashes") from error
        if not found:
            raise ConfigError(f"{text} matches no picture; {_taken(out)}")
        return found
    raise ConfigError(f"{text}: no such file or folder")


def _taken(out: Path) -> str:
    return f"{', '.join(SUFFIXES)} are taken, and nothing that lies in --out {out}"


def _pictures_among(paths: Iterable[Path], out: Path) -> list[Path]:
    results = out.resolve()
    return sorted(
        path
        for path in paths
        if path.suffix.lower() in SUFFIXES and path.is_file() and results not in path.resolve().parents
    )
