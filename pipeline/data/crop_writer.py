"""From a sample on disk to a row of a slot: the one code path of the training thread and of workers."""

from __future__ import annotations

import time
from typing import NamedTuple

from pipeline.config import DataConfig
from pipeline.data.augment import CropBuffers, colour_in_place
from pipeline.data.quarantine import read_crop
from pipeline.data.reader import SampleReader, SampleRef
from pipeline.data.slots import SlotArrays


class Cost(NamedTuple):
    """Where the time of a sample went."""

    store_s: float
    """Waiting for bytes."""
    decode_s: float
    """All the rest: decoding, cropping, colours."""


class CropWriter:
    """Writes training crops; with `colour` set to the device their colours are left to it."""

    def __init__(self, reader: SampleReader, config: DataConfig, seed: int) -> None:
        self._reader, self._config, self._seed = reader, config, seed

    def write(self, ref: SampleRef, position: int, arrays: SlotArrays, row: int) -> Cost:
        """Fills a row of the slot with the crop of a position: a pure function of sample, seed and position.

        Raises SampleError where fresh bytes are damaged too, and what the store raises.
        """
        begin_s, store_before_s = time.perf_counter(), self._reader.store_s
        into = CropBuffers(arrays.image_BHW3[row], arrays.label_BHW[row])
        crop = read_crop(self._reader, ref, self._config, self._seed, position, into)
        if self._config.colour != "device":
            colour_in_place(into.image_hw3, crop.colour_34, crop.inside)
        arrays.colour_B34[row] = crop.colour_34
        arrays.inside_B4[row] = crop.inside
        store_s = self._reader.store_s - store_before_s
        return Cost(store_s, time.perf_counter() - begin_s - store_s)
