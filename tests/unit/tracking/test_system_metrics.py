"""Samples of the machine keep their numbers, know the GPUs, and harm nobody where they fail."""

from pathlib import Path

import psutil
import pytest

from pipeline.tracking import system_metrics
from pipeline.tracking.system_metrics import SystemSampler


def sampler(folder: Path, samples: int) -> SystemSampler:
    sampler = SystemSampler(folder, interval_s=0.0)
    for _ in range(samples):
        sampler.sample()
    return sampler


def numbers(sampler: SystemSampler, first_step: int) -> list[int]:
    return [m.step for m in sampler.waiting(first_step) if m.key == "system/disk_usage_percentage"]


def test_a_sample_keeps_its_number_when_earlier_ones_were_sent(tmp_path: Path) -> None:
    taken = sampler(tmp_path / "not" / "made" / "yet", samples=3)
    assert numbers(taken, first_step=10) == [10, 11, 12]
    taken.clear()
    taken.sample()
    assert numbers(taken, first_step=10) == [13]


def test_the_oldest_samples_go_first_where_too_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(system_metrics, "KEPT_SAMPLES", 2)
    assert numbers(sampler(tmp_path, samples=4), first_step=0) == [2, 3]


def test_a_machine_that_does_not_tell_costs_one_line_and_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    taken = sampler(tmp_path, samples=1)

    def refuse() -> None:
        raise PermissionError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", refuse)
    for _ in range(3):
        taken.sample()
    assert numbers(taken, first_step=0) == [0]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "no system metrics" in line
    assert "PermissionError" in line
    assert "MLflow" not in line


def test_what_the_gpu_tells_is_among_the_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gpu:
        def __init__(self) -> None:
            self.values: dict[str, float] = {}

        def collect_metrics(self) -> None:
            assert self.values == {}, "each sample stands for itself"
            self.values = {"gpu_0_utilization_percentage": 87.0}

        def aggregate_metrics(self) -> dict[str, float]:
            return self.values

        def clear_metrics(self) -> None:
            self.values = {}

    monkeypatch.setattr(system_metrics, "GPUMonitor", Gpu)
    found = [m for m in sampler(tmp_path, samples=2).waiting(0) if m.key.startswith("system/gpu")]
    assert [(m.key, m.value, m.step) for m in found] == [
        ("system/gpu_0_utilization_percentage", 87.0, 0),
        ("system/gpu_0_utilization_percentage", 87.0, 1),
    ]


@pytest.mark.parametrize("error", [ImportError("`nvidia-ml-py` is not installed"), RuntimeError("no GPU")])
def test_a_machine_without_a_gpu_is_sampled_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def absent() -> None:
        raise error

    monkeypatch.setattr(system_metrics, "GPUMonitor", absent)
    keys = {m.key for m in sampler(tmp_path, samples=1).waiting(0)}
    assert "system/cpu_utilization_percentage" in keys
    assert not any("gpu" in key for key in keys)
