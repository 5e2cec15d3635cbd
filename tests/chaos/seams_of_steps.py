"""Where a rank can be killed in forward, backward, reduction and optimizer, in an evaluation, in a restore.

Wrappers around the shipped classes, put there in the process of the test: shipped code knows nothing of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from pipeline.launch.fence import token_of
from pipeline.launch.run_context import JournaledContext
from pipeline.train import loop
from pipeline.train import run as run_parts
from pipeline.train.context import Phase
from pipeline.train.fixed_order import FixedOrder
from pipeline.train.run import Run
from pipeline.train.step import StepRunner
from pipeline.train.tree_sum import TreeSum
from tests.chaos.kill import Kill

REDUCTION_CALLS = ("launch", "add", "result")
"""Of a sum over ranks, in their order: sent, added up, taken. There are two sums, of gradients and of
BatchNorm's statistics."""
RESTORE_PLACES = 5


class StepSeams:
    """The seams of one process."""

    def __init__(self, kill: Kill) -> None:
        self.kill = kill
        self.training = False
        self.num_layers = self.num_parameters = 0

    def install(self) -> None:
        """Wrap the shipped methods."""
        self._phases()
        self._restore()
        self._steps()
        self._reduction()

    def _phases(self) -> None:
        kill, phase = self.kill, JournaledContext.phase

        @contextmanager
        def struck(context: JournaledContext, name: Phase) -> Iterator[None]:
            with phase(context, name):
                if name == "start":
                    kill.begin(token_of(context.attempt), context.world.rank)
                    if kill.strike and kill.wants("restore", kill.strike.step):
                        kill.count_down(RESTORE_PLACES)
                    kill.place("restore", "before anything was read")
                elif name == "evaluate" and kill.wants("evaluate"):
                    kill.count_down(2 * self.num_layers)
                yield
                kill.place("restore", "at its end")
                kill.last_place("evaluate", "at its end")

        JournaledContext.phase = struck

    def _restore(self) -> None:
        kill, assemble, restore = self.kill, loop.assemble, run_parts.restore_optimizer

        def struck(*arguments: Any) -> None:
            kill.place("restore", "weights restored")
            restore(*arguments)
            kill.place("restore", "optimizer restored")

        def watched(*arguments: Any) -> Run:
            run = assemble(*arguments)
            kill.place("restore", "built")
            kill.steps_done = run.state.step
            self._hook(run)
            return run

        run_parts.restore_optimizer, loop.assemble = struck, watched

    def _hook(self, run: Run) -> None:
        """Hooks on every layer, every gradient and the optimizer."""
        kill = self.kill
        layers = [m for m in run.model.modules() if not list(m.children())]
        averaged = [m for m in run.evaluated_model.modules() if not list(m.children())]
        for layer in {*layers, *averaged}:
            layer.register_forward_pre_hook(self._forward)
        parameters = [p for p in run.model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(lambda _: kill.place("backward", "a gradient"))
        run.optimizer.register_step_pre_hook(lambda *_: self._optimizer(0, "before it"))
        run.optimizer.register_step_post_hook(lambda *_: self._optimizer(1, "after it"))
        self.num_layers, self.num_parameters = len(layers), len(parameters)

    def _forward(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        self.kill.place("forward" if self.training else "evaluate", type(layer).__name__)

    def _optimizer(self, half: int, place: str) -> None:
        self.kill.last_place("reduction", "before the optimizer")
        if self.kill.wants("optimizer") and self.kill.part(2) == half:
            self.kill.hit(place)

    def _steps(self) -> None:
        kill, step = self.kill, StepRunner.step

        def struck(runner: StepRunner, micro_batches: Any, denominators: Any, number: int) -> None:
            kill.steps_done, self.training = number, True
            for phase, places in (("forward", self.num_layers), ("backward", self.num_parameters)):
                if kill.wants(phase):
                    kill.count_down(places * len(micro_batches))
            step(runner, micro_batches, denominators, number)
            kill.steps_done, self.training = number + 1, False

        StepRunner.step = struck

    def _reduction(self) -> None:
        kill, backward = self.kill, FixedOrder.backward

        def struck(reduction: FixedOrder, loss: Tensor) -> None:
            last = reduction._last
            if last:
                kill.last_place("forward", "at its end")
            if last and kill.wants("reduction"):
                kill.count_down(2 * len(REDUCTION_CALLS))
            backward(reduction, loss)
            if last:
                kill.last_place("backward", "at its end")

        def watched(name: str) -> Any:
            call = getattr(TreeSum, name)

            def struck_call(tree: TreeSum, *arguments: Any) -> Any:
                kill.place("reduction", f"before {name}")
                return call(tree, *arguments)

            return struck_call

        FixedOrder.backward = struck
        for name in REDUCTION_CALLS:
            setattr(TreeSum, name, watched(name))
