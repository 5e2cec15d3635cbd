"""Published weights before Ray: what is wrong with them costs a second; a run that goes on needs none."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.config import BackboneConfig, Config, ModelConfig
from pipeline.errors import ConfigError, WorldStateError
from pipeline.launch import run_folder
from pipeline.launch.paths import resolve_settings
from pipeline.launch.preflight import check_run
from pipeline.launch.run_folder import identity, refuse_other_run, with_architecture, write_json
from tests.published_weights import published
from tests.unit.launch.test_train_job_refusals import refuse

TEXT = '{"_name_or_path":"owner/repo","model_type":"swin"}'


def config(**backbone: object) -> Config:
    return Config(model=ModelConfig(backbone=BackboneConfig(**{"base_width": 8} | backbone)))


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--model.backbone.weights", "/absent/resnet18.pth"], "/absent/resnet18.pth: no such file"),
        (["--model.backbone.weights", "https://host/resnet18.pth"], "append #sha256="),
        (["--model.backbone.weights", "s3://b/resnet18-f37072fd.pth"], "read from a path, https://"),
        (["--model.backbone.weights", "hf://owner/model.bin"], "type hf://OWNER/REPO/FILE"),
        (["--model.backbone.architecture", "owner/repo"], "pip install 'ccs-pipeline[transformers]'"),
        (["--model.backbone.architecture", "https://host/x"], "type a folder or a name of the hub"),
    ],
)
def test_wrong_weights_are_refused_with_2_before_ray(
    shards: Path, tmp_path: Path, argv: list[str], words: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.launch.ray_cluster.connected", lambda *_: pytest.fail("Ray was started"))
    monkeypatch.setitem(sys.modules, "transformers", None)
    result, line = refuse(capsys, "--shards", str(shards), "--runs", str(tmp_path), *argv)
    assert result["exit_code"] == 2
    assert words in line
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_file_is_compared_with_the_network_before_ray(shards: Path, tmp_path: Path) -> None:
    path = tmp_path / "resnet.pth"
    torch.save(published(18), path)
    check_run(config(weights=str(path)), str(shards), tmp_path / "x")
    with pytest.raises(ConfigError, match=r"type --model\.backbone\.depth 18$"):
        check_run(config(depth=50, weights=str(path)), str(shards), tmp_path / "x")


def test_a_run_with_a_checkpoint_is_not_asked_for_its_weights(shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "x" / "checkpoints" / "step_00000001-a"
    folder.mkdir(parents=True)
    (folder / "COMMIT.json").write_text("{}")
    check_run(config(weights=str(tmp_path / "gone.pth")), str(shards), tmp_path / "x")


def test_paths_become_absolute_and_names_of_the_hub_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()

    def resolved(**backbone: str) -> tuple[str, str]:
        backbone_config = resolve_settings(config(**backbone)).model.backbone
        return backbone_config.weights, backbone_config.architecture

    assert resolved(weights="a.pth#sha256=ab") == (f"{tmp_path}/a.pth#sha256=ab", "")
    assert resolved(weights="hf://o/r/f@main") == ("hf://o/r/f@main", "")
    assert resolved(architecture="owner/repo", weights="owner/repo") == ("owner/repo", "owner/repo")
    assert resolved(architecture="./local", weights="local") == (f"{tmp_path}/local", f"{tmp_path}/local")
    assert resolved(architecture=TEXT) == ("", TEXT)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r'type --model\.backbone\.weights "\$\(pwd\)/a\.pth"'):
        resolved(weights="a.pth")


def test_a_run_takes_the_architecture_that_it_recorded_and_asks_the_hub_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def look_up(backbone: BackboneConfig) -> BackboneConfig:
        asked.append(backbone.architecture)
        return replace(
            backbone, architecture=json.dumps({"_name_or_path": backbone.architecture, "n": len(asked)})
        )

    monkeypatch.setattr(run_folder, "resolve_architecture", look_up)
    first = with_architecture(config(architecture="owner/repo"), tmp_path)
    write_json(tmp_path / "config.json", identity(first, {}))
    assert with_architecture(config(architecture="owner/repo"), tmp_path) == first
    assert asked == ["owner/repo"]
    other = with_architecture(config(architecture="owner/other"), tmp_path)
    assert asked == ["owner/repo", "owner/other"]
    with pytest.raises(WorldStateError, match=r"model\.backbone\.architecture"):
        refuse_other_run(tmp_path, identity(other, {}))


def test_a_difference_of_long_values_stays_one_short_line(tmp_path: Path) -> None:
    held, wanted = ({"model_type": "swin", "n": n, "x": ["y" * 5000]} for n in (1, 2))
    write_json(tmp_path / "config.json", identity(config(architecture=json.dumps(held)), {}))
    with pytest.raises(WorldStateError) as error:
        refuse_other_run(tmp_path, identity(config(architecture=json.dumps(wanted)), {}))
    assert len(str(error.value)) < 500
