"""Shards: one step's work split over processes that share nothing but the output folder.

Shard I of N takes items I, I + N, I + 2 N, ... of a list that every process makes the same way, so shards are disjoint
and cover it without any communication. They may run in any order, twice, or die: every item is a file (or folder)
that appears whole, and is made the same whoever makes it. A shard writes under

    <folder>/.lock               held shared by shards, alone by a run of the whole: neither starts beside the other
    <folder>/.shards/I-of-N      held by the one process at work on that shard; a second one waits, then finds it done

A lock dies with its process, so a shard that was killed, or requeued, is taken up by whoever is given it next. Where
a file system has no locks, or has them a machine only, the same work may be done twice, and is still right.
"""

import argparse
import contextlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pez.cli import COUNT, Number
from pez.errors import UserError
from pez.files import exclusive, locked, shared

Item = TypeVar("Item")
FOLDER = ".shards"


class Shard(NamedTuple):
    """Shard `index` of `count`; `WHOLE` is everything."""

    count: int = 1  # type: ignore[assignment]  # hides a method of tuple
    index: int = 0  # type: ignore[assignment]  # and another

    @property
    def is_whole(self) -> bool:
        """Whether this is all of the work."""
        return self.count == 1

    @property
    def owner(self) -> str:
        """Marks the temporary files of this shard, so that it removes its own and no other's; empty for the whole."""
        return "" if self.is_whole else f"{self.index}-of-{self.count}-"


WHOLE = Shard()


def add_shard_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --num-shards and --shard-index; give both to `check_shard`."""
    group = parser.add_argument_group("shards", "Run the same command for each shard, anywhere over a shared folder.")
    group.add_argument("--num-shards", type=COUNT, default=1, metavar="N", help="processes that the work is split over")
    group.add_argument("--shard-index", type=Number(int), metavar="I", help="the share of this one: 0 ... N - 1")


def check_shard(num_shards: int, shard_index: int | None) -> Shard:
    """The shard that the two options name; UserError if there is no such one, or one option is missing."""
    if num_shards < 1:
        raise UserError(f"--num-shards must be at least 1; got {num_shards}: give a number in that range")
    if shard_index is None and num_shards > 1:
        raise UserError(
            f"--num-shards {num_shards} needs --shard-index 0 ... {num_shards - 1}, the share of this run: give it"
        )
    if not 0 <= (shard_index or 0) < num_shards:
        raise UserError(
            f"--shard-index must be 0 ... {num_shards - 1}, below --num-shards; got {shard_index}: "
            "give a number in that range"
        )
    return Shard(num_shards, shard_index or 0)


def own_share(items: Iterable[Item], num_shards: int, shard_index: int) -> list[Item]:
    """Every `num_shards`-th of `items` from number `shard_index` on: disjoint over the shards, covering `items`."""
    return list(items)[shard_index::num_shards]


def refuse_with_shards(shard: Shard, **flags: bool) -> None:
    """UserError for an option that only a run of the whole can have, such as overwrite=True."""
    for name, given in flags.items():
        if given and not shard.is_whole:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} would remove what other shards write: remove the folder, then leave it out")


@contextlib.contextmanager
def holding(directory: str | Path, shard: Shard = WHOLE) -> Iterator[None]:
    """Hold `directory` for a run of the whole, or one shard of it beside others.

    Raises UserError if the folder is held the other way; waits, saying so, while another process holds the same shard.
    """
    directory = Path(directory)
    if shard.is_whole:
        with exclusive(directory):
            yield
        return
    with shared(directory), locked(directory / FOLDER / f"{shard.index}-of-{shard.count}"):
        yield


def describing(directory: str | Path, shard: Shard) -> contextlib.AbstractContextManager[None]:
    """Hold, for a moment, the right to read and write the files that describe a whole folder; other shards may run."""
    if shard.is_whole:
        return contextlib.nullcontext()  # it holds the folder anyway
    return locked(Path(directory) / FOLDER / "describing", quietly=True)


def shard_options(directory: str | Path, missing: Sequence[int]) -> str:
    """Options of the shards that make the items `missing`, for a message; empty if the folder was never sharded."""
    names = [path.name for path in (Path(directory) / FOLDER).glob("*-of-*")]
    counts = {int(match[1]) for name in names if (match := re.fullmatch(r"\d+-of-(\d+)", name))}
    if len(counts) != 1:
        return ""
    (count,) = counts
    indices = sorted({number % count for number in missing})
    return f" (--num-shards {count}: --shard-index {', '.join(map(str, indices))})"
