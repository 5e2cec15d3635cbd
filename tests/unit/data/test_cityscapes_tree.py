"""Trees in Cityscapes' layout: whatever is wrong with one is a clear line, and nothing is written."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data.packing.pack import pack_cityscapes
from pipeline.data.packing.pictures import TreeError
from pipeline.errors import ConfigError, DatasetError


def image_path(tree: Path, split: str = "train", number: int = 0) -> Path:
    return sorted((tree / "leftImg8bit" / split).rglob("*.png"))[number]


def label_path(tree: Path, split: str = "train", number: int = 0) -> Path:
    return sorted((tree / "gtFine" / split).rglob("*.png"))[number]


def remove_labels(tree):
    label_path(tree).unlink()


def remove_image(tree):
    image_path(tree).unlink()


def shrink_label(tree):
    cv2.imwrite(str(label_path(tree)), np.full((35, 52), 7, np.uint8))


def cut_image(tree):
    image_path(tree).write_bytes(image_path(tree).read_bytes()[:300])


def flip_image(tree):
    data = bytearray(image_path(tree).read_bytes())
    data[len(data) // 2] ^= 1
    image_path(tree).write_bytes(data)


def empty_image(tree):
    image_path(tree).write_bytes(b"")


def cut_label(tree):
    label_path(tree).write_bytes(label_path(tree).read_bytes()[:-20])


def foreign_ids(tree):
    cv2.imwrite(str(label_path(tree)), np.full((36, 52), 77, np.uint8))


def colour_label(tree):
    cv2.imwrite(str(label_path(tree)), np.full((36, 52, 3), 7, np.uint8))


def palette_label(tree):
    picture = Image.fromarray(np.full((36, 52), 7, np.uint8), "L").convert("P")
    picture.save(label_path(tree))


def deep_label(tree):
    cv2.imwrite(str(label_path(tree)), np.full((36, 52), 7, np.uint16))


def duplicate_in_another_city(tree):
    for part, path in (("leftImg8bit", image_path(tree)), ("gtFine", label_path(tree))):
        (tree / part / "train" / "zurich").mkdir(parents=True)
        shutil.copy(path, tree / part / "train" / "zurich" / path.name)


def duplicate_as_jpeg(tree):
    cv2.imwrite(str(image_path(tree).with_suffix(".jpg")), np.zeros((36, 52, 3), np.uint8))


def dotted_key(tree):
    for path in (image_path(tree), label_path(tree)):
        path.rename(path.with_name("v1." + path.name))


def stray_picture(tree):
    image_path(tree).with_name("holiday.png").write_bytes(b"x")


def unreadable_image(tree):
    image_path(tree).unlink()
    image_path(tree, number=0).with_name("city0_000000_leftImg8bit.png").symlink_to("/nowhere/at/all.png")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_labels, r"image without label: .*00_leftImg8bit\.png lacks gtFine/train/.*; add it"),
        (remove_image, r"label without image: .*00_gtFine_labelIds\.png lacks leftImg8bit/train/.*; add"),
        (shrink_label, r"size mismatch: .*city0_000000.* is 52x36 pixels, .* is 52x35; make them one size"),
        (cut_image, r"city0_000000_leftImg8bit\.png is a broken PNG: cut short after 300 bytes; replace it"),
        (flip_image, r"city0_000000_leftImg8bit\.png is a broken PNG: .* differ from their CRC; replace it"),
        (empty_image, r"00_leftImg8bit\.png is neither a whole PNG nor a whole JPEG; save it again"),
        (cut_label, r"city0_000000_gtFine_labelIds\.png is a broken PNG: cut short"),
        (foreign_ids, r"00_gtFine_labelIds\.png: label ids \[77\] are not in the class table; list"),
        (colour_label, r"labelIds\.png is not an 8-bit single-channel PNG .*; save the label as 8-bit grey"),
        (palette_label, r"labelIds\.png is a palette PNG, .*; if they are ids, .*--palette, else save"),
        (deep_label, r"labelIds\.png is not an 8-bit single-channel PNG .*16-bit.*; save the label"),
        (duplicate_in_another_city, r"duplicate key 'city0_000000': .*city0.* and .*zurich.*; rename"),
        (duplicate_as_jpeg, r"duplicate key 'city0_000000': .*\.jpg and .*\.png; rename or remove one"),
        (dotted_key, r"the key 'v1\.city0_000000' may have no dot or blank.*; rename it"),
        (stray_picture, r"holiday\.png does not end in _leftImg8bit\.png \(or \.jpg\); rename or remove it"),
        (unreadable_image, r"00_leftImg8bit\.png is no file, or a link to nothing; replace or remove"),
    ],
)  # fmt: skip
def test_a_bad_tree_is_one_clear_line_and_leaves_nothing_behind(tree, tmp_path, capfd, spoil, message):
    spoil(tree)
    with pytest.raises(TreeError, match=message) as error:
        pack_cityscapes(str(tree), str(tmp_path / "out"))
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("; nothing was packed")
    assert not (tmp_path / "out").exists()
    assert capfd.readouterr() == ("", "")  # no library adds lines of its own


def test_all_problems_are_counted_and_the_first_is_named(tree, tmp_path):
    for number in (0, 4, 5):
        cv2.imwrite(str(label_path(tree, number=number)), np.full((36, 52), 200, np.uint8))
    cut_image(tree)
    with pytest.raises(TreeError, match=r"city0_000000.*\(and 2 more such problems\)") as error:
        pack_cityscapes(str(tree), str(tmp_path / "out"))
    assert len(error.value.problems) == 3


def test_folders_that_are_no_tree_are_refused_with_what_to_type(tree, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(
        DatasetError, match=r"no such folder: /no/where; --root takes the folder with leftImg8bit/"
    ):
        pack_cityscapes("/no/where", out)
    with pytest.raises(
        DatasetError, match=r"has no folder leftImg8bit/ \(it has tree\); type --root .*/tree$"
    ):
        pack_cityscapes(str(tmp_path), out)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match=r"has no folder leftImg8bit/ \(it has nothing\); --root takes"):
        pack_cityscapes(str(tmp_path / "empty"), out)
    with pytest.raises(
        DatasetError, match=r"leftImg8bit/vall \(did you mean val\?\); type --splits .*: train val"
    ):
        pack_cityscapes(str(tree), out, splits=("train", "vall"))
    with pytest.raises(DatasetError, match=r"type --splits train val"):
        pack_cityscapes(str(tree), out, splits=())
    for path in (tree / "leftImg8bit" / "val").rglob("*.png"):
        path.unlink()
    with pytest.raises(
        DatasetError, match=r"no images in .*/val; they are expected as <city>/<key>_leftImg8bit"
    ):
        pack_cityscapes(str(tree), out)
    assert not Path(out).exists()


def test_a_split_that_cannot_name_shards_is_refused(tree, tmp_path):
    (tree / "leftImg8bit/train").rename(tree / "leftImg8bit/train extra")
    with pytest.raises(
        ConfigError, match=r"split 'train extra': a split's name has letters, digits, - and _"
    ):
        pack_cityscapes(str(tree), str(tmp_path / "out"), ("train extra",))


def test_hidden_files_and_gtfines_other_pictures_are_left_out(tree, tmp_path):
    expected = pack_cityscapes(str(tree), str(tmp_path / "a")).manifest_id
    image_path(tree).with_name("._city0_000000_leftImg8bit.png").write_bytes(b"resource fork")
    for name in ("city0_000000_gtFine_color.png", "city0_000000_gtFine_polygons.json"):
        label_path(tree).with_name(name).write_bytes(b"{}")
    assert pack_cityscapes(str(tree), str(tmp_path / "b")).manifest_id == expected
