"""Pictures show the data where it belongs, the page stands alone, and no search is too odd to be shown."""

import math
import re
import shlex
import xml.etree.ElementTree as ET
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from pipeline.search.budget_picture import budget, budget_line, budget_picture
from pipeline.search.curve_picture import curves_picture
from pipeline.search.full_budget import full_scores
from pipeline.search.importance import importances
from pipeline.search.importance_picture import importance_picture
from pipeline.search.parallel_picture import parallel_picture
from pipeline.search.records import Point, SearchRecord, Trial, from_json, to_json
from pipeline.search.scored_trials import ScoredTrials, varied_dimensions
from pipeline.search.search_report import pictures, report_page, verdict
from pipeline.search.slices_picture import slices_picture
from pipeline.tracking.svg_drawing import BLUE, GREY, Drawing
from tests.searches import BUDGET, RUNGS, search

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "line", "polyline", "circle", "rect", "path", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced, and gathers text and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "data")]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, tag

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(drawing: Drawing) -> ET.Element:
    return ET.fromstring(drawing.file())


def tip(element: ET.Element) -> str:
    title = element.find(f"{SVG}title")
    return "" if title is None else title.text or ""


def is_affine(pixels: list[float], values: list[float]) -> bool:
    """Whether one scale and one shift take the values to the pixels, to the tenth that is written."""
    slope, shift = np.polyfit(values, pixels, 1)
    return bool(np.abs(np.array(pixels) - (slope * np.array(values) + shift)).max() < 0.15)


def numbers(points: str) -> list[tuple[float, float]]:
    return [tuple(float(n) for n in pair.split(",")) for pair in points.split()]  # type: ignore[misc]


def test_curves_go_through_the_scores_at_their_steps() -> None:
    record = search(12)
    found = {
        tip(line)[:3]: numbers(line.attrib["points"])
        for line in parsed(curves_picture(record)).iter(f"{SVG}polyline")
    }
    assert set(found) == {f"{trial.number:03d}" for trial in record.trials}
    pairs = [
        (pixel, point)
        for trial in record.trials
        for pixel, point in zip(found[f"{trial.number:03d}"], trial.points, strict=True)
    ]
    assert is_affine([x for (x, _), _ in pairs], [float(point.step) for _, point in pairs])
    assert is_affine([y for (_, y), _ in pairs], [point.score for _, point in pairs])
    highest = max(pairs, key=lambda pair: pair[1].score)
    assert highest[0][1] == min(y for (_, y), _ in pairs), "better is higher"


def test_each_rung_says_how_many_were_compared_and_how_many_went_on() -> None:
    record = search(12)
    words = [text.text or "" for text in parsed(curves_picture(record)).iter(f"{SVG}text")]
    for rung in RUNGS:
        reached = sum(any(point.step >= rung for point in trial.points) for trial in record.trials)
        passed = sum(any(point.step > rung for point in trial.points) for trial in record.trials)
        assert f"{rung:,}: {reached} → {passed}" in words
    crosses = sum("stroke-width" in path.attrib for path in parsed(curves_picture(record)).iter(f"{SVG}path"))
    assert crosses == sum(trial.state == "stopped" for trial in record.trials)


def test_dots_of_a_slice_lie_at_the_settings_value_and_the_score() -> None:
    record = search(20)
    found = importances(record)
    scores = full_scores(record)
    dots = list(parsed(slices_picture(record, found)).iter(f"{SVG}circle"))
    varied = [d for d in record.space if len({t.settings.get(d.name) for t in record.trials}) > 1]
    expected = sum(d.name in t.settings for d in varied for t in record.trials)
    assert len(dots) == expected, "a dot a trial that has the setting, and none where it is idle"
    taus = {f"{t.number:03d}": float(t.settings["model.head.tau"]) for t in record.trials}
    place = [one.name for one in found.settings].index("model.head.tau")
    panel = dots[sum(_with(record, one.name) for one in found.settings[:place]) :][: len(record.trials)]
    named = [tip(dot)[:3] for dot in panel]
    assert is_affine([float(d.attrib["cx"]) for d in panel], [math.log(taus[name]) for name in named])
    assert is_affine([float(d.attrib["cy"]) for d in panel], [scores[int(name)].score for name in named])
    hollow = {tip(dot)[:3] for dot in panel if dot.attrib["fill"] == "#ffffff"}
    assert hollow == {f"{t.number:03d}" for t in record.trials if t.state == "stopped"}


def _with(record: SearchRecord, name: str) -> int:
    return sum(name in trial.settings for trial in record.trials)


