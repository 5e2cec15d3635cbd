"""Indexing foreign tars: no sample is lost in silence, nothing hostile is opened, no tar is changed."""

import contextlib
import io
import os
import pickle
import re
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import webdataset

from pipeline.data.dataset import ShardDataset
from pipeline.data.labels import CITYSCAPES, ClassTable
from pipeline.data.packing.parallel import in_turn
from pipeline.data.packing.shard_names import expand_braces
from pipeline.data.packing.tar_index import IndexOptions, Scanned, index_shards, scan_tar
from pipeline.data.packing.tar_samples import MemberNames, TarSample, read_samples
from pipeline.data.packing.tar_stream import TarStream
from pipeline.data.packing.verify import verify_shards
from pipeline.errors import ConfigError, ShardError

CLASSES = ClassTable(("road", "car", "sky"), ((1, 2, 3), (4, 5, 6), (7, 8, 9)), (0, 1, 2), (255,))
OPTIONS = IndexOptions(CLASSES, split="train")
foreign_reader = pytest.mark.filterwarnings("ignore::ResourceWarning")


def png(pixels) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def image(seed: int) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8))


LABEL = png(np.array([[0, 1, 2, 255, 1]] * 4, np.uint8))


def sample(key: str, seed: int = 0) -> list[tuple[str, bytes]]:
    return [(f"{key}.image.png", image(seed)), (f"{key}.label.png", LABEL)]


