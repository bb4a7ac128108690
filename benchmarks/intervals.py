"""How often the intervals of `ls_keras.analysis` hold the truth, and how often chance alone makes a claim hold.

    python benchmarks/intervals.py [--simulations 2000]

Simulated networks, so that the truth is known. "holds" is the share of simulations in which a 95 % interval lies above
0 although there is no difference: 2.5 % are promised. A standard error of the shares stands in each heading. At the
default it takes about six minutes of one core.
"""

import argparse
import math
import time
from collections import defaultdict

from ls_keras.analysis import calibration, intervals

import numpy as np
from scipy import stats

SEEDS, EXAMPLES, SHARES = (3, 5, 10), (400, 600, 10_000), (0.0, 0.005, 0.01, 0.02, 0.05)
NORMAL = stats.norm.ppf(0.975)


# Paired differences [seeds, examples] without a true difference


def lasting(generator, num_examples, share):
    """Examples on which the methods differ in every seed: +1 or -1 on about `share` of them, else 0."""
    signs = np.zeros(num_examples)
    number = generator.binomial(num_examples, share)
    signs[:number] = generator.choice([-1.0, 1.0], number)
    return signs


def accuracy_differences(generator, num_seeds, num_examples, share, fickle=0.03, spread=0.005):
    """Beside lasting differences, 3 % of the examples differ in one seed alone; a seed's sum varies by half a point."""
    differences = np.tile(lasting(generator, num_examples, share), (num_seeds, 1))
    same = np.count_nonzero(differences[0])
    for row in differences:
        number = generator.binomial(num_examples - same, fickle)
        bias = np.clip(generator.normal(0.0, spread) / max(fickle, 1e-9), -1, 1)
        row[same : same + number] = np.where(generator.random(number) < (1 + bias) / 2, 1.0, -1.0)
        generator.shuffle(row[same:])
    return differences


def bare_accuracy_differences(generator, num_seeds, num_examples, share):
    """Every seed gives the same answers."""
    return np.tile(lasting(generator, num_examples, share), (num_seeds, 1))


def confidence_differences(generator, num_seeds, num_examples, share):
    """Lasting differences of .2 to .8 on a share of the examples, of .02 on all, and of .06 in one seed."""
    large = lasting(generator, num_examples, share) * generator.uniform(0.2, 0.8, num_examples)
    own = large + 0.02 * generator.standard_normal(num_examples)
    noise = 0.06 * generator.standard_normal((num_seeds, num_examples))
    return own + noise + generator.normal(0.0, 0.003, (num_seeds, 1))


def likelihood_differences(generator, num_seeds, num_examples, share):
    """A lasting difference of skewness -7.7 (log-normal) and deviation .3, lasting ±1, and noise with heavy tails."""
    sigma = 1.08
    variance = math.exp(sigma**2) - 1
    skewed = (math.exp(sigma**2 / 2) - np.exp(sigma * generator.standard_normal(num_examples))) / math.sqrt(
        variance * math.exp(sigma**2)
    )
    own = 0.3 * skewed + lasting(generator, num_examples, share)
    noise = 0.14 * generator.laplace(size=(num_seeds, num_examples))
    return own + noise + generator.normal(0.0, 0.005, (num_seeds, 1))


def over_seeds_alone(differences):
    interval = intervals.over_seeds(differences.mean(axis=1), step=1e-12)
    return interval.low, interval.high


def plain_crossed(differences, heavy_tails=False):
    """The formula of `crossed` with quantiles of scipy.stats and Johnson's shift as he gives it."""
    (n, num_examples), examples = differences.shape, differences.mean(axis=0)
    residual = differences - differences.mean(axis=1, keepdims=True) - examples + differences.mean()
    seeds = differences.mean(axis=1).var(ddof=1) / n
    own = np.sum(residual**2) / ((n - 1) * (num_examples - 1)) / (n * num_examples)
    step = 1 / num_examples if np.all(differences == np.round(differences)) else 0.0
    more = max(examples.var(ddof=1) / num_examples - own, 4 * step**2)
    half = math.sqrt(max(stats.t.ppf(0.975, n - 1) ** 2 * seeds, NORMAL**2 * own) + NORMAL**2 * more)
    third = np.mean((examples - examples.mean()) ** 3)
    shift = heavy_tails * (1 + 2 * NORMAL**2) / (6 * num_examples) * third / examples.var()
    return differences.mean() + shift - half, differences.mean() + shift + half


