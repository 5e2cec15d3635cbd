"""Class tables: conversions agree with the official definitions and refuse what they do not know."""

import json
import pickle

import numpy as np
import pytest
from cityscapesscripts.helpers import labels as official

from pipeline.data.labels import CITYSCAPES, IGNORE, ClassTable
from pipeline.errors import DatasetError

SMALL = ClassTable(
    names=("ground", "thing"),
    colors=((10, 20, 30), (40, 50, 60)),
    label_ids=(9, 4),
    ignored_label_ids=(7, 200),
)


def official_train_id(label_id: int) -> int:
    return int(official.id2label[label_id].trainId)


def test_cityscapes_names_ids_and_colours_are_the_official_ones():
    of_train_id = {label.trainId: label for label in official.labels if 0 <= label.trainId < 255}
    assert len(of_train_id) == CITYSCAPES.num_classes == 19
    for train_id, label in of_train_id.items():
        assert CITYSCAPES.names[train_id] == label.name
        assert CITYSCAPES.label_ids[train_id] == label.id
        assert CITYSCAPES.colors[train_id] == label.color


def test_every_official_label_id_becomes_its_official_train_id():
    ids = np.arange(34, dtype=np.uint8).reshape(2, 17)
    expected = np.vectorize(official_train_id)(ids)
    np.testing.assert_array_equal(CITYSCAPES.to_train_ids(ids), expected)


def test_classes_survive_the_way_to_label_ids_and_back():
    rng = np.random.default_rng(0)
    train_HW = rng.choice([*range(19), IGNORE], size=(33, 47)).astype(np.uint8)
    label_HW = CITYSCAPES.to_label_ids(train_HW)
    np.testing.assert_array_equal(CITYSCAPES.to_train_ids(label_HW), train_HW)
    assert set(np.unique(label_HW[train_HW == IGNORE])) == {0}


def test_ids_outside_the_table_are_named_in_the_error():
    label_HW = np.full((4, 6), 7, np.uint8)
    label_HW[1, 2], label_HW[3, 5] = 34, 255
    with pytest.raises(DatasetError, match=r"\[34, 255\]"):
        CITYSCAPES.to_train_ids(label_HW)


def test_the_number_used_as_a_marker_inside_is_refused_or_converted_like_any_other():
    label_HW = np.full((2, 2), 254, np.uint8)
    with pytest.raises(DatasetError, match=r"\[254\]"):
        SMALL.to_train_ids(label_HW)
    table = ClassTable(("a",), ((0, 0, 0),), (254,), (253,))
    np.testing.assert_array_equal(table.to_train_ids(label_HW), np.zeros((2, 2)))


def test_label_ids_need_not_be_ordered_and_slices_need_not_be_contiguous():
    label_HW = np.array([[9, 0, 4, 0], [7, 0, 200, 0]], np.uint8)[:, ::2]
    np.testing.assert_array_equal(SMALL.to_train_ids(label_HW), [[0, 1], [255, 255]])
    np.testing.assert_array_equal(SMALL.to_label_ids(np.array([[0, 1, 255]], np.uint8)), [[9, 4, 7]])


def test_without_ignored_ids_255_stays_255_in_label_files():
    table = ClassTable(("a",), ((0, 0, 0),), (3,), ())
    np.testing.assert_array_equal(table.to_label_ids(np.array([[0, 255]], np.uint8)), [[3, 255]])


def test_colours_follow_train_ids_and_ignored_pixels_are_black():
    picture = SMALL.colorize(np.array([[0, 1, 255]], np.uint8))
    np.testing.assert_array_equal(picture, [[[10, 20, 30], [40, 50, 60], [0, 0, 0]]])
    assert picture.dtype == np.uint8


@pytest.mark.parametrize("convert", [SMALL.to_label_ids, SMALL.colorize])
def test_train_ids_that_do_not_exist_are_named_in_the_error(convert):
    with pytest.raises(DatasetError, match=r"\[2, 19\]"):
        convert(np.array([[0, 19, 2, 255]], np.uint8))


@pytest.mark.parametrize("plane", [np.zeros((2, 2), np.uint16), np.zeros((2, 2, 3), np.uint8)])
def test_labels_of_another_type_or_shape_are_refused(plane):
    with pytest.raises(DatasetError, match="one channel of 8 bits"):
        SMALL.to_train_ids(plane)


def test_empty_pictures_convert_to_empty_pictures():
    assert SMALL.to_train_ids(np.zeros((0, 5), np.uint8)).shape == (0, 5)


def test_tables_survive_json_and_pickle_and_stay_hashable():
    SMALL.to_train_ids(np.array([[9]], np.uint8))
    for table in (SMALL, CITYSCAPES):
        again = ClassTable.from_dict(json.loads(json.dumps(table.to_dict())))
        assert again == table == pickle.loads(pickle.dumps(table))
        assert hash(again) == hash(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"names": ["ground"]}, "1 names, 2 colours"),
        ({"names": ["ground", "ground"]}, "names two classes alike"),
        ({"label_ids": [9, 7]}, r"\[7\] twice"),
        ({"label_ids": [9, 256]}, r"\[256\]"),
        ({"colors": [[0, 0, 0], [0, 0, 300]]}, "three numbers"),
        ({"colors": [[0, 0, 0], [0, 0]]}, "wrong type"),
        ({"label_ids": "no"}, "wrong type"),
        ({"extra": 1}, "extra"),
        ({"names": [], "colors": [], "label_ids": []}, "0 classes"),
    ],
)
def test_contradicting_tables_are_refused_with_the_reason(change, message):
    with pytest.raises(DatasetError, match=message):
        ClassTable.from_dict({**SMALL.to_dict(), **change})


def test_a_table_with_a_missing_field_is_refused():
    values = SMALL.to_dict()
    del values["colors"]
    with pytest.raises(DatasetError, match="expected"):
        ClassTable.from_dict(values)
