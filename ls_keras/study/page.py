"""What all studies' pages share: how numbers are set, how a page was made, and writing it."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ls_keras import experiment, plots, report
from ls_keras.analysis import intervals
from ls_keras.study.claims import Claim, judge, write_evidence
from ls_keras.study.records import Measured
from ls_keras.verdicts import Verdict

import numpy as np

INTERVALS = (
    "95 %; of accuracy, confidence, NLL and ECE over seeds and examples, from variance components; of the rest over "
    "seeds, Student's t; differences are paired by seed and example"
)
# What a reader must know of held-out examples in the order of the file; of other data they are drawn as the training
# examples are.
_HELD_OUT = {
    "digits": "in the order of the file, so that held-out digits are mostly by other writers than those trained on: "
    "over-confidence on them is over-confidence on new writers",
}


@dataclass(frozen=True)
class Content:
    """What a page shows, beside its verdicts."""

    findings: Sequence[str] = ()
    figures: Mapping[str, report.Illustration] = field(default_factory=dict)
    tables: Sequence[report.Table] = ()


def cell(interval: intervals.Interval) -> str:
    """Set an estimate with the half width of its interval, the wider one where tails are heavy."""
    half_width = max(interval.high - interval.estimate, interval.estimate - interval.low)
    return plus_minus(interval.estimate, half_width)


def number(values: Sequence[float]) -> str:
    """Set a mean over seeds with its interval by Student's t; alone, where seeds agree or one has no value."""
    if len(values) < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return f"{np.mean(values):.4g}".replace("-", "−")
    return cell(intervals.over_seeds(values))


def plus_minus(value: float, half_width: float) -> str:
    """Set a number with as many decimals as show two digits of its half width.

    Example:
        >>> plus_minus(0.97133, 0.00514)
        '0.9713 ± 0.0051'
    """
    decimals = max(0, 1 - int(np.floor(np.log10(half_width)))) if half_width > 0 else 4
    return f"{value:.{decimals}f} ± {half_width:.{decimals}f}".replace("-", "−")


def check_folder(out: Path) -> None:
    """Refuse, before any work, a folder that no page could be written to."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"The page cannot go to {out}: {nearest} is a file. Name another folder, or move it away.")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"The page cannot go to {out}: {nearest} cannot be written. Name another folder.")


def made_how(data: Mapping[str, object], **more: str) -> dict[str, str]:
    """Return what a reader needs to make a page again.

    Args:
        data: `name`, `splits`, `origin`, `split_seed` and `label_noise`, as `Measured.data`.
        more: Further lines by name.
    """
    splits = data["splits"]
    sizes = f"{splits['train']:,} training, {splits['held_out']:,} held-out and {splits['test']:,} test examples"
    stand_in = "" if splits["held_out"] else "; what is called held-out is the test set"
    known = [_HELD_OUT.get(str(data["name"]), "")]
    if data["split_seed"] is not None:
        known = [
            f"shuffled by seed {data['split_seed']} before they were split, so that held-out examples are drawn as "
            "those trained on"
        ]
    if data["label_noise"]:
        known.append(f"{100 * data['label_noise']:g} % of the training labels are wrong, at random")
    return {
        "Data": "; ".join(filter(None, [f"{data['name']} from {data['origin']}: {sizes}{stand_in}", *known])),
        **more,
        "Command": shlex.join([*experiment.program().split(), *sys.argv[1:]]),
    }


def publish(
    out: Path,
    content: Content,
    *,
    title: str,
    lead: str,
    made: Mapping[str, str],
    found: Sequence[Verdict] = (),
    quiet: bool = False,
) -> Path:
    """Write the page and its figures as PNG and PDF; print findings and verdicts unless `quiet`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, illustration in content.figures.items():
        for ending in ("png", "pdf"):
            plots.save(illustration.figure, out / f"{name}.{ending}")
    page = report.write_report(
        out / "report.html",
        title=title,
        lead=lead,
        findings=content.findings,
        verdicts=found,
        figures=list(content.figures.values()),
        tables=content.tables,
        made_how=made,
    )
    if not quiet:
        _show(content.findings, found, page)
    return page


def judged(
    out: Path,
    claims: Sequence[Claim],
    measured: Measured,
    make: Callable[[Measured], Content],
    *,
    title: str,
    lead: str,
    made: Mapping[str, str],
    exact: Sequence[Verdict] = (),
    quiet: bool = False,
) -> list[Verdict]:
    """Judge records and write verdicts and page: no network is looked at, so that a stored study takes a second."""
    found, behind = judge(claims, measured)
    found = [*found, *exact]
    out.mkdir(parents=True, exist_ok=True)
    write_evidence(out / "verdicts.json", claims, found, behind)
    publish(out, make(measured), title=title, lead=lead, made=made, found=found, quiet=quiet)
    return found


def _show(findings: Sequence[str], found: Sequence[Verdict], page: Path) -> None:
    write = sys.stdout.write
    for text in findings:
        write(f"* {text}\n")
    if found:
        write(f"\n{report.verdicts_text(found)}\n\n")
    write(f"In a browser: {page}\n")