def outcomes(draw, methods, simulations, num_examples, share, effect=0.0):
    """For each method and number of seeds the shares of intervals above 0, below 0, and their mean width."""
    generator = np.random.default_rng(num_examples + int(1000 * share))
    sums = defaultdict(lambda: np.zeros(3))
    for _ in range(simulations):
        differences = draw(generator, max(SEEDS), num_examples, share) + effect
        for n in SEEDS:
            for name, method in methods.items():
                low, high = method(differences[:n])
                sums[name, n] += low > 0, high < 0, high - low
    return {key: total / simulations for key, total in sums.items()}


def simulate_crossed(simulations):
    def crossed(differences):
        interval = intervals.crossed(differences)
        return interval.low, interval.high

    def heavy(differences):
        interval = intervals.crossed(differences, heavy_tails=True)
        return interval.low, interval.high

    for draw, method in (
        (accuracy_differences, crossed),
        (bare_accuracy_differences, crossed),
        (confidence_differences, crossed),
        (likelihood_differences, heavy),
    ):
        methods = {"seeds alone": over_seeds_alone, "crossed": method}
        if method is heavy:
            methods["unshifted"] = crossed
        name = draw.__name__.removesuffix("_differences").replace("_", " ")
        error = math.sqrt(0.025 * 0.975 / simulations)
        print(f"\nNo true difference: {name} (standard error {error:.4f}, at N = 10,000 {error * 2**0.5:.4f})")
        titles = [f"{m + ': ' if m != 'crossed' else ''}{what}" for m in methods for what in ("holds", "coverage")]
        print(f"{'seeds':>6}{'N':>8}{'differ':>8}" + "".join(f"{title:>23}" for title in titles))
        worst = defaultdict(list)
        for num_examples in EXAMPLES:
            for share in SHARES:
                count = simulations if num_examples < 1000 else simulations // 2
                found = outcomes(draw, methods, count, num_examples, share)
                for n in SEEDS:
                    cells = []
                    for m in methods:
                        above, below, _ = found[m, n]
                        # Both sides are alike but for the likelihood.
                        holds = max(above, below) if method is heavy else (above + below) / 2
                        worst[m].append((holds, 1 - above - below))
                        cells.append(f"{holds:23.4f}{1 - above - below:23.3f}")
                    print(f"{n:>6}{num_examples:>8,}{share:>8.1%}" + "".join(cells))
        for m, cells in worst.items():
            print(f"  {m}: holds at most {max(cells)[0]:.4f}, coverage at least {min(c for _, c in cells):.3f}")


