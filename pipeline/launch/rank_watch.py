"""The driver's eye on the ranks of an attempt: which of them hang, and the end of their processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import ray
from ray._raylet import PlacementGroupID
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.config import DeadlineConfig
from pipeline.launch.pulse import Beat, Place, beat_file, read_beat, write_beat
from pipeline.launch.stall import FIRST_STEPS, Sight, Stall, find_stall, seen

LONGEST_LOOK_S = 1.0
"""Most that the time between two looks counts for: a driver that slept, or whose disk stood still as the
ranks' did, has not seen anybody be silent meanwhile."""
SAME_BIRTH_S = 1.0
"""Two processes of one id are born further apart than this."""
REACH_S = 10.0
"""Longest wait for another node to end the processes on it."""

_NO_BEAT = Beat(Place("", 0, 0.0, ""), ticks=0, moves=0, steps=0, doing="ended")


@dataclass(frozen=True)
class _Looked:
    at_s: float
    sights: dict[int, Sight]


@dataclass(frozen=True)
class SeenOfAttempt:
    """What was seen of an attempt in all, by whoever watched it."""

    doing: Mapping[int, str]
    """The phase that each rank was in last, before it ended."""
    steps: int = 0
    """Steps that were done; fewer than there were, by those between the last two signs of life."""
    at_work_s: float = 0.0
    """From the end of its start on, until it was looked at last."""


class RankWatch:
    """Looks at the signs of life of `num` ranks of one attempt; `look` is called several times a second."""

    def __init__(self, run_dir: Path, attempt: str, num: int, deadline: DeadlineConfig) -> None:
        self._files = [beat_file(run_dir, attempt, rank) for rank in range(num)]
        self._deadline = deadline
        self._own = self._files[0].with_name("driver")
        self._own.parent.mkdir(parents=True, exist_ok=True)
        self._own.touch()
        self._looked = _Looked(time.monotonic(), {})
        self._doing: dict[int, str] = {}
        self._began_s: float | None = None

    def look(self) -> Stall | None:
        """The ranks that hang, if any do."""
        write_beat(self._own, _NO_BEAT)  # waits as long as the ranks' own must
        beats = {rank: beat for rank, path in enumerate(self._files) if (beat := read_beat(path))}
        now_s = time.monotonic()
        passed_s = min(now_s - self._looked.at_s, LONGEST_LOOK_S)
        before = self._looked.sights
        sights = {rank: seen(before.get(rank), beat, passed_s) for rank, beat in beats.items()}
        self._looked = _Looked(now_s, before | sights)
        self._doing |= {rank: beat.doing for rank, beat in beats.items() if beat.doing != "ended"}
        if self._began_s is None and any(beat.doing not in ("start", "ended") for beat in beats.values()):
            self._began_s = now_s
        return find_stall(self._looked.sights, self._deadline)

    def settled(self) -> bool:
        """Whether all ranks are past the steps that may compile."""
        sights = self._looked.sights.values()
        return len(sights) == len(self._files) and all(s.beat.steps > FIRST_STEPS for s in sights)

    def seen(self) -> SeenOfAttempt:
        """What was seen so far."""
        beats = [sight.beat for sight in self._looked.sights.values()]
        # A rank that ended before its time did so in the step that it was about to do.
        steps = max((beat.steps - (beat.doing in ("step", "ended")) for beat in beats), default=0)
        at_work_s = self._looked.at_s - self._began_s if self._began_s is not None else 0.0
        return SeenOfAttempt(dict(self._doing), max(steps, 0), at_work_s)

    def places(self) -> list[Place]:
        """The processes of all ranks seen so far."""
        return [sight.beat.place for sight in self._looked.sights.values()]


def this_place() -> Place:
    """Where this very process is."""
    node = ray.get_runtime_context().get_node_id()
    group = ray.util.get_current_placement_group()
    return Place(node, os.getpid(), psutil.Process().create_time(), group.id.hex() if group else "")


def end_ranks(places: Sequence[Place]) -> None:
    """Kill the processes, stopped ones too, each on its node; a node out of reach is left to Ray.

    All ranks of the attempt, not the hung ones alone: the others wait for them in a collective, and Ray
    would wait up to half a minute for each to leave its process group.
    """
    here = ray.get_runtime_context().get_node_id()
    others = {place.node for place in places} - {here}
    far = ray.remote(num_cpus=0, max_retries=0)(_end_processes)
    asked = [
        far.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(
            [place for place in places if place.node == node]
        )
        for node in others
    ]
    _end_processes([place for place in places if place.node == here])
    if asked:
        ray.wait(asked, num_returns=len(asked), timeout=REACH_S)


def free_resources(places: Sequence[Place]) -> None:
    """Give back the CPUs and GPUs of an attempt that ended: its controller may have died with them."""
    for group in {place.group for place in places} - {""}:
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def _end_processes(places: Sequence[Place]) -> None:
    """SIGKILL to those processes of this node that are still the ones they were."""
    for place in places:
        with suppress(psutil.Error, ProcessLookupError):
            if abs(psutil.Process(place.pid).create_time() - place.born_s) < SAME_BIRTH_S:
                os.kill(place.pid, signal.SIGKILL)
