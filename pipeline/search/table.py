"""What a person reads of a search while it runs: one line a trial that ended, a table now and then."""

from __future__ import annotations

from pipeline.duration import duration
from pipeline.search.full_budget import last_point
from pipeline.search.records import SearchRecord, Settings, Trial
from pipeline.search.scales import typed_text

WIDEST_NAME = 60
"""Characters of a trial's name in a table."""


def table_lines(record: SearchRecord, num_planned: int, concurrent: int) -> list[str]:
    """A headline, and a line for each trial that runs; `num_planned` counts the repeats too."""
    over = [trial for trial in record.trials if trial.is_over]
    running = [trial for trial in record.trials if not trial.is_over]
    counts = [(state, sum(trial.state == state for trial in over)) for state in ("done", "stopped", "failed")]
    told = ", ".join(f"{count} {state}" for state, count in counts if count)
    head = (
        f"[tune] {len(over)}/{num_planned} trials over{f' ({told})' if told else ''}  {best_so_far(record)}"
    )
    left_s = eta_s(record, num_planned, concurrent)
    lines = [head if left_s is None else f"{head}  eta {duration(left_s)}"]
    return lines + [_running_line(trial) for trial in running]


def ended_line(record: SearchRecord, trial: Trial) -> str:
    """One line on a trial that is over."""
    why = f": {trial.reason}" if trial.reason else ""
    return (
        f"[trial] {trial.number:03d} {trial.state} at step {trial.step}/{trial.budget_steps}  "
        f"{_score(trial)}  {cut(trial.name)}{why}  {best_so_far(record)}"
    )


def best_so_far(record: SearchRecord) -> str:
    """The best last score of all trials, and whose it is."""
    sign = 1.0 if record.mode == "max" else -1.0
    scored = [(last, trial.number) for trial in record.trials if (last := last_point(trial))]
    if not scored:
        return "best -"
    last, number = max(scored, key=lambda found: (sign * found[0].score, -found[1]))
    return f"best {last.score:.3f} ({number:03d} @{last.step})"


def eta_s(record: SearchRecord, num_planned: int, concurrent: int) -> float | None:
    """Seconds until all is over, as far as the trials that are over tell; None before the first."""
    over = [trial.whole_s for trial in record.trials if trial.is_over and trial.whole_s]
    if not over:
        return None
    mean_s = sum(over) / len(over)
    left_s = sum(max(mean_s - trial.whole_s, 0.0) for trial in record.trials if not trial.is_over)
    left_s += mean_s * max(num_planned - len(record.trials), 0)
    return left_s / max(concurrent, 1)


def cut(name: str) -> str:
    """A name, cut where it is long."""
    return name if len(name) <= WIDEST_NAME else f"{name[: WIDEST_NAME - 1]}…"


def _running_line(trial: Trial) -> str:
    step = f"{trial.step}/{trial.budget_steps}"
    return f"  {trial.number:03d}  running  step {step:>11}  {_score(trial):>16}  {cut(trial.name)}"


def _score(trial: Trial) -> str:
    return f"mIoU {trial.points[-1].score:.3f} @{trial.points[-1].step}" if trial.points else "mIoU -"


def setting_words(settings: Settings, defaults: Settings) -> str:
    """What is typed for the settings that are not the defaults."""
    return " ".join(
        f"--{name} {typed_text(value)}" for name, value in settings.items() if value != defaults.get(name)
    )
