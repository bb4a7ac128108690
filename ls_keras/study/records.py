"""What the networks of a study were measured by, in memory and on disk: all that judging needs.

`measured.json` holds numbers, curves and configs, `measured.npz` beside it what has one value for each example, tied to
it by a digest. Together they are a few megabytes, and belong to no machine.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ls_keras import files

import numpy as np

FORMAT = "ls_keras study 1"
# What is new lies beside until `measured.json` names its digest: a kill leaves one that fits.
_ARRAYS, _NEXT = "measured.npz", "measured.next.npz"


class _Misfit(ValueError):
    """`measured.json` and the arrays beside it do not belong together."""


@dataclass(frozen=True, eq=False)
class Record:
    """What one network was measured by.

    Attributes:
        arm: The arm that it belongs to.
        seed: Its seed.
        plan: Digest of everything that it was made by and measured with; another plan is another network.
        config: The fields of its recipe's Config, as JSON.
        facts: Numbers that its arm was given or computed before training, such as `alpha`, `gamma`, `temperature`.
        values: Numbers by name.
        examples: Values of each held-out example by name, float64 [N].
        curves: Numbers through training by name, float64 [P]; `steps` is one.
        arrays: What figures show, by name.
        seconds: Training time of the network on its machine.
        folder: Where the network lies, below the working folder of the machine that trained it.
    """

    arm: str
    seed: int
    plan: str
    config: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, float] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    curves: dict[str, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: float = math.nan
    folder: str = ""


@dataclass(frozen=True, eq=False)
class Measured:
    """All records of a study.

    Attributes:
        study: Its name.
        config: The study's own Config, as JSON.
        data: What the data are: `name`, `class_names`, `splits` with sizes, `origin`.
        made: Versions and machine.
        records: In any order.
    """

    study: str
    config: dict[str, Any]
    data: dict[str, Any]
    made: dict[str, str]
    records: tuple[Record, ...]

    def seeds(self, arm: str) -> list[int]:
        """Return the seeds of an arm's records, ascending."""
        return sorted(record.seed for record in self.records if record.arm == arm)

    def of(self, arm: str) -> list[Record]:
        """Return an arm's records by ascending seed.

        Raises:
            KeyError: There is none.
        """
        found = sorted((record for record in self.records if record.arm == arm), key=lambda record: record.seed)
        if not found:
            raise KeyError(arm)
        return found

    def values(self, arm: str, name: str) -> np.ndarray:
        """Return a number of an arm, float64 [seeds]."""
        return np.array([record.values[name] for record in self.of(arm)])

    def examples(self, arm: str, name: str) -> np.ndarray:
        """Return what an arm gives for each example, float64 [seeds, N]."""
        return np.stack([record.examples[name] for record in self.of(arm)])

    def facts(self, arm: str, name: str) -> np.ndarray:
        """Return what an arm was given, float64 [seeds]."""
        return np.array([record.facts[name] for record in self.of(arm)])

    def curves(self, arm: str, name: str) -> np.ndarray:
        """Return a curve of an arm, float64 [seeds, P]."""
        return np.stack([record.curves[name] for record in self.of(arm)])

    def require_all(self, arms: Sequence[str]) -> None:
        """Refuse records of which an arm or a seed is missing.

        Raises:
            ValueError: Naming the first.
        """
        seeds = sorted({record.seed for record in self.records})
        for arm in arms:
            if self.seeds(arm) != seeds:
                raise ValueError(
                    f"Of the records to join, with seeds {', '.join(map(str, seeds)) or 'none'}, {arm!r} has "
                    f"{', '.join(map(str, self.seeds(arm))) or 'none'}: run that study to its end, by the same command "
                    "as this one."
                )

    def joined(self, others: Iterable[Measured]) -> Measured:
        """Return these records and those of other seeds, measured elsewhere.

        Raises:
            ValueError: Another study or other data, or one seed twice with two results.
        """
        records = {(record.arm, record.seed): record for record in self.records}
        for other in others:
            for name in ("study", "data"):
                if _identity(getattr(self, name)) != _identity(getattr(other, name)):
                    raise ValueError(
                        f"Records of two studies cannot be judged together: {name} is {getattr(self, name)} and "
                        f"{getattr(other, name)}."
                    )
            for record in other.records:
                _require_same_kind(self.of(record.arm)[0] if self.seeds(record.arm) else record, record)
                mine = records.setdefault((record.arm, record.seed), record)
                if mine.plan != record.plan:
                    raise ValueError(
                        f"Seed {record.seed} of {record.arm!r} was measured twice, by two plans: give each machine "
                        "seeds of its own, and one version of ls_keras."
                    )
        return Measured(self.study, self.config, self.data, self.made, tuple(records.values()))


