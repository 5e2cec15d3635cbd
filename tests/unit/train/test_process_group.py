"""Nothing holds on to a process group that was left: gloo's threads must not see the interpreter's end."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch.distributed as dist
from torch import nn

from pipeline.train.process_group import process_group
from pipeline.world import World
from tests.forked_ranks import run_ranks

TURNS = 3
TWO_RANKS = """
import os
import sys
from pathlib import Path
import torch
import torch.distributed as dist
from torch import nn
from pipeline.train.process_group import process_group
from pipeline.world import World

def learn(fails):
    network = nn.parallel.DistributedDataParallel(nn.Linear(3, 2))
    network.itself = network
    network(torch.ones(1, 3)).sum().backward()
    dist.barrier()
    if fails:
        raise RuntimeError("in the middle of a step")

turn, rank = divmod(int(os.environ["RANK"]), 2)
store, fails = Path(sys.argv[1], f"store{turn}"), sys.argv[2] == "fails"
torch.set_num_threads(1)
try:
    with process_group("gloo", World(rank, 2, rank, 2), store=store):
        learn(fails)
except RuntimeError:
    sys.exit(3)
"""


class Held(nn.Module):
    """In a cycle, as networks are that hooks of their own refer to."""

    def __init__(self) -> None:
        super().__init__()
        self.hook = self.forward


def leave(found: list[weakref.ref[nn.Module]], error: Exception | None) -> None:
    held = Held()
    found.append(weakref.ref(held))
    if error:
        raise error


@pytest.mark.parametrize("error", [None, ValueError("a step failed")])
def test_what_the_ranks_trained_is_gone_when_their_group_is_left(
    error: Exception | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[weakref.ref[nn.Module]] = []
    alive: list[bool] = []
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: alive.append(found[0]() is not None))
    expected = pytest.raises(ValueError, match="a step failed") if error else nullcontext()
    with expected, process_group("gloo", World(0, 2, 0, 2), store=tmp_path / "store"):
        leave(found, error)
    assert alive == [False]


def test_a_rank_alone_needs_no_group() -> None:
    with process_group("gloo", World()):
        assert not dist.is_initialized()


@pytest.mark.parametrize(("what", "code"), [("learns", 0), ("fails", 3)])
def test_ranks_end_with_their_own_exit_code(what: str, code: int, tmp_path: Path) -> None:
    ended = run_ranks(2 * TURNS, ["-c", TWO_RANKS, tmp_path, what])
    assert [rank.code for rank in ended] == [code] * 2 * TURNS, ended
