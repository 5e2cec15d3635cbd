"""Published weights: what fits is taken to the last bit, all else is refused, and nothing is executed."""

import hashlib
import os
import pickle
import shutil
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pipeline.config import BackboneConfig, HeadConfig, ModelConfig, StoreConfig
from pipeline.errors import ConfigError
from pipeline.model.segmenter import build_segmenter
from pipeline.recipes import recipe
from pipeline.settings import with_settings
from pipeline.train import checkpoint
from pipeline.train.loop import fit
from pipeline.train.pretrained import check_weights, load_weights
from pipeline.train.run import assemble
from tests.published_weights import BLOCKS, named_by_hash, published, weights_server

STORE = StoreConfig()
FIT = {
    "data.input_height": 48, "data.input_width": 64, "data.crop_height": 32, "data.crop_width": 32,
    "model.backbone.base_width": 8, "model.head.dim": 16, "train.batch_global": 4, "train.steps": 1,
    "train.precision": "float32", "train.ema_decay": 0.9, "launch.use_gpu": "no",
}  # fmt: skip


def segmenter(**backbone):
    torch.manual_seed(3)
    config = ModelConfig(backbone=BackboneConfig(**{"base_width": 8} | backbone), head=HeadConfig(dim=16))
    return build_segmenter(config, 5)


def load(path, **backbone):
    """The segmenter after its backbone was loaded."""
    model = segmenter(**backbone)
    load_weights(model.backbone, BackboneConfig(**{"base_width": 8} | backbone, weights=str(path)), STORE)
    return model


def refusal(path, **backbone) -> str:
    """The one line that refuses a file, by preflight and by the load alike; the network is left as it was."""
    settings = BackboneConfig(**{"base_width": 8} | backbone, weights=str(path))
    model = segmenter(**backbone)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"^[^\n]+$") as error:
        load_weights(model.backbone, settings, STORE)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ConfigError) as early:
        check_weights(settings)
    assert str(early.value) == str(error.value)
    return str(error.value)


def saved(tensors, path: Path, **options) -> Path:
    torch.save(tensors, path, **options)
    return path


def assert_loaded(model, tensors) -> None:
    state = model.backbone.state_dict()
    expected = {name: t for name, t in tensors.items() if not name.startswith("fc.")}
    assert state.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(state[name], expected[name])] == []


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
@pytest.mark.parametrize("depth", BLOCKS)
def test_a_file_with_torchvisions_names_is_loaded_to_the_last_bit(depth, kind, tmp_path):
    tensors = published(depth, 8 if depth < 50 else 16)
    if kind == "safetensors":
        path = tmp_path / "model.safetensors"
        save_file(tensors, path)
    else:
        path = saved(tensors, tmp_path / "resnet.pth", _use_new_zipfile_serialization=kind == "zip")
    model = load(named_by_hash(path), depth=depth, base_width=8 if depth < 50 else 16)
    assert_loaded(model, tensors)
    assert all(torch.equal(a, b) for a, b in zip(
        model.head_parameters(), segmenter(depth=depth, base_width=8 if depth < 50 else 16).head_parameters(),
        strict=True,
    )), "the head starts as it would have"  # fmt: skip


def test_the_three_convolutions_of_v1c_are_loaded(tmp_path):
    tensors = published(18, stem="v1c")
    assert_loaded(load(saved(tensors, tmp_path / "v1c.pth"), depth=18, stem="v1c"), tensors)


def test_weights_do_not_depend_on_the_output_stride(tmp_path):
    tensors = published(50)
    path = saved(tensors, tmp_path / "r50.pth")
    for stride in (8, 16, 32):
        assert_loaded(load(path, depth=50, output_stride=stride), tensors)


def test_older_files_without_counters_and_in_half_precision_are_loaded(tmp_path):
    tensors = {n: t.half() for n, t in published(18).items() if not n.endswith("num_batches_tracked")}
    model = load(saved(OrderedDict(tensors), tmp_path / "old.pth"))
    state = model.backbone.state_dict()
    assert torch.equal(state["layer4.1.conv2.weight"], tensors["layer4.1.conv2.weight"].float())
    assert state["bn1.running_var"].dtype == torch.float32
    assert int(state["bn1.num_batches_tracked"]) == 0


