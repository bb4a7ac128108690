"""Claims as data: a sentence, comparisons of what arms were measured by, and a rule."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ls_keras import files, verdicts
from ls_keras.analysis import intervals
from ls_keras.analysis.intervals import Interval, Variances
from ls_keras.study.records import Measured, seeds_in_common
from ls_keras.verdicts import Verdict

import numpy as np

FORMAT = "ls_keras verdicts 1"


@dataclasses.dataclass(frozen=True)
class Term:
    """A quantity of an arm: `Term("hard targets", "accuracy")`."""

    arm: str
    quantity: str


@dataclasses.dataclass(frozen=True)
class Comparison:
    """first − second, paired by seed and by example, positive where it speaks for the claim.

    Attributes:
        first: A quantity.
        second: What is subtracted; None for the quantity itself.
        at: The setting, for example "α = 0.3", where a claim is judged at several.
        relative: Compare 1 − second ÷ first instead, for quantities that are no means over examples.
    """

    first: Term
    second: Term | None = None
    at: str = ""
    relative: bool = False


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim and what decides it.

    Attributes:
        id: Its short name, for example "C5".
        sentence: The claim.
        measure: What is measured, with its unit and what is subtracted from what.
        comparisons: One for each setting at which it is judged; none if it cannot be, with the reason as `note`.
        margin: The loss that counts as none, fixed before anything was measured.
        somewhere: Whether one setting is enough.
        paper: The paper's own value.
        note: What a reader must know.
    """

    id: str
    sentence: str
    measure: str
    comparisons: tuple[Comparison, ...]
    margin: float = 0.0
    somewhere: bool = False
    paper: str = ""
    note: str = ""


def interval(measured: Measured, comparison: Comparison) -> Interval:
    """Return the 95 % interval of a comparison.

    What is a mean over examples gets an interval over seeds and examples, crossed; the rest one over seeds.

    Raises:
        KeyError: An arm or quantity that was not measured.
        ValueError: Fewer than two seeds in common, or differences that say nothing.
    """
    terms = [term for term in (comparison.first, comparison.second) if term is not None]
    common = seeds_in_common(measured, [term.arm for term in terms])
    records = [[record for record in measured.of(term.arm) if record.seed in common] for term in terms]
    values = [
        np.array([record.values[term.quantity] for record in each]) for term, each in zip(terms, records, strict=True)
    ]
    parts = [[record.examples.get(term.quantity) for record in each] for term, each in zip(terms, records, strict=True)]
    if comparison.relative:
        return intervals.over_seeds(1 - values[1] / values[0])
    value = values[0] - values[1] if len(terms) == 2 else values[0]
    if any(part is None for each in parts for part in each):
        return intervals.over_seeds(value)
    rows = np.stack(parts[0]) - (np.stack(parts[1]) if len(terms) == 2 else 0.0)
    quantity = comparison.first.quantity
    step = 1 / rows.shape[1] if quantity == "accuracy" else 0.0
    return intervals.crossed(rows, values=value, step=step, heavy_tails=quantity.startswith("nll"))


def judge(claims: Sequence[Claim], measured: Measured) -> tuple[list[Verdict], dict[str, dict[str, Interval]]]:
    """Return a verdict for each claim, and the intervals behind it by setting.

    A setting of which a network has no value is left out, and the verdict's note says why; a claim without any other
    is not judged.
    """
    found: list[Verdict] = []
    behind: dict[str, dict[str, Interval]] = {}
    for claim in claims:
        if not claim.comparisons:
            found.append(verdicts.not_run(claim.id, claim.sentence, claim.measure, claim.note))
            continue
        missing = {each: reason for each in claim.comparisons if (reason := _missing(measured, each))}
        note = "; ".join(filter(None, [claim.note, *missing.values()]))
        if len(missing) == len(claim.comparisons):
            found.append(verdicts.not_run(claim.id, claim.sentence, claim.measure, note))
            continue
        behind[claim.id] = {each.at: interval(measured, each) for each in claim.comparisons if each not in missing}
        found.append(_verdict(dataclasses.replace(claim, note=note), behind[claim.id]))
    return found, behind


def _missing(measured: Measured, comparison: Comparison) -> str:
    """Say which seeds of which arm have no value of what is compared; nothing, if all have."""
    terms = [term for term in (comparison.first, comparison.second) if term is not None]
    common = seeds_in_common(measured, [term.arm for term in terms])
    for term in terms:
        without = [
            record.seed
            for record in measured.of(term.arm)
            if record.seed in common and np.isnan(record.values[term.quantity])
        ]
        if without:
            where = f"{comparison.at}: " if comparison.at else ""
            return (
                f"{where}not judged, since {term.arm} has no “{term.quantity}” with seed {', '.join(map(str, without))}"
            )
    return ""


def write_evidence(
    path: Path, claims: Sequence[Claim], found: Sequence[Verdict], behind: Mapping[str, Mapping[str, Interval]]
) -> None:
    """Write each claim's estimates, variance components and third moments, from which `rejudge` judges it again."""
    marks = dict(zip((verdict.id for verdict in found), verdicts.survivors(found), strict=True))
    texts = {claim.id: claim for claim in claims}
    content = []
    for verdict in found:
        plain = verdict.to_dict()
        if verdict.id in texts:
            plain |= {"margin": texts[verdict.id].margin, "somewhere": texts[verdict.id].somewhere}
        for setting, survives in zip(plain["settings"], marks[verdict.id], strict=True):
            setting["survives_holm"] = survives
            if verdict.id in behind:
                setting["variances"] = behind[verdict.id][setting["at"]].variances._asdict()
        content.append(plain)
    files.replace(path, json.dumps({"format": FORMAT, "verdicts": content}, indent=1, ensure_ascii=False) + "\n")


def rejudge(path: Path) -> list[Verdict]:
    """Judge again what `write_evidence` has written.

    Raises:
        ValueError: Another format, or a damaged file.
    """
    plain = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(plain, dict) or plain.get("format") != FORMAT:
        kind = plain.get("format") if isinstance(plain, dict) else type(plain).__name__
        raise ValueError(f"{path} has the format {kind!r}, and this version of ls_keras reads {FORMAT!r}.")
    return [_again(each) for each in plain["verdicts"]]


def _again(plain: dict[str, Any]) -> Verdict:
    texts = {name: plain[name] for name in ("id", "claim", "measure", "paper")}
    behind = {
        setting["at"]: Interval(
            setting["estimate"],
            setting["low"],
            setting["high"],
            verdicts.CONFIDENCE,
            plain["num_seeds"],
            plain["num_examples"],
            Variances(**setting["variances"]),
        )
        for setting in plain["settings"]
        if "variances" in setting
    }
    if not behind:  # an exact check, or not run
        settings = tuple(
            verdicts.Setting(each["at"], each["estimate"], each["low"], each["high"], each["outcome"])
            for each in plain["settings"]
        )
        return Verdict(**texts, outcome=plain["outcome"], settings=settings, note=plain["note"])
    again = verdicts.judge(**texts, intervals=behind, margin=plain["margin"], somewhere=plain["somewhere"])
    return Verdict(**{**vars(again), "note": plain["note"]})


def _verdict(claim: Claim, behind: Mapping[str, Interval]) -> Verdict:
    return verdicts.judge(
        claim.id,
        claim.sentence,
        claim.measure,
        behind,
        margin=claim.margin,
        somewhere=claim.somewhere,
        paper=claim.paper,
        note=claim.note,
    )
