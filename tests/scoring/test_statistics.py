"""Intervals and tests on arrays against plain loops, other libraries and simulation."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, chi2, norm

from benchmarks import coverage
from m3ae.scoring import statistics
from m3ae.scoring.statistics import (
    by_image,
    holm,
    interval_over_seeds,
    macro_f1,
    mcnemar,
    mean_and_sd,
    percentile_interval,
    ratio,
    resampled_sums,
    sign_flips,
    wilson,
)

# ------------------------------------------------------------------ measures of images


@given(
    values=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9)), min_size=1, max_size=20),
)
def test_sums_by_image(values):
    """Questions counted with another image, or an image without one shifting the rest."""
    image, value = (np.array(column) for column in zip(*values, strict=True))
    found = by_image(np.stack([value, value > 3]), image)
    for number in range(image.max() + 1):
        inside = [v for i, v in values if i == number]
        assert found[:, number].tolist() == [sum(inside), sum(v > 3 for v in inside)]


def test_influence_of_a_ratio():
    """Images of many questions that move an accuracy as little as those of one."""
    hits, counts = np.array([[2.0, 0, 1], [1, 0, 0]]), np.array([3.0, 1, 1])
    values, influence = ratio(hits, counts)
    assert values.tolist() == [0.6, 0.2]
    assert influence.sum(axis=1) == pytest.approx([0, 0])
    more = counts + 1e-6 * np.array([1, 0, 0])  # an image of the same kind, a little
    moved = (hits[0] + 1e-6 * np.array([2 / 3, 0, 0])).sum() / more.sum() - 0.6
    assert moved / 1e-6 == pytest.approx(influence[0, 0] / 3, rel=1e-4)


def test_macro_f1_is_the_jackknife():
    """Influence or bias of the closed form that is not that of leaving images out."""
    rng = np.random.default_rng(0)
    true = rng.multinomial(1, [0.6, 0.3, 0.1], size=12).T
    said = rng.multinomial(1, [0.5, 0.3, 0.2], size=(2, 12)).transpose(0, 2, 1)

    def value(keep):
        hits, both = (said * true)[..., keep].sum(-1), (said + true)[..., keep].sum(-1)
        return np.where(both > 0, 2 * hits / np.maximum(both, 1), 0).mean(axis=1)

    everything = np.arange(12)
    without = np.array([value(everything != k) for k in everything])  # (I, R)
    values, influence, bias = macro_f1(said * true, said, true)
    assert values == pytest.approx(value(everything))
    assert bias == pytest.approx(11 * (without.mean(axis=0) - values))
    variance = 11 / 12 * ((without - without.mean(axis=0)) ** 2).sum(axis=0)
    assert 12 / 11 * (influence**2).sum(axis=1) == pytest.approx(variance)
    assert (influence[0] * (without.mean(axis=0)[0] - without[:, 0]) >= 0).all()


def test_mean_and_sd():
    """The deviation of a population for that of a sample."""
    assert mean_and_sd([0.5]) == (0.5, None)
    assert mean_and_sd([1, 2, 3]) == (2, 1)


# ------------------------------------------------------------------ intervals


def test_blocks_draw_the_same(monkeypatch):
    """Resamples, or sign flips, that depend on how many of them fit into memory."""
    totals, differences = np.arange(40).reshape(20, 2), np.arange(80.0).reshape(4, 20) % 7 - 3
    whole, p = resampled_sums(totals, 50, 3), sign_flips(differences)
    assert whole.shape == (50, 2)
    monkeypatch.setattr(statistics, "_BLOCK", 20 * 8)
    assert (resampled_sums(totals, 50, 3) == whole).all()
    assert (sign_flips(differences) == p).all()
    assert resampled_sums(totals, 0, 3).shape == (0, 2)


def test_percentiles():
    """A resample without a question of the part taken for accuracy 0, a wrong level."""
    assert percentile_interval(np.array([np.nan, 0.5, 0.7])) == pytest.approx([0.505, 0.695])
    tail = norm.cdf(-2.093024 * math.sqrt(20 / 19))
    assert percentile_interval(np.array([0.0, 1.0]), 20) == pytest.approx([tail, 1 - tail])


@pytest.mark.parametrize("name", ["mean_20", "paired_20"])
def test_coverage_of_few_images(name):
    """The plain percentile interval, which covers a difference on 20 images in 92 %."""
    assert 0.93 <= coverage.cell(name, 1, None, 1000, seed=0)["coverage"] <= 0.97


def arm(values, items, noise=0.0, images=10_000):
    """A measure whose runs have the variances `items` in common and `noise` each, exactly."""
    waves = np.sqrt(2) * np.cos(np.pi * np.outer(range(1, 12), np.arange(images) + 0.5) / images)
    scale = np.sqrt((images - 1) / images / images)
    own = waves[1 : len(values) + 1] * np.sqrt(noise)
    return np.array(values), scale * (np.sqrt(items) * waves[0] + own)


@settings(max_examples=60)
@given(
    values=st.lists(st.floats(0.4, 0.6), min_size=2, max_size=5),
    items=st.floats(1e-6, 1e-3),
    noise=st.floats(0, 1e-3),
)
def test_variances_of_an_interval(values, items, noise):
    """Noise of single runs counted twice, as images' and as seeds'; a wrong quantile."""
    runs = len(values)
    low, high = interval_over_seeds([arm(values, items, noise)], -9, 9)
    seeds = np.var(values, ddof=1) / runs
    part = seeds / (items + seeds)
    z2, t2 = 1.9602**2, {2: 161.447, 3: 18.5128, 4: 10.1280, 5: 7.70865}[runs]
    wanted = (items + seeds) * (z2 + (t2 - z2) * part**1.75)
    wanted = max(wanted, z2 * (items + noise / runs) / 4)
    assert (low + high) / 2 == pytest.approx(np.mean(values))
    assert (high - low) / 2 == pytest.approx(math.sqrt(wanted), rel=1e-3)


def test_two_arms_with_seeds_of_their_own():
    """One arm's seeds left out, Satterthwaite's degrees of freedom, a single run with seeds."""
    one, two = arm([0.5, 0.7], 0.0), arm([0.2, 0.3, 0.4], 0.0)
    seeds = np.array([0.02 / 2, 0.01 / 3])
    freedom = seeds.sum() ** 2 / (seeds**2 / [1, 2]).sum()
    half = statistics.stdtrit(freedom, 0.975) * math.sqrt(seeds.sum())
    assert interval_over_seeds([one, two], -9, 9) == pytest.approx([0.3 - half, 0.3 + half])
    half = statistics.stdtrit(2, 0.975) * math.sqrt(0.02 / 2 + 0.08 / 2)
    both = [one, arm([0.2, 0.6], 0.0)]
    assert interval_over_seeds(both, -9, 9) == pytest.approx([0.2 - half, 0.2 + half])
    single = arm([0.2], 1e-4)
    half = 1.9602 * 0.01
    assert interval_over_seeds([single], 0, 1) == pytest.approx([0.2 - half, 0.2 + half], abs=1e-5)
    assert interval_over_seeds([one], 0, 1) == [0, 1]


def test_seeds_that_agree_by_chance():
    """An interval without width, because two runs have the same accuracy."""
    low, high = interval_over_seeds([arm([0.5, 0.5], 0.0, 4e-4)], 0, 1)
    assert (high - low) / 2 == pytest.approx(1.9602 * math.sqrt(2e-4) / 2, rel=1e-3)


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_coverage_of_two_normal_components(runs):
    """93 to 97 % for seed variances of 0.1 to 10 times the items', whatever part of these is noise.

    Exact but for the grid of the chi-squared variable: of Welch-Satterthwaite with two runs, 87 %.
    """
    grid = chi2.ppf((np.arange(400) + 0.5) / 400, runs - 1) / (runs - 1)
    for noise, of_seeds in itertools.product((0.0, 0.3, 0.6, 0.9, 1.0), (0.1, 0.3, 1.0, 3.0, 10.0)):
        found = []
        for times in grid:
            spread = np.linspace(-1, 1, runs)
            spread *= math.sqrt((noise + of_seeds) * times / np.var(spread, ddof=1))
            _, high = interval_over_seeds([arm(spread, 1 - noise, noise, 200)], -99, 99)
            sd = math.sqrt(1 - noise + (noise + of_seeds) / runs)
            found.append(2 * norm.cdf(high / sd) - 1)
        assert 0.93 <= np.mean(found) <= 0.972, (noise, of_seeds)


def old_interval(design, arms, seed):
    """What was computed before: percentiles over images and over the runs of each arm."""
    rng = np.random.default_rng([seed, 9])
    totals = np.stack([arms[0][1], *(run for hits, _ in arms for run in hits)], axis=1)
    count, *sums = resampled_sums(totals, 400, seed).T
    means, sums = [], iter(sums)
    for hits, _ in arms:
        runs = len(hits)
        weights = rng.multinomial(runs, np.full(runs, 1 / runs), size=400).T / runs
        means.append(sum(weight * next(sums) for weight in weights) / count)
    return percentile_interval(means[0] - (means[1] if len(means) > 1 else 0))


@pytest.mark.parametrize("name", ["mean", "unpaired"])
def test_coverage_of_a_simulation(name):
    """The percentile bootstrap over seeds, whose 95 % are 75 to 80 % of two runs that differ."""
    cell = (name, 2, 10.0, 300, 0)
    assert 0.92 <= coverage.cell(*cell)["coverage"] <= 0.98
    assert coverage.cell(*cell, interval=old_interval)["coverage"] < 0.86


def test_the_benchmark(capsys, tmp_path, monkeypatch):
    """A cell without its figures, or JSON that stands on the screen only."""
    monkeypatch.setattr(coverage, "RATIOS", (1.0,))
    monkeypatch.setattr(coverage, "RUNS", (1, 2))
    assert coverage.main(["--simulations", "1", "--out", str(tmp_path / "out.json")]) == 0
    printed = capsys.readouterr().out
    assert '"macro_f1_paired"' in printed
    assert (tmp_path / "out.json").read_text() == printed


@given(right=st.integers(0, 40), more=st.integers(0, 40))
def test_wilson_is_the_library(right, more):
    """An interval of no width where all are right."""
    if count := right + more:
        wanted = binomtest(right, count).proportion_ci(method="wilson")
        assert wilson(right / count, count) == pytest.approx([wanted.low, wanted.high], abs=1e-9)


# ------------------------------------------------------------------ tests


@settings(max_examples=40)
@given(differences=st.lists(st.integers(-3, 3), min_size=1, max_size=9))
def test_sign_flips_are_counted(differences):
    """One-sided, ties left out, images that do not differ counted."""
    flips = list(itertools.product((-1, 1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in flips]
    wanted = sum(total >= abs(sum(differences)) for total in sums) / len(flips)
    assert sign_flips(np.array([differences]) / 7.0)[0] == pytest.approx(wanted)


def test_sign_flips_are_drawn():
    """A p of 0, one of the order of images, one that many images take away."""
    many = np.ones((1, 40))
    assert sign_flips(many)[0] == 1 / 10_001
    rng = np.random.default_rng(0)
    differences = rng.integers(-1, 2, (1, 60)) + 0.1
    z = abs(differences.sum()) / np.sqrt((differences**2).sum())
    assert sign_flips(differences)[0] == pytest.approx(2 * norm.sf(z), abs=0.015)
    assert sign_flips(np.zeros((2, 30))).tolist() == [1, 1]
    few = np.array([[1.0] * 5 + [1e-17] * 30])  # rounding is no image that differs
    assert sign_flips(few)[0] == 2 / 32


def test_sign_flips_respect_images():
    """Five questions of an image counted as five: a p far too small."""
    clustered = 5.0 * np.array([1, 1, 1, 1, 1, 1, -1, -1, -1] + [0] * 20)
    assert sign_flips(clustered[None])[0] == pytest.approx(130 * 2 / 512)
    assert mcnemar(np.repeat(clustered > 0, 5), np.repeat(clustered < 0, 5))["p"] < 0.05


@given(both=st.lists(st.tuples(st.booleans(), st.booleans()), max_size=60))
def test_mcnemar_is_the_binomial_sum(both):
    """One-sided, or with the concordant questions counted."""
    first, second = (np.array([pair[k] for pair in both], dtype=bool) for k in (0, 1))
    b = sum(x and not y for x, y in both)
    c = sum(y and not x for x, y in both)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1))
    p = min(Fraction(1), Fraction(2 * tail, 2 ** (b + c)))
    found = mcnemar(first, second)
    assert (found["only_first"], found["only_second"]) == (b, c)
    assert found["p"] == pytest.approx(float(p))


@given(p=st.lists(st.floats(0, 1), max_size=8))
def test_holm_is_a_plain_loop(p):
    """Bonferroni, an adjusted p below a smaller one's, or in the order of size."""
    largest, wanted = 0.0, {}
    for rank, k in enumerate(sorted(range(len(p)), key=lambda k: p[k])):
        largest = wanted[k] = max(largest, min(1, (len(p) - rank) * p[k]))
    assert holm(p) == pytest.approx([wanted[k] for k in range(len(p))])
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
