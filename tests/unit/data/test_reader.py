"""Regions: the pixels of the whole picture for a part of its bytes, each of them checked."""

import gc
import weakref
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.config import DataConfig
from pipeline.data.augment import CropBuffers, augment, colour_in_place
from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import CITYSCAPES
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.reader import SampleReader
from pipeline.errors import SampleError, ShardError

HEIGHT, WIDTH = 200, 150
CODECS = ["striped", "keep", "jpeg:90"]


@pytest.fixture(scope="module", params=CODECS)
def tall(request, tmp_path_factory, add_pair, make_scene) -> str:
    """Shards of three pictures of four strips each."""
    folder = tmp_path_factory.mktemp("tall")
    for number in range(3):
        image, label = make_scene(number, HEIGHT, WIDTH)
        image[:, : 30 * number] = 0  # plain noise would compress to the same size every time
        add_pair(folder / "tree", "train", "c", f"c_{number:06d}", image, label)
    pack_cityscapes(str(folder / "tree"), str(folder / "shards"), ("train",), request.param)
    return str(folder / "shards")


class Spy:
    """A store that records which ranges are read."""

    def __init__(self, store):
        self._store, self.ranges, self.root = store, [], store.root

    def read(self, name, offset, num_bytes):
        self.ranges.append((offset, num_bytes))
        return self._store.read(name, offset, num_bytes)

    def size(self, name):
        return self._store.size(name)

    def drop(self, name):
        self._store.drop(name)


def spied(root: str, num_classes: int = 19):
    """A data set, a reader of it, and what that reader reads."""
    dataset = ShardDataset.open(root, "train")
    spy = Spy(dataset._store)
    return dataset, SampleReader(spy, num_classes), spy


def by_opencv(root: str, dataset: ShardDataset, sample: int):
    """Image and train ids of a sample, straight from the bytes of its members."""
    ref = dataset.ref(0, sample)
    data = Path(root, ref.shard.name).read_bytes()
    image, label = (
        cv2.imdecode(np.frombuffer(data[m.offset : m.offset + m.bytes], np.uint8), flags)
        for m, flags in ((ref.entry.image, cv2.IMREAD_COLOR_RGB), (ref.entry.label, cv2.IMREAD_UNCHANGED))
    )
    return image, label


def spans(extent: int):
    """Slices of an axis that are not empty."""
    ends = st.tuples(st.integers(0, extent - 1), st.integers(1, extent))
    return ends.filter(lambda e: e[0] < e[1]).map(lambda e: slice(*e))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sample=st.integers(0, 2), regions=st.lists(st.tuples(spans(HEIGHT), spans(WIDTH)), min_size=1, max_size=4)
)
def test_regions_are_cut_from_the_whole_picture_in_any_order(tall, sample, regions):
    dataset, reader, _ = spied(tall)
    image, label = by_opencv(tall, dataset, sample)
    source = reader.open(dataset.ref(0, sample))
    assert (source.height, source.width) == label.shape
    for rows, columns in regions:
        assert np.array_equal(source.label_region(rows, columns), label[rows, columns])
        assert np.array_equal(source.image_region(rows, columns), image[rows, columns])


def test_a_crop_of_a_shard_is_the_crop_of_the_whole_pictures(tall):
    made = DataConfig(input_height=HEIGHT, input_width=WIDTH, crop_height=64, crop_width=48)
    dataset, reader, _ = spied(tall)

    class Whole:
        key = "whole"
        height, width = HEIGHT, WIDTH

        def __init__(self, sample):
            self._image, self._label = by_opencv(tall, dataset, sample)

        def image_region(self, rows, columns):
            return self._image[rows, columns]

        def label_region(self, rows, columns):
            return self._label[rows, columns]

    wholes = [Whole(sample) for sample in range(3)]
    for position in range(60):
        ref, crops = dataset.ref(0, position % 3), []
        for source in (reader.open(ref), wholes[position % 3]):
            into = CropBuffers(np.empty((64, 48, 3), np.uint8), np.empty((64, 48), np.uint8))
            result = augment(source, made, 5, position, into)
            colour_in_place(into.image_hw3, result.colour_34, result.inside)
            crops.append((into.image_hw3.tobytes(), into.label_hw.tobytes()))
        assert crops[0] == crops[1]


def test_whole_samples_are_what_opencv_reads(tall):
    dataset, reader, _ = spied(tall)
    for sample in range(3):
        image, label = by_opencv(tall, dataset, sample)
        read = reader.read(dataset.ref(0, sample))
        assert np.array_equal(read.image_HW3, image)
        assert np.array_equal(read.label_HW, label)


def test_nothing_is_read_before_it_is_asked_for_and_a_label_is_read_once(tall):
    dataset, reader, spy = spied(tall)
    source = reader.open(dataset.ref(0, 1))
    assert spy.ranges == []
    for top in (0, 50, 100):
        source.label_region(slice(top, top + 60), slice(10, 90))
    label = dataset.ref(0, 1).entry.label
    assert spy.ranges == [(label.offset, label.bytes)]


