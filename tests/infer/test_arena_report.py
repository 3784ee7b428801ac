"""What an arena's report says: against published numbers, other implementations, planted truths."""

import csv
import math

import arena as made
import numpy as np
import pytest
from scipy import optimize

from mv2_jax import cli
from mv2_jax.infer.arena import agreement, intervals, strengths, table
from mv2_jax.infer.arena.store import CRITERIA

# arXiv 2401.04468, Table 1: good, same, bad, and the ratio that is printed.
PAPER = {
    "MoonValley": (4099, 1242, 759, 2.67), "Pika 1.0": (4263, 927, 1010, 2.68),
    "Morph": (4129, 1230, 741, 2.72), "Gen-2": (3448, 1279, 1373, 1.78),
    "SVD-XT": (3169, 1591, 1340, 1.62),
}  # fmt: skip


def test_the_papers_counts_give_its_ratios():
    for good, same, bad, printed in PAPER.values():
        assert round(table.ratio(good, same, bad), 2) == printed
    sums = {name: sum(row[:3]) for name, row in PAPER.items()}
    assert sum(sums.values()) == 30600 and sums.pop("Pika 1.0") == 6200
    assert set(sums.values()) == {6100}


N = math.nan
# Krippendorff (2011), section C: four observers, twelve units, values missing.
FOUR = np.array([
    [1, 2, 3, 3, 2, 1, 4, 1, 2, N, N, N],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, N, 3],
    [N, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, N],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, N],
])  # fmt: skip
# Section A: two observers, ten units, two values.
BINARY = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]])


@pytest.mark.parametrize("ratings, level, published", [
    (BINARY, "nominal", 0.095), (FOUR, "nominal", 0.743), (FOUR, "ordinal", 0.815),
    (FOUR, "interval", 0.849),
])  # fmt: skip
def test_alpha_of_published_examples(ratings, level, published):
    assert round(agreement.alpha(ratings, level), 3) == published


def test_alpha_by_its_definition_from_pairs():
    """Disagreement within units against that between any two values, by loops over pairs."""
    rng = np.random.default_rng(0)
    ratings = rng.integers(0, 3, (5, 9)).astype(float)
    ratings[rng.random(ratings.shape) < 0.3] = N
    kept = [unit[np.isfinite(unit)] for unit in ratings.T if np.isfinite(unit).sum() >= 2]
    pool = np.concatenate(kept)

    def far(a, b):
        low, high = sorted((a, b))
        between = sum((pool == v).sum() for v in range(int(low), int(high) + 1))
        return (between - ((pool == a).sum() + (pool == b).sum()) / 2) ** 2 if a != b else 0.0

    def mean(values):
        return [far(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j]

    within = sum(sum(mean(unit)) / (len(unit) - 1) for unit in kept) / len(pool)
    between = np.mean(mean(pool))
    assert agreement.alpha(ratings, "ordinal") == pytest.approx(1 - within / between, rel=1e-12)
    assert math.isnan(agreement.alpha(np.ones((2, 3)))) and agreement.alpha(FOUR[:1]) is not None
    assert agreement.alpha(np.array([[0, 1, 2], [0, 1, 2]])) == 1.0


def test_strengths_are_those_of_a_plain_optimiser():
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 40, (4, 3, 3)) + np.array([20, 5, 0])

    def surprise(theta, table_):
        total = 0.0
        for (first, second), row in zip(made.PAIRS, table_):
            a, b, nu = np.exp(theta[first]), np.exp(theta[second]), np.exp(theta[3])
            whole = a + b + nu * np.sqrt(a * b)  # Davidson's own form
            total -= row @ np.log(np.array([a, nu * np.sqrt(a * b), b]) / whole)
        return total + 1e-6 * theta[:3].sum() ** 2

    found = strengths.fit(counts, made.PAIRS, 3, prior=0.0)
    for one, own, log_nu in zip(counts, *found):
        best = optimize.minimize(surprise, np.zeros(4), (one,), method="BFGS", tol=1e-10).x
        np.testing.assert_allclose(own, best[:3] - best[:3].mean(), atol=2e-5)
        assert log_nu == pytest.approx(best[3], abs=2e-5)


def test_strengths_stay_finite_and_what_is_not_compared_is_said():
    always = np.array([[50, 0, 0], [0, 0, 0], [0, 0, 0]])
    found = strengths.fit(always, made.PAIRS, 3).strengths
    assert np.isfinite(found).all() and 3 < found[0] - found[1] < 20
    assert not strengths.connected(always, made.PAIRS, 3)
    assert strengths.connected(always + np.array([[0], [1], [0]]), made.PAIRS, 3)


# raters, prompts, sd of raters' taste, of prompts', share of comparisons that a rater sees
STUDIES = [(8, 20, 0.0, 0.0, 1.0), (8, 20, 0.5, 0.5, 1.0), (20, 40, 0.3, 0.6, 0.3)]
PLANTED = np.array([0.5, 0.0, -0.5])


def coverage(study, runs):
    """Shares of intervals of strengths and of log ratios that hold the planted values."""
    raters, prompts, *spread, share = study
    shares = made.expected(PLANTED, -0.5, *spread)
    strong = strengths.fit(shares * 1e6, made.PAIRS, 3, prior=0.0).strengths
    ratio = np.log(shares[:, 0] + shares[:, 1]) - np.log(shares[:, 2] + shares[:, 1])
    rng, held = np.random.default_rng(1), []
    for run in range(runs):
        votes = made.simulated(rng, raters, prompts, PLANTED, -0.5, *spread, share)

        def of(counts):
            return strengths.fit(counts, made.PAIRS, 3).strengths

        for truth, what in ((strong, of), (ratio, intervals.ratio)):
            span = intervals.bootstrap(votes, 3, what, draws=200, seed=run)
            held.append((span.low <= truth) & (truth <= span.high))
    return np.mean(held[::2]), np.mean(held[1::2])


