"""Pictures by region: OpenCV's pixels whatever the codec, few bytes read, and never silently wrong ones."""

import dataclasses
import zlib

import cv2
import numpy as np
import pytest

from pipeline.config import DataConfig
from pipeline.data import jpeg_crop
from pipeline.data.augment import CropBuffers, augment
from pipeline.data.dataset import ShardDataset
from pipeline.data.encoded_picture import EncodedPicture
from pipeline.data.index import Member, SampleEntry
from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.striped_png import HEAD_BYTES, encode
from pipeline.errors import SampleError

HEIGHT, WIDTH = 300, 90
ROWS, COLUMNS = slice(70, 150), slice(11, 83)
IMAGE = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
LABEL = cv2.resize(np.random.default_rng(2).integers(0, 19, (9, 5), np.uint8), (WIDTH, HEIGHT),
                   interpolation=cv2.INTER_NEAREST)  # fmt: skip


def opencv_file(picture, suffix: str) -> bytes:
    stored = picture[..., ::-1] if picture.ndim == 3 else picture
    return cv2.imencode(suffix, np.ascontiguousarray(stored))[1].tobytes()


def opencv_rgb(data: bytes):
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)


class File:
    """The bytes of a member, and which of them were read."""

    def __init__(self, data: bytes, kind: str = "image", codec: str = "png") -> None:
        self.data, self.reads = data, []
        member, other = Member(codec, 512, len(data), zlib.crc32(data)), Member("png", 0, 1, 0)
        self.entry = SampleEntry("aachen_000001", HEIGHT, WIDTH, *(
            (member, other) if kind == "image" else (other, member)))  # fmt: skip
        self.kind = kind

    def read(self, at: int, num_bytes: int) -> bytes:
        self.reads.append((at, num_bytes))
        assert 0 <= at < at + num_bytes <= len(self.data)
        return self.data[at : at + num_bytes]

    def open(self) -> EncodedPicture:
        return EncodedPicture(self.read, self.entry, getattr(self.entry, self.kind), "train/a.tar")


FILES = {
    "striped": (encode(IMAGE), "image", "png"),
    "kept": (opencv_file(IMAGE, ".png"), "image", "png"),
    "jpeg": (opencv_file(IMAGE, ".jpg"), "image", "jpeg"),
    "grey striped": (encode(IMAGE[..., 0]), "image", "png"),
    "label": (encode(LABEL), "label", "png"),
    "kept label": (opencv_file(LABEL, ".png"), "label", "png"),
}


@pytest.mark.parametrize("name", FILES)
def test_every_region_has_the_pixels_of_opencvs_whole_picture(name):
    file = File(*FILES[name])
    whole = opencv_rgb(file.data) if file.kind == "image" else LABEL
    for rows in (slice(0, 1), slice(63, 65), ROWS, slice(HEIGHT - 1, HEIGHT), slice(0, HEIGHT)):
        for columns in (slice(0, 1), COLUMNS, slice(0, WIDTH)):
            assert np.array_equal(file.open().region(rows, columns), whole[rows, columns])


def test_a_region_of_a_striped_picture_reads_its_own_strips_alone():
    file = File(*FILES["striped"])
    picture = file.open()
    assert file.reads == []
    picture.region(ROWS, COLUMNS)
    picture.region(ROWS, COLUMNS)
    head, *strips = file.reads
    assert head == (0, HEAD_BYTES)
    assert len(set(strips)) == 1
    assert strips[0][1] < 0.5 * len(file.data)


@pytest.mark.parametrize("name", ["kept", "kept label", "grey striped"])
def test_any_other_png_is_read_and_decoded_once(name, monkeypatch):
    file, decoded, real = File(*FILES[name]), [], cv2.imdecode
    monkeypatch.setattr(cv2, "imdecode", lambda *given: (decoded.append(1), real(*given))[1])
    picture = file.open()
    for rows in (ROWS, slice(0, 9)):
        picture.region(rows, COLUMNS)
    assert len(decoded) == 1
    assert file.reads[1:] == [(0, len(file.data))]


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_gives_wrong_pixels(name):
    file = File(*FILES[name])
    whole, sound = file.open().region(ROWS, COLUMNS), file.data
    places = np.random.default_rng(3).integers(0, 8 * len(sound), 400).tolist() + list(range(8 * 64))
    messages = []
    for place in places:
        damaged = bytearray(sound)
        damaged[place // 8] ^= 1 << place % 8
        file.data = bytes(damaged)
        try:
            assert np.array_equal(file.open().region(ROWS, COLUMNS), whole)
        except SampleError as error:
            messages.append(str(error))
    where = f"train/a.tar: {file.kind} of 'aachen_000001' at offset 512"
    assert len(messages) > 100
    assert all(message.startswith(where) for message in messages)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("field", [{"height": HEIGHT + 1}, {"width": WIDTH - 1}])
def test_a_picture_of_another_size_than_the_index_says_is_refused(name, field):
    file = File(*FILES[name])
    file.entry = dataclasses.replace(file.entry, **field)
    with pytest.raises(SampleError, match=r"of 300x90 pixels; its index says \w+ of"):
        file.open().region(slice(0, 5), slice(0, 5))


def test_a_picture_of_another_codec_than_the_index_says_is_refused():
    with pytest.raises(SampleError, match="is a jpeg of 300x90 pixels; its index says png"):
        File(FILES["jpeg"][0], "image", "png").open().region(ROWS, COLUMNS)
    with pytest.raises(SampleError, match="is a png of 300x90 pixels; its index says jpeg"):
        File(FILES["striped"][0], "image", "jpeg").open().region(ROWS, COLUMNS)


def test_a_label_in_colour_is_refused_striped_or_not():
    for data in (FILES["striped"][0], FILES["kept"][0]):
        with pytest.raises(SampleError, match="is not an 8-bit single-channel PNG"):
            File(data, "label").open().region(ROWS, COLUMNS)


def test_jpegs_have_the_same_pixels_with_and_without_the_library_for_crops(monkeypatch):
    with_it = File(*FILES["jpeg"]).open().region(ROWS, COLUMNS)
    monkeypatch.setattr(jpeg_crop, "decode_region", lambda *_: None)
    assert np.array_equal(File(*FILES["jpeg"]).open().region(ROWS, COLUMNS), with_it)


def test_training_crops_are_the_same_whether_packed_striped_or_kept(tmp_path, make_scene, add_pair):
    for number in range(3):
        add_pair(tmp_path / "tree", "train", "city", f"city_{number:06d}", *make_scene(number, 150, 210))
    config = DataConfig(input_height=120, input_width=168, crop_height=60, crop_width=84)
    crops = {}
    for codec in ("striped", "keep"):
        pack_cityscapes(str(tmp_path / "tree"), str(tmp_path / codec), ("train",), codec)
        dataset = ShardDataset.open(str(tmp_path / codec), "train")
        crops[codec] = [
            CropBuffers(np.zeros((60, 84, 3), np.uint8), np.zeros((60, 84), np.uint8)) for _ in range(30)
        ]
        for position, into in enumerate(crops[codec]):
            augment(dataset.reader().open(dataset.ref(0, position % 3)), config, 5, position, into)
    for striped, kept in zip(crops["striped"], crops["keep"], strict=True):
        assert np.array_equal(striped.image_hw3, kept.image_hw3)
        assert np.array_equal(striped.label_hw, kept.label_hw)
