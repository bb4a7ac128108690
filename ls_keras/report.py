"""One self-contained HTML page for a reader with little time, and verdicts for the terminal.

The page says first what was found, then shows the first figure and the verdicts, then the rest. A page of many verdicts
says how many of its tests chance alone would let hold, and marks those that survive Holm's correction.
"""

import base64
import math
import os
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ls_keras import files
from ls_keras.plots import encode
from ls_keras.verdicts import OUTCOMES, TAIL, Setting, Verdict, survivors

import jinja2
from matplotlib.figure import Figure

_SYMBOLS = dict(zip(OUTCOMES, "✓✗±?–", strict=True))
_PLURALS = {"holds": "hold", "does not hold": "do not hold", "changes sign": "change sign"}
_FEW_SEEDS = 3
_NO_BREAK = "\N{NO-BREAK SPACE}"
# Names of settings up to this length stay on one line.
_SHORT = 16
# Characters across a terminal, and across a telephone.
_COLUMNS, _NARROW = 100, 46
# Beyond these a float is shown as 1.234e−07 or 1.234e+09.
_MOST_DECIMALS, _MOST_DIGITS = 6, 9
# A number, alone or followed by its error, interval or unit.
_NUMBER = re.compile(r"[-+−]?\d(?:[-+−\d.,\s%±×\[\]()e]|to)*|[-–]?")
_PLAIN_NUMBER = re.compile(r"[-+−]?[\d,]+(\.\d+)?")


@dataclass(frozen=True, eq=False)
class Illustration:
    """A figure of the page.

    Attributes:
        figure: The figure.
        caption: One or two sentences that say what to see, without the figure's number or the paper's.
        alt: What the figure shows, for those who cannot see it.
        paper: The figure of the paper that it repeats with own data, for example "Figure 1"; empty if there is none.
    """

    figure: Figure
    caption: str
    alt: str
    paper: str = ""


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        caption: One sentence that says what the numbers are, with their unit.
        header: C column names.
        rows: Rows of C cells, the first of which names the row. Floats are shown to about four significant digits;
            numbers that are text already, such as "0.9713 ± 0.0051", are left as they are.
        by_row: Whether each row, and not each column, is one quantity: the floats of a quantity get equally many
            decimals.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]
    by_row: bool = False


def verdicts_text(verdicts: Sequence[Verdict]) -> str:
    """Set verdicts as a table for the terminal, at most 100 columns wide.

    Args:
        verdicts: The verdicts, in the order in which they are shown.

    Returns:
        Lines joined by line feeds. For each claim, id, outcome, estimate, interval and the claim itself, followed by
        the reason where it was not run; a claim judged at several settings has one more line for each. An asterisk
        marks what survives Holm's correction. Then the counts, what chance would give and what the intervals are over.
    """
    rows = [row for pair in zip(verdicts, survivors(verdicts), strict=True) for row in _text_rows(*pair)]
    titles = ("claim", "outcome", "estimate", "95 % interval", "the paper's claim")
    widths = [max(map(len, column)) for column in list(zip(titles, *rows, strict=True))[:-1]]
    room = max(20, _COLUMNS - sum(widths) - 2 * len(widths))
    lines = [
        *_set_row(titles, widths, room),
        "  ".join("-" * width for width in (*widths, min(room, 40))),
        *(line for row in rows for line in _set_row(row, widths, room)),
        "",
    ]
    counts = ", ".join(words for _, words in _counts(verdicts))
    below = [f"Of {len(verdicts)} claims: {counts}.", *_caveats(verdicts, "*"), _sizes_text(verdicts)]
    return "\n".join(lines + [line for part in below for line in textwrap.wrap(part, _COLUMNS)])