def test_parallel_lines_end_at_their_scores_and_the_best_is_drawn_last() -> None:
    record = search(20)
    lines = list(parsed(parallel_picture(record, importances(record))).iter(f"{SVG}polyline"))
    scores = full_scores(record)
    ends = {int(tip(line)[:3]): numbers(line.attrib["points"])[-1] for line in lines}
    assert is_affine([ends[n][1] for n in ends], [scores[n].score for n in ends])
    best = max((t for t in record.trials if t.state == "done"), key=lambda t: t.points[-1].score)
    assert int(tip(lines[-1])[:3]) == best.number
    for line in lines:
        assert ("stroke-dasharray" in line.attrib) == (record.trials[int(tip(line)[:3])].state == "stopped")


def test_bars_of_the_importance_are_as_long_as_the_shares() -> None:
    record = search(30)
    found = importances(record)
    bars = [bar for bar in parsed(importance_picture(record, found)).iter(f"{SVG}rect") if "rx" in bar.attrib]
    shares = [one.share for one in found.settings] + [found.unexplained]
    assert is_affine([float(bar.attrib["width"]) for bar in bars], shares)


def test_the_budget_is_the_steps_that_were_done_against_all_of_full_trainings() -> None:
    record = search(12, repeats=2)
    steps = sum(max(point.step for point in trial.points) for trial in record.trials[:12])
    spent = budget(record)
    assert (spent.steps, spent.full_steps) == (steps, 12 * BUDGET)
    assert spent.full_s == pytest.approx(12 * BUDGET * 0.06)
    assert spent.overhead_s == pytest.approx(9)
    assert f"{steps:,} of {12 * BUDGET:,} steps" in budget_line(record)
    bars = [bar for bar in parsed(budget_picture(record)).iter(f"{SVG}rect") if "rx" in bar.attrib]
    done = [float(bar.attrib["width"]) for bar in bars[1::2]]
    assert is_affine(done, [float(trial.step) for trial in record.trials])


def test_the_page_fetches_nothing_and_is_whole() -> None:
    record = search(24, repeats=2)
    text = report_page(record, importances(record))
    page = Page(text)
    assert page.addresses == []
    assert not re.search(r"https?:|url\(|@import|<script|<link", text), "nothing may point outside"
    assert text.count("<svg") == 5
    for words in ("Best settings", "Leaderboard", "Parallel coordinates", "tau", "2 fresh seeds", "0016E5"):
        assert words in page.text, words
    assert page.text.count("fusion") > 1


def test_a_picture_has_a_size_of_its_own_without_which_mlflows_page_shows_none() -> None:
    for drawing in pictures(search(12), importances(search(12))).values():
        root = parsed(drawing)
        assert (root.attrib["width"], root.attrib["height"]) == tuple(root.attrib["viewBox"].split()[2:])


def test_the_verdict_names_the_winner_and_its_gain() -> None:
    record = search(24)
    best = max((t for t in record.trials if t.state == "done"), key=lambda t: t.points[-1].score)
    line = verdict(record)
    assert f"Trial {best.number:03d}" in line
    assert f"{best.points[-1].score:.4f}" in line
    assert f"{best.points[-1].score - record.trials[0].points[-1].score:+.4f}" in line


def test_the_verdict_says_where_nothing_beat_the_defaults() -> None:
    record = search(12, score=lambda settings: 0.3 + 0.2 * (settings["model.head.tau"] == 15.0))
    assert verdict(record).endswith("defaults. Nothing beat the defaults.")


def test_of_many_curves_the_best_and_the_defaults_keep_their_labels() -> None:
    record = replace(search(1), trials=())
    points = [Point(step, 0.3) for step in (100, BUDGET)]
    trials = [
        Trial(n, f"t{n}", {}, "done", (points[0], Point(BUDGET, 0.3 + 0.001 * (n == 30)))) for n in range(60)
    ]
    words = [
        text.text for text in parsed(curves_picture(replace(record, trials=tuple(trials)))).iter(f"{SVG}text")
    ]
    assert {"030 best 0.301", "000 defaults 0.300"} <= set(words)
    assert sum("0.300" in (word or "") for word in words) < 40, "as many as there is room for"


def test_flags_of_the_best_can_be_pasted_into_a_shell() -> None:
    record = search(12)
    best = max((t for t in record.trials if t.state == "done"), key=lambda t: t.points[-1].score).number
    odd = {"model.head.fusion": "it's; rm", "model.head.learn_tau": True}
    trials = tuple(
        replace(t, settings={**t.settings, **odd}) if t.number == best else t for t in record.trials
    )
    record = replace(record, trials=trials)
    text = Page(report_page(record, importances(record))).text
    flags = text[text.index("To train so:") :].partition("Leaderboard")[0].removeprefix("To train so:")
    words = shlex.split(flags.replace("\\\n", ""))
    assert words[words.index("--model.head.fusion") + 1] == "it's; rm"
    assert words[words.index("--model.head.learn_tau") + 1] == "true"


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_is_the_darkest_whichever_way_the_score_goes(mode: str) -> None:
    record = replace(search(12), mode=mode)  # type: ignore[arg-type]
    scored = ScoredTrials.of(record)
    shares = [
        scored.share(trial) for trial in sorted(scored.trials, key=lambda t: scored.scores[t.number].score)
    ]
    assert shares == sorted(shares, reverse=mode == "min")
    assert (min(shares), max(shares)) == (0.0, 1.0)


