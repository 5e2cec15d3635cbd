"""Members of a tar → samples: an image and a label each, side by side, or an error that names both.

A key is the text before the first dot of a member's name, folders included, as WebDataset has it. Its
readers lose samples in silence where members of a key do not lie together or one is missing; here that
is refused. Only pictures and plain texts may be in a shard: whatever some loader would unpickle
(.pkl, .pyd, .pth, .npy …) is refused by its name and never opened.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from pipeline.data.packing.tar_stream import TarMember, TarStream
from pipeline.errors import ConfigError, ShardError

PICTURES = ("png", "jpg", "jpeg")
HARMLESS = frozenset({*PICTURES, "json", "txt", "cls"})
"""Endings that may be in a shard."""


@dataclass(frozen=True)
class MemberNames:
    """Which endings hold a sample's image and its label; of several, the one that a sample has."""

    image: tuple[str, ...] = ("image.png", "image.jpg", "image.jpeg", "jpg", "jpeg")
    label: tuple[str, ...] = ("label.png", "png")

    def __post_init__(self) -> None:
        for flag, endings in (("--image", self.image), ("--label", self.label)):
            for ending in endings:
                if ending.rpartition(".")[2] not in (PICTURES if flag == "--image" else ("png",)):
                    raise ConfigError(
                        f"{flag} {ending}: images are .png, .jpg or .jpeg and labels .png; type an ending "
                        "such as jpg or label.png"
                    )


PACKED = MemberNames(("image.png", "image.jpg"), ("label.png",))
"""The names in shards that this pipeline packs."""


@dataclass(frozen=True)
class TarSample:
    """A sample as it lies in a tar."""

    key: str
    image: TarMember
    label: TarMember


@dataclass
class _Group:
    """The members of a key so far, by ending."""

    key: str
    members: dict[str, TarMember] = field(default_factory=dict)


def read_samples(stream: TarStream, names: MemberNames) -> Iterator[TarSample]:
    """All samples of a tar, in order; raises ShardError naming shard, key and offset."""
    first_at: dict[str, int] = {}
    group: _Group | None = None
    for member in stream.members():
        key, ending = _split_name(stream, member)
        if group is None or key != group.key:
            if group is not None:
                yield _sample(stream, group, names)
            if key in first_at:
                raise ShardError(
                    f"{stream.where}: the key {key!r} at offset {member.offset} was at offset "
                    f"{first_at[key]} already, with others between: doubled or split; make the tar "
                    "again, sorted by name"
                )
            first_at[key] = member.offset
            group = _Group(key)
        if ending in group.members:
            raise ShardError(
                f"{stream.where}: {member.name!r} of the key {key!r} at offset {member.offset} stands there "
                f"twice, first at offset {group.members[ending].offset}; make the tar again without one"
            )
        group.members[ending] = member
    if group is not None:
        yield _sample(stream, group, names)


def _split_name(stream: TarStream, member: TarMember) -> tuple[str, str]:
    """(key, ending in small letters) of a member."""
    folder, slash, base = member.name.rpartition("/")
    stem, _, ending = base.partition(".")
    if not stem or not ending:
        raise ShardError(
            f"{stream.where}: {member.name!r} at offset {member.offset} is no <key>.<ending>, so it belongs "
            "to no sample; make the tar again without it"
        )
    ending = ending.lower()
    if ending.rpartition(".")[2] not in HARMLESS:
        raise ShardError(
            f"{stream.where}: {member.name!r} of the key {folder + slash + stem!r} at offset {member.offset} "
            f"is refused: a shard holds {', '.join(sorted(HARMLESS))} alone; make the tar again without it"
        )
    return folder + slash + stem, ending


def _sample(stream: TarStream, group: _Group, names: MemberNames) -> TarSample:
    return TarSample(
        group.key,
        _only(stream, group, "image", names.image),
        _only(stream, group, "label", names.label),
    )


def _only(stream: TarStream, group: _Group, what: str, endings: tuple[str, ...]) -> TarMember:
    """The group's one member with such an ending; raises ShardError where there is none, or a choice."""
    found = [group.members[ending] for ending in endings if ending in group.members]
    if len(found) == 1:
        return found[0]
    at = min(member.offset for member in group.members.values())
    problem = "several" if found else f"no member .{', .'.join(endings)}"
    raise ShardError(
        f"{stream.where}: the key {group.key!r} at offset {at} has {problem} for its {what} (it has "
        f".{', .'.join(sorted(group.members))}); type --{what} ENDING, or make the tar again"
    )