def test_the_backbone_of_an_mmsegmentation_checkpoint_is_taken_and_its_heads_are_not(tmp_path):
    tensors = published(18)
    inside = {f"backbone.{n}": t for n, t in tensors.items() if not n.startswith("fc.")}
    whole = {
        "meta": {"epoch": 3},
        "state_dict": inside | {"decode_head.conv_seg.weight": torch.ones(19, 8, 1, 1)},
    }
    assert_loaded(load(saved(whole, tmp_path / "seg.pth")), tensors)
    assert_loaded(load(saved({"state_dict": tensors}, tmp_path / "cls.pth")), tensors)


def test_a_network_saved_inside_its_ddp_wrapper_is_loaded(tmp_path):
    tensors = published(18)
    assert_loaded(load(saved({f"module.{n}": t for n, t in tensors.items()}, tmp_path / "ddp.pth")), tensors)
    inside = {f"module.backbone.{n}": t for n, t in tensors.items() if not n.startswith("fc.")}
    assert_loaded(load(saved({"state_dict": inside}, tmp_path / "seg.pth")), tensors)


def test_a_folder_and_a_date_in_a_name_are_told_for_what_they_are(tmp_path):
    assert "is a folder" in refusal(tmp_path)
    dated = saved(published(18), tmp_path / "resnet18-20240131.pth")
    assert "where they are a date, append #sha256=" in refusal(dated)
    digest = hashlib.sha256(dated.read_bytes()).hexdigest()
    assert_loaded(load(f"{dated}#sha256={digest}"), published(18))


@pytest.mark.parametrize(
    ("made", "typed", "advice"),
    [
        ((50, 8, "v1"), {"depth": 18}, "type --model.backbone.depth 50"),
        ((34, 8, "v1"), {"depth": 50}, "type --model.backbone.depth 34"),
        ((18, 16, "v1"), {"depth": 18}, "type --model.backbone.base_width 16"),
        ((18, 8, "v1c"), {"depth": 18}, "type --model.backbone.stem v1c"),
        ((101, 16, "v1c"), {"depth": 10},
         "type --model.backbone.depth 101 --model.backbone.base_width 16 --model.backbone.stem v1c"),
    ],
)  # fmt: skip
def test_weights_of_another_network_are_refused_with_the_settings_that_they_fit(
    made, typed, advice, tmp_path
):
    line = refusal(saved(published(*made), tmp_path / "other.pth"), **typed)
    assert "does not fit a backbone of depth" in line
    assert line.endswith(advice)


def test_a_misfit_is_one_line_with_the_first_names_and_their_number(tmp_path):
    tensors = published(18)
    for name in (
        "layer1.0.conv1.weight",
        "layer1.0.bn1.bias",
        "layer1.1.conv1.weight",
        "layer4.1.conv2.weight",
    ):
        del tensors[name]
    tensors["layer5.0.conv1.weight"] = torch.ones(3)
    tensors["conv1.weight"] = torch.ones(8, 1, 7, 7)
    line = refusal(saved(tensors, tmp_path / "x.pth"))
    assert "4 missing (layer1.0.conv1.weight, layer1.0.bn1.bias, layer1.1.conv1.weight, …)" in line
    assert "1 too many (layer5.0.conv1.weight)" in line
    assert "1 of another shape (conv1.weight 8x1x7x7 for 8x3x7x7)" in line
    assert line.endswith("type weights of a ResNet with torchvision's names")


@pytest.mark.parametrize(
    "dropped", ["bn1.running_var", "layer2.0.downsample.1.weight", "layer3.1.conv2.weight"]
)
def test_no_tensor_but_the_classifier_may_be_missing(dropped, tmp_path):
    tensors = published(18)
    del tensors[dropped]
    assert f"1 missing ({dropped})" in refusal(saved(tensors, tmp_path / "x.pth"))


