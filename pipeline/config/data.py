"""Settings of the data: which samples, at which size, in which order, from where."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pipeline.config.check import require


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes to a training sample, all drawn from (seed, position)."""

    scale_min: float = 0.5
    """Smallest zoom; 1.0 is the network's input size."""
    scale_max: float = 2.0
    """Largest zoom."""
    flip: bool = True
    """Mirror left and right with probability one half."""
    photometric: bool = True
    """Change brightness, contrast, saturation and hue."""
    max_class_share: float = 0.75
    """Draw the crop again (up to ten times) while one class fills more of it than this; 1.0 turns it off."""

    def __post_init__(self) -> None:
        require(
            0.05 <= self.scale_min <= self.scale_max <= 8.0,
            f"data.augment scales must satisfy 0.05 <= scale_min <= scale_max <= 8, "
            f"got {self.scale_min} and {self.scale_max}",
        )
        require(
            0.0 < self.max_class_share <= 1.0,
            f"data.augment.max_class_share is a share in (0, 1], got {self.max_class_share}",
        )


@dataclass(frozen=True)
class StoreConfig:
    """How shards, and runs, at an address (s3://, gs://, http(s)://) are reached; idle for local folders."""

    cache_dir: str = ""
    """Folder of the node in which ccs-shards-UID keeps downloads, and copies of runs that are at an address;
    empty takes the machine's temporary one."""
    cache_gb: float = 64.0
    """Most that the folder may hold, in GB; the shards used longest ago go first."""
    lookahead: int = 2048
    """Samples a rank looks ahead for shards to download."""
    downloads: int = 4
    """Shards downloaded side by side by a rank."""
    timeout_s: float = 10.0
    """Longest silence of a server before a request is given up and tried again."""
    attempts: int = 6
    """Tries of a request, with a growing, jittered pause between them."""

    def __post_init__(self) -> None:
        for name, most in (("cache_gb", 1e9), ("timeout_s", 86400.0)):
            value = getattr(self, name)
            require(0.0 < value <= most, f"data.store.{name} must be above 0, at most {most:g}, got {value}")
        for name, most in (("lookahead", 2**24), ("downloads", 1024), ("attempts", 1000)):
            value = getattr(self, name)
            require(1 <= value <= most, f"data.store.{name} must be at least 1, at most {most}, got {value}")


@dataclass(frozen=True)
class DataConfig:
    """Which samples, at which size, in which order."""

    train_split: str = "train"
    """Split of the manifest that is trained on."""
    val_split: str = "val"
    """Split that is evaluated."""
    held_out: str = ""
    """Drives of the training split, such as camvid_000006 or aachen,ulm, that are not trained on, and are
    evaluated in place of val_split: to choose settings by. Each is the beginning of its samples' keys, up to
    an underscore. Empty holds none out."""
    input_height: int = 128
    """Rows that a whole picture is brought to before the network sees it; recorded in the model."""
    input_width: int = 256
    """Columns of the same."""
    crop_height: int = 128
    """Rows of a training crop."""
    crop_width: int = 256
    """Columns of a training crop."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random changes to the training samples."""
    streams: int = 64
    """Shards read side by side by the whole job, at most; part of the order of samples."""
    block: int = 1024
    """Samples shuffled together inside a stream; part of the order of samples."""
    loader_workers: int = 0
    """Loader processes a rank; 0 reads in the training thread. Never changes a pixel."""
    prefetch: int = 4
    """Batches read ahead a loader worker."""
    worker_timeout_s: float = 60.0
    """Longest time a loader worker may take over a sample, a server's own time-outs left out."""
    colour: Literal["auto", "loader", "device"] = "auto"
    """Where the colours of a crop are changed; `auto` takes the device for GPUs, else the loader."""
    quarantine_max: int = 20
    """Bad samples that a run goes on without, at most."""
    quarantine_share: float = 0.001
    """The same as a share of the split's samples; the smaller bound holds, but one is always allowed."""
    decoded_cache: str = ""
    """Folder on a local disk for decoded samples, filled as they are read and not checked again; empty
    turns it off."""
    store: StoreConfig = field(default_factory=StoreConfig)
    """How shards at an address are read."""
    unindexed_train: str = ""
    """Train on WebDataset shards that have no index, such as s3://b/train-{000..099}.tar; the classes and
    what is evaluated still come from --shards. Weaker promises: not every sample comes exactly once an
    epoch, a resumed run starts the stream anew with another shuffle, the order depends on the number of
    ranks, and what a damaged tar loses is noticed only where the tar reader stumbles. `shards.py index`
    gives all of that back."""

    @property
    def held_out_drives(self) -> tuple[str, ...]:
        """The drives that are held out, one by one."""
        return tuple(self.held_out.split(",")) if self.held_out else ()

    @property
    def listed_split(self) -> str:
        """Split of --shards that stands for training: the evaluated one where unindexed shards are read."""
        return self.val_split if self.unindexed_train else self.train_split

    def __post_init__(self) -> None:
        for name in ("input_height", "input_width", "crop_height", "crop_width"):
            value = getattr(self, name)
            require(16 <= value <= 16384, f"data.{name} must be 16..16384 pixels, got {value}")
        require(self.streams >= 1, f"data.streams must be at least 1, got {self.streams}")
        require(self.block >= 1, f"data.block must be at least 1, got {self.block}")
        require(
            self.loader_workers >= 0, f"data.loader_workers must be at least 0, got {self.loader_workers}"
        )
        require(self.prefetch >= 1, f"data.prefetch must be at least 1, got {self.prefetch}")
        require(
            self.worker_timeout_s > 0.0, f"data.worker_timeout_s must be above 0, got {self.worker_timeout_s}"
        )
        require(
            self.quarantine_max >= 0, f"data.quarantine_max must be at least 0, got {self.quarantine_max}"
        )
        require(
            0.0 <= self.quarantine_share <= 1.0,
            f"data.quarantine_share is a share in [0, 1], got {self.quarantine_share}",
        )
        self._check_held_out()

    def _check_held_out(self) -> None:
        drives = self.held_out_drives
        require(
            all(drive and drive == drive.strip() for drive in drives) and len(set(drives)) == len(drives),
            f"data.held_out takes names of drives, each once, joined by commas without blanks, "
            f"got {self.held_out!r}",
        )
        require(
            not (self.held_out and self.unindexed_train),
            "data.held_out tells samples apart by their keys, which unindexed shards do not list; index them "
            "with python jobs/shards.py index, or leave out --data.held_out or --data.unindexed_train",
        )
