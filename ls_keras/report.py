"""Verdicts on the paper's claims, and one self-contained HTML page that shows them.

A verdict comes from a 95 % interval of differences paired over seeds, signed so that positive speaks for the claim. It
is never adjusted to please: a claim that fails on some data is a finding and is printed as such. A page of many
verdicts says how many of them chance alone would give, and marks those that survive Holm's correction.
"""

import base64
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path

from ls_keras import files
from ls_keras.analysis.intervals import Interval, holm
from ls_keras.plots import encode

import jinja2
import numpy as np
from matplotlib.figure import Figure

OUTCOMES = ("holds", "does not hold", "undecided", "not run")
_CONFIDENCE = 0.95
_FEW_SEEDS = 3
_TAIL = (1 - _CONFIDENCE) / 2


@dataclass(frozen=True)
class Verdict:
    """What one test says about one claim.

    Args:
        id: the claim's short name, for example "C5".
        claim: the claim, one sentence.
        measure: what was measured, with its unit and what is subtracted from what, one sentence.
        estimate: the measured value, in the unit of `measure`; NaN if the test was not run.
        low: lower end of the 95 % interval; NaN if the test was not run.
        high: upper end of the 95 % interval; NaN if the test was not run.
        num_seeds: seeds behind the interval; 0 for an exact check, which has none.
        outcome: "holds", "does not hold", "undecided" or "not run".
        paper: the paper's own value, if it prints one.
        note: what a reader must know beside the numbers, for example the margin.
        num_examples: examples behind an interval over seeds and examples; 0 for one over seeds alone.
        p_value: one-sided, of the side of the threshold on which the estimate lies: below 0.025 where the claim holds
            or does not hold; NaN where there is no interval.

    Raises:
        ValueError: if the outcome is another one, if the texts are empty, or if not low ≤ estimate ≤ high.
    """

    id: str
    claim: str
    measure: str
    estimate: float
    low: float
    high: float
    num_seeds: int
    outcome: str
    paper: str = ""
    note: str = ""
    num_examples: int = 0
    p_value: float = math.nan

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"the outcome of {self.id!r} must be one of {OUTCOMES}, got {self.outcome!r}")
        if not (self.id.strip() and self.claim.strip() and self.measure.strip()):
            raise ValueError(f"a verdict needs id, claim and measure, got {self!r}")
        if self.outcome != "not run" and not self.low <= self.estimate <= self.high:
            raise ValueError(
                f"the interval of {self.id!r} must hold its estimate, got {self.low} <= {self.estimate} <= {self.high}"
            )

    def to_dict(self) -> dict[str, str | int | float | None]:
        """Return the fields as JSON can hold them: NaN and infinity become None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }


@dataclass(frozen=True, eq=False)
class Illustration:
    """A figure of the report.

    Args:
        figure: the figure.
        caption: one sentence that says what to see.
        alt: what the figure shows, for those who cannot see it.
    """

    figure: Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Table:
    """A table of the report.

    Args:
        caption: one sentence that says what the numbers are, with their unit.
        header: C column names.
        rows: rows of C cells, the first of which names the row; floats are shown to four significant digits.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


def paired_verdict(
    id: str, claim: str, measure: str, interval: Interval, *, paper: str = "", note: str = ""
) -> Verdict:
    """Judge a claim by an interval of differences paired over seeds.

    The claim holds if low > 0, does not hold if high < 0 and is undecided otherwise: a test at 2.5 % a side, if the
    interval is one of 95 %.

    Args:
        id: the claim's short name.
        claim: the claim, one sentence.
        measure: what a difference is, with its unit.
        interval: of the differences, *positive where a seed speaks for the claim*: `intervals.crossed` for what is a
            mean over examples, `intervals.over_seeds` for what is not.
        paper: the paper's own value.
        note: anything a reader must know.

    Returns:
        The verdict.

    Raises:
        ValueError: for an interval of another level than 95 %.

    Example:
        >>> interval = intervals.over_seeds([0.01, 0.02, 0.03])  # 0.02 ± 4.3027 · 0.01 / √3
        >>> verdict = paired_verdict("C3", "projections shrink", "mean coordinate, hard − smoothed", interval)
        >>> verdict.outcome, round(verdict.low, 4), round(verdict.high, 4)
        ('undecided', -0.0048, 0.0448)
    """
    return _interval_verdict(id, claim, measure, interval, threshold=0.0, paper=paper, note=note)


