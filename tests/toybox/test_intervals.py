import numpy as np
import pytest
from scipy.stats import binomtest, norm

from mv2_jax.toybox import intervals


def test_the_bootstrap_interval_is_the_normal_one_where_that_holds():
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = intervals.mean(values)
    reach = norm.ppf(0.975) * values.std() / 20
    assert found.mean == pytest.approx(values.mean()) and found.count == 400
    assert found.low == pytest.approx(values.mean() - reach, abs=0.03)
    assert found.high == pytest.approx(values.mean() + reach, abs=0.03)


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
