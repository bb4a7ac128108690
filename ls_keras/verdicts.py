"""From intervals to verdicts on claims.

A verdict comes from 95 % intervals of differences paired over seeds, signed so that positive speaks for the claim. It
is never adjusted to please: a claim that fails on some data is a finding. A claim about a range of α or γ is judged at
each of them, never by a mean in which opposite signs cancel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ls_keras.analysis.intervals import Interval, holm

import numpy as np

OUTCOMES = ("holds", "does not hold", "changes sign", "undecided", "not run")
CONFIDENCE = 0.95
# Probability of each side of such an interval.
TAIL = (1 - CONFIDENCE) / 2


@dataclass(frozen=True)
class Setting:
    """One setting at which a claim is judged.

    Attributes:
        at: Its name, for example "α = 0.3"; empty where a claim is judged at one alone.
        estimate: The measured value, in the unit of the verdict's `measure`.
        low: Lower end of the 95 % interval.
        high: Upper end.
        outcome: "holds", "does not hold" or "undecided".
        p_value: One-sided, of the side of the threshold on which the estimate lies: below 0.025 where the claim holds
            or does not hold; NaN for an exact check.
    """

    at: str
    estimate: float
    low: float
    high: float
    outcome: str
    p_value: float = math.nan

    def __post_init__(self) -> None:
        if self.outcome not in ("holds", "does not hold", "undecided"):
            raise ValueError(f"at a setting a claim holds, does not hold or is undecided; received {self.outcome!r}")
        if not self.low <= self.estimate <= self.high:
            raise ValueError(
                f"an interval must hold its estimate; received {self.low} <= {self.estimate} <= {self.high}"
            )


@dataclass(frozen=True)
class Verdict:
    """What tests say about one claim.

    Attributes:
        id: The claim's short name, for example "C5".
        claim: The claim, one sentence.
        measure: What was measured, with its unit and what is subtracted from what, one sentence.
        outcome: One of `OUTCOMES`.
        settings: Those at which the claim is judged; none if it was not run.
        num_seeds: Seeds behind the intervals; 0 for an exact check, which has none.
        num_examples: Examples behind intervals over seeds and examples; 0 for those over seeds alone.
        paper: The paper's own value, if it prints one.
        note: What a reader must know beside the numbers, for example the margin.
    """

    id: str
    claim: str
    measure: str
    outcome: str
    settings: tuple[Setting, ...] = ()
    num_seeds: int = 0
    num_examples: int = 0
    paper: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"the outcome of {self.id!r} must be one of {OUTCOMES}; received {self.outcome!r}")
        if not (self.id.strip() and self.claim.strip() and self.measure.strip()):
            raise ValueError(f"a verdict needs id, claim and measure; received {self!r}")
        if bool(self.settings) == (self.outcome == "not run"):
            raise ValueError(f"a verdict rests on tests unless it was not run; received {self!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON can hold them: NaN and infinity become None."""
        plain = asdict(self)
        settings = [{name: _json(value) for name, value in each.items()} for each in plain.pop("settings")]
        return {**plain, "settings": settings}


def judge(
    id: str,
    claim: str,
    measure: str,
    intervals: Interval | Mapping[str, Interval],
    *,
    margin: float = 0.0,
    somewhere: bool = False,
    paper: str = "",
    note: str = "",
) -> Verdict:
    """Judge a claim by intervals of differences paired over seeds, positive where a seed speaks for the claim.

    A test holds if low > −margin, does not hold if high < −margin and is undecided otherwise: 2.5 % a side. A claim
    about several settings holds if it holds at all, does not hold if it holds at none and fails at all, changes sign
    if it holds at some and fails at others, and is undecided otherwise. A claim that something happens `somewhere`
    holds if one of m tests at 2.5 %/m a side holds, and does not hold if it fails everywhere.

    Args:
        id: The claim's short name.
        claim: The claim, one sentence.
        measure: What a difference is, with its unit.
        intervals: One, or one for each setting by its name: `intervals.crossed` for what is a mean over examples,
            `intervals.over_seeds` for what is not.
        margin: The loss that counts as none, in the unit of the differences, fixed before the data are seen; the note
            states it.
        somewhere: Whether one setting is enough.
        paper: The paper's own value.
        note: Anything a reader must know.

    Returns:
        The verdict.

    Raises:
        ValueError: For no interval, intervals of other levels than 95 % or of different numbers of seeds or examples,
            or a margin below 0.

    Example:
        >>> interval = over_seeds([0.01, 0.02, 0.03])  # 0.02 ± 4.3027 · 0.01 / √3
        >>> verdict = judge("C3", "projections shrink", "mean coordinate, hard − smoothed", interval)
        >>> verdict.outcome, round(verdict.settings[0].low, 4), round(verdict.settings[0].high, 4)
        ('undecided', -0.0048, 0.0448)

    References: Blackwelder (1982), "Proving the null hypothesis in clinical trials", for margins; Berger (1982),
    "Multiparameter hypothesis testing and acceptance sampling", for what must hold at all settings.
    """
    intervals = {"": intervals} if isinstance(intervals, Interval) else dict(intervals)
    _check(id, intervals, margin)
    tests = tuple(
        _test(at, interval, -margin, len(intervals) if somewhere else 1) for at, interval in intervals.items()
    )
    found = {test.outcome for test in tests}
    outcome = "undecided"
    if len(found) == 1:
        (outcome,) = found
    elif somewhere and "holds" in found:
        outcome = "holds"
    elif found >= {"holds", "does not hold"}:
        outcome = "changes sign"
    said = [f"a loss of up to {margin:g} was allowed beforehand"] * (margin > 0)
    said += [f"one of {len(tests)} settings is enough, each tested at 2.5/{len(tests)} % a side"] * (
        somewhere and len(tests) > 1
    )
    first = next(iter(intervals.values()))
    return Verdict(
        id,
        claim,
        measure,
        outcome,
        tests,
        first.num_seeds,
        first.num_examples,
        paper,
        "; ".join([*said, *filter(None, [note])]),
    )