def write(measured: Measured, folder: Path) -> None:
    """Write `measured.npz` and `measured.json` with its digest; killed at any moment, it leaves a pair that fits."""
    arrays = {
        f"{record.arm}|{record.seed}|{kind}|{name}": array
        for record in measured.records
        for kind in ("examples", "arrays")
        for name, array in getattr(record, kind).items()
    }
    content = io.BytesIO()
    np.savez_compressed(content, **arrays)
    plain = {
        "format": FORMAT,
        "study": measured.study,
        "config": measured.config,
        "data": measured.data,
        "made": measured.made,
        "arrays": {"file": _ARRAYS, "sha256": hashlib.sha256(content.getvalue()).hexdigest()},
        "networks": [
            {
                "arm": record.arm,
                "seed": record.seed,
                "plan": record.plan,
                "folder": record.folder,
                "seconds": _json(record.seconds),
                "config": record.config,
                "facts": record.facts,
                "values": {name: _json(value) for name, value in record.values.items()},
                "curves": {name: [_json(value) for value in curve] for name, curve in record.curves.items()},
            }
            for record in measured.records
        ],
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files.replace(folder / _NEXT, content.getvalue())
        files.replace(folder / "measured.json", json.dumps(plain, indent=1, ensure_ascii=False) + "\n")
        (folder / _NEXT).replace(folder / _ARRAYS)
    except OSError as problem:
        raise OSError(
            f"{folder} cannot be written ({problem.strerror}). Mend that, or choose another --workdir."
        ) from problem


def read(folder: Path) -> Measured:
    """Read what `write` has written.

    Args:
        folder: A study's folder, or its `measured.json`.

    Raises:
        FileNotFoundError: There is no `measured.json`.
        ValueError: It is damaged, of another format, or `measured.npz` is not the one that it was written with.
    """
    path = folder if folder.suffix == ".json" else folder / "measured.json"
    if not path.exists():
        raise FileNotFoundError(f"There is no measured.json in {path.parent}: name the folder of a study that was run.")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        found = plain["format"]
    except (ValueError, KeyError, TypeError) as problem:
        raise ValueError(
            f"{path} is no record of a study, or damaged ({problem!r}): remove it to measure again."
        ) from problem
    if found != FORMAT:
        raise ValueError(
            f"{path} has the format {found!r}, and this version of ls_keras reads {FORMAT!r}. Use the version that "
            "wrote it, or remove it to measure again."
        )
    try:
        with np.load(io.BytesIO(_content(path, plain["arrays"]["sha256"]))) as stored:
            arrays = dict(stored)
        records = tuple(_record(network, arrays) for network in plain["networks"])
        return Measured(plain["study"], plain["config"], plain["data"], plain["made"], records)
    except _Misfit:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        raise ValueError(f"{path} is damaged ({problem!r}): remove it to measure again.") from problem


def _content(path: Path, digest: str) -> bytes:
    """Return the bytes of the arrays that a `measured.json` was written with."""
    found = [path.with_name(name) for name in (_ARRAYS, _NEXT) if path.with_name(name).exists()]
    for candidate in found:
        content = candidate.read_bytes()
        if hashlib.sha256(content).hexdigest() == digest:
            return content
    what = f"was written with another {_ARRAYS} than the one beside it" if found else f"lacks its {_ARRAYS}"
    raise _Misfit(f"{path} {what}: bring it back, or remove both to measure again.")


def _record(plain: dict[str, Any], arrays: dict[str, np.ndarray]) -> Record:
    def of(kind: str) -> dict[str, np.ndarray]:
        start = f"{plain['arm']}|{plain['seed']}|{kind}|"
        return {name.removeprefix(start): array for name, array in arrays.items() if name.startswith(start)}

    return Record(
        plain["arm"],
        plain["seed"],
        plain["plan"],
        plain["config"],
        plain["facts"],
        {name: _number(value) for name, value in plain["values"].items()},
        of("examples"),
        {name: np.array([_number(value) for value in curve]) for name, curve in plain["curves"].items()},
        of("arrays"),
        _number(plain["seconds"]),
        plain["folder"],
    )


# Fields that differ between networks of one arm, or follow from its teacher.
_OWN = ("seed", "teacher", "temperature", "alpha")


def _require_same_kind(mine: Record, other: Record) -> None:
    """Refuse to take networks of two recipes or configs for one arm."""
    kinds = [(each.folder.partition("/")[0], each.facts.get("alpha")) for each in (mine, other)]
    fields = [{name: value for name, value in each.config.items() if name not in _OWN} for each in (mine, other)]
    if kinds[0] != kinds[1] or fields[0] != fields[1]:
        differing = [name for name in fields[0] | fields[1] if fields[0].get(name) != fields[1].get(name)]
        raise ValueError(
            f"Records of two studies cannot be judged together: {mine.arm!r} differs in "
            f"{', '.join(differing) or 'its recipe or α'}. Join studies of one command, with other seeds."
        )


def _identity(value: Any) -> Any:
    """Return what makes two data sets the same: not where they lie."""
    return {name: each for name, each in value.items() if name != "origin"} if isinstance(value, dict) else value


def _json(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def seeds_in_common(measured: Measured, arms: Sequence[str]) -> list[int]:
    """Return the seeds that all these arms have."""
    return sorted(set.intersection(*(set(measured.seeds(arm)) for arm in arms)))
