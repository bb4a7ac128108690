"""Verdicts on the paper's claims, and one self-contained HTML page that shows them.

A verdict comes from differences paired over seeds, signed so that positive speaks for the claim, and a
95 % t interval. It is never adjusted to please: a claim that fails on some data is a finding and is printed
as such.
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
from ls_keras.plots import encode

import jinja2
import numpy as np
from matplotlib.figure import Figure
from scipy import stats

OUTCOMES = ("holds", "does not hold", "undecided", "not run")
_CONFIDENCE = 0.95


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
    id: str, claim: str, measure: str, differences: Sequence[float], *, paper: str = "", note: str = ""
) -> Verdict:
    """Judge a claim by differences paired over seeds.

    With mean m and standard deviation s (n − 1 in the denominator) of the n differences, the interval is
    m ± t · s / √n, with t the 97.5 % point of Student's distribution with n − 1 degrees of freedom. The claim
    holds if low > 0, does not hold if high < 0 and is undecided otherwise.

    Args:
        id: the claim's short name.
        claim: the claim, one sentence.
        measure: what a difference is, with its unit.
        differences: one number per seed, *positive where the seed speaks for the claim*.
        paper: the paper's own value.
        note: anything a reader must know.

    Returns:
        The verdict. Differences that are all the same have an interval of no width, so all zero is undecided.

    Raises:
        ValueError: for fewer than two differences, or NaN or infinity among them.

    Example:
        >>> verdict = paired_verdict("C5", "accuracy improves", "accuracy, smoothed − hard", [0.01, 0.02, 0.03])
        >>> verdict.outcome, round(verdict.low, 4), round(verdict.high, 4)  # 0.02 ± 4.3027 · 0.01 / √3
        ('undecided', -0.0048, 0.0448)

    Reference: Student (1908), "The probable error of a mean", Biometrika 6.
    """
    return _interval_verdict(id, claim, measure, differences, threshold=0.0, paper=paper, note=note)


def equivalence_verdict(
    id: str,
    claim: str,
    measure: str,
    differences: Sequence[float],
    margin: float,
    *,
    paper: str = "",
    note: str = "",
) -> Verdict:
    """Judge a claim that something is kept, or is as good, up to a margin (one-sided equivalence: non-inferiority).

    The interval is that of `paired_verdict`. The claim holds if low > −margin, does not hold if
    high < −margin and is undecided otherwise. The margin must be fixed before the data are seen; the
    verdict's note states it.

    Args:
        id: the claim's short name.
        claim: the claim, one sentence.
        measure: what a difference is, with its unit.
        differences: one number per seed, positive where things got better.
        margin: the loss that would not matter, in the unit of the differences, above 0.
        paper: the paper's own value.
        note: anything a reader must know.

    Returns:
        The verdict.

    Raises:
        ValueError: for fewer than two differences, NaN or infinity among them, or a margin that is not above 0.

    Example:
        >>> equivalence_verdict("C5", "accuracy is kept", "accuracy, smoothed − hard", [0.0, -0.001], 0.01).note
        'a loss of up to 0.01 was allowed beforehand'
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"the margin of {id!r} must be a positive number, got {margin}")
    allowed = f"a loss of up to {margin:g} was allowed beforehand"
    note = f"{allowed}; {note}" if note else allowed
    return _interval_verdict(id, claim, measure, differences, threshold=-margin, paper=paper, note=note)


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
    largest = float(np.abs(_finite(id, errors, at_least=1)).max())
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


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """Set verdicts as a table for the terminal, at most 100 columns wide.

    Args:
        verdicts: the verdicts, in the order in which they are shown.

    Returns:
        Lines joined by line feeds: id, outcome, estimate, interval, seeds, and the claim with what was measured.
    """
    layout = "{:<5} {:<13} {:>9}  {:<21} {:>5}  {}"
    titles = ("claim", "outcome", "estimate", "95 % interval", "seeds", "the paper's claim; measured by")
    lines = [layout.format(*titles), layout.format(*("-" * width for width in (5, 13, 9, 21, 5, 40)))]
    for verdict in verdicts:
        text = textwrap.wrap(verdict.claim, 40)
        for part in (verdict.measure, verdict.note, verdict.paper and f"in the paper: {verdict.paper}"):
            text += textwrap.wrap(part, 40, initial_indent="  ", subsequent_indent="  ")
        seeds = str(verdict.num_seeds) if verdict.num_seeds else ""
        first = (verdict.id, verdict.outcome, *_numbers(verdict), seeds, text[0])
        lines += [layout.format(*first), *(" " * 60 + line for line in text[1:])]
    return "\n".join(lines)


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
        verdicts=[_row(verdict) for verdict in verdicts],
        figures=[_image(illustration) for illustration in figures],
        tables=[_cells(table) for table in tables],
        made_how=made_how,
    )
    files.replace(path, page)
    return path


def _interval_verdict(
    id: str,
    claim: str,
    measure: str,
    differences: Sequence[float],
    *,
    threshold: float,
    paper: str,
    note: str,
) -> Verdict:
    values = _finite(id, differences, at_least=2)
    mean = float(values.mean())
    if (values == values[0]).all():
        # The mean of equal numbers can differ from them in the last digit, which must not decide.
        mean, half = float(values[0]), 0.0
    else:
        t = stats.t.ppf((1 + _CONFIDENCE) / 2, len(values) - 1)
        half = float(t * values.std(ddof=1) / math.sqrt(len(values)))
    low, high = mean - half, mean + half
    outcome = "holds" if low > threshold else "does not hold" if high < threshold else "undecided"
    return Verdict(id, claim, measure, mean, low, high, len(values), outcome, paper, note)


def _finite(id: str, values: Sequence[float], at_least: int) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < at_least:
        raise ValueError(
            f"the verdict {id!r} needs at least {at_least} number{'s' * (at_least > 1)} in a row, "
            f"got shape {array.shape}; run more seeds"
        )
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


def _row(verdict: Verdict) -> dict[str, str]:
    estimate, interval = _numbers(verdict)
    if verdict.outcome == "not run":
        value = "not measured"
    elif not verdict.num_seeds:
        value = f"{estimate} (exact check)"
    else:
        value = f"{estimate}, 95 % interval {interval} ({verdict.num_seeds}\N{NO-BREAK SPACE}seeds)"
    symbol = {"holds": "✓", "does not hold": "✗", "undecided": "?", "not run": "–"}[verdict.outcome]
    texts = {name: getattr(verdict, name) for name in ("id", "claim", "measure", "outcome", "paper", "note")}
    return texts | {"value": value, "symbol": symbol}


def _summary(verdicts: Sequence[Verdict]) -> str:
    counts = (f"{outcome} {sum(v.outcome == outcome for v in verdicts)}" for outcome in OUTCOMES)
    return f"Outcome of {len(verdicts)} tests: {', '.join(counts)}."


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
