"""Published weights for the backbone of a fresh run: safely read, exactly fitting, alike on all ranks.

A file's tensors must be exactly those of the backbone, but for the classifier `fc.*` that is not there and
for counters that older files lack: a backbone that starts half at random trains, scores less, and says
nothing. The head is never touched.
"""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.config import BackboneConfig, Config, StoreConfig, require
from pipeline.errors import ConfigError, PipelineError, first_few
from pipeline.model.auto_backbone import TransformersBackbone
from pipeline.model.backbone import Backbone
from pipeline.model.resnet import BLOCKS, ResNet
from pipeline.model.segmenter import Segmenter
from pipeline.train.hub_backbone import check_hub_weights, load_hub_weights
from pipeline.train.hub_names import WEIGHTS
from pipeline.train.reduce import broadcast_state, raise_together
from pipeline.train.weights_file import WeightsFile, bring, parse_weights
from pipeline.world import World

logger = logging.getLogger(__name__)

CLASSIFIER = "fc."
"""Beginning of the names that are dropped: ImageNet's thousand classes."""
COUNTER = "num_batches_tracked"
"""BatchNorm's count, which files from before 2018 lack and nothing here reads."""
PREFIX = "backbone."
"""What mmsegmentation puts before the names, beside those of its heads."""
WRAPPER = "module."
"""What DistributedDataParallel puts before all names, where the wrapped network was saved."""
STEMS: tuple[Literal["v1", "v1c"], ...] = ("v1", "v1c")


def start_from_weights(model: Segmenter, config: Config, world: World) -> None:
    """Fill the backbone from `model.backbone.weights`, where that is not empty. A collective.

    Rank 0 reads, and all get its values: one node needs the network, and a file that differs between
    nodes makes no difference between ranks. Raises on all ranks what rank 0 meets.
    """
    if not config.model.backbone.weights:
        return
    problem = None
    if world.is_main:
        try:
            load_weights(model.backbone, config.model.backbone, config.data.store)
        except PipelineError as error:
            problem = error
    raise_together(problem, world)
    broadcast_state(model.backbone, world)


def check_weights(settings: BackboneConfig) -> None:
    """Raises ConfigError for weights that are known to be wrong before a network is used."""
    if settings.architecture and settings.weights:
        check_hub_weights(settings.weights)
    elif settings.weights:
        file = parse_weights(settings.weights)
        if not file.is_remote:
            with torch.device("meta"):
                backbone = _resnet(settings)
            _fitting_tensors(file, bring(file, StoreConfig()), settings, backbone)


def load_weights(backbone: Backbone, settings: BackboneConfig, store: StoreConfig) -> None:
    """Fill a backbone from its published weights; raises a PipelineError where they do not fit.

    Then it is as it was. Tensors of other floating types become those of the backbone.
    """
    if isinstance(backbone, TransformersBackbone):
        load_hub_weights(backbone, settings.weights)
        return
    file = parse_weights(settings.weights)
    tensors = _fitting_tensors(file, bring(file, store), settings, backbone)
    backbone.load_state_dict(tensors, strict=False)  # what may be absent is the counters
    logger.info("[weights] the backbone starts from %s", file.shown)


def read_tensors(path: Path, shown: str, *, is_checked: bool) -> dict[str, Tensor]:
    """Name → tensor of a safetensors or torch file, by way of no code of its own; ConfigError where it fails.

    torch's older format is read whole, the newer one as it is used. Without a hash its own checksums count.
    """
    try:
        if path.suffix == ".safetensors":
            loaded: object = load_file(path)
        else:
            is_zip = zipfile.is_zipfile(path)
            if is_zip and not is_checked:
                with zipfile.ZipFile(path) as archive:
                    if archive.testzip() is not None:
                        raise zipfile.BadZipFile("checksum")
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # a damaged or hostile file makes its parser raise anything
        # torch's own text is left out: it advises to load the file with all its code.
        raise ConfigError(
            f"{WEIGHTS} {shown} cannot be read as tensors ({type(error).__name__}): it is damaged, or holds "
            "Python objects, which are never loaded; copy it again, or save its state_dict as .safetensors"
        ) from error
    return _state_dict(loaded, shown)


def _state_dict(loaded: object, shown: str) -> dict[str, Tensor]:
    """The tensors of the backbone in what a file holds, without the classifier."""
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    holds_tensors = isinstance(loaded, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    )
    if not isinstance(loaded, Mapping) or not holds_tensors:
        raise ConfigError(f"{WEIGHTS} {shown} holds no state_dict; save the network's state_dict() alone")
    if all(name.startswith(WRAPPER) for name in loaded):
        loaded = {name.removeprefix(WRAPPER): tensor for name, tensor in loaded.items()}
    inside = {name.removeprefix(PREFIX): t for name, t in loaded.items() if name.startswith(PREFIX)}
    return {name: t for name, t in (inside or loaded).items() if not name.startswith(CLASSIFIER)}


def _fitting_tensors(
    file: WeightsFile, path: Path, settings: BackboneConfig, backbone: Backbone
) -> dict[str, Tensor]:
    """The file's tensors, which are the backbone's; raises ConfigError with what to type otherwise."""
    found = read_tensors(path, file.shown, is_checked=file.is_remote or file.sha256 != "")
    problem = misfit(backbone.state_dict(), found)
    if problem:
        raise ConfigError(
            f"{WEIGHTS} {file.shown} does not fit a backbone of depth {settings.depth}, stem {settings.stem} "
            f"and base_width {settings.base_width}: {problem}; {_advice(settings, found)}"
        )
    broken = [n for n, t in found.items() if t.is_floating_point() and not bool(t.isfinite().all())]
    require(
        not broken, f"{WEIGHTS} {file.shown} is not finite in {first_few(broken)}; take another copy of it"
    )
    return found


def misfit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """How the found tensors differ from the wanted ones, in a few words; empty where they do not."""
    kinds = {
        "missing": [name for name in wanted if name not in found and not name.endswith(COUNTER)],
        "too many": [name for name in found if name not in wanted],
        "of another shape": [
            f"{name} {_shape(found[name])} for {_shape(wanted[name])}"
            for name in wanted
            if name in found and found[name].shape != wanted[name].shape
        ],
    }
    return ", ".join(f"{len(names)} {kind} ({first_few(names)})" for kind, names in kinds.items() if names)


def _advice(settings: BackboneConfig, found: Mapping[str, Tensor]) -> str:
    """The settings that the tensors fit, as they are typed."""
    first = found.get("layer1.0.conv1.weight")  # as many channels out as the first stage is wide
    for depth, stem in product(BLOCKS, STEMS):
        try:
            candidate = BackboneConfig(depth, first.shape[0] if first is not None else 0, stem)  # type: ignore[arg-type]  # BLOCKS has the depths
        except ConfigError:
            break  # no width of ours
        with torch.device("meta"):
            fits = not misfit(_resnet(candidate).state_dict(), found)
        if fits:
            wanted = {name: getattr(candidate, name) for name in ("depth", "base_width", "stem")}
            changed = {name: value for name, value in wanted.items() if value != getattr(settings, name)}
            return "type " + " ".join(f"--model.backbone.{name} {value}" for name, value in changed.items())
    return "it fits no depth, stem and base_width; type weights of a ResNet with torchvision's names"


def _resnet(settings: BackboneConfig) -> ResNet:
    return ResNet(settings.depth, settings.base_width, settings.stem, settings.output_stride)


def _shape(tensor: Tensor) -> str:
    return "x".join(str(side) for side in tensor.shape) or "scalar"