def noninferiority_verdict(
    id: str, claim: str, measure: str, interval: Interval, margin: float, *, paper: str = "", note: str = ""
) -> Verdict:
    """Judge a claim that something is kept or improves, where a loss up to a margin counts as none.

    The claim holds if low > −margin, does not hold if high < −margin and is undecided otherwise. The margin must be
    fixed before the data are seen; the verdict's note states it.

    Args:
        id: the claim's short name.
        claim: the claim, one sentence.
        measure: what a difference is, with its unit.
        interval: of the differences, positive where things got better; as for `paired_verdict`.
        margin: the loss that would not matter, in the unit of the differences, above 0.
        paper: the paper's own value.
        note: anything a reader must know.

    Returns:
        The verdict.

    Raises:
        ValueError: for a margin that is not above 0, or an interval of another level than 95 %.

    Example:
        >>> interval = intervals.over_seeds([0.0, -0.001])  # −0.0005 ± 12.7062 · 0.0005
        >>> noninferiority_verdict("C5", "accuracy is kept", "accuracy, smoothed − hard", interval, 0.01).outcome
        'holds'

    Reference: Blackwelder (1982), "Proving the null hypothesis in clinical trials".
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"the margin of {id!r} must be a positive number, got {margin}")
    allowed = f"a loss of up to {margin:g} was allowed beforehand"
    note = f"{allowed}; {note}" if note else allowed
    return _interval_verdict(id, claim, measure, interval, threshold=-margin, paper=paper, note=note)


def identity_verdict(
    id: str, claim: str, measure: str, errors: Sequence[float], tolerance: float, *, note: str = ""
) -> Verdict:
    """Judge an exact identity: it holds if the largest absolute error is at most the tolerance.

    Args:
        id: the claim's short name.
        claim: the identity, one sentence.
        measure: what an error is, with its unit.
        errors: left side minus right side, any number of cases.
        tolerance: what rounding may cost, in the unit of the errors, above 0.
        note: anything a reader must know.

    Returns:
        The verdict, with the largest absolute error as estimate and no interval.

    Raises:
        ValueError: for no errors, NaN or infinity among them, or a tolerance that is not above 0.

    Example:
        >>> identity_verdict("C13", "both sides agree", "largest error, nats", [1e-9, -2e-9], 1e-6).outcome
        'holds'
    """
    if not 0 < tolerance < math.inf:
        raise ValueError(f"the tolerance of {id!r} must be a positive number, got {tolerance}")
    largest = float(np.abs(_finite(id, errors)).max())
    allowed = f"up to {tolerance:g} was allowed for rounding"
    outcome = "holds" if largest <= tolerance else "does not hold"
    note = f"{allowed}; {note}" if note else allowed
    return Verdict(id, claim, measure, largest, largest, largest, 0, outcome, note=note)


def not_run(id: str, claim: str, measure: str, reason: str) -> Verdict:
    """Record a claim that this run did not test, and why.

    Args:
        id: the claim's short name.
        claim: the claim, one sentence.
        measure: what would have been measured.
        reason: why it was not, and what would run it.

    Returns:
        The verdict, with NaN for numbers.
    """
    return Verdict(id, claim, measure, math.nan, math.nan, math.nan, 0, "not run", note=reason)


def survivors(verdicts: Sequence[Verdict]) -> list[bool]:
    """Say which verdicts survive Holm's correction for the number of tests on their page.

    Each verdict with an interval is a test at 2.5 % a side. Holm's procedure at 2.5 % on the p values of the side on
    which each estimate lies keeps the chance that one or more verdicts survive, though nothing is there, at 2.5 % a
    side, 5 % in all, however the tests depend on each other. Exact checks, and what was not run, are no tests.

    Args:
        verdicts: all of one page.

    Returns:
        One bool for each; never True where the verdict is undecided.

    Example: p values .001, .02 and .3 of three tests: .001 ≤ .025/3, but .02 > .025/2.

    Reference: Holm (1979), "A simple sequentially rejective multiple test procedure".
    """
    kept = iter(holm([verdict.p_value for verdict in verdicts if verdict.num_seeds], _TAIL))
    return [bool(verdict.num_seeds and next(kept)) for verdict in verdicts]


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """Set verdicts as a table for the terminal, at most 100 columns wide.

    Args:
        verdicts: the verdicts, in the order in which they are shown.

    Returns:
        Lines joined by line feeds: id, outcome (with * if it survives Holm's correction), estimate, interval, seeds
        (× examples, where the interval covers them), and the claim with what was measured; then what chance would give.
    """
    widths = (5, 15, 9, 21, 7, 36)
    layout = "{:<5} {:<15} {:>9}  {:<21} {:>7}  {}"
    titles = ("claim", "outcome", "estimate", "95 % interval", "seeds", "the paper's claim; measured by")
    lines = [layout.format(*titles), layout.format(*("-" * width for width in widths))]
    for verdict, survives in zip(verdicts, survivors(verdicts), strict=True):
        text = textwrap.wrap(verdict.claim, widths[-1])
        for part in (verdict.measure, verdict.note, verdict.paper and f"in the paper: {verdict.paper}"):
            text += textwrap.wrap(part, widths[-1], initial_indent="  ", subsequent_indent="  ")
        seeds = f"{verdict.num_seeds}×{verdict.num_examples}" if verdict.num_examples else str(verdict.num_seeds or "")
        first = (verdict.id, verdict.outcome + " *" * survives, *_numbers(verdict), seeds, text[0])
        lines += [layout.format(*first), *(" " * 64 + line for line in text[1:])]
    return "\n".join([*lines, "", *(line for part in _caveats(verdicts, "*") for line in textwrap.wrap(part, 100))])


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    lead: str,
    verdicts: Sequence[Verdict] = (),
    figures: Sequence[Illustration] = (),
    tables: Sequence[Table] = (),
    made_how: Mapping[str, str],
) -> Path:
    """Write one HTML page that needs nothing beside it: figures inside, no script, no request to any network.

    Args:
        path: the file, in a folder that exists.
        title: what the page is about.
        lead: one paragraph that says what was found, or what was asked.
        verdicts: shown first.
        figures: shown second, numbered.
        tables: shown third, numbered.
        made_how: shown last: what a reader needs to make the page again, for example
            `{"Data": …, "Seeds": …, "Versions": …, "Machine": …, "Command": …, "Time": …}`.

    Returns:
        The path. The file is written beside and renamed into place, so that it is whole or absent.

    Raises:
        ValueError: if title or lead is empty, a figure has no caption or alternative text, a table has no
            rows or a row that does not fit its header, or two verdicts have the same id.
        FileNotFoundError: if the folder does not exist.
    """
    path = Path(path)
    _check_report(title, lead, verdicts, figures, tables)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((resources.files("ls_keras") / "report.html.jinja").read_text("utf-8"))
    page = template.render(
        title=title,
        lead=lead,
        summary=_summary(verdicts),
        caveats=_caveats(verdicts, "★"),
        verdicts=[_row(*pair) for pair in zip(verdicts, survivors(verdicts), strict=True)],
        figures=[_image(illustration) for illustration in figures],
        tables=[_cells(table) for table in tables],
        made_how=made_how,
    )
    files.replace(path, page)
    return path


def _interval_verdict(
    id: str, claim: str, measure: str, interval: Interval, *, threshold: float, paper: str, note: str
) -> Verdict:
    if interval.level != _CONFIDENCE:
        raise ValueError(f"the interval of {id!r} must be one of {_CONFIDENCE:.0%}, got {interval.level:.4%}")
    low, high, above = interval.low, interval.high, interval.tail(threshold)
    outcome = "holds" if low > threshold else "does not hold" if high < threshold else "undecided"
    numbers = (interval.estimate, low, high, interval.num_seeds, outcome, paper, note)
    return Verdict(id, claim, measure, *numbers, interval.num_examples, min(above, 1 - above))


def _finite(id: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < 1:
        raise ValueError(f"the verdict {id!r} needs at least one number in a row, got shape {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"the verdict {id!r} needs finite numbers, got {array}; look at the runs behind NaN")
    return array


def _fixed(value: float, digits: int, sign: str = "") -> str:
    # A true minus sign, as wide as the plus above it.
    return f"{value:{sign}.{digits}f}".replace("-", "−")


def _general(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


def _digits(verdict: Verdict) -> int:
    """Return the decimals that show two digits of the interval's half width, and on which side of 0 its ends lie."""
    half = (verdict.high - verdict.low) / 2
    sizes = [half / 10 if half else verdict.estimate / 100, verdict.low, verdict.high]
    smallest = min((abs(size) for size in sizes if size), default=1.0)
    return min(12, max(0, -math.floor(math.log10(smallest))))


def _numbers(verdict: Verdict) -> tuple[str, str]:
    if verdict.outcome == "not run":
        return "", ""
    if not verdict.num_seeds:
        return f"{verdict.estimate:.2g}".replace("-", "−"), "exact check"
    estimate, low, high = (
        _fixed(value, _digits(verdict), "+") for value in (verdict.estimate, verdict.low, verdict.high)
    )
    return estimate, f"{low} to {high}"


def _row(verdict: Verdict, survives: bool) -> dict[str, str | bool]:
    estimate, interval = _numbers(verdict)
    if verdict.outcome == "not run":
        value = "not measured"
    elif not verdict.num_seeds:
        value = f"{estimate} (exact check)"
    else:
        sizes = f"{verdict.num_seeds} seeds" + f" × {verdict.num_examples:,} examples" * (verdict.num_examples > 0)
        sizes = sizes.replace(" ", "\N{NO-BREAK SPACE}")
        value = f"{estimate}, 95 % interval {interval} ({sizes})"
    symbol = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not run": "–"}[verdict.outcome]
    texts = {name: getattr(verdict, name) for name in ("id", "claim", "measure", "outcome", "paper", "note")}
    return texts | {"value": value, "symbol": symbol, "survives": survives}


def _summary(verdicts: Sequence[Verdict]) -> str:
    counts = (f"{outcome} {sum(v.outcome == outcome for v in verdicts)}" for outcome in OUTCOMES)
    return f"Outcome of {len(verdicts)} tests: {', '.join(counts)}."


def _caveats(verdicts: Sequence[Verdict], mark: str) -> list[str]:
    """Say what chance alone would give on this page, and where there are too few seeds."""
    tests = [verdict for verdict in verdicts if verdict.num_seeds]
    if not tests:
        return []
    number = sum(survivors(verdicts))
    survive = f"{mark} marks the {number} that survive" if number else "None survives"
    chance = (
        f"{len(tests)} tests at 2.5 % a side: if nothing were true, about {_TAIL * len(tests):.1g} would hold by "
        f"chance, and as many would not hold. {survive} Holm's correction for their number; where nothing is true, one "
        "or more survive on at most 5 % of pages."
    )
    fewest = min(verdict.num_seeds for verdict in tests)
    if fewest >= _FEW_SEEDS:
        return [chance]
    return [
        chance,
        f"{fewest} seeds are too few: their intervals are valid, but 3 to 8 times as wide as those of five seeds.",
    ]


def _image(illustration: Illustration) -> dict[str, str | int | bool]:
    width, height = illustration.figure.get_size_inches()
    content = base64.b64encode(encode(illustration.figure, "png")).decode("ascii")
    # 120 CSS pixels an inch show 8-point labels about as large as the page's small print.
    return {
        "source": f"data:image/png;base64,{content}",
        "width": round(120 * width),
        "height": round(120 * height),
        "wide": bool(width > 4),
        "caption": illustration.caption,
        "alt": illustration.alt,
    }


def _cells(table: Table) -> dict[str, object]:
    numeric = [not any(isinstance(cell, str) for cell in column) for column in zip(*table.rows, strict=True)]
    rows = [[_general(cell) if isinstance(cell, float) else str(cell) for cell in row] for row in table.rows]
    return {"caption": table.caption, "header": table.header, "rows": rows, "numeric": numeric}


def _check_report(
    title: str, lead: str, verdicts: Sequence[Verdict], figures: Sequence[Illustration], tables: Sequence[Table]
) -> None:
    if not (title.strip() and lead.strip()):
        raise ValueError(f"a report needs a title and a lead paragraph, got {title!r} and {lead!r}")
    ids = [verdict.id for verdict in verdicts]
    if len(set(ids)) < len(ids):
        raise ValueError(f"every verdict needs an id of its own, got {ids}")
    for index, illustration in enumerate(figures, 1):
        if not (illustration.caption.strip() and illustration.alt.strip()):
            raise ValueError(f"figure {index} needs a caption and an alternative text, got {illustration!r}")
    for table in tables:
        if not table.rows:
            raise ValueError(f"the table {table.caption!r} has no rows; leave it out")
        for row in table.rows:
            if len(row) != len(table.header):
                raise ValueError(
                    f"a row of the table {table.caption!r} has {len(row)} cells for {len(table.header)} columns: {row}"
                )