def write_report(
    path: str | os.PathLike,
    *,
    title: str,
    lead: str,
    findings: Sequence[str] = (),
    verdicts: Sequence[Verdict] = (),
    figures: Sequence[Illustration] = (),
    tables: Sequence[Table] = (),
    made_how: Mapping[str, str],
) -> Path:
    """Write one HTML page that needs nothing beside it: figures inside, no script, no request to any network.

    Args:
        path: The file, in a folder that exists.
        title: What the page is about.
        lead: A short paragraph that says what was asked, and of which data.
        findings: About three sentences with numbers that say what was found and what to do, right under the title.
        verdicts: A row for each claim, after the first figure.
        figures: Numbered; the first is shown above the verdicts, the others below.
        tables: Numbered, after the figures.
        made_how: Shown last: what a reader needs to make the page again, for example
            `{"Data": …, "Seeds": …, "Versions": …, "Machine": …, "Command": …, "Time": …}`.

    Returns:
        The path. The file is written beside and renamed into place, so that it is whole or absent.

    Raises:
        ValueError: If title, lead or a finding is empty, a figure has no caption or alternative text, a table has no
            rows or a row that does not fit its header, or two verdicts have the same id.
        FileNotFoundError: If the folder does not exist.

    Example:
        >>> write_report(
        ...     "report.html",
        ...     title="When does label smoothing help?",
        ...     lead="Ten claims of the paper, tested on 1,797 digits.",
        ...     findings=["Smoothing raised ECE by 0.067: rather fit a temperature."],
        ...     verdicts=[judge("C3", "Projections shrink.", "Mean coordinate, hard − smoothed.", interval)],
        ...     made_how={"Command": "python recipes/paper.py"},
        ... )
    """
    path = Path(path)
    _check_report(title, lead, findings, verdicts, figures, tables)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((resources.files("ls_keras") / "report.html.jinja").read_text("utf-8"))
    sizes = _common_sizes(verdicts)
    page = template.render(
        title=title,
        lead=lead,
        findings=findings,
        counts=_counts(verdicts),
        caveats=_caveats(verdicts, "★"),
        sizes=sizes,
        verdicts=[_row(*pair, not sizes) for pair in zip(verdicts, survivors(verdicts), strict=True)],
        figures=[_image(illustration) for illustration in figures],
        tables=[_cells(table) for table in tables],
        made_how={name: _options(text) for name, text in made_how.items()},
    )
    files.replace(path, page)
    return path


def _minus(number: str) -> str:
    # A true minus sign, as wide as the plus above it.
    return number.replace("-", "−")


def _digits(setting: Setting) -> int:
    """Return the decimals that show two digits of the interval's half width, and on which side of 0 its ends lie."""
    half = (setting.high - setting.low) / 2
    sizes = [half / 10 if half else setting.estimate / 100, setting.low, setting.high]
    smallest = min((abs(size) for size in sizes if size), default=1.0)
    return min(12, max(0, -math.floor(math.log10(smallest))))


def _numbers(verdict: Verdict) -> list[tuple[str, str]]:
    """Return estimate and interval at each setting, with as many decimals at one as at the others."""
    if not verdict.num_seeds:
        return [(_minus(f"{setting.estimate:.2g}"), "exact check") for setting in verdict.settings]
    digits = max(_digits(setting) for setting in verdict.settings)
    shown = []
    for setting in verdict.settings:
        estimate, low, high = (
            _minus(f"{value:+.{digits}f}") for value in (setting.estimate, setting.low, setting.high)
        )
        shown.append((estimate, f"[{low}, {high}]"))
    return shown


def _row(verdict: Verdict, kept: Sequence[bool], with_sizes: bool) -> dict[str, Any]:
    texts = {name: getattr(verdict, name) for name in ("id", "claim", "measure", "outcome", "paper", "note")}
    lines = [
        {
            "at": _unbroken(setting.at) if len(setting.at) <= _SHORT else setting.at,
            "outcome": setting.outcome,
            "symbol": _SYMBOLS[setting.outcome],
            "survives": survives,
        }
        | {"estimate": estimate, "interval": interval}
        for setting, (estimate, interval), survives in zip(verdict.settings, _numbers(verdict), kept, strict=True)
    ]
    sizes = _unbroken(_sizes(verdict)) if with_sizes else ""
    return texts | {"symbol": _SYMBOLS[verdict.outcome], "lines": lines, "sizes": sizes}


def _text_rows(verdict: Verdict, kept: Sequence[bool]) -> list[tuple[str, ...]]:
    """Return the cells of a verdict's row, and of one for each setting if there are several."""
    settings = [
        (setting.outcome + " *" * survives, *numbers, setting.at)
        for setting, numbers, survives in zip(verdict.settings, _numbers(verdict), kept, strict=True)
    ]
    if verdict.outcome == "not run":
        return [(verdict.id, verdict.outcome, "", "", f"{verdict.claim} ({verdict.note})")]
    if len(settings) == 1:
        *numbers, at = settings[0]
        return [(verdict.id, *numbers, f"{verdict.claim} ({at})" if at else verdict.claim)]
    return [
        (verdict.id, verdict.outcome, "", "", verdict.claim),
        *(("", f"  {outcome}", *numbers, f"  {at}") for outcome, *numbers, at in settings),
    ]


