"""What the study promises before and after its runs: drives apart, paired variants, right statistics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.data.manifest import load_manifest
from pipeline.errors import ConfigError, DatasetError
from pipeline.idle_settings import refuse_idle_settings
from pipeline.model.segmenter import build_segmenter

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def row(variant, seed, drive, miou, **more):
    return {
        "variant": variant, "seed": seed, "left_out": drive, "miou": miou, "miou_labelled": miou,
        "pixel_accuracy": miou, "iou": {"road": miou}, "labelled_pixels": {"road": 9}, "wall_s": 1.0,
        "failed": "", "commit": "c", "curve": [{"step": 1, "miou": miou}], **more,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("freedom", "limit"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (10, 2.2281),
     (14, 2.1448), (29, 2.0452), (30, 2.0423), (100, 1.9840), (1000, 1.9623)],
)  # fmt: skip
def test_students_limits_are_those_of_the_printed_tables(freedom, limit):
    from study.paired import student_limit, student_within

    assert student_limit(0.95, freedom) == pytest.approx(limit, abs=6e-5)
    assert student_within(student_limit(0.95, freedom), freedom) == pytest.approx(0.95, abs=1e-12)


def test_students_distribution_is_the_integral_of_its_density():
    from math import gamma, pi, sqrt

    from study.paired import student_within

    for freedom in (1, 2, 3, 6, 7):
        t = np.linspace(-2.0, 2.0, 20_001)
        scale = gamma((freedom + 1) / 2) / (sqrt(freedom * pi) * gamma(freedom / 2))
        density = scale * (1 + t**2 / freedom) ** (-(freedom + 1) / 2)
        assert student_within(2.0, freedom) == pytest.approx(np.trapezoid(density, t), abs=1e-7)


def test_a_difference_is_of_pairs_of_the_same_seed_and_drive():
    from study.paired import difference, score

    rows = [
        row("new", 0, "a", 0.5),
        row("new", 1, "a", 0.6),
        row("new", 0, "b", 0.4),
        row("new", 7, "b", 0.9),
    ]
    rows += [
        row("old", 0, "a", 0.4),
        row("old", 1, "a", 0.4),
        row("old", 0, "b", 0.4),
        row("old", 8, "b", 0.1),
    ]
    found = difference(rows, "new", "old", score)
    assert (found.pairs, found.wins) == (3, 2)
    assert found.mean == pytest.approx(0.1)
    assert found.by_drive == pytest.approx({"a": 0.15, "b": 0.0})
    half = 4.30265 * np.std([0.1, 0.2, 0.0], ddof=1) / np.sqrt(3)
    assert found.interval == pytest.approx((0.1 - half, 0.1 + half), abs=1e-6)
    half = 12.7062 * np.std([0.15, 0.0], ddof=1) / np.sqrt(2)
    assert found.drives_interval == pytest.approx((0.075 - half, 0.075 + half), abs=1e-5)
    assert difference(rows, "new", "other", score) is None
    single = difference(rows[:1] + rows[4:5], "new", "old", score)
    assert (single.interval, single.drives_interval) == (None, None)


def test_a_class_counts_only_in_drives_where_it_is_labelled():
    from study.paired import class_score, difference

    rows = [row("new", 0, "a", 0.5), row("old", 0, "a", 0.25)]
    rows += [row("new", 0, "b", 0.0, labelled_pixels={}), row("old", 0, "b", 0.5)]
    assert difference(rows, "new", "old", class_score("road")).by_drive == {"a": 0.25}


def test_drives_are_found_by_what_stands_before_the_frame():
    from study.drives import without_common_part

    from pipeline.data.drives import drives_of

    keys = [f"camvid_{drive}_{frame:06d}" for drive in ("000001", "000016") for frame in range(3)]
    assert {name: len(found) for name, found in without_common_part(drives_of(keys)).items()} == {
        "000001": 3,
        "000016": 3,
    }
    original = ["0001TP_006690", "0001TP_006720", "0016E5_00390", "0016E5_00392", "Seq05VD_f00000"]
    assert list(drives_of(original)) == ["0001TP", "0016E5", "Seq05VD"]
    snippets = [f"{city}_{i:06d}_000019" for city in ("bonn", "ulm") for i in range(4)]
    assert {name: len(found) for name, found in drives_of(snippets).items()} == {"bonn": 4, "ulm": 4}
    assert list(without_common_part(drives_of(["a_1_0", "a_2_0"]))) == [
        "1",
        "2",
    ]  # two drives of one picture each, still
    with pytest.raises(DatasetError, match="of one drive"):
        drives_of(["camvid_000001_000000", "camvid_000001_000001"])


def test_the_same_key_in_two_splits_is_refused(cityscapes_tree):
    from study.drives import find_all

    with pytest.raises(DatasetError, match="same key"):
        find_all(cityscapes_tree)


def test_pictures_to_score_are_spread_evenly_with_both_ends():
    from study.drives import evenly

    keys = [str(i) for i in range(101)]
    assert evenly(keys, 5) == ["0", "25", "50", "75", "100"]
    assert evenly(keys, 0) == evenly(keys, 1000) == keys


def test_shards_leave_exactly_one_drive_out_and_one_picture_is_enough(tmp_path):
    from study.drives import find_all, make_folds

    from pipeline.data.mini_city.tree import make_mini_city

    make_mini_city(tmp_path / "city", 9, 0)  # three pictures of one city, two of the others
    folds = make_folds(tmp_path / "city", tmp_path / "work", ["fernwick"], 1, "keep", 1)
    (fold,) = folds
    splits = load_manifest(str(tmp_path / "work" / fold.shards)).splits
    assert (splits["train"].samples, splits["val"].samples) == (7, 1)
    assert len(find_all(tmp_path / "city")) == 9
    assert make_folds(tmp_path / "city", tmp_path / "work", ["fernwick"], 1, "keep", 1) == folds
    with pytest.raises(ConfigError, match="did you mean fernwick"):
        make_folds(tmp_path / "city", tmp_path / "work", ["fernwik"], 1, "keep", 1)


def test_no_variant_has_a_setting_that_its_head_does_not_read():
    from study.variants import CONTRASTS, SCALES, VARIANTS, Base

    names = [variant.name for variant in VARIANTS]
    assert len(set(names)) == len(names)
    assert {c.name for c in CONTRASTS} | {c.baseline for c in CONTRASTS} <= set(names)
    for scale in SCALES:
        configs = {variant.name: Base(scale).config(variant, 3) for variant in VARIANTS}
        for variant in VARIANTS:
            refuse_idle_settings(configs[variant.name], variant.settings)
        assert {config.train.seed for config in configs.values()} == {3}
        shared = {(c.data, c.optim, c.train, c.model.backbone) for c in configs.values()}
        assert len(shared) == 1, "variants differ in the head alone"


def test_a_run_is_known_by_what_decides_its_score_and_by_nothing_else():
    from study.variants import BASELINE, VARIANTS, Base, pick, run_key

    (plain,), (both,) = pick([BASELINE], VARIANTS), pick(["accm_both"], VARIANTS)

    def key(variant, seed=0, data="d", **extra):
        settings = {name.replace("__", "."): value for name, value in extra.items()}
        return run_key(Base("cpu", settings).config(variant, seed), data)

    assert key(plain) == key(plain, model__head__tau=20.0) == key(plain, train__evaluate_every=7)
    assert key(plain) == key(plain, data__loader_workers=1)
    assert key(both) != key(both, model__head__tau=20.0)
    keys = {key(v) for v in VARIANTS} | {key(plain, 1), key(plain, 0, "e"), key(plain, optim__lr=7e-3)}
    assert len(keys) == len(VARIANTS) + 3


def test_a_setting_that_no_variant_reads_is_refused():
    from study.variants import BASELINE, VARIANTS, Base, pick

    plain = pick([BASELINE], VARIANTS)
    with pytest.raises(ConfigError, match="no variant of plain_aux reads it"):
        Base("cpu", {"model.head.tau": 20.0}).refuse_settings_that_nobody_reads(plain)
    Base("cpu", {"model.head.tau": 20.0}).refuse_settings_that_nobody_reads(VARIANTS)
    with pytest.raises(ConfigError, match="did you mean"):
        pick(["plain_au"], VARIANTS)


def test_a_variant_can_be_typed():
    from study.variants import VARIANTS, Base, typed_variant

    typed = typed_variant("sharp=accm_both,model.head.tau=30,model.head.n0=0.01", VARIANTS)
    config = Base("cpu").config(typed, 0)
    assert (config.model.head.tau, config.model.head.n0, typed.losses) == (30.0, 0.01, "both")
    with pytest.raises(ConfigError, match="NEWNAME"):
        typed_variant("plain=accm_both", VARIANTS)


def test_a_seed_gives_all_variants_the_same_backbone():
    from study.variants import VARIANTS, Base

    def backbone(variant):
        torch.manual_seed(4)
        model = build_segmenter(Base("quick").config(variant, 4).model, 19)
        return model.backbone.state_dict()

    first = backbone(VARIANTS[0])
    for variant in VARIANTS[1:]:
        other = backbone(variant)
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_rows_are_written_once_and_a_torn_line_costs_no_other(tmp_path):
    from study.rows import FILE, append_row, read_rows

    append_row(tmp_path, {"key": "a", "miou": 1})
    append_row(tmp_path, {"key": "a", "miou": 2})
    with (tmp_path / FILE).open("a") as file:
        file.write('{"key": "b", "mi')
    append_row(tmp_path, {"key": "b", "miou": 3})
    assert read_rows(tmp_path) == [{"key": "a", "miou": 1}, {"key": "b", "miou": 3}]


def test_rows_of_other_settings_are_not_mixed_in():
    from study.rows import rows_of
    from study.variants import BASELINE, VARIANTS, Base, pick, run_key

    (plain,) = pick([BASELINE], VARIANTS)
    now, before = Base("cpu"), Base("cpu", {"optim.lr": 7e-3})
    rows = [
        {"variant": BASELINE, "seed": seed, "left_out": "a", "data": data,
         "key": run_key(base.config(plain, seed), data)}
        for base in (now, before) for seed in (0, 1) for data in ("old", "new")
    ]  # fmt: skip
    found = rows_of(rows, now, [plain])
    assert [(r["seed"], r["data"]) for r in found] == [(0, "new"), (1, "new")]
    assert rows_of(rows, now, pick(["ocr"], VARIANTS)) == []


def test_the_summary_has_every_contrast_that_has_a_pair():
    from study.tables import summary
    from study.variants import CONTRASTS, VARIANTS

    rows = [row(v.name, s, d, 0.5 + 0.01 * i) for i, v in enumerate(VARIANTS) for s in (0, 1) for d in "ab"]
    rows.append(row("accm", 2, "a", None, failed="the loss became NaN"))
    text = "\n".join(summary(rows, VARIANTS, CONTRASTS))
    for contrast in CONTRASTS:
        assert contrast.title in text
    apart = [v.name for v in VARIANTS].index("accm_both") - [v.name for v in VARIANTS].index("plain_aux")
    assert f"+{apart}.00" in text
    assert "the loss became NaN" in text
    widths = {len(line) for line in text.split("## Contrasts")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1, "columns are aligned"