def simulate_power(simulations):
    print("\nPower: share of intervals above 0 where there is a difference, and of the plain formula")
    print(f"{'':12}{'effect':>8}{'seeds':>6}{'N':>8}{'differ':>8}{'crossed':>10}{'plain':>8}")

    def better(generator, num_seeds, num_examples, share):
        """Besides, `effect` of the examples are right in every seed with one method and wrong with the other."""
        differences = accuracy_differences(generator, num_seeds, num_examples, share)
        differences[:, num_examples - generator.binomial(num_examples, effect) :] = 1.0
        return differences

    least = 0.0
    for name, draw, effect, shift, heavy in (
        ("accuracy", better, 0.01, 0.0, False),
        ("accuracy", better, 0.02, 0.0, False),
        ("confidence", confidence_differences, 0.01, 0.01, False),
        ("nll", likelihood_differences, 0.03, 0.03, True),
        ("nll", likelihood_differences, 0.06, 0.06, True),
        ("-nll", lambda *args: -likelihood_differences(*args), 0.06, 0.06, True),
    ):
        for num_examples in EXAMPLES[:2]:
            for share in (0.005, 0.02):
                methods = {
                    "crossed": lambda d, heavy=heavy: (intervals.crossed(d, heavy_tails=heavy).low, np.inf),
                    "plain": lambda d, heavy=heavy: (plain_crossed(d, heavy)[0], np.inf),
                }
                found = outcomes(draw, methods, simulations // 2, num_examples, share, shift)
                for n in SEEDS:
                    ours, plain = found["crossed", n][0], found["plain", n][0]
                    least = min(least, ours - plain)
                    print(f"{name:12}{effect:>8}{n:>6}{num_examples:>8,}{share:>8.1%}{ours:10.3f}{plain:8.3f}")
    print(f"  at most {-least:.3f} below the plain formula")


# Networks of which the calibration error is known


def confidences(shape, generator, size):
    return {
        "sharp": lambda: 0.1 + 0.9 * generator.beta(8, 1, size),
        "blunt": lambda: 0.1 + 0.9 * generator.beta(3, 2, size),
        "wide": lambda: generator.beta(3, 1, size),
        "sure": lambda: 1 - 0.5 * generator.beta(0.02, 2, size),
    }[shape]()


def accuracy_of(kind, confidence, num_bins):
    m = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence)
    gap = {
        "calibrated": 0.0,
        "off by .05": -0.05,
        "under by .03": 0.03,
        "off by .03": -0.03,
        "off by .01": -0.01,
        "one bin off by .2": np.where(m == num_bins * 7 // 10, -0.2, 0.0),
        "last bin off by .1": np.where(m == num_bins - 1, -0.1, 0.0),
        ".04 up and down": np.where(m % 2, 0.04, -0.04),
    }[kind]
    return np.clip(confidence + gap, 0.0, 1.0)


def true_errors(shape, kind, num_bins):
    """The binned ECE and root-mean-square error, from a million examples without a label's scatter."""
    confidence = confidences(shape, np.random.default_rng(1), 1_000_000)
    m = np.searchsorted(np.arange(1, num_bins) / num_bins, confidence)
    gap = np.bincount(m, accuracy_of(kind, confidence, num_bins) - confidence, num_bins) / len(m)
    mass = np.bincount(m, minlength=num_bins) / len(m)
    filled = mass > 0
    return np.abs(gap).sum(), math.sqrt(np.sum(gap[filled] ** 2 / mass[filled]))


def simulate_error_differences(simulations):
    """Seeds of a method share seven tenths of the examples' luck, and methods do too; confidences shake a little."""
    error = math.sqrt(0.05 * 0.95 / simulations)
    print(f"\nDifferences of ECE, 15 bins (standard error of a coverage {error:.4f}, at N = 10,000 {error * 2:.4f})")
    print(f"{'first':20}{'second':20}{'seeds':>6}{'N':>8}{'truth':>8}{'coverage':>10}{'above':>8}{'below':>8}")
    least = 1.0
    for first, second in (
        (("sharp", "calibrated"), ("blunt", "calibrated")),
        (("sharp", "calibrated"), ("sharp", "calibrated")),
        (("sharp", "off by .05"), ("wide", "off by .05")),
        (("sharp", "off by .03"), ("blunt", "off by .03")),
        (("sharp", "off by .05"), ("sharp", "calibrated")),
        (("blunt", "calibrated"), ("sharp", "off by .05")),
        (("blunt", "off by .05"), ("sharp", "calibrated")),
        (("sharp", "under by .03"), ("blunt", "off by .05")),
    ):
        errors = [true_errors(*method, 15)[0] for method in (first, second)]
        truth = errors[0] - errors[1]
        for num_examples in EXAMPLES:
            generator, count = np.random.default_rng(num_examples), simulations
            sums = defaultdict(lambda: np.zeros(3))
            for _ in range(count if num_examples < 1000 else count // 4):
                shared = generator.random(num_examples)
                parts = [seeds_of(*method, shared, generator) for method in (first, second)]
                rows = np.array([one.examples - two.examples for one, two in zip(*parts, strict=True)])
                values = np.array([one.value - two.value for one, two in zip(*parts, strict=True)])
                for n in SEEDS:
                    interval = intervals.crossed(rows[:n], values=values[:n])
                    sums[n] += 1, interval.low > truth, interval.high < truth
            for n, (total, above, below) in sums.items():
                coverage = 1 - (above + below) / total
                least = min(least, coverage)
                print(
                    f"{' '.join(first):20}{' '.join(second):20}{n:>6}{num_examples:>8,}{truth:8.3f}{coverage:10.3f}"
                    f"{above / total:8.3f}{below / total:8.3f}"
                )
    print(f"  coverage at least {least:.3f}")


def seeds_of(shape, kind, shared, generator):
    ranks = np.sort(confidences(shape, generator, len(shared)))[generator.permutation(len(shared))]
    parts = []
    for _ in range(max(SEEDS)):
        confidence = np.clip(ranks + 0.02 * generator.standard_normal(len(ranks)) * (1 - ranks), 0.1, 1.0)
        luck = np.where(generator.random(len(ranks)) < 0.7, shared, generator.random(len(ranks)))
        parts.append(calibration.top_label_contributions(confidence, luck < accuracy_of(kind, confidence, 15)))
    return parts


def simulate_one_network(simulations):
    error = math.sqrt(0.05 * 0.95 / simulations)
    print(f"\nOne network: coverage and mean width (standard error of a coverage {error:.4f})")
    print(f"{'':29}{'bins':>6}{'N':>8}{'ECE':>8}{'coverage':>10}{'width':>8}{'rms':>8}{'coverage':>10}{'width':>8}")
    kinds = ("calibrated", "off by .05", "one bin off by .2", "last bin off by .1", ".04 up and down")
    cells = [(shape, kind) for shape in ("wide", "sharp") for kind in kinds]
    found = []
    for shape, kind in [*cells, ("sure", "off by .01")]:
        for num_bins in (10, 15):
            truth = true_errors(shape, kind, num_bins)
            for num_examples in (600, 2_000, 10_000):
                generator = np.random.default_rng(num_bins * num_examples)
                sums = np.zeros((2, 2))
                for _ in range(simulations):
                    confidence = confidences(shape, generator, num_examples)
                    correct = generator.random(num_examples) < accuracy_of(kind, confidence, num_bins)
                    for i, norm in enumerate(("l1", "l2")):
                        low, high = calibration.top_label_interval(confidence, correct, num_bins=num_bins, norm=norm)
                        sums[i] += low <= truth[i] <= high, high - low
                (first, width), (second, other) = sums / simulations
                found.append((first, second))
                print(
                    f"{shape + ' ' + kind:29}{num_bins:>6}{num_examples:>8,}{truth[0]:8.4f}{first:10.3f}{width:8.4f}"
                    f"{truth[1]:8.4f}{second:10.3f}{other:8.4f}"
                )
    for name, coverage in zip(("ECE", "root-mean-square error"), np.transpose(found), strict=True):
        print(f"  {name}: coverage {coverage.min():.3f} to {coverage.max():.3f}, mean {coverage.mean():.3f}")


def simulate_pages(simulations, num_claims=20):
    """Pages of twenty claims about accuracy of which none is true: what holds by chance, and what survives Holm."""
    generator = np.random.default_rng(0)
    counts = np.zeros(3)
    for _ in range(simulations):
        drawn = [accuracy_differences(generator, 5, 600, 0.02) for _ in range(num_claims)]
        p_values = np.array([intervals.crossed(differences).tail(0.0) for differences in drawn])
        seeds = np.array([over_seeds_alone(differences)[0] > 0 for differences in drawn])
        counts += seeds.sum(), (p_values < 0.025).sum(), intervals.holm(p_values, 0.025).any()
    seeds, crossed, holm = counts / simulations
    print(f"\nPages of {num_claims} claims of which none is true, 5 seeds, N = 600, 2 % differ in every seed")
    print(f"  hold by chance: {seeds:.2f} with intervals over seeds alone, {crossed:.2f} with crossed ones")
    print(f"  pages with a claim that survives Holm: {holm:.3f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    start = time.process_time()
    simulate_crossed(simulations)
    simulate_power(simulations)
    simulate_error_differences(simulations // 2)
    simulate_one_network(simulations // 2)
    simulate_pages(max(simulations // 8, 1))
    print(f"\n{time.process_time() - start:.0f} s of one core")


if __name__ == "__main__":
    main()
