"""What a sweep found: a row a point, with intervals, and the points that cannot be told from the best one."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ls_keras import plots
from ls_keras.analysis import intervals
from ls_keras.sweeps.networks import QUANTITIES, Measured
from ls_keras.sweeps.space import Point, describe, shown

import numpy as np
from matplotlib.figure import Figure

_LEVEL = 0.95
# What is minimised and what maximised, and what tables call it.
OBJECTIVES = {"nll": "min", "accuracy": "max", "ece": "min", "nll_at_temperature": "min"}
_NAMES = {
    "nll": "NLL, nats",
    "accuracy": "accuracy",
    "ece": "ECE",
    "nll_at_temperature": "NLL at T, nats",
    "ece_at_temperature": "ECE at T",
}
# Lines of a table on a terminal, and of the figure that ranks points.
_MOST_SHOWN, _MOST_RANKED = 12, 30
# Temperatures from here on belong to networks that know nothing.
_LARGE = 100.0
Standing = Literal["best", "like the best", "worse", "one seed", "paused", "failed"]


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds with its 95 % interval over seeds and examples; NaN where one seed shows none."""

    mean: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Row:
    """A point of a sweep.

    Attributes:
        point: Values by field.
        trial: The name of its trial.
        standing: `best` has the best mean on held-out examples; what is `like the best` cannot be told from it, and
            with 95 % confidence the best of all points is among these.
        seeds: The seeds that were trained.
        estimates: By split and quantity.
        temperature: Mean over seeds of the temperature fitted on held-out examples.
        reason: Why it failed, or after how many evaluations it was paused.
    """

    point: Point
    trial: str
    standing: Standing
    seeds: tuple[int, ...]
    estimates: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    temperature: float = math.nan
    reason: str = ""


def rows(found: Sequence[tuple[str, Point, Mapping[int, Measured], str]], objective: str) -> list[Row]:
    """Return a row for each point, in the order of trials.

    A point is chosen by the mean of the objective over seeds on held-out examples. Another one is worse if the
    interval of the paired difference, over seeds and examples, lies beyond 0 at the level 1 − 0.05 / (P − 1) of P
    points: so the best of all points is not called worse in 95 of 100 sweeps, however many they have.

    Args:
        found: Trial, point, its networks by seed, and why it failed or was paused, or nothing.
        objective: One of `OBJECTIVES`.
    """
    whole = [k for k, (_, _, networks, reason) in enumerate(found) if not reason and networks]
    sign = 1 if OBJECTIVES[objective] == "min" else -1
    means = {k: sign * np.mean([each.values["held_out"][objective] for each in found[k][2].values()]) for k in whole}
    best = min(means, key=means.__getitem__, default=None)
    level = 1 - (1 - _LEVEL) / max(1, len(whole) - 1)
    made = []
    for k, (trial, point, networks, reason) in enumerate(found):
        if k not in means:
            paused = not any(each.failed for each in networks.values())
            made.append(Row(point, trial, "paused" if paused else "failed", tuple(networks), reason=reason))
            continue
        standing: Standing = "best"
        if k != best:
            standing = _standing(networks, found[best][2], objective, level, sign)
        splits = next(iter(networks.values())).values
        estimates = {
            split: {quantity: _estimate(networks, split, quantity) for quantity in QUANTITIES}
            for split in ("held_out", "test")
            if split in splits
        }
        temperature = float(np.mean([each.values["held_out"]["temperature"] for each in networks.values()]))
        made.append(Row(point, trial, standing, tuple(networks), estimates, temperature))
    return made


def _standing(
    networks: Mapping[int, Measured], best: Mapping[int, Measured], objective: str, level: float, sign: int
) -> Standing:
    if len(networks) == 1:
        return "one seed"
    if all(_same(each, best[seed], objective) for seed, each in networks.items()):
        return "like the best"
    interval = _interval(networks, "held_out", objective, level, best)
    return "worse" if (interval.low > 0 if sign > 0 else interval.high < 0) else "like the best"


def _same(first: Measured, second: Measured, objective: str) -> bool:
    """Whether a field that does nothing made one network of two."""
    return np.array_equal(*(each.examples["held_out"][objective] for each in (first, second)))


def _estimate(networks: Mapping[int, Measured], split: str, quantity: str) -> Estimate:
    mean = float(np.mean([each.values[split][quantity] for each in networks.values()]))
    interval = _interval(networks, split, quantity, _LEVEL)
    if interval is None:
        return Estimate(mean)
    # No accuracy or NLL lies beyond; a bias-reduced ECE may come out below 0.
    least = -math.inf if quantity.startswith("ece") else 0.0
    return Estimate(mean, max(least, interval.low), min(interval.high, 1.0 if quantity == "accuracy" else math.inf))


def _interval(
    networks: Mapping[int, Measured],
    split: str,
    quantity: str,
    level: float,
    minus: Mapping[int, Measured] | None = None,
) -> intervals.Interval | None:
    """Return the interval of a mean, or of a difference paired by seed and example; None of fewer than two seeds."""
    seeds = sorted(networks.keys() & minus.keys()) if minus is not None else sorted(networks)
    if len(seeds) < 2:
        return None
    parts = np.stack([networks[seed].examples[split][quantity] for seed in seeds]).astype(float)
    values = np.array([networks[seed].values[split][quantity] for seed in seeds])
    if minus is not None:
        parts -= np.stack([minus[seed].examples[split][quantity] for seed in seeds])
        values -= [minus[seed].values[split][quantity] for seed in seeds]
    return intervals.crossed(
        parts,
        level=level,
        values=values if quantity.startswith("ece") else parts.mean(axis=1),
        step=1 / parts.shape[1] if quantity == "accuracy" else 0.0,
        heavy_tails=quantity.startswith("nll"),
    )


