"""Nodes that are to be taken away, as Ray is told of them: by a cloud's notice, or by a person.

The driver looks for itself. Ray Train's own watcher is an actor, which each attempt would wait for and each
restart would have to load.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from ray._private.state import state

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
"""Of the little time that is left, a second."""


class DrainWatch:
    """Looks for a drain of the nodes of one attempt; `seen` may be asked as often as one likes."""

    def __init__(self) -> None:
        self._looked_s = time.monotonic()

    def seen(self, nodes: Iterable[str]) -> bool:
        """Whether one of the nodes is to be taken away; looks at most once a second."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return False
        self._looked_s = now_s
        going = set(nodes) & set(state.get_draining_nodes())
        for node in sorted(going):
            logger.info(
                "[event] node %s is to be taken away: checkpointing at the end of the step", node[:12]
            )
        return bool(going)