def tar_bytes(members, **options) -> bytes:
    """A tar by Python's own writer; members are (name, data) or TarInfo with data."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", **({"format": tarfile.USTAR_FORMAT} | options)) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = info.size or len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def scan(tmp_path: Path, data: bytes, names: MemberNames = OPTIONS.names) -> Scanned:
    (tmp_path / "x.tar").write_bytes(data)
    return scan_tar("x.tar", str(tmp_path), CLASSES, names)


def info(name: str, kind: bytes, **fields) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for field, value in fields.items():
        setattr(made, field, value)
    return made


def rewritten(data: bytes, at: int, where: slice, field: bytes) -> bytes:
    """A tar with a field of the header at `at` changed, and its checksum made right."""
    header = bytearray(data[at : at + 512])
    header[where] = field
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\x00 " % sum(header)
    return data[:at] + bytes(header) + data[at + 512 :]


TWO = tar_bytes(sample("a") + sample("b", 1))


def test_an_index_reads_the_same_pixels_and_leaves_the_tar_alone(tmp_path):
    root = tmp_path / "foreign"
    folder = root / "train"
    folder.mkdir(parents=True)
    scene = np.random.default_rng(1).integers(0, 256, (40, 50, 3), np.uint8)
    jpeg = cv2.imencode(".jpg", scene)[1].tobytes()
    label = np.random.default_rng(2).integers(0, 3, (40, 50), np.uint8)
    members = [("s1.jpg", jpeg), ("s1.json", b"{}"), ("s1.png", png(label)), ("dir/s2.jpeg", jpeg)]
    members += [("dir/s2.png", png(label)), ("dir/s2.cls", b"3")]
    (folder / "x-000.tar").write_bytes(tar_bytes(members))
    before = (folder / "x-000.tar").read_bytes()
    manifest = index_shards(str(root), (), IndexOptions(CLASSES), in_turn)
    assert (folder / "x-000.tar").read_bytes() == before
    assert sorted(p.name for p in root.rglob("*") if p.is_file()) == [
        "manifest.json", "x-000.index.jsonl", "x-000.tar",
    ]  # fmt: skip
    dataset = ShardDataset.open(str(root), "train")
    assert dataset.manifest.id == manifest.id
    assert not any(shard.problems for shard in verify_shards(str(root), ["train"], True, in_turn))
    for index, key in enumerate(("s1", "dir/s2")):
        read = dataset.sample_at(index)
        assert read.key == key
        assert np.array_equal(read.label_HW, label)
        assert np.array_equal(read.image_HW3, cv2.imdecode(np.frombuffer(jpeg, np.uint8), 1)[..., ::-1])
    with pytest.raises(ShardError, match=r"has a manifest\.json already; audit it with .* verify"):
        index_shards(str(root), (), IndexOptions(CLASSES), in_turn)


def test_indexing_packed_tars_gives_the_packers_own_indexes(own):
    splits = ("train", "val")
    expected = {path.name: path.read_bytes() for path in Path(own).rglob("*.index.jsonl")}
    for path in (*Path(own).rglob("*.jsonl"), Path(own, "manifest.json")):
        path.unlink()
    train_ids = tuple(range(CITYSCAPES.num_classes))
    classes = ClassTable(CITYSCAPES.names, CITYSCAPES.colors, train_ids, (255,))
    manifest = index_shards(own, (), IndexOptions(classes), in_turn)
    assert tuple(manifest.splits) == splits
    assert {path.name: path.read_bytes() for path in Path(own).rglob("*.index.jsonl")} == expected


@foreign_reader
def test_the_samples_are_those_that_webdataset_finds(tmp_path):
    (tmp_path / "x.tar").write_bytes(TWO)
    theirs = [s["__key__"] for s in webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False)]
    result = scan(tmp_path, TWO)
    assert theirs == ["a", "b"]
    assert [line.split(b'"key":"')[1][:1] for line in result.index.splitlines()] == [b"a", b"b"]


class Memory:
    """As much of a store as reading one tar takes; five thousand files would be slow."""

    root = "memory"

    def __init__(self, data: bytes) -> None:
        self.data = data

    def size(self, name: str) -> int:
        return len(self.data)

    def read(self, name: str, offset: int, num_bytes: int) -> bytes:
        return self.data[offset : offset + num_bytes]


def samples_in(data: bytes) -> list[TarSample]:
    return list(read_samples(TarStream(Memory(data), "x.tar"), OPTIONS.names))


def test_every_truncation_is_an_error_unless_nothing_is_lost():
    content = TWO.rstrip(b"\x00")
    marker_end = len(content) + -len(content) % 512 + 1024
    whole = samples_in(TWO)
    for length in range(marker_end):
        with pytest.raises(ShardError, match=r"^memory/x\.tar is cut short: .* at offset \d+ needs"):
            samples_in(TWO[:length])
    for length in range(marker_end, len(TWO), 500):  # blocks after the marker hold nothing
        assert samples_in(TWO[:length]) == whole


def test_every_flipped_byte_of_a_header_is_an_error_or_changes_nothing():
    whole = samples_in(TWO)
    with tarfile.open(fileobj=io.BytesIO(TWO)) as tar:
        headers = [member.offset for member in tar]
    for at in headers:
        for byte in range(512):
            flipped = bytearray(TWO)
            flipped[at + byte] ^= 0x15
            with contextlib.suppress(ShardError):
                assert samples_in(bytes(flipped)) == whole, (at, byte)


EVIL = "../../evil.image.png"
HOSTILE = {
    "no end marker": (
        TWO[: len(TWO.rstrip(b"\0")) // 512 * 512 + 512],
        r"cut short: a header, or the end-of-arch",
    ),
    "nothing at all": (b"", r"cut short: a header, or the end-of-archive marker, at offset 0"),
    "no tar": (b"\x89PNG" * 512, r"at offset 0: what should be a header is damaged \(checksum\)"),
    "two tars in one": (TWO + TWO, r"at offset \d+: data after the end-of-archive marker \(two tars"),
    "one block of zeros": (TWO[:1024] + bytes(512) + TWO[1024:], r"at offset 1024: one block of zeros"),
    "a key doubled at once": (
        tar_bytes(sample("a") + sample("a")),
        r"of the key 'a' at offset \d+ stands there",
    ),
    "a key doubled apart": (
        tar_bytes(sample("a") + sample("b") + sample("a")),
        r"the key 'a' at offset \d+ was at offset 512 alr",
    ),
    "a split key": (
        tar_bytes([*sample("b"), sample("a")[0], *sample("c"), sample("a")[1]]),
        r"the key 'a' at offset 2560 has no member \.label\.png",
    ),
    "no label": (
        tar_bytes([*sample("b"), sample("a")[0]]),
        r"the key 'a' at offset \d+ has no member .* its label",
    ),
    "no image": (tar_bytes([sample("a")[1]]), r"the key 'a' at offset 512 has no member .* for its image"),
    "two images": (
        tar_bytes([*sample("a"), ("a.jpg", image(1))]),
        r"'a' at offset 512 has several for its image .*--image E",
    ),
    "a name that climbs out": (tar_bytes([(EVIL, image(0))]), r"offset 0: a member named '\.\./\.\./evil"),
    "an absolute name": (
        tar_bytes([("/etc/x.png", image(0))]),
        r"offset 0: a member named '/etc/x\.png'; refu",
    ),
    "a climb inside": (
        tar_bytes([("a/../../x.png", image(0))]),
        r"at offset 0: a member named 'a/\.\./\.\./x\.png",
    ),
    "a backslash": (tar_bytes([("..\\x.png", image(0))]), r"at offset 0: a member named"),
    "a control character": (tar_bytes([("a\x1b[2J.png", image(0))]), r"at offset 0: a member named"),
    "no key": (tar_bytes([(".hidden.png", image(0))]), r"'\.hidden\.png' at offset 512 is no <key>"),
    "no ending": (tar_bytes([("README", b"hello")]), r"'README' at offset 512 is no <key>\.<ending>"),
    "a symbolic link": (
        tar_bytes([(info("a.image.png", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")]),
        r"is a symbolic link",
    ),
    "a hard link": (
        tar_bytes([(info("a.png", tarfile.LNKTYPE, linkname="b.png"), b"")]),
        r"'a\.png' is a hard l",
    ),
    "a device": (
        tar_bytes([(info("a.png", tarfile.CHRTYPE), b"")]),
        r"at offset 0: 'a\.png' is a device, not",
    ),
    "a pipe": (
        tar_bytes([(info("a.png", tarfile.FIFOTYPE), b"")]),
        r"at offset 0: 'a\.png' is a pipe, not a",
    ),
    "a sparse file": (tar_bytes([(info("a.png", b"S"), b"")]), r"at offset 0: 'a\.png' is a sparse file"),
    "a sparse file by pax": (
        tar_bytes(
            [(info("a.png", b"0", pax_headers={"GNU.sparse.major": "1"}), b"x")], format=tarfile.PAX_FORMAT
        ),
        r"'a\.png' is a sparse file",
    ),
    "an unknown kind": (tar_bytes([(info("a.png", b"Z"), b"")]), r"'a\.png' is of an unknown kind 'Z'"),
    "a size that lies beyond the end": (
        rewritten(TWO, 0, slice(124, 136), b"%011o\x00" % 10**6),
        r"the data of 'a\.image\.png' at offset 512 needs",
    ),
    "a size that swallows its neighbour": (
        rewritten(TWO, 0, slice(124, 136), b"%011o\x00" % 700),
        r"at offset 1536: what should be a header is damaged",
    ),
    "a size that is too small": (
        rewritten(TWO, 0, slice(124, 136), b"%011o\x00" % 20),
        r"image of 'a' at offset 512 is (neither|a broken)",
    ),
    "a negative size": (
        rewritten(TWO, 0, slice(124, 136), b"\xff" * 12),
        r"at offset 0: a header with a size that is no number",
    ),
    "a size of terabytes": (
        rewritten(TWO, 0, slice(124, 136), b"\x80" + (2**45).to_bytes(11, "big")),
        r"has 35184372088832 bytes, 10",
    ),
    "an extended header of gigabytes": (
        rewritten(tar_bytes([(info("x", b"L"), b"")]), 0, slice(124, 136), b"%011o\x00" % 2**31),
        r"an extended header of",
    ),
    "an extended header that is none": (
        tar_bytes([(info("x", b"x"), b"99 path=y\n"), *sample("a")]),
        r"cannot be read",
    ),
    "an extended header at the end": (
        tar_bytes([(info("x", b"L"), b"long\0")]),
        r"at offset 1024: the end comes after an extended header",
    ),
    "a bomb": (
        tar_bytes([("a.image.png", image(0)[:16] + b"\0\1\0\0" * 2 + image(0)[24:]), *sample("a")[1:]]),
        r"image of 'a' at offset 512 claims 65536x65536 pixels",
    ),
    "an image that is cut short": (
        tar_bytes([("a.image.png", image(0)[:-20]), *sample("a")[1:]]),
        r"image of 'a' at offset 512 is a broken PNG",
    ),
    "an image that is none": (
        tar_bytes([("a.image.png", b"GIF89a"), *sample("a")[1:]]),
        r"image of 'a' at offset 512 is neither",
    ),
    "a colour label": (
        tar_bytes([*sample("a")[:1], ("a.label.png", image(0))]),
        r"label of 'a' at offset 1536 is not an 8-bit single",
    ),
    "another size": (
        tar_bytes([*sample("a")[:1], ("a.label.png", png(np.zeros((4, 6), np.uint8)))]),
        r"4x5 pixels, its label 4x6",
    ),
    "ids of no class": (
        tar_bytes([*sample("a")[:1], ("a.label.png", png(np.full((4, 5), 26, np.uint8)))]),
        r"label of 'a' at offset \d+ has the ids \[26\], which are no train ids of 3 classes; pack",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_bad_tar_is_one_line_with_shard_and_offset(tmp_path, case):
    data, message = HOSTILE[case]
    result = scan(tmp_path, data)
    assert re.search(message, result.problem), result.problem
    assert f"{tmp_path}/x.tar" in result.problem
    assert "at offset " in result.problem
    assert "\n" not in result.problem
    assert [path.name for path in tmp_path.iterdir()] == ["x.tar"]


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.mark.parametrize(
    "ending", ["pkl", "pyd", "pth", "npy", "pickle", "npz", "ten", "image.pkl", "PKL", "py"]
)
def test_members_that_a_loader_would_run_are_refused_unopened(tmp_path, ending):
    marker = tmp_path / "marker"
    payload = pickle.dumps(Payload(marker))
    result = scan(tmp_path, tar_bytes([*sample("a"), (f"a.{ending}", payload)]))
    assert "of the key 'a' at offset 2560 is refused: a shard holds cls, jpeg" in result.problem
    assert not marker.exists()
    pickle.loads(payload)
    assert marker.exists(), "the payload is a real one"


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_are_read_as_tarfile_reads_them(tmp_path, form):
    keys = ["k" * 130, "straße/北京", "d/" * 60 + "key", "plain"]
    data = tar_bytes([member for key in keys for member in sample(key)], format=form)
    result = scan(tmp_path, data)
    assert result.entry, result.problem
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        offsets = [member.offset_data for member in tar]
    assert [f'"offset":{offset}'.encode() in result.index for offset in offsets] == [True] * 8
    assert all(f'"key":"{key}"'.encode() in result.index for key in keys)


def test_folders_and_gnu_tars_own_habits_are_no_offence(tmp_path):
    folder = tmp_path / "src" / "d"
    folder.mkdir(parents=True)
    for name, data in sample("a") + sample("b"):
        (folder / name).write_bytes(data)
    shutil.make_archive(str(tmp_path / "made"), "tar", tmp_path / "src")
    result = scan(tmp_path, (tmp_path / "made.tar").read_bytes())
    assert (result.entry is not None) or "already, with others between" in result.problem
    ordered = tar_bytes([(info("./d", tarfile.DIRTYPE), b""), *sample("./d/a"), *sample("./d/b")])
    assert scan(tmp_path, ordered).entry.samples == 2


def test_an_empty_tar_is_a_shard_of_no_samples(tmp_path):
    result = scan(tmp_path, tar_bytes([]))
    assert result.entry
    assert (result.entry.samples, result.index) == (0, b"")


def test_a_set_of_no_samples_is_refused_and_an_empty_shard_beside_others_is_not(tmp_path):
    (tmp_path / "train-0.tar").write_bytes(tar_bytes([]))
    with pytest.raises(
        ShardError, match=r"there is no sample in 1 shards \(such as train-0\.tar\); .* nothing was"
    ):
        index_shards(str(tmp_path), (), OPTIONS, in_turn)
    assert [path.name for path in tmp_path.iterdir()] == ["train-0.tar"]
    (tmp_path / "train-1.tar").write_bytes(TWO)
    assert index_shards(str(tmp_path), (), OPTIONS, in_turn).splits["train"].samples == 2


def test_all_bad_shards_are_counted_and_nothing_is_written(tmp_path):
    for number, data in enumerate((TWO, TWO[:900], TWO[:1100])):
        (tmp_path / f"train-{number}.tar").write_bytes(data)
    with pytest.raises(
        ShardError, match=r"train-1\.tar is cut short.*\(and 1 more shards\); nothing was writ"
    ):
        index_shards(str(tmp_path), (), OPTIONS, in_turn)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train-0.tar", "train-1.tar", "train-2.tar"]


def test_a_shard_that_is_there_twice_is_refused(tmp_path):
    for name in ("train-0.tar", "train-1.tar"):
        (tmp_path / name).write_bytes(TWO)
    with pytest.raises(ShardError, match=r"train-1\.tar is a copy of train-0\.tar; remove one"):
        index_shards(str(tmp_path), (), OPTIONS, in_turn)


def test_splits_come_from_folders_names_or_the_flag(tmp_path):
    def splits(root, **options):
        manifest = index_shards(str(root), (), IndexOptions(CLASSES, **options), in_turn)
        return {name: [shard.name for shard in split.shards] for name, split in manifest.splits.items()}

    for number, name in enumerate(("a/train-000.tar", "a/train_001.tar", "b/val2.tar")):
        for root in ("folder", "name", "flag"):
            path = tmp_path / root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(tar_bytes(sample("a", number)))
    assert list(splits(tmp_path / "folder")) == ["a", "b"]
    assert list(splits(tmp_path / "name", split_from="name")) == ["train", "val"]
    assert splits(tmp_path / "flag", split="mine") == {
        "mine": ["a/train-000.tar", "a/train_001.tar", "b/val2.tar"]
    }
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "000.tar").write_bytes(TWO)
    for options in ({}, {"split_from": "name"}):
        with pytest.raises(ConfigError, match=r"000\.tar does not say its split: .*--split NAME"):
            splits(tmp_path / "flat", **options)


def test_label_ids_that_are_no_train_ids_are_refused_before_a_tar_is_read(tmp_path):
    with pytest.raises(ConfigError, match=r"has the ids \[7, 8, .*0, 1, … in the order .*pack_folder\.py"):
        index_shards(str(tmp_path), (), IndexOptions(CITYSCAPES), in_turn)


def test_ranges_in_braces_are_names():
    assert expand_braces("t/x-{008..011}.tar") == ["t/x-008.tar", "t/x-009.tar", "t/x-010.tar", "t/x-011.tar"]
    assert expand_braces("{1..2}-{8..9}.tar") == ["1-8.tar", "1-9.tar", "2-8.tar", "2-9.tar"]
    assert expand_braces("x.tar") == ["x.tar"]
    for bad in ("x-{3..1}.tar", "x-{a,b}.tar", "*.tar", "{0..99999999}.tar"):
        with pytest.raises(ConfigError, match=r"--shards"):
            expand_braces(bad)


def test_endings_that_are_no_pictures_are_refused():
    with pytest.raises(ConfigError, match=r"--label seg\.jpg: images are"):
        MemberNames(label=("seg.jpg",))
    with pytest.raises(ConfigError, match=r"--image npy: images are"):
        MemberNames(image=("npy",))
