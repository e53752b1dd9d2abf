"""The order of an epoch: everything once, split, resumable at every sample, mixed."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advflyp.data.pairs import stream as stream_module
from advflyp.data.pairs.samples import Sample, Sharded
from advflyp.data.pairs.shards import TarShard
from advflyp.data.pairs.sources import open_source
from advflyp.data.pairs.stream import Mixed, open_stream, permutation
from advflyp.share import Share
from helpers import write_shards


class ListShard:
    """A shard in memory, its offset the number of the sample."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count

    def read(self, offset: int = 0):
        for number in range(offset, self.count):
            yield Sample(f"{self.name}/{number}"), number + 1


class Numbers:
    def __init__(self, n: int) -> None:
        self.n = n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> Sample:
        return Sample(f"n/{number}")


def sharded(counts: list[int], limit: int | None = None) -> Sharded:
    shards = [ListShard(f"s{i}", count) for i, count in enumerate(counts)]
    return Sharded(shards, sum(counts), limit)


def keys(stream, epoch: int = 0, position=None) -> list[str]:
    return [sample.key for sample, _ in stream.samples(epoch, position)]


@settings(max_examples=150, deadline=None)
@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=8),
    buffer=st.integers(1, 40),
    ranks=st.integers(1, 5),
    more=st.integers(0, 20),
    limit=st.none() | st.integers(1, 100),
    indexed=st.booleans(),
)
def test_ranks_together_see_everything_once(
    counts: list[int], buffer: int, ranks: int, more: int, limit: int | None, indexed: bool
) -> None:
    source = Numbers(sum(counts)) if indexed else sharded(counts, limit)
    shares = [Share(ranks + more, r, ranks) for r in range(ranks)]
    assert sum(share.size for share in shares) == ranks + more
    parts = [keys(open_stream(source, seed=1, buffer=buffer, share=share), 3) for share in shares]
    seen = [key for part in parts for key in part]
    if indexed:
        expected = [f"n/{i}" for i in range(sum(counts))]
    else:
        expected = [f"s{i}/{n}" for i, count in enumerate(counts) for n in range(count)][:limit]
    assert sorted(seen) == sorted(expected)


@settings(max_examples=100, deadline=None)
@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=6),
    buffer=st.integers(1, 30),
    ranks=st.integers(1, 3),
    where=st.integers(0, 200),
    indexed=st.booleans(),
)
def test_every_position_is_one_to_go_on_from(
    counts: list[int], buffer: int, ranks: int, where: int, indexed: bool
) -> None:
    source = Numbers(sum(counts)) if indexed else sharded(counts)
    stream = open_stream(source, seed=5, buffer=buffer, share=Share(2 * ranks, ranks - 1, ranks))
    whole = list(stream.samples(2))
    if not whole:
        return
    where %= len(whole)
    again = open_stream(source, seed=5, buffer=buffer, share=Share(2 * ranks, ranks - 1, ranks))
    assert keys(again, 2, whole[where][1]) == [sample.key for sample, _ in whole[where + 1 :]]


def test_a_resumed_stream_of_tars_reads_only_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_source(str(write_shards(tmp_path / "s", 60, per_shard=10)))
    stream = open_stream(source, seed=0, buffer=8)
    whole = list(stream.samples(1))
    reads: list[tuple[str, int]] = []
    read = TarShard.read

    def watched(self: TarShard, offset: int = 0):
        reads.append((self.name, offset))
        return read(self, offset)

    monkeypatch.setattr(TarShard, "read", watched)
    rest = list(stream.samples(1, whole[44][1]))
    assert [s.key for s, _ in rest] == [s.key for s, _ in whole[45:]]
    # Block 5 begins behind the last sample of the fourth shard; the first three are not opened again.
    assert len(reads) == 3 and reads[0][1] > 0 and reads[1][1] == reads[2][1] == 0
    assert all(isinstance(value, int) for value in whole[44][1].values())