def identity(
    id: str, claim: str, measure: str, errors: Sequence[float], tolerance: float, *, note: str = ""
) -> Verdict:
    """Judge an exact identity: it holds if the largest absolute error is at most the tolerance.

    Args:
        id: The claim's short name.
        claim: The identity, one sentence.
        measure: What an error is, with its unit.
        errors: Left side minus right side, any number of cases.
        tolerance: What rounding may cost, in the unit of the errors, above 0.
        note: Anything a reader must know.

    Returns:
        The verdict, with the largest absolute error as estimate and no interval.

    Raises:
        ValueError: For no errors, NaN or infinity among them, or a tolerance that is not above 0.

    Example:
        >>> identity("C13", "both sides agree", "largest error, nats", [1e-9, -2e-9], 1e-6).outcome
        'holds'
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"the tolerance of {id!r} must be a positive number; received {tolerance}")
    array = np.asarray(errors, dtype=np.float64)
    if array.ndim != 1 or len(array) < 1:
        raise ValueError(f"the verdict {id!r} needs at least one number in a row; received shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"the verdict {id!r} needs finite numbers; received {array}. Look at the runs behind NaN")
    largest = float(np.abs(array).max())
    outcome = "holds" if largest <= tolerance else "does not hold"
    allowed = f"up to {tolerance:g} was allowed for rounding"
    return Verdict(
        id,
        claim,
        measure,
        outcome,
        (Setting("", largest, largest, largest, outcome),),
        note=f"{allowed}; {note}" if note else allowed,
    )


def not_run(id: str, claim: str, measure: str, reason: str) -> Verdict:
    """Record a claim that was not tested, and why.

    Args:
        id: The claim's short name.
        claim: The claim, one sentence.
        measure: What would have been measured.
        reason: Why it was not, and what would run it.

    Returns:
        The verdict, without tests.
    """
    return Verdict(id, claim, measure, "not run", note=reason)


def survivors(verdicts: Sequence[Verdict]) -> list[tuple[bool, ...]]:
    """Say which tests survive Holm's correction for the number of tests on their page.

    Each test with an interval is one at 2.5 % a side. Holm's procedure at 2.5 % on the p values of the side on which
    each estimate lies keeps the chance that one or more survive, though nothing is there, at 2.5 % a side, 5 % in all,
    however the tests depend on each other. Exact checks are no tests.

    Args:
        verdicts: All of one page.

    Returns:
        For each verdict one bool for each of its tests; never True where a test is undecided.

    Example: p values .001, .02 and .3 of three tests: .001 ≤ .025/3, but .02 > .025/2.

    Reference: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    kept = iter(holm([test.p_value for verdict in verdicts if verdict.num_seeds for test in verdict.settings], TAIL))
    # Of a claim that needs one setting of several, a test may be undecided where Holm's last, largest share passes it.
    return [
        tuple(bool(verdict.num_seeds and next(kept)) and test.outcome != "undecided" for test in verdict.settings)
        for verdict in verdicts
    ]


def _test(at: str, interval: Interval, threshold: float, shares: int) -> Setting:
    above = interval.tail(threshold)
    low, high = interval.low, interval.high
    outcome = "holds" if low > threshold else "does not hold" if high < threshold else "undecided"
    if outcome == "holds" and above > TAIL / shares:
        outcome = "undecided"
    return Setting(at, interval.estimate, low, high, outcome, min(above, 1 - above))


def _check(id: str, intervals: Mapping[str, Interval], margin: float) -> None:
    if not 0 <= margin < math.inf:
        raise ValueError(f"the margin of {id!r} must be a number from 0 on; received {margin}")
    levels = {interval.level for interval in intervals.values()}
    if levels != {CONFIDENCE}:
        raise ValueError(f"the intervals of {id!r} must be ones of {CONFIDENCE:.0%}; received {sorted(levels)}")
    sizes = {(interval.num_seeds, interval.num_examples) for interval in intervals.values()}
    if len(sizes) > 1:
        raise ValueError(f"the intervals of {id!r} must be over equally many seeds and examples; received {sizes}")


def _json(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
