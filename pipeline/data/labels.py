"""Class tables: what the numbers in a label file mean, and the one way they are converted.

A data set's label files hold *label ids* (Cityscapes: 34 of them). Networks, shards and metrics hold
*train ids* 0..K-1, and 255 for what is ignored. A table travels inside the manifest and the model, so
that a prediction can be named, coloured and written back without asking which data set it came from.
Every id of a source must be listed, as a class or as ignored: an unknown id is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DatasetError

IGNORE = 255
"""Train id of pixels that no loss and no metric counts."""

_UNKNOWN = 254  # marks ids outside the table in the lookup; hence at most 254 classes
_FIELDS = ("names", "colors", "label_ids", "ignored_label_ids")


@dataclass(frozen=True)
class ClassTable:
    """The classes of a data set; train ids index `names`, `colors` and `label_ids`.

    Raises DatasetError where the fields contradict each other.
    """

    names: tuple[str, ...]
    """Class names."""
    colors: tuple[tuple[int, int, int], ...]
    """RGB colours for pictures."""
    label_ids: tuple[int, ...]
    """Ids of the classes in the source's label files."""
    ignored_label_ids: tuple[int, ...]
    """Ids in the source's label files that become 255; the first one stands for 255 on the way back."""

    def __post_init__(self) -> None:
        sizes = {len(self.names), len(self.colors), len(self.label_ids)}
        _require(len(sizes) == 1, f"has {len(self.names)} names, {len(self.colors)} colours and "
                 f"{len(self.label_ids)} label ids; give each class one of each")  # fmt: skip
        _require(1 <= self.num_classes < _UNKNOWN, f"has {self.num_classes} classes; 1..253 are possible")
        _require(len(set(self.names)) == len(self.names), "names two classes alike")
        ids = self.label_ids + self.ignored_label_ids
        twice = sorted({i for i in ids if ids.count(i) > 1})
        _require(not twice, f"lists label ids {twice} twice; an id is one class or ignored")
        outside = sorted(i for i in ids if not 0 <= i <= 255)
        _require(not outside, f"lists label ids {outside}; label files hold 0..255")
        _require(
            all(len(color) == 3 and all(0 <= c <= 255 for c in color) for color in self.colors),
            "has a colour that is not three numbers 0..255",
        )

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return len(self.names)

    def to_dict(self) -> dict[str, Any]:
        """The table as plain JSON values; `from_dict` gives the same table back."""
        return {
            "names": list(self.names),
            "colors": [list(color) for color in self.colors],
            "label_ids": list(self.label_ids),
            "ignored_label_ids": list(self.ignored_label_ids),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ClassTable:
        """The table that `to_dict` wrote; raises DatasetError for missing, unknown or ill-typed fields."""
        _require(
            set(values) == set(_FIELDS),
            f"has the fields {sorted(map(str, values))}; expected {sorted(_FIELDS)}",
        )
        try:
            return cls(
                names=tuple(str(name) for name in values["names"]),
                colors=tuple((int(r), int(g), int(b)) for r, g, b in values["colors"]),
                label_ids=tuple(int(i) for i in values["label_ids"]),
                ignored_label_ids=tuple(int(i) for i in values["ignored_label_ids"]),
            )
        except (TypeError, ValueError) as error:
            raise DatasetError(f"class table has a field of the wrong type: {error}") from error

    def to_train_ids(self, label_HW: NDArray[Any]) -> NDArray[np.uint8]:
        """Train ids of a uint8 picture of label ids; raises DatasetError naming ids outside the table."""
        train_HW = _look_up(label_HW, self._train_id_of)
        if np.any(train_HW == _UNKNOWN):
            unknown = np.unique(label_HW[train_HW == _UNKNOWN]).tolist()
            raise DatasetError(
                f"label ids {unknown} are not in the class table; list each as a class or as ignored "
                f"(known: {sorted(self.label_ids + self.ignored_label_ids)})"
            )
        return train_HW

    def to_label_ids(self, train_HW: NDArray[Any]) -> NDArray[np.uint8]:
        """Label ids of a uint8 picture of train ids; 255 becomes the first ignored id, else stays 255.

        Raises DatasetError naming train ids that are neither a class nor 255.
        """
        self._refuse_foreign_train_ids(train_HW)
        table = np.zeros(256, np.uint8)
        table[: self.num_classes] = self.label_ids
        table[IGNORE] = self.ignored_label_ids[0] if self.ignored_label_ids else IGNORE
        return _look_up(train_HW, table)

    def colorize(self, train_HW: NDArray[Any]) -> NDArray[np.uint8]:
        """RGB uint8 picture (H, W, 3) of uint8 train ids; 255 is black.

        Raises DatasetError naming train ids that are neither a class nor 255.
        """
        self._refuse_foreign_train_ids(train_HW)
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colors
        picture: NDArray[np.uint8] = table[train_HW]
        return picture

    @cached_property
    def _train_id_of(self) -> NDArray[np.uint8]:
        table = np.full(256, _UNKNOWN, np.uint8)
        table[list(self.label_ids)] = np.arange(self.num_classes)
        table[list(self.ignored_label_ids)] = IGNORE
        return table

    def _refuse_foreign_train_ids(self, train_HW: NDArray[Any]) -> None:
        _require_plane(train_HW)
        foreign = (train_HW >= self.num_classes) & (train_HW != IGNORE)
        if np.any(foreign):
            raise DatasetError(
                f"train ids {np.unique(train_HW[foreign]).tolist()} do not exist; "
                f"this table has 0..{self.num_classes - 1} and 255"
            )


def foreign_train_ids(label_HW: NDArray[np.uint8], num_classes: int) -> list[int]:
    """The ids in a label that are neither one of the classes nor 255, ascending."""
    # 255 wraps to 0, so one maximum tells a sound label, which costs far less than listing its ids.
    if int((label_HW + np.uint8(1)).max()) <= num_classes:
        return []
    return [i for i in np.unique(label_HW).tolist() if num_classes <= i < IGNORE]


def _look_up(plane_HW: NDArray[Any], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    _require_plane(plane_HW)
    if plane_HW.size == 0:  # cv2.LUT refuses empty pictures
        return plane_HW.copy()
    return np.asarray(cv2.LUT(np.ascontiguousarray(plane_HW), table), np.uint8)


def _require_plane(plane_HW: NDArray[Any]) -> None:
    if plane_HW.dtype != np.uint8 or plane_HW.ndim != 2:
        raise DatasetError(
            f"labels must be one channel of 8 bits, got {plane_HW.dtype} of shape {plane_HW.shape}; "
            f"save them as single-channel 8-bit PNG"
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise DatasetError(f"class table {message}")


CITYSCAPES = ClassTable(
    names=(
        "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
        "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train",
        "motorcycle", "bicycle",
    ),
    colors=(
        (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
        (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
        (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
        (0, 80, 100), (0, 0, 230), (119, 11, 32),
    ),
    label_ids=(7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33),
    ignored_label_ids=(0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30),
)  # fmt: skip
"""Cityscapes' 34 label ids and 19 classes, with the official colours."""