def test_epochs_and_seeds_differ_and_are_well_shuffled() -> None:
    stream = open_stream(sharded([50] * 20), seed=0, buffer=200)
    orders = [keys(stream, epoch) for epoch in range(2)]
    assert orders[0] != orders[1] != keys(open_stream(sharded([50] * 20), seed=1, buffer=200), 1)
    assert keys(stream, 0) == orders[0]
    shards = [key.split("/")[0] for key in orders[0][:100]]
    assert (
        len(set(shards)) == 4 and max(Counter(shards).values()) < 45
    )  # a block of 200 samples mixes four shards
    everything = open_stream(Numbers(1000), seed=0, buffer=1)
    assert len({int(k[2:]) // 100 for k in keys(everything)[:60]}) == 10


def test_blocks_are_shuffled_each_in_its_own_way() -> None:
    """With a single shard, only the shuffling within blocks tells epochs apart."""
    stream = open_stream(Sharded([ListShard("s", 60)], 60), seed=0, buffer=20)
    numbers = [int(sample.key[2:]) for sample, _ in stream.samples(0)]
    orders = [[n - start for n in numbers[start : start + 20]] for start in (0, 20, 40)]
    assert all(sorted(order) == list(range(20)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert numbers != [int(sample.key[2:]) for sample, _ in stream.samples(1)]


def test_permutations_are_uniform_and_the_same_everywhere() -> None:
    assert permutation(6, 0, 1, "x").tolist() == permutation(6, 0, 1, "x").tolist()
    first = Counter(int(permutation(5, seed)[0]) for seed in range(2000))
    assert all(320 < count < 480 for count in first.values())


def test_mixing_keeps_the_share_everywhere() -> None:
    main, other = open_stream(sharded([40, 40]), seed=0, buffer=16), open_stream(Numbers(7), seed=0, buffer=1)
    mixed = Mixed(main, other, 0.3)
    whole = list(mixed.samples(0))
    names = ["n" if s.key.startswith("n") else "s" for s, _ in whole]
    assert names.count("s") == 80 and sorted(s.key for s, _ in whole if s.key[0] == "s") == sorted(keys(main))
    for end in range(10, len(names), 7):
        assert abs(names[:end].count("n") - 0.3 * end) <= 1
    # The smaller source begins again, each time in another order, and is used evenly.
    rounds = [s.key for s, _ in whole if s.key[0] == "n"]
    assert sorted(rounds[:7]) == sorted(rounds[7:14]) and rounds[:7] != rounds[7:14]
    assert len(mixed) == pytest.approx(len(whole), abs=2)
    for where in random.Random(0).sample(range(len(whole)), 20):
        rest = [s.key for s, _ in mixed.samples(0, whole[where][1])]
        assert rest == [s.key for s, _ in whole[where + 1 :]]
    assert [s.key for s, _ in mixed.samples(1)] != [s.key for s, _ in whole]


def test_the_second_source_goes_on_in_the_next_epoch() -> None:
    second = open_stream(Sharded([ListShard("s", 30)], 30), seed=0, buffer=10)
    mixed = Mixed(open_stream(Numbers(9), seed=0, buffer=1), second, 0.25)
    drawn = [[s.key for s, _ in mixed.samples(epoch) if s.key[0] == "s"] for epoch in range(3)]
    assert drawn[0] and drawn[0] != drawn[1] != drawn[2]


def test_a_second_source_that_a_process_gets_nothing_of() -> None:
    share = Share(2, 1, 2)
    main = open_stream(Numbers(10), seed=0, buffer=1, share=share)
    with pytest.raises(ValueError, match=r"data\.also holds fewer pairs than the run has ranks"):
        Mixed(main, open_stream(Numbers(1), seed=0, buffer=1, share=share), 0.5, ranks=2)


def test_a_second_source_that_gives_nothing() -> None:
    """Its manifest, or data.size, says otherwise."""
    empty = open_stream(Sharded([ListShard("s", 0)], 5), seed=0, buffer=1)
    mixed = Mixed(open_stream(Numbers(10), seed=0, buffer=1), empty, 0.5)
    with pytest.raises(ValueError, match=r"data\.also should hold 5 pairs but yields none; inspect it with"):
        list(mixed.samples(0))


@given(n=st.integers(1, 80), ranks=st.integers(1, 5), more=st.integers(0, 12))
def test_the_last_batch_is_shared_out_too(n: int, ranks: int, more: int) -> None:
    """What the batches of a single process are, row by row; the last one where it has a row for everybody."""
    batch = ranks + more
    whole = list(range(n))
    shares = [Share(batch, rank, ranks, drop_last=False) for rank in range(ranks)]
    parts = [[number for number in whole if share.holds(n)[number]] for share in shares]
    count = shares[0].batches(n)
    assert all(share.batches(n) == count for share in shares)
    assert count == n // batch + (n % batch >= ranks)
    for number in range(count):
        sizes = [
            len(part[number * share.size :][: share.size]) for share, part in zip(shares, parts, strict=True)
        ]
        rows = [
            row
            for share, part in zip(shares, parts, strict=True)
            for row in part[number * share.size :][: share.size]
        ]
        assert rows == whole[number * batch : (number + 1) * batch]
        assert max(sizes) - min(sizes) <= 1 and min(sizes) >= 1


@pytest.mark.parametrize(("batch", "ranks"), [(8, 2), (10, 4), (7, 3)])
def test_the_batches_of_all_processes_are_those_of_one(batch: int, ranks: int) -> None:
    source = Numbers(61)
    whole = keys(open_stream(source, seed=2, buffer=1), 1)
    shares = [Share(batch, rank, ranks) for rank in range(ranks)]
    parts = [keys(open_stream(source, seed=2, buffer=1, share=share), 1) for share in shares]
    for number in range(61 // batch):
        rows = []
        for share, part in zip(shares, parts, strict=True):
            rows += part[number * share.size : (number + 1) * share.size]
        assert rows == whole[number * batch : (number + 1) * batch]


class LargeShard(ListShard):
    """Its samples hold 1 to 5 bytes."""

    def read(self, offset: int = 0):
        for number in range(offset, self.count):
            yield Sample(f"{self.name}/{number}", b"x" * (1 + number % 5)), number + 1


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_block_is_bounded_in_bytes(ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large images: the block ends early, everything still comes once, and a run resumes anywhere."""
    monkeypatch.setattr(stream_module, "MAX_SHUFFLED_BYTES", 20)
    most, original = 0, stream_module._Block.fill

    def fill(self, *arguments: Any) -> None:
        nonlocal most
        original(self, *arguments)
        most = max(most, self.held)

    monkeypatch.setattr(stream_module._Block, "fill", fill)
    source = Sharded([LargeShard(f"s{number}", 30) for number in range(4)], 120)
    seen: list[str] = []
    for rank in range(ranks):
        stream = open_stream(source, seed=1, buffer=1000, share=Share(ranks, rank, ranks))
        found = list(stream.samples(0))
        seen += [sample.key for sample, _ in found]
        for place in range(0, len(found), 7):
            assert keys(stream, 0, found[place][1]) == [sample.key for sample, _ in found[place + 1 :]]
    assert Counter(seen) == Counter(f"s{i}/{j}" for i in range(4) for j in range(30))
    assert 20 <= most < 25, "the limit and the sample that reaches it"
