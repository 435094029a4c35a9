"""An example's random numbers belong to it: no batch, order or neighbor changes them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from src.random_streams import BLOCK, RandomStreams, derive_seed

IDS = [f"clip{i}" for i in range(6)]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(6)), st.integers(1, 6), st.integers(1, 50))
def test_independent_of_batch_and_order(order: list[int], count: int, length: int) -> None:
    chosen = order[:count]
    streams, streams_of_chosen = RandomStreams(3, IDS, "test"), RandomStreams(3, [IDS[i] for i in chosen], "test")
    for draw in ("uniform", "normal", "signs"):
        draws = getattr(streams, draw)(torch.empty(6, length))
        draws_of_chosen = getattr(streams_of_chosen, draw)(torch.empty(count, length))
        assert torch.equal(draws[chosen], draws_of_chosen)


def test_select_goes_on_where_the_stream_stands() -> None:
    streams, same = RandomStreams(0, IDS, "test"), RandomStreams(0, IDS, "test")
    streams.uniform(torch.empty(6, 4)), same.uniform(torch.empty(6, 4))
    later = streams.uniform(torch.empty(6, 4))
    assert torch.equal(same.select(torch.tensor([4, 1])).uniform(torch.empty(2, 4)), later[[4, 1]])
    keep = torch.tensor([True, False, False, True, False, False])
    assert len(same.select(keep)) == 2


def test_seed_id_and_purpose_all_matter() -> None:
    like = torch.empty(1, 100)
    draws = [RandomStreams(*key).uniform(like) for key in ((0, "a", "x"), (1, "a", "x"), (0, "b", "x"), (0, "a", "y"))]
    for i, first in enumerate(draws):
        for second in draws[i + 1 :]:
            assert not torch.equal(first, second)
            assert abs(float(torch.corrcoef(torch.cat([first, second]))[0, 1])) < 0.4


def test_distributions() -> None:
    streams = RandomStreams(0, IDS, "test")
    u, n, s = (getattr(streams, d)(torch.empty(6, 20000)) for d in ("uniform", "normal", "signs"))
    assert abs(float(u.mean()) - 0.5) < 0.01
    assert (u >= 0).all()
    assert (u < 1).all()
    assert abs(float(n.mean())) < 0.02
    assert abs(float(n.std()) - 1) < 0.02
    assert set(s.unique().tolist()) == {-1.0, 1.0}
    assert abs(float(s.mean())) < 0.02


def test_normals_in_blocks_concatenate() -> None:
    once = RandomStreams(0, ["a"], "test").normal(torch.empty(1, 4 * BLOCK))
    parts = RandomStreams(0, ["a"], "test")
    assert torch.equal(torch.cat([parts.normal(torch.empty(1, 2 * BLOCK)) for _ in range(2)], 1), once)


def test_dtype_shape_and_seed() -> None:
    assert RandomStreams(0, IDS, "test").normal(torch.empty(6, 2, 3, dtype=torch.float64)).dtype == torch.float64
    assert derive_seed("a", 1) == derive_seed("a", 1) != derive_seed("a1")
    assert 0 <= derive_seed(0) < 2**63
