"""Processes of a Ray head, told by their titles. One that has just ended has none."""

from __future__ import annotations

import psutil

from pipeline.launch.local_cluster import LocalCluster


def titled(cluster: LocalCluster, words: str) -> list[psutil.Process]:
    """Those whose title has these words."""
    return [process for process in cluster.processes() if words in _title(process)]


def train_workers(cluster: LocalCluster) -> list[psutil.Process]:
    """The ranks of all jobs."""
    return titled(cluster, "RayTrainWorker")


def reserve(cluster: LocalCluster) -> set[int]:
    """Idle worker processes that have torch loaded."""
    return {
        process.pid
        for process in cluster.processes()
        if _title(process).startswith("ray::IDLE") and _resident_bytes(process) > 250 << 20
    }


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _resident_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