def to_csv(found: Sequence[Row]) -> str:
    """Write all numbers, a row a point."""
    fields = list(found[0].point)
    text = io.StringIO()
    splits = ("held_out", "test")
    columns = [f"{split}_{name}{end}" for split in splits for name in QUANTITIES for end in ("", "_low", "_high")]
    table = csv.writer(text, lineterminator="\n")
    table.writerow([*fields, "standing", "seeds", "temperature", *columns, "trial", "reason"])
    for row in found:
        numbers = []
        for split in splits:
            for quantity in QUANTITIES:
                each = row.estimates.get(split, {}).get(quantity, Estimate(math.nan))
                numbers += [each.mean, each.low, each.high]
        plain = ["" if math.isnan(number) else f"{number:.7g}" for number in (row.temperature, *numbers)]
        point = [shown(value) for value in row.point.values()]
        table.writerow([*point, row.standing, len(row.seeds), *plain, row.trial, row.reason])
    return text.getvalue()


def to_markdown(found: Sequence[Row], varied: Sequence[str], objective: str, title: str) -> str:
    """Write the table that is read: points by their standing on held-out examples, with numbers on test examples."""
    header, lines = _cells(ranked(found, objective), varied, objective)
    ruled = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines)]
    left = [row for row in found if row.standing in ("failed", "paused")]
    missing = [f"- {row.standing}: {describe(row.point)}: {row.reason}" for row in left]
    sure = _ONE_SEED if any(row.standing == "one seed" for row in found) else _SURE
    return "\n".join([title, "", *ruled, "", f"{_CAPTION} {sure}", "", *missing, ""])


def to_text(found: Sequence[Row], varied: Sequence[str], objective: str) -> str:
    """Write the first lines of the table for a terminal."""
    order = ranked(found, objective)
    header, lines = _cells(order[:_MOST_SHOWN], varied, objective, short=True)
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    text = [
        "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)) for cells in (header, *lines)
    ]
    if len(order) > _MOST_SHOWN:
        text.append(f"… and {len(order) - _MOST_SHOWN} more points")
    return "\n".join(text)


_CAPTION = (
    "Means over seeds with 95 % intervals over seeds and examples. NLL is of hard labels, never smoothed; ECE is "
    "bias-reduced, 15 bins; T is fitted on held-out examples."
)
_SURE = (
    "Points are chosen on held-out examples: the best of all is among those marked best or like the best with 95 % "
    "confidence. Of two seeds hardly any points can be told apart; five are usual."
)
_ONE_SEED = "With one seed no point can be told from another: nothing shows how much seeds differ."


def ranked(found: Sequence[Row], objective: str) -> list[Row]:
    """Return rows by their objective on held-out examples, then those without one."""
    sign = 1 if OBJECTIVES[objective] == "min" else -1

    def key(row: Row) -> tuple[bool, float]:
        known = row.estimates.get("held_out", {}).get(objective)
        return (known is None, 0.0 if known is None else sign * known.mean)

    return sorted(found, key=key)


def _cells(
    found: Sequence[Row], varied: Sequence[str], objective: str, *, short: bool = False
) -> tuple[list[str], list[list[str]]]:
    wanted = [("held_out", objective)]
    wanted += [("held_out", name) for name in ("accuracy", "nll_at_temperature") if name != objective and not short]
    wanted += [("test", objective), *([("test", "accuracy")] if objective != "accuracy" else [])]
    if not any("test" in row.estimates for row in found):
        wanted = [pair for pair in wanted if pair[0] != "test"]
    header = [*varied, "standing", "seeds"]
    header += [f"{split.replace('_', '-')} {_NAMES[name]}" for split, name in wanted] + ["T"]
    lines = []
    for row in found:
        cells = [shown(row.point[name]) for name in varied] + [row.standing, str(len(row.seeds))]
        cells += [_cell(row.estimates.get(split, {}).get(name)) for split, name in wanted]
        temperature = f"{row.temperature:.2f}" if row.temperature < _LARGE else f"{row.temperature:.0e}"
        lines.append([*cells, "" if math.isnan(row.temperature) else temperature])
    return header, lines


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    if math.isnan(estimate.low):
        return f"{estimate.mean:.4f}"
    return f"{estimate.mean:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def figure(found: Sequence[Row], axes: Mapping[str, Any], varied: Sequence[str], objective: str) -> Figure | None:
    """Draw the objective on held-out examples with intervals: over one or two fields, or as a ranking of points.

    Returns:
        None where there is no point to draw.
    """
    points = [
        plots.SweepPoint(
            tuple(shown(row.point[name]) for name in varied),
            *vars(row.estimates["held_out"][objective]).values(),
            row.standing != "worse",
        )
        for row in ranked(found, objective)
        if "held_out" in row.estimates
    ]
    if not points:
        return None
    standings = [row.standing for row in found]
    notes = ["hollow: worse than the best"] * ("worse" in standings) + ["one seed each"] * ("one seed" in standings)
    notes += [f"{standings.count(kind)} {kind}" for kind in ("failed", "paused") if kind in standings]
    note = "; ".join(notes)
    listed = [axes[name] for name in varied]
    label = f"held-out {_NAMES[objective]}"
    if len(varied) in (1, 2) and all(isinstance(values, tuple) for values in listed):
        ticks = [[shown(value) for value in values] for values in listed]
        return plots.sweep_figure(points, varied, ticks, label, note)
    if len(points) > _MOST_RANKED:
        note = "; ".join(filter(None, [f"the best {_MOST_RANKED} of {len(points)} points", note]))
    return plots.ranking_figure(points[:_MOST_RANKED], varied, label, note)
