"""What is trained next: a function of the plan and of the trials that there are.

First the defaults, then the points that were typed, then what the algorithm proposes; once these are over,
the best of them again with fresh seeds. Nothing is remembered beside the trials, so a search that was killed
goes on as it would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, product

from pipeline.config import Config
from pipeline.errors import ConfigError
from pipeline.search.active import active_settings, trial_name
from pipeline.search.draw import draw_random, draw_sobol
from pipeline.search.full_budget import last_point
from pipeline.search.plan import SearchPlan
from pipeline.search.records import Settings, Trial, Value
from pipeline.search.tpe import propose_tpe

TRIES = 20
"""Draws of a proposal, before all settings of a small space are gone through for one that was not tried."""
FEW = 1000
"""Settings of a space that is small; of a larger one, or where all were tried, one is taken once more."""


@dataclass(frozen=True)
class Order:
    """A trial to be made."""

    number: int
    name: str
    settings: Settings
    seed: int
    repeats: int | None = None


def next_order(plan: SearchPlan, config: Config, trials: Sequence[Trial]) -> Order | None:
    """The next trial to be made; None where there is none, or none yet as others must end before it.

    `config` is what trials begin from.
    """
    searched = [trial for trial in trials if trial.repeats is None]
    number = len(trials)
    if len(searched) < plan.num_trials:
        settings = _settings(plan, config, searched)
        return Order(number, trial_name(settings, plan.defaults), settings, plan.seed)
    if not all(trial.is_over for trial in searched):
        return None
    for finalist in finalists(plan, trials):
        made = {trial.seed for trial in trials if trial.repeats == finalist.number}
        for seed in range(plan.seed + 1, plan.seed + 1 + plan.repeat):
            if seed not in made:
                name = trial_name(finalist.settings, plan.defaults, seed)
                return Order(number, name, finalist.settings, seed, finalist.number)
    return None


def is_complete(plan: SearchPlan, config: Config, trials: Sequence[Trial]) -> bool:
    """Whether all that was planned is over."""
    return all(trial.is_over for trial in trials) and next_order(plan, config, trials) is None


def num_planned(plan: SearchPlan) -> int:
    """How many trials there will be, repeats included; fewer where fewer reach the end of their budget."""
    return plan.num_trials + plan.repeat * min(plan.finalists + 1, plan.num_trials)


def finalists(plan: SearchPlan, trials: Sequence[Trial]) -> list[Trial]:
    """The best of the search, and the defaults, whose settings are trained again; none without repeats.

    The defaults always, so that what is told of a gain over them rests on as many seeds.
    """
    if not plan.repeat:
        return []
    whole = [trial for trial in trials if trial.repeats is None and trial.state == "done"]
    scored = [(-plan.sign * last.score, trial) for trial in whole if (last := last_point(trial))]
    ranked = [trial for _, trial in sorted(scored, key=lambda found: (found[0], found[1].number))]
    return ranked[: plan.finalists] + [trial for trial in ranked[plan.finalists :] if trial.number == 0]


def _settings(plan: SearchPlan, config: Config, searched: Sequence[Trial]) -> dict[str, Value]:
    """What the next trial of the search is given."""
    number = len(searched)
    if number == 0:
        return active_settings(config, plan.defaults)
    if number <= len(plan.points):
        return active_settings(config, plan.points[number - 1])
    drawn = chain(_proposals(plan, searched), _all_settings(plan))
    tried = [trial.settings for trial in searched]
    found: dict[str, Value] = {}
    refusal: ConfigError | None = None
    for proposal in drawn:
        try:
            found = active_settings(config, proposal)
        except ConfigError as error:
            refusal = error
            continue
        if found not in tried:
            return found
    if refusal is not None and not found:
        raise refusal
    return found


def _proposals(plan: SearchPlan, searched: Sequence[Trial]) -> Iterator[dict[str, Value]]:
    """What the algorithm draws, again and again."""
    return (_drawn(plan, searched, attempt) for attempt in range(TRIES))


def _all_settings(plan: SearchPlan) -> Iterator[dict[str, Value]]:
    """All settings of a space that has few, of which draws may miss the last ones; else none."""
    if (plan.num_settings() or FEW + 1) > FEW:
        return iter(())
    names = [dimension.name for dimension in plan.space]
    every = product(*(dimension.all_values() for dimension in plan.space))
    return (dict(zip(names, values, strict=True)) for values in every)


def _drawn(plan: SearchPlan, searched: Sequence[Trial], attempt: int) -> dict[str, Value]:
    number = len(searched)
    if plan.algorithm == "random":
        return draw_random(plan.space, plan.seed, number, attempt)
    if plan.algorithm == "sobol":
        return draw_sobol(plan.space, plan.seed, number - 1 - len(plan.points), attempt)
    entropy = (plan.seed, number, attempt)
    return propose_tpe(plan.space, searched, plan.num_trials, plan.sign, entropy)
