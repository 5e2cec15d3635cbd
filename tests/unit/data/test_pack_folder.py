"""Packing any images and labels: codecs, pairs by name, class files that people write."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pipeline.data import striped_png
from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import ClassTable
from pipeline.data.packing import codec as codec_module
from pipeline.data.packing.class_file import read_class_file
from pipeline.data.packing.codec import parse_codec
from pipeline.data.packing.folder_tree import find_pairs
from pipeline.data.packing.pack import pack_cityscapes, pack_folder
from pipeline.data.packing.pictures import TreeError
from pipeline.data.packing.shard_plan import PackOptions
from pipeline.errors import ConfigError, DatasetError
from pipeline.launch.pack_job import run_packing

ROOT = Path(__file__).resolve().parents[3]
CLASSES = ClassTable(("sky", "ground"), ((0, 0, 255), (90, 60, 30)), (3, 7), (0, 255))
FILE = """
classes:
  - {name: sky, id: 3, color: [0, 0, 255]}
  - {name: ground, id: 7, color: [90, 60, 30]}
ignored_ids: [0, 255]
"""


def picture(seed: int, height: int = 20, width: int = 30):
    rng = np.random.default_rng(seed)
    image = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), np.uint8), (0, 0), 3)
    return image, rng.choice(np.array([0, 3, 7, 255], np.uint8), (height, width))


@pytest.fixture
def folders(tmp_path):
    """images/ and labels/ with two splits; some pictures lie deeper than others."""
    for number, place in enumerate(("train/a", "train/deep/er/b", "train/c", "val/d")):
        image, label = picture(number)
        for kind, pixels, suffix in (
            ("images", image, "jpg" if number == 2 else "png"),
            ("labels", label, "png"),
        ):
            path = tmp_path / kind / f"{place}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), pixels)
    return tmp_path


def pack(folders: Path, out: str = "out", split: str = "", **options):
    return pack_folder(
        str(folders / "images"),
        str(folders / "labels"),
        str(folders / out),
        PackOptions(CLASSES, **options),
        split,
    )


def test_pairs_by_name_keep_their_pixels_and_ids_become_train_ids(folders):
    assert pack(folders).samples == 4
    train = ShardDataset.open(str(folders / "out"), "train")
    assert [train.sample_at(i).key for i in range(3)] == ["a", "b", "c"]
    assert len(ShardDataset.open(str(folders / "out"), "val")) == 1
    for index in range(2):
        image, label = picture(index)
        read = train.sample_at(index)
        assert np.array_equal(read.image_HW3, image[..., ::-1])
        expected = np.select([label == 3, label == 7], [0, 1], 255)
        assert np.array_equal(read.label_HW, expected)
    assert train.classes == CLASSES


def test_one_split_takes_all_folders(folders):
    assert pack(folders, split="everything").samples == 4
    assert len(ShardDataset.open(str(folders / "out"), "everything")) == 4


@pytest.mark.parametrize("spoil", ["image", "label", "twice", "loose", "no split", "dotted", "stray split"])
def test_what_belongs_to_nothing_is_one_clear_line(folders, spoil):
    images, labels = folders / "images", folders / "labels"
    if spoil == "image":
        (images / "train/a.png").unlink()
        message = r"label without image: .*labels/train/a\.png lacks a a\.png \(or \.jpg\); add it"
    elif spoil == "label":
        (labels / "train/deep/er/b.png").unlink()
        message = r"image without label: .*images/train/deep/er/b\.png lacks a b\.png; add it"
    elif spoil == "twice":
        (images / "train/deep/a.png").write_bytes((images / "train/a.png").read_bytes())
        message = r"duplicate key 'a': .*train/a\.png and .*train/deep/a\.png; rename"
    elif spoil == "loose":
        (images / "x.png").write_bytes((images / "train/a.png").read_bytes())
        message = r"images has pictures where each folder in it is to be a split .*--split NAME"
    elif spoil == "no split":
        (labels / "val").rename(labels / "test")
        message = r"no such folder: .*labels/val; each split of .* needs one, or type --split"
    elif spoil == "stray split":
        (images / "what is this").mkdir()
        message = r"split 'what is this': a split's name has letters, digits, - and _; rename it"
    else:
        (images / "train/a.png").rename(images / "train/a.b.png")
        message = r"the key 'a\.b' may have no dot"
    with pytest.raises((DatasetError, ConfigError), match=message):
        pack(folders)
    assert not (folders / "out").exists()


def test_palette_labels_are_refused_or_taken_by_their_indices(folders):
    """The oracle is Pillow, which shows indices; OpenCV shows colours alone."""
    label = picture(0)[1]
    path = folders / "labels/train/a.png"
    stored = Image.fromarray(label, "L").convert("P")
    stored.putdata(label.ravel().tolist())
    stored.putpalette(list(np.random.default_rng(5).integers(0, 256, 768)))
    stored.info["transparency"] = 3
    stored.save(path, transparency=3)
    assert np.array_equal(np.asarray(Image.open(path)), label)
    with pytest.raises(
        TreeError, match=r"labels/train/a\.png is a palette PNG.*pack_folder\.py --palette, else"
    ):
        pack(folders)
    pack(folders, palette=True)
    read = ShardDataset.open(str(folders / "out"), "train").sample_at(0)
    assert np.array_equal(read.label_HW, np.select([label == 3, label == 7], [0, 1], 255))


def test_a_palette_of_few_bits_is_refused(folders):
    Image.fromarray(np.zeros((20, 30), np.uint8)).convert("P").save(folders / "labels/train/a.png", bits=4)
    with pytest.raises(TreeError, match=r"a\.png is a palette PNG of 4 bits; save the label as 8-bit grey"):
        pack(folders, palette=True)


def test_jpeg_has_the_quality_that_was_asked_for_and_says_so(folders):
    sizes = {}
    for quality in (60, 95):
        out = f"out{quality}"
        pack(folders, out, codec=parse_codec(f"jpeg:{quality}"))
        train = ShardDataset.open(str(folders / out), "train")
        sizes[quality] = train.entry(0, 0).image.bytes
        assert train.entry(0, 0).image.codec == "jpeg"
        difference = train.sample_at(0).image_HW3.astype(int) - picture(0)[0][..., ::-1].astype(int)
        assert 0 < np.abs(difference).mean() < 25
    assert sizes[60] < sizes[95]


def test_striped_is_the_default_and_another_codec_is_another_data_set(folders):
    striped = pack(folders)
    data_set = ShardDataset.open(str(folders / "out"), "train")
    tar = (folders / "out/train/train-000000.tar").read_bytes()
    for index in range(2):
        for member in (data_set.entry(0, index).image, data_set.entry(0, index).label):
            assert striped_png.read_layout(tar[member.offset : member.offset + member.bytes])
    assert data_set.entry(0, 2).image.codec == "jpeg", "a JPEG keeps its bytes"
    kept = data_set.entry(0, 2).image
    assert tar[kept.offset :][: kept.bytes] == (folders / "images/train/c.jpg").read_bytes()
    assert pack(folders) == striped
    with pytest.raises(DatasetError, match=r"holds another data set, or .* \(or the options\) changed"):
        pack(folders, codec=parse_codec("keep"))


@pytest.mark.parametrize("wrong", ["whole", "region", "label"])
def test_an_encoder_that_lies_is_found_before_the_shard_is_there(folders, monkeypatch, wrong):
    real = striped_png.encode

    def other(pixels):
        flipped = pixels.copy()
        flipped.flat[-1] ^= 1
        return real(flipped)

    if wrong == "region":
        monkeypatch.setattr(codec_module.striped_png, "decode_region", lambda *_: None)
    else:
        lies = 3 if wrong == "whole" else 2
        monkeypatch.setattr(
            codec_module.striped_png, "encode", lambda p: other(p) if p.ndim == lies else real(p)
        )
    with pytest.raises(
        DatasetError, match=r"a\.png does not read back as it was encoded; pack it with --codec keep"
    ):
        pack(folders)
    assert not list((folders / "out").rglob("*.tar"))
    assert not (folders / "out/manifest.json").exists()


@pytest.mark.parametrize("text", ["jpg", "jpeg", "jpeg:0", "jpeg:101", "jpeg:9.5", "", "png", "Striped"])
def test_a_codec_that_is_none_is_refused_with_what_there_is(text):
    with pytest.raises(
        ConfigError, match=r"is none: type striped, keep or jpeg:Q with a quality Q of 1 to 100"
    ):
        parse_codec(text)


def test_a_class_file_is_the_table_it_says(tmp_path):
    (tmp_path / "c.yaml").write_text(FILE)
    assert read_class_file(tmp_path / "c.yaml") == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classes: [", r"c\.yaml is not YAML: .*line 1"),
        ("", r"c\.yaml is empty; write classes: and a list"),
        ("# none yet\n", r"c\.yaml is empty; write classes: and a list"),
        ("clases: []", r"unknown field 'clases' \(did you mean classes\?\); known: classes, ignored_ids"),
        ("ignored_ids: [1]", r"c\.yaml lacks classes"),
        ("classes: {}", r"classes is no list; write one entry a class, such as \{name: road"),
        ("classes: [{name: a, id: 1}]", r"class 0 lacks color; an entry has name, id, color"),
        (
            "classes: [{name: a, id: 1, colour: [1, 2, 3]}]",
            r"unknown field 'colour' \(did you mean color\?\)",
        ),
        (
            "classes: [{name: a, id: true, color: [1, 2, 3]}]",
            r"class 0 \(a\): id is True; write a whole number",
        ),
        (
            "classes: [{name: no, id: 1, color: [1, 2, 3]}]",
            r'class 0: the name is False, as YAML reads bare no, off and false; write it as "no"$',
        ),
        (
            "classes: [{name: a, id: 1, color: red}]",
            r"class 0 \(a\): color is 'red'; write \[red, green, blue\]",
        ),
        (
            "classes: [{name: a, id: 1, color: [1, 2, 300]}]",
            r"has a colour that is not three numbers 0\.\.255",
        ),
        (
            "classes: [{name: a, id: 1, color: [1, 2, 3]}]\nignored_ids: 255",
            r"ignored_ids is 255; write a list",
        ),
        ("classes: [{name: a, id: 1, color: [1, 2, 3]}]\nignored_ids: [1]", r"lists label ids \[1\] twice"),
        (
            "classes: [!!python/object/apply:os.system [id]]",
            r"is not YAML: .*could not determine a constructor",
        ),
        ("classes: [a, b]", r"class 0 is 'a'; write \{name: road"),
    ],
)
def test_a_class_file_that_cannot_be_meant_so_is_one_clear_line(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_class_file(tmp_path / "c.yaml")
    assert "\n" not in str(error.value)
    assert "c.yaml" in str(error.value)


def test_the_job_packs_with_a_class_file(folders):
    (folders / "c.yaml").write_text(FILE)
    command = [sys.executable, str(ROOT / "jobs/pack_folder.py"), "--images", str(folders / "images")]
    command += ["--labels", str(folders / "labels"), "--classes", str(folders / "c.yaml")]
    command += ["--out", str(folders / "to train on"), "--processes", "1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    result = json.loads(ended.stdout.splitlines()[-1].removeprefix("RESULT "))
    assert (result["samples"], result["shards"], result["refused"]) == (4, 2, 0)
    assert result["manifest_id"] == pack(folders, "again").manifest_id
    assert f"python jobs/train_cityscapes.py --shards '{folders / 'to train on'}'\n" in ended.stdout
    ended = subprocess.run(
        [*command, "--codec", "png"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 2
    assert (
        ended.stderr
        == "pack: --codec png is none: type striped, keep or jpeg:Q with a quality Q of 1 to 100\n"
    )


def test_a_tree_without_a_split_to_evaluate_is_not_said_to_train(folders, capsys):
    shutil.rmtree(folders / "images/val")
    run_packing({}, 1, str(folders / "out"), lambda _: pack(folders))
    said = capsys.readouterr().out
    assert "training takes a split val too" in said
    assert "train_cityscapes" not in said


def test_fewer_processes_than_none_are_refused(folders):
    with pytest.raises(ConfigError, match=r"--processes -3 is below 0; type 0 for one a core"):
        run_packing({}, -3, str(folders / "out"), lambda _: pack(folders))


@pytest.mark.parametrize("out", ["images/out", "labels/train", "images"])
def test_an_output_inside_what_is_packed_is_refused(folders, out):
    before = sorted(folders.rglob("*"))
    with pytest.raises(ConfigError, match=r"--out .* lies in .*, which is packed; take a folder beside it"):
        pack(folders, out)
    assert sorted(folders.rglob("*")) == before


def test_each_picture_that_is_refused_counts_once_and_is_named(folders, capsys):
    for part in ("images", "labels"):
        (folders / part / "train/a.png").rename(folders / part / "train/a.b.png")
    (folders / "images/val/d.png").unlink()
    (folders / "images/val/e.png").write_bytes((folders / "images/train/a.b.png").read_bytes())
    result = {}
    with pytest.raises(TreeError, match=r"the key 'a\.b' .* \(and 2 more"):
        run_packing(result, 1, str(folders / "out"), lambda _: pack(folders))
    assert result["refused"] == 3
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["label without image", "image without label"]


def test_a_tree_of_jpegs_packs_as_it_is_by_default(tmp_path, make_scene, add_pair):
    image, label = make_scene(1)
    add_pair(tmp_path / "tree", "train", "c", "k", image, label, "jpg")
    pack_cityscapes(str(tmp_path / "tree"), str(tmp_path / "out"), ("train",))
    assert ShardDataset.open(str(tmp_path / "out"), "train").entry(0, 0).image.codec == "jpeg"


def test_pairs_are_in_the_order_of_their_keys(folders):
    found = find_pairs(folders / "images", folders / "labels")
    assert [(pair.split, pair.key) for pair in found] == [
        ("train", "a"), ("train", "b"), ("train", "c"), ("val", "d"),
    ]  # fmt: skip
