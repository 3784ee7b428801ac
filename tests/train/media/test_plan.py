"""Every sample once an epoch, by the step's number alone, whatever the buckets and mixtures."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mv2_jax.errors import InputError
from mv2_jax.train.media.pipeline import Rows
from mv2_jax.train.media.plan import Plan

SIZES = st.lists(st.integers(1, 23), min_size=1, max_size=4)


def buckets_of(sizes):
    """Buckets of one source with these numbers of samples."""
    ends = np.cumsum([0, *sizes])
    return {(n, (8, 8)): {0: list(range(ends[n], ends[n + 1]))} for n in range(len(sizes))}


@given(SIZES, st.integers(1, 7), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_nothing_is_left_out_and_nothing_comes_twice(sizes, batch, seed):
    plan, total = Plan(buckets_of(sizes), None, batch, seed), sum(sizes)
    seen, steps = Counter(), 3 * total  # `batch` epochs and more
    for step in range(steps):
        key, picks = plan.step(step)
        assert len(picks) == batch
        assert all(pick.number in plan.members[plan.keys.index(key)][0].numbers for pick in picks)
        seen.update((pick.number, pick.visit) for pick in picks)
    assert set(seen.values()) == {1}
    # A visit begins only when the one before is over, in each bucket.
    for numbers in (held[0].numbers for held in plan.members):
        visits = Counter(visit for number, visit in seen if number in numbers)
        assert all(visits[v] == len(numbers) for v in range(max(visits)))
    # At a round's end each bucket has had as many batches as its samples fill.
    for held, rate in zip(plan.members, plan.rates):
        assert rate * batch == len(held[0].numbers)


def test_a_step_is_found_without_those_before():
    one, other = (Plan(buckets_of([5, 1, 13]), None, 4, 7) for _ in range(2))
    ahead = [one.step(step) for step in range(200)]
    assert [other.step(step) for step in (199, 3, 77)] == [ahead[199], ahead[3], ahead[77]]
    far = one.step(10**9)
    assert far == other.step(10**9) and len(far[1]) == 4


def test_many_samples_come_once_each_too(monkeypatch):
    monkeypatch.setattr("mv2_jax.train.media.plan.LISTED", 100)
    plan = Plan(buckets_of([101]), None, 101, 0)
    orders = [[pick.number for pick in plan.step(step)[1]] for step in range(2)]
    assert all(sorted(order) == list(range(101)) for order in orders) and orders[0] != orders[1]


def test_epochs_have_orders_of_their_own():
    plan = Plan(buckets_of([50]), None, 50, 0)
    orders = [[pick.number for pick in plan.step(step)[1]] for step in range(3)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != list(range(50))
    assert orders != [[p.number for p in Plan(buckets_of([50]), None, 50, 1).step(s)[1]]
                      for s in range(3)]  # fmt: skip


@pytest.mark.parametrize("weights", [(1, 1), (3, 1), (0.25, 0.75), (1, 0)])
def test_sources_are_mixed_by_their_weights(weights):
    buckets = {(1, (8, 8)): {0: range(10), 1: range(30)}, (1, (8, 16)): {1: range(30, 50)}}
    plan = Plan(buckets, dict(enumerate(weights)), 4, 0)
    seen = Counter(pick.source for step in range(1500) for pick in plan.step(step)[1])
    share = weights[0] / sum(weights)
    assert seen[0] / sum(seen.values()) == pytest.approx(share, abs=0.003)
    # Within a source all are seen alike, whatever their bucket.
    numbers = Counter(
        pick.number for step in range(1500) for pick in plan.step(step)[1] if pick.source == 1
    )
    if weights[1]:
        assert len(numbers) == 50 and max(numbers.values()) <= 1.1 * min(numbers.values()) + 1


def test_mixed_sources_repeat_nothing_before_all_are_seen():
    plan = Plan({(1, (8, 8)): {0: range(10), 1: range(37), 2: range(3)}}, {0: 5, 1: 2, 2: 1}, 3, 0)
    seen = Counter((p.source, p.number, p.visit) for s in range(2000) for p in plan.step(s)[1])
    assert set(seen.values()) == {1}


def test_what_stands_in_is_of_the_same_bucket_and_source():
    plan = Plan({(1, (8, 8)): {0: range(5), 1: range(9)}}, None, 4, 0)
    (pick, *_), key = plan.step(0)[1], plan.step(0)[0]
    others = list(plan.others(key, pick))
    assert len(others) == (5, 9)[pick.source] - 1 and pick not in others
    assert {other.source for other in others} == {pick.source}


def test_nothing_to_plan_is_told():
    with pytest.raises(InputError, match="no sample is left"):
        Plan({}, None, 4, 0)
    with pytest.raises(InputError, match="one of them is more than 0"):
        Plan(buckets_of([3]), {0: 0.0}, 4, 0)


@given(
    st.lists(st.integers(0, 2), min_size=1, max_size=6),
    st.lists(st.integers(1, 4), min_size=3, max_size=3),
    st.integers(0, 40),
)
@settings(max_examples=50, deadline=None)
def test_rows_of_steps_of_several_kinds_lie_in_order(kinds, counts, start):
    rows = [np.arange(10 * n, 10 * n + count) for n, count in enumerate(counts)]
    order = Rows(kinds, rows)
    place = order.first(start)
    paces = [sum(kinds[s % len(kinds)] == kind for s in range(start)) for kind in range(3)]
    for step in range(start, start + 9):
        kind = kinds[step % len(kinds)]
        assert order.count(step) == counts[kind] and order.own_step(step) == paces[kind]
        paces[kind] += 1
        for row in rows[kind]:
            assert order.at(place) == (step, kind, row)
            place += 1
