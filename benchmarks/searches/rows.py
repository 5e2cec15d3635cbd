"""What searches say when they are held against each other: functions of their records alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from scipy.stats import kendalltau, spearmanr

from pipeline.search.full_budget import finite_points
from pipeline.search.records import SearchRecord, Trial
from searches.one_search import Searched


def overheads_s(record: SearchRecord) -> list[float]:
    """Seconds of each trial that is over in which it did not train: start, model, data, end."""
    return [trial.whole_s - trial.train_s for trial in record.trials if trial.is_over and trial.whole_s > 0]


def idle_s_per_trial(searched: Searched) -> float:
    """Seconds a trial in which a place of the search did not train, the job's own start and end included.

    Places are the trials that run at once; where the last of them end one after the other counts too.
    """
    places = int(searched.result["concurrent"])
    trained_s = sum(trial.train_s for trial in searched.record.trials)
    return (places * searched.wall_s - trained_s) / max(len(searched.record.trials), 1)


def search_row(name: str, searched: Searched) -> dict[str, Any]:
    """The row of one search."""
    record = searched.record
    return {
        "search": name,
        "trials": len(record.trials),
        "stopped": sum(trial.state == "stopped" for trial in record.trials),
        "stopped_at": {str(rung): _stopped_at(record, rung) for rung in record.rungs},
        "wall_s": round(searched.wall_s, 1),
        "train_s": round(sum(trial.train_s for trial in record.trials), 1),
        "overhead_s_per_trial": round(statistics.median(overheads_s(record)), 1),
        "idle_s_per_trial": round(idle_s_per_trial(searched), 1),
        "steps": sum(trial.step for trial in record.trials),
        "executed_steps": searched.executed_steps,
        "best": searched.result["best_trial"],
        "best_miou": searched.result["best_miou"],
    }


def _stopped_at(record: SearchRecord, rung: int) -> int:
    return sum(trial.state == "stopped" and trial.rungs[-1:] == (rung,) for trial in record.trials)


def same_trials(one: SearchRecord, other: SearchRecord) -> bool:
    """Whether both have the same settings under the same numbers, and the same names."""
    return [(t.number, t.name, dict(t.settings), t.seed) for t in one.searched()] == [
        (t.number, t.name, dict(t.settings), t.seed) for t in other.searched()
    ]


def picked(record: SearchRecord) -> Trial:
    """The best trial that was trained to its end, by its last score; repeats are left out."""
    whole = [trial for trial in record.searched() if trial.state == "done" and finite_points(trial)]
    return max(whole, key=lambda trial: (final(trial), -trial.number))


def final(trial: Trial) -> float:
    """A trial's last score."""
    curve = finite_points(trial)
    return curve[max(curve)]


def agreement(asha: SearchRecord, full: SearchRecord) -> dict[str, Any]:
    """What early stopping cost, by the scores that the same trials have in full.

    `rank_agreement`: of the scores at each rung with those at the end, over all trials in full. `regret`:
    by how much the one that was picked is worse in full than the best.
    """
    pick, best = picked(asha), picked(full)
    in_full = {trial.number: final(trial) for trial in full.searched() if trial.state == "done"}
    return {
        "same_winner": pick.number == best.number,
        "picked": pick.number,
        "picked_rank_in_full": 1 + sum(score > in_full[pick.number] for score in in_full.values()),
        "regret_miou": round(in_full[best.number] - in_full[pick.number], 4),
        "spread_in_full": round(statistics.stdev(in_full.values()), 4),
        "rank_agreement": {str(rung): _ranks(full, rung) for rung in full_rungs(asha, full)},
    }


def full_rungs(asha: SearchRecord, full: SearchRecord) -> list[int]:
    """The rungs at which all trials of the full search have a score."""
    whole = [trial for trial in full.searched() if trial.state == "done"]
    return [rung for rung in asha.rungs if all(rung in finite_points(trial) for trial in whole)]


def _ranks(full: SearchRecord, rung: int) -> dict[str, float]:
    whole = [trial for trial in full.searched() if trial.state == "done"]
    early = [finite_points(trial)[rung] for trial in whole]
    late = [final(trial) for trial in whole]
    return {
        "spearman": round(float(spearmanr(early, late).statistic), 3),
        "kendall": round(float(kendalltau(early, late).statistic), 3),
    }


def winner_deltas(record: SearchRecord) -> tuple[int, list[float]]:
    """The best that was repeated with fresh seeds, and by how much it beats the defaults seed by seed.

    The defaults themselves, without a difference, where nothing else was repeated.
    """
    by_seed = {number: _by_seed(record, number) for number in {t.repeats for t in record.trials} - {None}}
    defaults = by_seed.pop(0, {})
    if not by_seed:
        return 0, [0.0 for _ in defaults]
    number, scores = max(by_seed.items(), key=lambda item: statistics.fmean(item[1].values()))
    return int(number or 0), [
        scores[seed] - defaults[seed] for seed in sorted(scores.keys() & defaults.keys())
    ]


def _by_seed(record: SearchRecord, number: int | None) -> Mapping[int, float]:
    repeats = record.repeats_of(number or 0)
    return {trial.seed: final(trial) for trial in repeats if trial.state == "done" and finite_points(trial)}
