"""Searches made by formula: what each setting does is known, and ASHA's stops are those of its rule."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from pipeline.search.records import Dimension, Point, SearchRecord, Settings, Trial

SPACE = (
    Dimension("model.head.tau", low=5.0, high=40.0, log=True),
    Dimension("model.head.n0", low=1e-4, high=0.1, log=True),
    Dimension("model.head.fusion", ("gate", "residual-mlp", "off")),
    Dimension("loss.lambda_inter", (0.0,), low=1e-3, high=3.0, log=True),
    Dimension("loss.lambda_intra", (0.0,), low=1e-3, high=3.0, log=True),
    Dimension("loss.lambda_coarse", low=0.1, high=1.0),
    Dimension("loss.inter_form", ("hinge", "car")),
    Dimension("loss.delta", low=-0.1, high=0.5),
)
DEFAULTS: Settings = {
    "model.head.tau": 15.0, "model.head.n0": 0.001, "model.head.fusion": "residual-mlp",
    "loss.lambda_inter": 0.1, "loss.lambda_intra": 0.1, "loss.lambda_coarse": 0.4,
    "loss.inter_form": "hinge", "loss.delta": 0.0,
}  # fmt: skip
RUNGS, BUDGET, EVERY = (200, 600), 1500, 100


def final_score(settings: Settings) -> float:
    """What a setting scores at the end: fusion matters most, then tau, then the losses; n0 does nothing."""
    score = {"gate": 0.45, "residual-mlp": 0.53, "off": 0.50}[str(settings["model.head.fusion"])]
    score -= 0.06 * (math.log(float(settings["model.head.tau"]) / 12.0) / math.log(3)) ** 2
    score += 0.015 * (float(settings["loss.lambda_inter"]) > 0)
    if "loss.delta" in settings:
        score -= 0.05 * float(settings["loss.delta"]) ** 2
    return score


def drawn(random: np.random.Generator) -> Settings:
    """Settings drawn evenly from the space; delta with the hinge alone."""
    settings: dict[str, str | float] = {}
    for dimension in SPACE:
        if dimension.values and (dimension.low is None or random.random() < 0.4):
            settings[dimension.name] = dimension.values[random.integers(len(dimension.values))]
        elif dimension.low is not None and dimension.high is not None:
            share = random.random()
            if dimension.log:
                settings[dimension.name] = float(dimension.low * (dimension.high / dimension.low) ** share)
            else:
                settings[dimension.name] = dimension.low + share * (dimension.high - dimension.low)
    if settings["loss.inter_form"] != "hinge":
        del settings["loss.delta"]
    return settings


def curve(final: float, random: np.random.Generator, noise: float) -> list[Point]:
    """A curve that rises to `final` at the budget."""
    return [
        Point(step, final * (1 - 0.55 * math.exp(-step / 350)) + noise * float(random.normal()))
        for step in range(EVERY, BUDGET + 1, EVERY)
    ]


def search(
    num: int = 24, *, seed: int = 0, noise: float = 0.004, repeats: int = 0,
    score: Callable[[Settings], float] = final_score,
) -> SearchRecord:  # fmt: skip
    """A search of so many trials, one after the other, where the better half of those so far goes on."""
    random = np.random.default_rng(seed)
    trials: list[Trial] = []
    at_rung: Mapping[int, list[float]] = {rung: [] for rung in RUNGS}
    for number in range(num):
        settings = DEFAULTS if number == 0 else drawn(random)
        name = "defaults" if number == 0 else " · ".join(
            f"{key.rpartition('.')[2]} {value if isinstance(value, str) else format(value, '.3g')}"
            for key, value in settings.items()
            if value != DEFAULTS[key]
        )[:60]  # fmt: skip
        points = curve(score(settings), random, noise)
        trial = Trial(
            number, name, settings, "done", tuple(points), (), BUDGET, BUDGET, 0.06 * BUDGET,
            0.06 * BUDGET + 9, seed=0, run_dir=f"trials/{number:03d}",
        )  # fmt: skip
        trials.append(_stopped(trial, at_rung))
    best = sorted((t for t in trials if t.state == "done"), key=lambda t: -t.points[-1].score)[:3]
    best += [trial for trial in trials[:1] if trial not in best]
    for original in best if repeats else []:
        for again in range(repeats):
            points = curve(score(original.settings), random, noise)
            trials.append(
                replace(
                    original,
                    number=len(trials),
                    points=tuple(points),
                    seed=again + 1,
                    repeats=original.number,
                )
            )
    return SearchRecord(
        "accm-losses-camvid", "held/miou", "max", SPACE, DEFAULTS, tuple(trials), num, BUDGET, RUNGS,
        held_out=("0016E5",), facts={"recipe": "camvid", "shards": "/data/camvid", "commit": "c0ffee"},
    )  # fmt: skip


def _stopped(trial: Trial, at_rung: Mapping[int, list[float]]) -> Trial:
    passed: list[int] = []
    for rung in RUNGS:
        value = next(point.score for point in trial.points if point.step == rung)
        passed.append(rung)
        at_rung[rung].append(value)
        place = sorted(at_rung[rung], reverse=True).index(value)
        if trial.number and place >= max(len(at_rung[rung]) / 2, 1):
            points = tuple(point for point in trial.points if point.step <= rung)
            why = f"at rung {rung}: {value:.3f} is {place + 1}th of {len(at_rung[rung])}"
            return replace(
                trial, state="stopped", points=points, rungs=tuple(passed), step=rung, train_s=0.06 * rung,
                whole_s=0.06 * rung + 9, reason=why,
            )  # fmt: skip
    return replace(trial, rungs=tuple(passed))