def _set_row(cells: Sequence[str], widths: Sequence[int], room: int) -> list[str]:
    """Return the lines of a row; its last cell is wrapped, its estimate set right."""
    name, outcome, estimate, interval, text = cells
    indent = " " * (len(text) - len(text.lstrip()))
    first, *more = textwrap.wrap(text.strip(), room, initial_indent=indent, subsequent_indent=indent) or [""]
    aligned = (name.ljust(widths[0]), outcome.ljust(widths[1]), estimate.rjust(widths[2]), interval.ljust(widths[3]))
    beside = " " * (sum(widths) + 2 * len(widths))
    return ["  ".join([*aligned, first]).rstrip(), *(beside + line for line in more)]


def _counts(verdicts: Sequence[Verdict]) -> list[tuple[str, str]]:
    """Return symbol and words of each outcome that occurs, for example ("✓", "10 hold")."""
    counts = {outcome: sum(verdict.outcome == outcome for verdict in verdicts) for outcome in OUTCOMES}
    return [
        (_SYMBOLS[outcome], f"{number} {outcome if number == 1 else _PLURALS.get(outcome, outcome)}")
        for outcome, number in counts.items()
        if number
    ]


def _caveats(verdicts: Sequence[Verdict], mark: str) -> list[str]:
    """Say what chance alone would give on this page, and where there are too few seeds."""
    tests = sum(len(verdict.settings) for verdict in verdicts if verdict.num_seeds)
    if not tests:
        return []
    number = sum(map(sum, survivors(verdicts)))
    survive = f"{mark} marks the {number} that survive" if number else "none survives"
    caveats = [
        f"{tests} tests at 2.5 % a side: if nothing were true, about {TAIL * tests:.2g} would hold by chance and as "
        f"many would not; {survive} Holm's correction for their number."
    ]
    fewest = min(verdict.num_seeds for verdict in verdicts if verdict.num_seeds)
    if fewest < _FEW_SEEDS:
        caveats.append(
            f"{fewest} seeds are too few: their intervals are valid, but 3 to 8 times as wide as those of five seeds."
        )
    return caveats


def _sizes(verdict: Verdict) -> str:
    if not verdict.num_seeds:
        return ""
    return f"{verdict.num_seeds} seeds" + f" × {verdict.num_examples:,} examples" * (verdict.num_examples > 0)


def _common_sizes(verdicts: Sequence[Verdict]) -> str:
    """Return seeds × examples if they are the same for all intervals, nothing otherwise."""
    sizes = {_sizes(verdict) for verdict in verdicts} - {""}
    return sizes.pop() if len(sizes) == 1 else ""


def _sizes_text(verdicts: Sequence[Verdict]) -> str:
    """Say what the intervals are over: once if it is the same for all, with the claims' names otherwise."""
    if common := _common_sizes(verdicts):
        return f"All intervals are over {common}."
    names: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.num_seeds:
            names.setdefault(_sizes(verdict), []).append(verdict.id)
    parts = [f"over {sizes}: {', '.join(ids)}" for sizes, ids in names.items()]
    return f"Intervals {'; '.join(parts)}." if parts else ""


def _unbroken(text: str) -> str:
    return text.replace(" ", _NO_BREAK)


def _options(text: str) -> list[str]:
    """Split a text so that every second part is an option of a command, which browsers would break at its hyphens."""
    return re.split(r"((?<!\S)-\S{1,40}(?!\S))", text)


def _image(illustration: Illustration) -> dict[str, Any]:
    width, height = illustration.figure.get_size_inches()
    content = base64.b64encode(encode(illustration.figure, "png")).decode("ascii")
    # 120 CSS pixels an inch show 8-point labels about as large as the page's small print.
    return {
        "source": f"data:image/png;base64,{content}",
        "width": round(120 * width),
        "height": round(120 * height),
        "wide": bool(width > 4),
        "origin": f"the paper's {illustration.paper}, own data" if illustration.paper else "own data",
        "caption": illustration.caption,
        "alt": illustration.alt,
    }


