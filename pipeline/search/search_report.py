"""The report of a search: one HTML page that stands alone, its verdict first and its evidence below."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from html import escape

from pipeline.duration import duration
from pipeline.search.budget_picture import budget, budget_line, budget_picture
from pipeline.search.curve_picture import curves_picture, trial_label
from pipeline.search.full_budget import last_point
from pipeline.search.importance import Importances
from pipeline.search.importance_picture import importance_picture
from pipeline.search.leaderboard import Standing, gain, leaderboard, winner
from pipeline.search.parallel_picture import parallel_picture
from pipeline.search.records import SearchRecord, Trial, Value
from pipeline.search.scales import Scale, short_names, typed_text, value_text
from pipeline.search.scored_trials import varied_dimensions
from pipeline.search.slices_picture import slices_picture
from pipeline.tracking.html_page import STYLE, fact_boxes, html_page, plain
from pipeline.tracking.svg_drawing import Drawing

SHOWN_SETTINGS = 6
"""In the leaderboard, most important first: more do not fit beside each other."""
SHOWN_ROWS = 12
"""Of the leaderboard; the rest is folded away."""

_STYLE = """
body{max-width:1120px}figure{margin:0 0 6px}figcaption{margin-top:2px}
.verdict{font-size:19px;line-height:1.45;margin:14px 0 2px}.verdict b{color:#d9480f}
.settings td,.settings th{padding:4px 18px 4px 0}.changed td{font-weight:600}.changed td.soft{font-weight:400}
.place{position:relative;width:150px;height:8px;border-radius:4px;background:var(--line)}
.place i{position:absolute;top:-2px;width:4px;height:12px;border-radius:2px;background:#d9480f}
.place i.was{background:#1c2430;opacity:.55}
.board{width:100%;font-size:13px}.board th,.board td{padding:4px 7px;white-space:nowrap}th.n{text-align:right}
.board th{font-weight:600;color:var(--soft)}
.board tr.first td{background:#fff4ec;font-weight:600}.board tr.base td:nth-child(2){font-weight:600}
.board td.idle{color:#b6bec8}.board .bar{background:#2563eb;opacity:.8}
.board tr.early .bar{background:#9aa5b1}
pre{background:var(--tint);border-radius:8px;padding:10px 14px;white-space:pre-wrap;font-size:13px}
details{margin-top:8px}summary{cursor:pointer;color:var(--soft)}
@media print{body{padding:0}h2{break-after:avoid}figure{break-inside:avoid}}
"""


def pictures(record: SearchRecord, found: Importances) -> dict[str, Drawing]:
    """Every picture of the search by the name of its file."""
    return {
        "learning_curves": curves_picture(record),
        "budget": budget_picture(record),
        "importance": importance_picture(record, found),
        "parallel_coordinates": parallel_picture(record, found),
        "slices": slices_picture(record, found),
    }


def report_page(record: SearchRecord, found: Importances) -> str:
    """The whole page."""
    drawings = pictures(record, found)
    sections = {
        "Best settings": _best_settings(record, found),
        "Leaderboard": _leaderboard(record, found),
        "Learning curves": drawings["learning_curves"].figure(),
        "Budget": f'<p class="soft">{escape(budget_line(record))}.</p>{drawings["budget"].figure()}',
        "Importance of each setting": drawings["importance"].figure(),
        "Parallel coordinates": drawings["parallel_coordinates"].figure(),
        "Slices": drawings["slices"].figure(),
        "Every trial": _every_trial(record.trials),
        "About this search": _about(record),
    }
    head = f'<p class="verdict">{_verdict(record)}</p>{fact_boxes(_facts(record))}'
    return html_page(f"Search {record.name}", head, sections, STYLE + _STYLE)


def verdict(record: SearchRecord) -> str:
    """What came of the search, in plain words: for a page, a log line and the note on its MLflow run."""
    best = winner(record)
    if best is None or best.score is None:
        over = sum(trial.is_over for trial in record.searched())
        return f"No trial was trained to the end yet ({over} of {record.num_trials} are over)."
    number = trial_label(best.trial.number)
    who = f"Trial {number} leads with {record.metric} {_score(best)}: {best.trial.name}."
    if best.trial.number == 0:
        return f"{who} Nothing beat the defaults."
    better = gain(record, best)
    if better is None:
        return f"{who} The defaults were not trained to the end, so that nothing says whether it beats them."
    doubt = "" if best.is_repeated else " Each was trained once: seeds alone may differ as much."
    return f"{who} That is {better:+.4f} against the defaults.{doubt}"


def _verdict(record: SearchRecord) -> str:
    words = escape(verdict(record))
    best = winner(record)
    if best is None or best.score is None:
        return words
    return words.replace(escape(_score(best)), f"<b>{escape(_score(best))}</b>", 1)


def _score(standing: Standing) -> str:
    assert standing.score is not None
    spread = "" if standing.spread is None else f" ± {standing.spread:.4f}"
    seeds = f" over {standing.fresh_seeds}" if standing.is_repeated else ""
    return f"{standing.score:.4f}{spread}{seeds}"


def _facts(record: SearchRecord) -> Mapping[str, object]:
    trials, spent, best = record.searched(), budget(record), winner(record)
    better = gain(record, best) if best and best.trial.number else None
    states = ("done", "stopped", "failed", "running")
    counts = {state: sum(trial.state == state for trial in trials) for state in states}
    return {
        f"best {record.metric}": f"{best.score:.4f}" if best and best.score is not None else None,
        "against defaults": f"{better:+.4f}" if better is not None else None,
        "trials": ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none yet",
        "steps spent": f"{spent.share:.0%} of full training",
        "training": duration(spent.train_s) if spent.train_s else None,
        "beside training": f"{duration(spent.overhead_s)} a trial" if spent.overhead_s is not None else None,
        "repeats": len(record.trials) - len(trials) or None,
    }


def _best_settings(record: SearchRecord, found: Importances) -> str:
    best = winner(record)
    if best is None:
        return ""
    names = short_names([dimension.name for dimension in record.space])
    shares = {one.name: one.share for one in found.settings}
    rows = []
    for dimension in record.space:
        value = best.trial.settings.get(dimension.name)
        before = record.defaults.get(dimension.name)
        cells = [
            f'<td title="{escape(dimension.name)}">{escape(names[dimension.name])}</td>',
            f'<td class="n">{_shown(value)}</td><td class="n soft">{_shown(before)}</td>',
            f"<td>{_place(Scale(dimension), value, before)}</td>",
            f'<td class="n soft">{shares[dimension.name]:.0%}</td>' if not found.note else "<td></td>",
        ]
        changed = ' class="changed"' if value is not None and value != before else ""
        rows.append(f"<tr{changed}>{''.join(cells)}</tr>")
    words = " \\\n".join(
        f"--{name} {shlex.quote(typed_text(value))}"
        for name, value in best.trial.settings.items()
        if value != record.defaults.get(name)
    )
    head = (
        '<th>setting</th><th class="n">best</th><th class="n">default</th><th>in its range</th>'
        '<th class="n">explains</th>'
    )
    flags = f'<p class="soft">To train so:</p><pre>{escape(words)}</pre>' if words else ""
    return f'<table class="settings"><tr>{head}</tr>{"".join(rows)}</table>{flags}'


def _place(scale: Scale, value: Value | None, before: Value | None) -> str:
    """Where the best value lies in its range, and the default (dark)."""
    marks = ""
    for one, name in ((before, "was"), (value, "is")):
        place = None if one is None else scale.place(one)
        if place is not None:
            marks += f'<i class="{name}" style="left:{97 * place:.0f}%"></i>'
    return f'<div class="place">{marks}</div>'


def _leaderboard(record: SearchRecord, found: Importances) -> str:
    standings = leaderboard(record)
    varied = [dimension.name for dimension in varied_dimensions(record, found)][:SHOWN_SETTINGS]
    names = short_names([dimension.name for dimension in record.space])
    scores = [standing.score for standing in standings if standing.score is not None]
    ends = (min(scores), max(scores)) if scores else (0.0, 1.0)
    numeric = ["n", "", "n", "", "n", "n", "", *("n" for _ in varied)]
    columns = ["", "trial", record.metric, "", "seeds", "steps", "state", *(names[name] for name in varied)]
    head = "".join(
        f'<th class="{kind}">{escape(column)}</th>' for kind, column in zip(numeric, columns, strict=True)
    )
    rows = [_board_row(standing, varied, ends) for standing in standings]
    first, rest = "".join(rows[:SHOWN_ROWS]), "".join(rows[SHOWN_ROWS:])
    table = f'<div class="wide"><table class="board"><tr>{head}</tr>{first}</table></div>'
    if rest:
        table += (
            f"<details><summary>{len(rows) - SHOWN_ROWS} more</summary>"
            f'<div class="wide"><table class="board"><tr>{head}</tr>{rest}</table></div></details>'
        )
    note = "Trained to the end first, then by how far they came. Scores of fewer steps are not comparable."
    return f'<p class="soft">{note}</p>{table}'


def _board_row(standing: Standing, varied: Sequence[str], ends: tuple[float, float]) -> str:
    trial = standing.trial
    kinds = ["first"] if standing.rank == 1 and standing.is_full else []
    kinds += ["base"] if trial.number == 0 else []
    kinds += [] if standing.is_full else ["early"]
    score, width = "none", 0.0
    if standing.score is not None:
        score = f"{standing.score:.4f}" + (f" ±{standing.spread:.4f}" if standing.spread is not None else "")
        width = 20 + 60 * (standing.score - ends[0]) / ((ends[1] - ends[0]) or 1.0)
    settings = "".join(
        f'<td class="n{" idle" * (value is None)}">{_shown(value)}</td>'
        for value in (trial.settings.get(name) for name in varied)
    )
    defaults = " defaults" if trial.number == 0 else ""
    return (
        f'<tr class="{" ".join(kinds)}"><td class="n">{standing.rank}</td>'
        f'<td title="{escape(trial.name)}">{trial_label(trial.number)}{defaults}</td>'
        f'<td class="n">{score}</td><td><div class="bar" style="width:{width:.0f}px"></div></td>'
        f'<td class="n">{standing.seeds}</td><td class="n">{standing.step:,}</td>'
        f'<td title="{escape(trial.reason)}">{trial.state}</td>{settings}</tr>'
    )


def _every_trial(trials: Sequence[Trial]) -> str:
    rows = []
    for trial in trials:
        last = last_point(trial)
        score = f"{last.score:.4f}" if last else ""
        seconds = duration(trial.train_s) if trial.train_s else ""
        rows.append(
            f"<tr><td>{trial_label(trial.number)}</td><td>{escape(trial.name)}</td><td>{trial.state}</td>"
            f'<td class="n">{score}</td><td class="n">{trial.step:,}</td><td class="n">{seconds}</td>'
            f'<td class="n">{trial.seed}</td><td class="soft">{escape(trial.reason)}</td></tr>'
        )
    columns = ("", "what varies", "state", "last score", "steps", "training", "seed", "why it ended")
    head = "".join(f"<th>{column}</th>" for column in columns)
    return (
        f"<details><summary>{len(trials)} trials, with why each ended</summary>"
        f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div></details>'
    )


def _about(record: SearchRecord) -> str:
    facts: dict[str, object] = {
        "algorithm": f"{record.algorithm}, seed {record.seed}",
        "scheduler": f"{record.scheduler}, rungs at {', '.join(map(str, record.rungs)) or 'none'}",
        "budget of a trial": f"{record.budget_steps:,} steps",
        "score": f"{record.metric} ({record.mode})",
        "scored on": ", ".join(record.held_out) or None,
        **record.facts,
    }
    rows = "".join(
        f'<tr><td class="soft">{escape(key.replace("_", " "))}</td><td>{escape(plain(value))}</td></tr>'
        for key, value in facts.items()
        if value is not None
    )
    return f"<table>{rows}</table>"


def _shown(value: Value | None) -> str:
    return "idle" if value is None else escape(value_text(value))
