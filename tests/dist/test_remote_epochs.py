"""Epochs over shards on a real S3 server behind a network that fails on purpose: the pixels of local ones."""

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from pipeline.config import DataConfig, StoreConfig
from pipeline.data.dataset import ShardDataset
from pipeline.data.loader import TrainLoader
from pipeline.data.store.patience import Patience
from pipeline.world import World
from tests.dist.remote_city import S3, TRAIN, all_sound, shards_here, use
from tests.faulty_proxy import FaultyProxy
from tests.rclone_server import serving

NEVER_S = 600.0
"""A time-out that no machine is slow enough to meet."""


def epoch(root: str, store: StoreConfig, workers: int) -> dict[int, tuple[str, bytes, bytes]]:
    """Every position of an epoch: key, image and label bytes."""
    config = DataConfig(
        input_height=48, input_width=64, crop_height=32, crop_width=48, streams=8, block=16,
        loader_workers=workers, store=store,
    )  # fmt: skip
    batches = TrainLoader(ShardDataset.open(root, "train", store), config, 3, World(), 6).batches(0)
    got = {}
    for _ in range(TRAIN // 6):
        batch = next(batches)
        for position, key, image, label in zip(
            batch.positions, batch.keys, batch.image_BHW3, batch.label_BHW, strict=True
        ):
            got[position] = (key, image.tobytes(), label.tobytes())
    batches.close()
    return got


def sound_answers(proxy: FaultyProxy) -> Counter[tuple[str, str]]:
    """(path, range) → requests for it that met no fault."""
    return Counter((seen.path.partition("?")[0], seen.range) for seen in proxy.seen if not seen.fault)


def refuse_needless_ranges(local: str, asked: Collection[tuple[str, str]]) -> None:
    """Fails for a range that is neither a whole shard nor of a picture: two of an image, one of a label.

    So it is whoever is quicker, a sample's reader, who asks for these, or the download of its shard.
    """
    dataset = ShardDataset.open(local, "train")
    ranges: dict[str, set[range]] = {}
    for path, text in asked:
        if not path.endswith((".index.jsonl", "/manifest.json")):
            first, _, last = text.removeprefix("bytes=").partition("-")
            ranges.setdefault(path, set()).add(range(int(first), int(last) + 1))
    for number, shard in enumerate(dataset.split.shards):
        left = ranges.pop(f"/bucket/city/{shard.name}", set()) - {range(shard.bytes)}
        for sample in range(shard.samples):
            entry = dataset.entry(number, sample)
            for member, most in ((entry.image, 2), (entry.label, 1)):
                end = member.offset + member.bytes
                inside = {part for part in left if member.offset <= part.start and part.stop <= end}
                assert len(inside) <= most, (shard.name, entry.key, inside)
                left -= inside
        assert not left, (shard.name, left)
    assert not ranges


def test_an_epoch_asks_for_each_range_once_and_again_only_after_a_fault(s3, local, store, monkeypatch):
    monkeypatch.setattr(Patience, "may_ask_again", lambda _: False)
    with FaultyProxy(s3, faults=True, stall_s=0.1).running() as proxy:
        use(monkeypatch, proxy)
        got = epoch(S3, replace(store, timeout_s=NEVER_S), 0)
        faults, answers = proxy.faults(), sound_answers(proxy)
    assert got == epoch(local, store, 0)
    assert len({key for key, _, _ in got.values()}) == TRAIN, "each sample once"
    assert min(faults["error"], faults["reset"], faults["stall"]) >= 3, faults
    refuse_needless_ranges(local, answers)
    shared = {path: count for (path, _), count in answers.items() if not path.endswith(".tar")}
    assert {count for (path, _), count in answers.items() if path not in shared} == {1}
    # The manifest is opened twice; an index may be asked for by the plan and by the download of its shard.
    assert max(shared.values()) <= 2
    assert all_sound(shards_here(store))


def test_loader_processes_give_the_same_pixels_with_one_request_in_ten_asked_for_a_second_time(
    s3, local, store, monkeypatch
):
    with FaultyProxy(s3, faults=True, seed=2, stall_s=5.0).running() as proxy:
        use(monkeypatch, proxy)
        got = epoch(S3, replace(store, timeout_s=NEVER_S), 2)
        faults, answers = proxy.faults(), sound_answers(proxy)
    assert got == epoch(local, store, 0)
    assert min(faults["error"], faults["reset"], faults["stall"]) >= 3, faults
    refuse_needless_ranges(local, answers)
    again = sum(
        count - (1 if path.endswith(".tar") else 2) for (path, _), count in answers.items() if count > 1
    )
    stores = 4  # the manifest's, the plan's, and one of each loader process
    assert again <= 0.1 * answers.total() + 8 * stores, "however slow the machine"
    assert all_sound(shards_here(store))


def test_ranged_reads_alone_give_the_pixels_of_local_shards_over_plain_http(served, local, store):
    with serving("http", served) as upstream, FaultyProxy(upstream, faults=True).running() as proxy:
        remote = ShardDataset.open(f"{proxy.url}/bucket/city", "train", store)
        remote.preflight()
        for index, expected in enumerate(map(ShardDataset.open(local, "train").sample_at, range(TRAIN))):
            got = remote.sample_at(index)
            assert got.key == expected.key
            assert np.array_equal(got.image_HW3, expected.image_HW3)
            assert np.array_equal(got.label_HW, expected.label_HW)
        assert len(proxy.seen) >= 300
        assert min(proxy.faults().values()) >= 3
    assert shards_here(store) == [], "nothing was announced, so nothing was downloaded"
