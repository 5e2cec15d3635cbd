"""What the repository promises as a whole: contracts, manifests, jobs, targets."""

from __future__ import annotations

import ast
import os
import re
import shlex
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.launch.train_job import TrainFlags, read_request

ROOT = Path(__file__).resolve().parents[2]
JOBS = sorted((ROOT / "jobs").glob("*.py"))


def test_imports_go_one_way() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert ", 0 broken." in done.stdout


@pytest.mark.parametrize(
    "module", ["pipeline.launch.torchrun", "pipeline.train.loop", "pipeline.data.loader"]
)
def test_core_runs_where_ray_mlflow_and_tyro_are_not_installed(module: str) -> None:
    code = (
        "import sys\n"
        "absent = ('ray', 'mlflow', 'tyro', 'rich', 'webdataset', 'smart_open', 'isal')\n"
        "sys.modules.update(dict.fromkeys(absent))\n"
        f"import {module}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_jobs_are_short_and_end_by_run_job(job: Path) -> None:
    text = job.read_text()
    assert len(text.splitlines()) <= 60
    assert "sys.exit(run_job(" in text


@pytest.mark.parametrize("job", JOBS, ids=lambda path: path.stem)
def test_jobs_explain_themselves_from_any_folder(job: Path, tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, str(job), "--help"], cwd=tmp_path, env=environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_make_offers_what_the_interface_names() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"train", "test", "check", "chaos", "bench", "ui", "clean", "help"} <= targets
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for target in ("train", "test", "check", "bench", "ui", "clean"):
        assert f"make {target}" in shown


def test_bench_names_what_there_is_when_asked_for_what_is_not() -> None:
    if not (ROOT / ".venv" / ".installed-cpu").exists():
        pytest.skip("make would install an environment first: this one was not made by make")
    done = subprocess.run(
        ["make", "bench", "BENCH=absent", "LOCK=cpu"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "no benchmarks/absent.py" in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["cpu", "cuda"])
def test_locks_pin_every_requirement_and_name_no_host(name: str) -> None:
    text = (ROOT / "locks" / f"{name}.txt").read_text()
    assert "://" not in text
    assert "--" not in text
    pins = dict(re.findall(r"^([A-Za-z0-9._-]+)==(\S+)", text, re.MULTILINE))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + extras["test"] + extras["check"]:
        package = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert package is not None
        assert package[0].lower() in pins, f"{requirement} is not in locks/{name}.txt"
        exact = re.search(r"==(.+)", requirement)
        if exact:
            assert pins[package[0].lower()] == exact[1]
    unpinned = [line for line in text.splitlines() if line and not line.startswith("#") and "==" not in line]
    assert not unpinned
    assert any(package.startswith("nvidia-") for package in pins) == (name == "cuda")


def test_ray_job_manifest_runs_the_train_job_as_it_is() -> None:
    job = yaml.safe_load((ROOT / "cluster" / "kuberay" / "rayjob.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    spec = job["spec"]
    assert spec["backoffLimit"] >= 1, "a job whose driver dies is submitted again"
    python, script, *words = shlex.split(spec["entrypoint"])
    assert (python, script) == ("python", "jobs/train_cityscapes.py")
    request = read_request(words)
    assert request.workers is not None
    request.config.train.micro_batch_per_rank(request.workers.most)

    cluster = spec["rayClusterSpec"]
    pins = (ROOT / "locks" / "cuda.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in pins
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    (group,) = cluster["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"]
    pod = group["template"]["spec"]
    limits = pod["containers"][0]["resources"]["limits"]
    assert int(limits["nvidia.com/gpu"]) * group["replicas"] == request.workers.most
    cpus_each = request.config.launch.threads_per_worker + request.config.data.loader_workers
    assert int(limits["cpu"]) >= cpus_each * int(limits["nvidia.com/gpu"])
    variables = {v["name"]: v["value"] for v in pod["containers"][0]["env"]}
    drained_s = float(variables["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert 120 <= drained_s < pod["terminationGracePeriodSeconds"], "time to end a step and checkpoint"
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    for path in (request.shards, str(request.runs_dir)):
        assert any(path.startswith(mount) for mount in mounts), path
    environment = yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"]
    assert set(environment) == {"RAY_JOB_STOP_SIGNAL", "RAY_JOB_STOP_WAIT_TIME_S"}, "no secret passes here"


def test_dockerfile_installs_a_lock_and_runs_as_a_user() -> None:
    lines = (ROOT / "cluster" / "Dockerfile").read_text().splitlines()
    words = [line.split() for line in lines if line and not line.startswith((" ", "#"))]
    assert [word[1] for word in words if word[0] == "FROM"] == ["python:3.11-slim"]
    assert ["USER", "ray"] in words
    for line in words:
        if line[0] == "COPY":
            for source in line[1:-1]:
                assert source.startswith("--") or (ROOT / source).exists(), source


def test_ci_runs_check_and_test() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & stat.S_IXUSR
    assert [line for line in script.read_text().splitlines() if line.startswith("make ")] == [
        "make check",
        "make test",
    ]


def test_pre_commit_is_make_check() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    recipe = re.search(r"^check:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe is not None
    commands = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    assert [hook["entry"] for hook in hooks] == commands


def test_interface_flags_of_train_are_there() -> None:
    flags = {f"--{name.replace('_', '-')}" for name in TrainFlags.__dataclass_fields__}
    assert flags == {
        "--shards", "--recipe", "--name", "--workers", "--runs", "--config", "--extend", "--register",
        "--preflight-only",
    }  # fmt: skip


def test_no_file_is_named_for_nothing_and_none_is_too_long() -> None:
    for path in [*(ROOT / "pipeline").rglob("*.py"), *JOBS]:
        assert path.stem not in {"utils", "helpers", "common"}
        assert len(path.read_text().splitlines()) <= 400, path


def test_nothing_is_left_to_do() -> None:
    for path in [*(ROOT / "pipeline").rglob("*.py"), *JOBS]:
        tree = ast.walk(ast.parse(path.read_text()))
        raised = [ast.unparse(node.exc) for node in tree if isinstance(node, ast.Raise) and node.exc]
        assert not any(text.startswith("NotImplementedError") for text in raised), path
        assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text()), path


NAMES_ALONE = """
import pytest
class Names:
    @pytest.hookimpl(wrapper=True)
    def pytest_collect_file(self, file_path):
        if (yield):
            print("\\nfound", file_path)
        return []  # nothing of it is imported
pytest.main(["--collect-only", "-q"], plugins=[Names()])
"""


def test_the_suite_collects_every_test_file() -> None:
    done = subprocess.run(
        [sys.executable, "-c", NAMES_ALONE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    collected = set(re.findall(r"^found (.*)$", done.stdout, re.MULTILINE))
    assert collected == {str(path) for path in (ROOT / "tests").rglob("test_*.py")}, done.stderr
