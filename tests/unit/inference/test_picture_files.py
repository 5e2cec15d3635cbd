"""Which pictures are meant, where results go, and one clear line for whatever cannot be."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.data.labels import CITYSCAPES
from pipeline.errors import ConfigError, DatasetError, WorldStateError
from pipeline.inference.export import encode_png
from pipeline.inference.picture_files import find_pictures, predict_file, prepare_out


def picture(path: Path, height: int = 6, width: int = 9) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(np.full((height, width, 3), 100, np.uint8)))
    return path


def test_a_file_a_folder_and_a_glob_find_pictures_once_and_in_order(tmp_path: Path) -> None:
    a, b = picture(tmp_path / "in" / "city" / "a.png"), picture(tmp_path / "in" / "b.PNG")
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    found = find_pictures(
        [str(a), str(tmp_path / "in"), str(tmp_path / "in" / "**" / "*.png")], tmp_path / "out"
    )
    assert found == [a, b]


def test_results_of_an_earlier_prediction_are_not_predicted_again(tmp_path: Path) -> None:
    a = picture(tmp_path / "a.png")
    picture(tmp_path / "masks" / "a_overlay.png")
    assert find_pictures([str(tmp_path)], tmp_path / "masks") == [a]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("absent.png", "no such file or folder"),
        ("empty", "holds no picture"),
        ("*.jpg", "matches no picture"),
        ("**bad[", "is no glob"),
        ("https://example.org/a.png", "download it first"),
    ],
)
def test_an_input_that_names_nothing_is_one_clear_line(tmp_path: Path, typed: str, expected: str) -> None:
    (tmp_path / "empty").mkdir()
    text = typed if "://" in typed else str(tmp_path / typed)
    with pytest.raises(ConfigError, match=expected) as caught:
        find_pictures([text], tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert typed in str(caught.value)


def test_pictures_whose_results_would_share_a_name_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "x" / "a.png")
    picture(tmp_path / "y" / "a.png")
    with pytest.raises(ConfigError, match=r"both be written as a_labelIds\.png"):
        find_pictures([str(tmp_path)], tmp_path / "out")


def test_a_result_never_overwrites_a_picture(tmp_path: Path) -> None:
    pictures = [picture(tmp_path / "a.png"), picture(tmp_path / "a_overlay.png")]
    with pytest.raises(ConfigError, match="would overwrite the picture"):
        prepare_out(tmp_path, pictures)


def test_an_out_that_cannot_be_written_is_a_state_of_the_world(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WorldStateError, match="cannot write to --out"):
        prepare_out(tmp_path / "file" / "out", [])


def test_mask_and_overlay_have_the_picture_s_size_and_the_class_table_s_ids(tmp_path: Path) -> None:
    path, out = picture(tmp_path / "a.png"), tmp_path / "out"
    train_HW = np.arange(54, dtype=np.uint8).reshape(6, 9) % 19
    prepare_out(out, [path])
    predict_file(path, out, lambda _: train_HW, CITYSCAPES)
    mask_HW = cv2.imread(str(out / "a_labelIds.png"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(mask_HW, CITYSCAPES.to_label_ids(train_HW))
    overlay = cv2.cvtColor(cv2.imread(str(out / "a_overlay.png")), cv2.COLOR_BGR2RGB)
    expected = (100 + CITYSCAPES.colorize(train_HW).astype(float)) / 2
    assert np.abs(overlay - expected).max() <= 1
    assert sorted(p.name for p in out.iterdir()) == ["a_labelIds.png", "a_overlay.png"]


def test_a_broken_picture_is_named(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"a\.png"):
        predict_file(path, tmp_path, lambda image: image[:, :, 0], CITYSCAPES)
