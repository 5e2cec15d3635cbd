"""What the driver of a search says while it runs: a table now and then, a line for each trial that ended."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from pipeline.launch.tune_folder import TrialReader, TuneFolder
from pipeline.search.agenda import num_planned
from pipeline.search.plan import SearchPlan
from pipeline.search.records import SearchRecord
from pipeline.search.table import ended_line, table_lines

logger = logging.getLogger(__name__)

TABLE_EVERY_S = 30.0
LOOK_EVERY_S = 1.0


class Progress:
    """Looks at the folder of a search; `look` may be called as often as one likes."""

    def __init__(
        self, name: str, plan: SearchPlan, folder: TuneFolder, concurrent: int, facts: Mapping[str, Any]
    ) -> None:
        self._name, self._plan, self._concurrent, self._facts = name, plan, concurrent, facts
        self._reader = TrialReader(folder, plan)
        self._told = {trial.number for trial in self._reader.trials() if trial.is_over}
        self._looked_s, self._table_s = time.monotonic(), time.monotonic()

    def look(self) -> None:
        """Say what is new, and all of it now and then."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        self._tell_ended()
        if now_s - self._table_s >= TABLE_EVERY_S:
            self._table_s = now_s
            for line in table_lines(self._record(), num_planned(self._plan), self._concurrent):
                logger.info("%s", line)

    def finish(self) -> None:
        """Say what is new since the last look."""
        self._tell_ended()

    def _tell_ended(self) -> None:
        record = self._record()
        for trial in record.trials:
            if trial.is_over and trial.number not in self._told:
                self._told.add(trial.number)
                logger.info("%s", ended_line(record, trial))

    def _record(self) -> SearchRecord:
        return self._reader.record(self._name, self._facts)