def test_planted_strengths_are_covered():
    # 50 runs of 3 intervals; of 95% the standard deviation is at most 3 points.
    assert all(0.88 <= held <= 0.995 for held in coverage(STUDIES[1], 50))


@pytest.mark.long
@pytest.mark.parametrize("study", STUDIES)
def test_planted_strengths_are_covered_95_times_in_100(study):
    held = coverage(study, 1000)
    print(study, held)
    assert all(0.93 <= share <= 0.97 for share in held)


def test_one_rater_or_one_prompt_leave_out_what_they_cannot_show():
    rng = np.random.default_rng(0)
    votes = made.simulated(rng, 1, 30, PLANTED, -0.5)
    span = intervals.bootstrap(votes, 3, intervals.ratio, draws=100)
    assert np.isfinite(span.low).all() and (span.low < span.high).all()
    one = made.simulated(rng, 1, 1, PLANTED, -0.5)
    assert np.isnan(intervals.bootstrap(one, 3, intervals.ratio, draws=10).low).all()


def votes_of(rng, better, raters=6, prompts=20, left=0.5):
    """Votes on two systems: the first wins a share `better` of decided ones, a fifth are ties."""
    found = []
    for rater in range(raters):
        for prompt in range(prompts):
            side = bool(rng.random() < 0.5)
            for criterion in CRITERIA:
                wins = bool(rng.random() < better)
                answer = "left" if wins == side else "right"
                answer = "left" if rng.random() > 0.5 / left else answer
                answer = "same" if rng.random() < 0.2 else answer
                outcome = 1 if answer == "same" else 0 if (answer == "left") == side else 2
                found.append(table.Vote(rater, "normal", str(prompt), 0, 1, prompt, criterion,
                                        answer, side, outcome, 1.0))  # fmt: skip
    return found


def test_a_difference_a_leaning_and_what_is_left_to_do_are_told():
    rng = np.random.default_rng(0)
    clear = table.analyse(["a", "b"], votes_of(rng, 0.8), draws=200)
    assert all(row.low > 1 and row.more == 0 for row in clear.rows) and clear.sides.p > 0.01
    close = table.analyse(["a", "b"], votes_of(rng, 0.55), draws=200)
    open_ = [row for row in close.rows if row.low < 1 < row.high]
    assert open_ and all(row.more > 0 for row in open_)
    leaning = table.analyse(["a", "b"], votes_of(rng, 0.5, left=1.0), draws=20)
    assert leaning.sides.p < 1e-6 and leaning.sides.left > leaning.sides.decided * 0.6


def test_the_forecast_of_votes_is_about_right():
    """With as many votes more as were said, four studies in five tell the difference."""
    counts, rng, told = np.array([60, 40, 45]), np.random.default_rng(0), 0
    outcome = rng.permutation(np.repeat([0, 1, 2], counts))
    place, nothing = np.arange(145), np.zeros(145, int)
    votes = intervals.Votes(place % 12, place, nothing, outcome, nothing)
    more = table._more(intervals.bootstrap(votes, 1, intervals.ratio), 0, 145)
    assert more > 100
    for _ in range(400):
        drawn = rng.multinomial(145 + int(more), counts / 145)
        p, n = drawn / drawn.sum(), drawn.sum()
        # The ratio's error by the delta method.
        g, b = p[0] + p[1], p[2] + p[1]
        error = np.sqrt((p[0] / g**2 + p[2] / b**2 + p[1] * (1 / g - 1 / b) ** 2) / n)
        told += np.log(g / b) > 1.96 * error
    assert 0.7 < told / 400 < 0.9


def test_the_report_of_an_arena(tmp_path, capsys):
    arena = made.arena(tmp_path, levels=(40, 120, 200))
    tokens = [arena.add_rater(100) for _ in range(3)]
    for number, token in enumerate(tokens):
        for ballot in arena.ballots(token):
            row = arena.rows(
                "SELECT b.first_left, c.kind FROM ballots b JOIN comparisons c "
                "ON c.number = b.comparison WHERE b.id = ?", ballot["id"])[0]  # fmt: skip
            first = "left" if row["first_left"] else "right"
            wrong = {"left": "right", "right": "left"}[first]
            careless = number == 2 and row["kind"] == "gold"
            answers = dict.fromkeys(CRITERIA, wrong if careless else first)
            arena.vote(token, ballot["id"], answers | {"quality": "same"}, 2.0, False)
    arena.close()
    assert cli.main(["arena", "--report", "-o", str(tmp_path / "arena")]) == 0
    said = capsys.readouterr().out
    assert (
        "Not counted, for they missed half of the damaged copies or more: rater 3 (0 of 1)" in said
    )
    assert "| system0 | system1 | 6 | 0 | 0 | inf |" in said.split("## Overall")[1]
    assert "strength" in said and "system0 is better than system1" in said
    assert "| Overall | unknown | unknown | 9 |" in said  # all agree: there is nothing to explain
    rows = list(csv.DictReader((tmp_path / "arena/table.csv").open()))
    assert {row["same"] for row in rows if row["criterion"] == "quality"} == {"6"}
    assert len(list(csv.DictReader((tmp_path / "arena/votes.csv").open()))) == 3 * 10 * 4
    for chart in ("ratios.png", "strengths.png"):
        assert (tmp_path / "arena" / chart).read_bytes()[:4] == b"\x89PNG"
    assert cli.main(["arena", "--report", "--everyone", "-o", str(tmp_path / "arena")]) == 0
    assert "| system0 | system1 | 9 | 0 | 0 |" in capsys.readouterr().out