def test_a_line_passes_below_the_axis_of_a_setting_that_idles() -> None:
    record = search(20)
    found = importances(record)
    root = parsed(parallel_picture(record, found))
    place = [d.name for d in varied_dimensions(record, found)].index("loss.delta")
    bottom = max(float(line.attrib["y2"]) for line in root.iter(f"{SVG}line"))
    for line in root.iter(f"{SVG}polyline"):
        is_idle = "loss.delta" not in record.trials[int(tip(line)[:3])].settings
        assert (numbers(line.attrib["points"])[place][1] > bottom) == is_idle


def test_bars_that_chance_reaches_are_grey() -> None:
    record = search(30)
    found = replace(importances(record), chance=0.2)
    bars = [bar for bar in parsed(importance_picture(record, found)).iter(f"{SVG}rect") if "rx" in bar.attrib]
    for bar, one in zip(bars, found.settings, strict=False):
        assert bar.attrib["fill"] == (BLUE if one.share > 0.2 else GREY)
    assert {bar.attrib["fill"] for bar in bars} >= {BLUE, GREY}


def test_names_cannot_break_page_or_pictures() -> None:
    record = search(12)
    trials = tuple(replace(t, name='</svg><b>&"', reason='"><i>') for t in record.trials)
    record = replace(record, name="<s>", trials=trials, facts={"<k>": "<v>"})
    Page(report_page(record, importances(record)))
    for drawing in pictures(record, importances(record)).values():
        parsed(drawing)


@pytest.mark.parametrize("kind", ["one", "all alike", "nothing searched"])
def test_where_trials_differ_in_nothing_a_picture_of_settings_says_so(kind: str) -> None:
    """Axes without a line, and a row of no panels, would look like a fault of the page."""
    record = odd_searches()[kind]
    for draw in (parallel_picture, slices_picture):
        assert "No two trials differ in a setting yet." in draw(record, importances(record)).body


def odd_searches() -> dict[str, SearchRecord]:
    whole = search(12)
    first = whole.trials[0]
    nan = (Point(100, float("nan")),)
    bare = Trial(0, "defaults", whole.defaults)
    return {
        "empty": replace(whole, trials=()),
        "one that runs": replace(whole, trials=(bare,)),
        "one that failed": replace(whole, trials=(replace(bare, state="failed", reason="out of memory"),)),
        "one": replace(whole, trials=(first,)),
        "two": replace(whole, trials=whole.trials[:2]),
        "three": replace(whole, trials=whole.trials[:3]),
        "no number": replace(whole, trials=tuple(replace(t, points=nan) for t in whole.trials)),
        "constant": replace(
            whole, trials=tuple(replace(t, points=(Point(BUDGET, 0.5),), state="done") for t in whole.trials)
        ),
        "all alike": replace(whole, trials=tuple(replace(first, number=n) for n in range(9))),
        "no rungs": replace(whole, rungs=()),
        "rungs everywhere": replace(whole, rungs=tuple(range(100, 1500, 100))),
        "nothing searched": replace(
            whole, space=(), trials=tuple(replace(t, settings={}) for t in whole.trials)
        ),
        "no budget": replace(whole, budget_steps=0, trials=(Trial(0, "", {}),)),
        "less is better": replace(whole, mode="min"),
        "many": search(120),
        "a default beyond the space": replace(whole, defaults={**whole.defaults, "model.head.tau": 99.0}),
        "stopped alone": replace(whole, trials=tuple(t for t in whole.trials if t.state == "stopped")),
    }


@pytest.mark.parametrize("kind", odd_searches())
def test_no_search_is_too_odd_to_be_shown(kind: str) -> None:
    record = odd_searches()[kind]
    found = importances(record)
    page = Page(report_page(record, found))
    assert "nan" not in page.text
    for drawing in pictures(record, found).values():
        assert not re.search(r'="-?(nan|inf)', drawing.file())
        parsed(drawing)
    assert verdict(record)


def test_the_record_that_is_kept_shows_the_same_page() -> None:
    record = search(12)
    again = from_json(to_json(record))
    assert report_page(again, importances(again)) == report_page(record, importances(record))
