import numpy as np
import pytest
from scipy.stats import binomtest, multinomial, norm, ttest_1samp

from mv2_jax.toybox import intervals


def test_the_interval_is_the_normal_one_where_that_holds():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = intervals.mean(values)
    reach = norm.ppf(0.975) * values.std() / 20
    assert found.mean == pytest.approx(values.mean()) and found.count == 400
    assert found.low == pytest.approx(values.mean() - reach, abs=0.03)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.03)


def test_means_have_students_interval():
    values = np.random.default_rng(2).normal(1, 3, 9)
    expected = ttest_1samp(values, 0).confidence_interval()
    found = intervals.mean([*values, np.nan])
    np.testing.assert_allclose((found.low, found.high), expected, rtol=1e-9)
    assert intervals.mean([3.0]).none and intervals.mean([3.0]).low == -np.inf


@pytest.mark.parametrize(
    "cells", [(0.9, 0.02, 0.02, 0.06), (0.6, 0.2, 0.1, 0.1), (0.97, 0, 0.03, 0)]
)
def test_intervals_of_paired_rates_hold_the_truth_as_often_as_they_say(cells):
    """Counted over all outcomes of 16 pairs: both right, won, lost, neither."""
    truth, held = cells[1] - cells[2], 0.0
    for both in range(17):
        for won in range(17 - both):
            for lost in range(17 - both - won):
                counts = (both, won, lost, 16 - both - won - lost)
                weight = multinomial.pmf(counts, 16, cells)
                if weight < 1e-7:
                    continue
                after = np.repeat([True, True, False, False], counts)
                before = np.repeat([True, False, True, False], counts)
                found = intervals.paired_rates(after, before)
                held += weight * (found.low <= truth <= found.high)
    assert 0.94 < held <= 1.0


def test_no_pair_that_differs_is_not_certainty():
    right = np.ones(16, bool)
    found = intervals.paired_rates(right, right)
    assert found.mean == 0 and found.low == pytest.approx(-0.1936, abs=1e-3) and found.none
    assert found.high == -found.low
    assert not intervals.paired_rates(right, ~right).none


def test_pairs_take_out_what_they_share():
    rng = np.random.default_rng(1)
    before = rng.normal(0, 10, 60)
    after = before + 0.5 + rng.normal(0, 0.1, 60)
    found = intervals.paired(after, before)
    assert not found.none and 0.4 < found.low < 0.5 < found.high < 0.6
    assert intervals.paired(before + rng.normal(0, 0.1, 60), before).none
    before[:10] = np.nan
    assert intervals.paired(after, before).count == 50


def test_mcnemar_is_the_exact_binomial_test():
    after, before = np.zeros(30, bool), np.zeros(30, bool)
    after[:9], before[9:11], after[20:], before[20:] = True, True, True, True
    expected = binomtest(9, 11, 0.5).pvalue
    assert intervals.mcnemar(after, before) == pytest.approx(expected, rel=1e-12)
    assert intervals.mcnemar(after, after) == 1.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="nothing"):
        intervals.mean([np.nan])
    with pytest.raises(ValueError, match="no pairs"):
        intervals.paired([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="no pairs"):
        intervals.mcnemar([True], [True, False])
    with pytest.raises(ValueError, match="no pairs"):
        intervals.paired_rates([True], [True, False])


def test_an_interval_of_shares_ends_where_shares_do():
    shares = intervals.mean([1.0, 1.0, 0.9, 1.0])
    assert shares.high > 1 and str(shares.within(0, 1)).endswith("to 1)")
    assert shares.within(0, 2) == shares