def test_pictures_are_freed_with_their_sample_without_waiting_for_the_garbage_collector(tall):
    dataset, reader, _ = spied(tall)
    gc.disable()
    try:
        source = reader.open(dataset.ref(0, 0))
        source.label_region(slice(0, 9), slice(0, 9))
        source.image_region(slice(0, 9), slice(0, 9))
        held = weakref.ref(source)
        del source
        assert held() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("tall", ["striped"], indirect=True)
def test_a_crop_reads_its_own_strips_alone(tall):
    dataset, reader, spy = spied(tall)
    entry = dataset.ref(0, 0).entry
    reader.open(dataset.ref(0, 0)).image_region(slice(70, 120), slice(0, 10))  # the second strip of four
    assert sum(num_bytes for _, num_bytes in spy.ranges) < 1024 + 0.4 * entry.image.bytes


@pytest.mark.parametrize("tall", CODECS, indirect=True)
def test_the_seconds_of_the_store_are_counted_apart(tall, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("pipeline.data.reader.time.perf_counter", lambda: now[0])
    dataset, reader, spy = spied(tall)
    read = spy.read

    def slow(*arguments):
        now[0] += 2.0
        return read(*arguments)

    spy.read = slow
    reader.read(dataset.ref(0, 0))
    assert reader.store_s == 2.0 * len(spy.ranges) > 0


def test_foreign_ids_are_refused_in_the_region_that_has_them(tall):
    dataset, reader, _ = spied(tall, num_classes=int(CITYSCAPES.num_classes) - 1)
    _, label = by_opencv(tall, dataset, 0)
    rows, columns = (int(places[0]) for places in np.nonzero(label == 18))
    source, entry = reader.open(dataset.ref(0, 0)), dataset.ref(0, 0).entry
    with pytest.raises(
        SampleError, match=rf"label of '{entry.key}' at offset {entry.label.offset}: train ids \[18\]"
    ):
        source.label_region(slice(rows, rows + 1), slice(columns, columns + 1))
    rows, columns = (int(places[0]) for places in np.nonzero(label < 18))
    assert source.label_region(slice(rows, rows + 1), slice(columns, columns + 1)) < 18


@pytest.mark.parametrize("kind", ["image", "label"])
def test_members_that_changed_places_are_refused(tall, tmp_path, kind):
    """Another sample's picture, whole and sound, where this one's should be."""
    dataset, _, _ = spied(tall)
    here, there = (getattr(dataset.ref(0, sample).entry, kind) for sample in (0, 1))
    name = dataset.ref(0, 0).shard.name
    data = bytearray(Path(tall, name).read_bytes())
    both = data[here.offset : here.offset + here.bytes], data[there.offset : there.offset + there.bytes]
    for member, other in ((here, both[1]), (there, both[0])):
        data[member.offset : member.offset + member.bytes] = other[: member.bytes].ljust(member.bytes, b"\0")
    _damaged_copy(tall, tmp_path, name, bytes(data))
    dataset, reader, _ = spied(str(tmp_path))
    for sample in (0, 1):
        with pytest.raises(SampleError, match=rf"{kind} of 'c_00000{sample}' at offset"):
            reader.read(dataset.ref(0, sample))
    assert reader.read(dataset.ref(0, 2)).key == "c_000002"


def test_a_shard_cut_anywhere_costs_the_samples_behind_the_cut_and_no_other(tall, tmp_path):
    dataset, _, _ = spied(tall)
    entries = [dataset.ref(0, sample).entry for sample in range(3)]
    name = dataset.ref(0, 0).shard.name
    data = Path(tall, name).read_bytes()
    ends = [member.offset + member.bytes for entry in entries for member in (entry.image, entry.label)]
    cuts = {0, 1, *(end + step for end in ends for step in (-300, -1, 0, 1, 600))}
    _damaged_copy(tall, tmp_path, name, data)
    for cut in sorted(cuts, reverse=True):
        with Path(tmp_path, name).open("r+b") as file:
            file.truncate(cut)
        dataset, reader, _ = spied(str(tmp_path))
        for sample, entry in enumerate(entries):
            if cut >= entry.label.offset + entry.label.bytes:
                assert reader.read(dataset.ref(0, sample)).key == entry.key
            else:
                with pytest.raises(SampleError, match=rf"of '{entry.key}' at offset \d+"):
                    reader.read(dataset.ref(0, sample))


def test_an_absent_shard_is_an_error_of_the_store(tall, tmp_path):
    dataset, _, _ = spied(tall)
    name = dataset.ref(0, 0).shard.name
    _damaged_copy(tall, tmp_path, name, b"")
    dataset, reader, _ = spied(str(tmp_path))
    Path(tmp_path, name).unlink()
    with pytest.raises(ShardError, match="is listed but cannot be opened") as error:
        reader.read(dataset.ref(0, 0))
    assert not isinstance(error.value, SampleError)


def _damaged_copy(root: str, out: Path, name: str, content: bytes) -> None:
    for path in ("manifest.json", name.replace(".tar", ".index.jsonl")):
        (out / path).parent.mkdir(exist_ok=True)
        (out / path).write_bytes(Path(root, path).read_bytes())
    (out / name).write_bytes(content)