def _cells(table: Table) -> dict[str, Any]:
    """Return a table as text: equally many decimals within a quantity, decimal points beneath each other."""
    names, *columns = zip(*table.rows, strict=True)
    if table.by_row:
        columns = list(zip(*(_same_decimals(row[1:]) for row in table.rows), strict=True))
    else:
        columns = [_same_decimals(column) for column in columns]
    numeric = [all(_NUMBER.fullmatch(cell) for cell in column) for column in columns]
    aligned = [_align(column) if number else column for column, number in zip(columns, numeric, strict=True)]
    rows = list(zip(_same_decimals(names), *aligned, strict=True))
    width = sum(2 + max(map(len, column)) for column in zip(table.header, *rows, strict=True))
    return {
        "caption": table.caption,
        "header": table.header,
        "rows": rows,
        "numeric": [False, *numeric],
        "wide": width > _NARROW,
    }


def _same_decimals(cells: Sequence[str | int | float]) -> list[str]:
    """Return the cells of one quantity as text. Among floats, whole numbers get decimals too."""
    floats = any(isinstance(cell, float) for cell in cells)
    numbers = [float(cell) for cell in cells if floats and not isinstance(cell, str) and math.isfinite(cell)]
    decimals = _decimals(numbers, [cell for cell in cells if isinstance(cell, str)])
    return [str(cell) if isinstance(cell, str) or not floats else _cell(cell, decimals) for cell in cells]


def _cell(number: float, decimals: int | None) -> str:
    if math.isnan(number):
        return "–"
    if math.isinf(number):
        return _minus(f"{number:g}").replace("inf", "∞")
    return _minus(f"{number:.4g}" if decimals is None else f"{number:.{decimals}f}")


def _decimals(numbers: Sequence[float], texts: Iterable[str]) -> int | None:
    """Return how many decimals a quantity needs, None where no number of them shows large and small values alike.

    Four significant digits of the largest and two of the smallest, without zeros that all would end with; or as many
    as those cells of the quantity have which are text already.
    """
    written = [len(match[0].partition(".")[2]) for text in texts if (match := _PLAIN_NUMBER.match(text))]
    if written:
        return max(written)
    powers = [math.floor(math.log10(abs(number))) for number in numbers if number]
    if not powers:
        return 0
    decimals = max(0, 3 - max(powers), 1 - min(powers))
    if decimals > _MOST_DECIMALS or max(powers) >= _MOST_DIGITS:
        return None
    while decimals and all(f"{number:.{decimals}f}".endswith("0") for number in numbers):
        decimals -= 1
    return decimals


def _align(column: Sequence[str]) -> list[str]:
    """Return numbers of one column, filled up to the right so that their decimal points are beneath each other."""
    if not all(_PLAIN_NUMBER.fullmatch(cell) for cell in column):
        return list(column)
    most = max(len(cell.partition(".")[2]) for cell in column)
    aligned = []
    for cell in column:
        _, point, decimals = cell.partition(".")
        missing = "\N{FIGURE SPACE}" * (most - len(decimals))
        aligned.append(cell + ("\N{PUNCTUATION SPACE}" if most and not point else "") + missing)
    return aligned


def _check_report(
    title: str,
    lead: str,
    findings: Sequence[str],
    verdicts: Sequence[Verdict],
    figures: Sequence[Illustration],
    tables: Sequence[Table],
) -> None:
    if not (title.strip() and lead.strip()):
        raise ValueError(f"a report needs a title and a lead paragraph; received {title!r} and {lead!r}")
    if isinstance(findings, str) or not all(finding.strip() for finding in findings):
        raise ValueError(f"findings must be sentences, each a string of its own; received {findings!r}")
    ids = [verdict.id for verdict in verdicts]
    if len(set(ids)) < len(ids):
        raise ValueError(f"every verdict needs an id of its own; received {ids}")
    for index, illustration in enumerate(figures, 1):
        if not (illustration.caption.strip() and illustration.alt.strip()):
            raise ValueError(f"figure {index} needs a caption and an alternative text; received {illustration!r}")
    for table in tables:
        if not table.rows:
            raise ValueError(f"the table {table.caption!r} has no rows; leave it out")
        for row in table.rows:
            if len(row) != len(table.header):
                raise ValueError(
                    f"a row of the table {table.caption!r} has {len(row)} cells for {len(table.header)} columns: {row}"
                )