def test_a_classifier_of_another_name_is_not_dropped(tmp_path):
    tensors = published(18) | {"fc2.weight": torch.ones(2), "head.fc.weight": torch.ones(2)}
    assert "2 too many (fc2.weight, head.fc.weight)" in refusal(saved(tensors, tmp_path / "x.pth"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    tensors = published(18)
    tensors["layer2.0.conv1.weight"][0, 0, 0, 0] = value
    assert "is not finite in layer2.0.conv1.weight" in refusal(saved(tensors, tmp_path / "x.pth"))


class Evil:
    """What unpickling would run."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("how", ["zip", "legacy", "pickle"])
def test_nothing_of_a_file_is_executed(how, tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "evil.pth"
    content = published(18) | {"conv1.weight": Evil(marker)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content["conv1.weight"]))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    line = refusal(path)
    assert "Python objects, which are never loaded" in line
    assert "weights_only" not in line, "torch's own advice is to load the file with all its code"
    assert not marker.exists()


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_refused(suffix, kept, tmp_path):
    path = tmp_path / f"model{suffix}"
    save_file(published(18), path) if suffix == ".safetensors" else saved(published(18), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "cannot be read as tensors" in refusal(path)


def test_a_flipped_bit_is_found_by_the_hash_of_the_name_and_without_one_by_the_archives_checksums(tmp_path):
    path = named_by_hash(saved(published(18), tmp_path / "resnet18.pth"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert f"begins with {path.stem[-8:]}" not in refusal(path)
    assert f"and not with {path.stem[-8:]}; copy it again, or correct the hash" in refusal(path)
    assert "cannot be read as tensors (BadZipFile)" in refusal(path.rename(tmp_path / "resnet18.pth"))


@pytest.mark.parametrize("content", [torch.ones(3), {"epoch": 3}, [published(18)], {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_refused(content, tmp_path):
    assert "holds no state_dict" in refusal(saved(content, tmp_path / "x.pth"))


def test_a_path_is_checked_against_a_typed_hash(tmp_path):
    path = saved(published(18), tmp_path / "plain.pth")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert_loaded(load(f"{path}#sha256={digest.upper()}"), published(18))
    assert "begins with" in refusal(f"{path}#sha256={digest[:-1]}{'0' if digest[-1] != '0' else '1'}".replace(
        digest[:8], "00000000"
    ))  # fmt: skip


def fit_config(**settings):
    return with_settings(recipe("laptop"), FIT | {k.replace("__", "."): v for k, v in settings.items()})


def test_a_fresh_run_starts_from_the_weights_in_the_model_and_in_its_average(shards, tmp_path, surroundings):
    tensors = published(18)
    path = saved(tensors, tmp_path / "resnet18.pth")
    run = assemble(fit_config(model__backbone__weights=path), shards, tmp_path / "x", surroundings())
    assert_loaded(run.model, tensors)
    assert_loaded(run.ema.averaged, tensors)
    plain = assemble(fit_config(), shards, tmp_path / "y", surroundings())
    heads = zip(run.model.head_parameters(), plain.model.head_parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in heads)


def test_training_goes_on_from_the_weights_and_a_resumed_run_no_longer_needs_the_file(
    shards, tmp_path, surroundings
):
    tensors = published(18)
    path = saved(tensors, tmp_path / "resnet18.pth")
    still = {"model__backbone__weights": path, "optim__lr": 1e-9, "optim__min_lr": 0.0}
    fit(fit_config(**still), shards, tmp_path / "x", surroundings())
    trained = checkpoint.read_tensors(checkpoint.newest_checkpoint(tmp_path / "x"), checkpoint.WEIGHTS)
    assert torch.allclose(trained["backbone.conv1.weight"], tensors["conv1.weight"], atol=1e-5)
    path.unlink()
    fit(fit_config(**still, train__steps=2), shards, tmp_path / "x", surroundings("b"))
    with pytest.raises(ConfigError, match="no such file"):
        fit(fit_config(**still), shards, tmp_path / "other", surroundings())


def test_a_run_that_goes_on_asks_no_server(shards, tmp_path, surroundings):
    tensors = published(18)
    data = named_by_hash(saved(tensors, tmp_path / "resnet18.pth"))
    with weights_server() as server:
        server.files[f"/{data.name}"] = data.read_bytes()
        typed = {
            "model__backbone__weights": f"{server.url}/{data.name}",
            "data__store__cache_dir": tmp_path,
        }
        first = surroundings(stop_step=1)
        stopped = fit(fit_config(**typed, train__steps=6), shards, tmp_path / "x", first)
        asked = len(server.asked)
        assert stopped.status == "preempted"
        assert asked > 0
        shutil.rmtree(tmp_path / f"ccs-shards-{os.getuid()}")
        ended = fit(fit_config(**typed, train__steps=6), shards, tmp_path / "x", surroundings("b"))
        assert (ended.status, len(server.asked)) == ("ok", asked)
