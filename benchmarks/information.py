"""Seconds for one estimate of mutual information as the number of examples grows.

    python benchmarks/information.py

20 draws of each example and 5 fresh ones; two tight clusters of means, which crowd, and means that spread evenly.
Up to 6,000 examples the full double sum over all pairs of draws and means stands beside it.
"""

import time

from ls_keras.analysis import information

import numpy as np
from scipy.special import logsumexp


def double_sum(draws, means, variance):
    rows = [
        -((row - mean) ** 2) / (2 * variance) - logsumexp(-((row[:, None] - means) ** 2) / (2 * variance), axis=1)
        for row, mean in zip(draws, means, strict=True)
    ]
    return np.log(len(means)) + np.mean(rows)


def main():
    generator = np.random.default_rng(0)
    print(f"{'examples':>9}  {'means':18}{'seconds':>9}{'double sum, s':>15}{'difference':>12}")
    for count in (600, 6_000, 60_000):
        for name, means in (
            ("two clusters", np.repeat([-10.0, 10.0], count // 2)),
            ("spread, 200 sigma", generator.uniform(-100, 100, count)),
        ):
            draws = means[:, None] + generator.normal(size=(count, 20))
            fresh = means[:, None] + generator.normal(size=(count, 5))
            start = time.perf_counter()
            estimate = information.mutual_information(draws, fresh).same_draws
            seconds = time.perf_counter() - start
            beside = ""
            if count <= 6_000:
                own = draws.mean(axis=1)
                start = time.perf_counter()
                full = double_sum(draws, own, np.mean((draws - own[:, None]) ** 2))
                beside = f"{time.perf_counter() - start:15.2f}{abs(full - estimate):12.1e}"
            print(f"{count:>9,}  {name:18}{seconds:9.3f}{beside}")


if __name__ == "__main__":
    main()
