"""Write the tables of results/ from the studies' records, or check that they are what the records say.

    python results/tables.py            # after a study was added to studies.json
    python results/tables.py --check    # exit code 1 and the file's name where a table differs

Reads `verdicts.json` and `measured.json` alone, no network and no arrays. Every number in the studies' README.md, in
should_i_smooth.md and in results/README.md below the line that says so is written here.
"""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

HERE = Path(__file__).parent
MARK = "<!-- below: written by results/tables.py -->\n"
HARD = "hard targets"
# Where the paper has a number for what is measured here, and on which data.
PAPER = {
    ("accuracy", HARD): "72.1 ± 0.3 % (CIFAR-100, ResNet-56, Table 2)",
    ("accuracy", "α = 0.1"): "72.7 ± 0.3 % (CIFAR-100, ResNet-56, Table 2)",
    ("ece", HARD): "0.150 (CIFAR-100, ResNet-56, Table 3)",
    ("ece at temperature", HARD): "0.021, T = 1.9 (CIFAR-100, ResNet-56, Table 3)",
    ("ece", "α = 0.05"): "0.024 (CIFAR-100, ResNet-56, Table 3)",
    ("error", "A.5: dropout teacher"): "0.67 % (MNIST, A.5)",
    ("error", "α = 0.1"): "0.59 % (MNIST, A.5)",
    ("error", "A.5: student of the dropout teacher"): "0.74 % (MNIST, A.5)",
    ("error", "A.5: student of the smoothed teacher"): "0.91 % (MNIST, A.5)",
}
# What is set of every kind of network, and what readers call it.
LEVELS = {
    "accuracy": "accuracy",
    "nll at temperature": "NLL at the fitted T",
    "overconfidence": "confidence − accuracy",
    "bias-reduced ece": "ECE at T = 1",
    "bias-reduced ece at temperature": "ECE at the fitted T",
    "temperature": "fitted T",
}
MOMENTS = {
    "information, start": "start",
    "information, training accuracy 0.95": "at 0.95",
    "information, training accuracy 0.999": "at 0.999",
    "information, end": "end",
    "steps to training accuracy 0.95": "steps to 0.95",
    "steps to training accuracy 0.999": "steps to 0.999",
}
OUTCOMES = ("holds", "changes sign", "does not hold", "undecided", "not run")


class Study:
    """The records of one folder."""

    def __init__(self, folder: str, about: dict[str, Any]) -> None:
        self.folder, self.about = folder, about
        self.verdicts = json.loads((HERE / folder / "verdicts.json").read_text(encoding="utf-8"))["verdicts"]
        self.measured = json.loads((HERE / folder / "measured.json").read_text(encoding="utf-8"))
        self.networks = self.measured["networks"]

    @property
    def arms(self) -> list[str]:
        """Return the kinds of networks, in the order of training."""
        return list(dict.fromkeys(network["arm"] for network in self.networks))

    def values(self, arm: str, name: str, kind: str = "values") -> list[float]:
        """Return a number of an arm, one for each seed that has it."""
        found = [network[kind].get(name) for network in self.networks if network["arm"] == arm]
        return [math.nan if value is None else value for value in found]

    def verdict(self, name: str) -> dict[str, Any]:
        """Return a claim's verdict; one that was not run where it is not there."""
        return next((each for each in self.verdicts if each["id"] == name), {"outcome": "not run", "settings": []})


def number(value: float, half_width: float) -> str:
    """Set a number with as many decimals as show two digits of its half width."""
    decimals = max(0, 1 - math.floor(math.log10(half_width))) if half_width > 0 else 4
    return f"{value:.{decimals}f}".replace("-", "−")


def level(values: Sequence[float], scale: float = 1.0, unit: str = "") -> str:
    """Set the mean ± standard deviation over seeds."""
    known = [scale * value for value in values]
    if not known:
        return ""
    if any(map(math.isnan, known)):
        return f"never in {sum(map(math.isnan, known))} of {len(known)}"
    spread = statistics.stdev(known) if len(known) > 1 else 0.0
    return f"{number(statistics.mean(known), spread)} ± {number(spread, spread)}{unit}"


def setting(each: dict[str, Any]) -> str:
    """Set an estimate with its interval, marked where it survives Holm's correction."""
    half_width = max(each["high"] - each["estimate"], each["estimate"] - each["low"])
    star = " \\*" if each.get("survives_holm") else ""
    at = f"{each['at']}: " if each["at"] else ""
    if not half_width:
        return f"{at}{each['estimate']:.1e} (exact)"
    estimate, low, high = (number(each[name], half_width) for name in ("estimate", "low", "high"))
    return f"{at}{estimate} [{low}, {high}]{star}"


def settings(verdict: dict[str, Any]) -> str:
    """Set all settings of a verdict in one cell."""
    return "; ".join(map(setting, verdict["settings"]))


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Set a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines) + "\n"


def page(study: Study) -> str:
    """Return the README of a study's folder."""
    about, made, data = study.about, study.measured["made"], study.measured["data"]
    seeds = sorted({network["seed"] for network in study.networks})
    trained = sum(network["seconds"] for network in study.networks) / 3600
    splits = data["splits"]
    parts = [
        f"# {about['title']}\n",
        f"`{about['command']}`: {len(study.networks)} networks of {len(study.arms)} kinds, seeds {seeds[0]} to "
        f"{seeds[-1]}; {data['name']}, {splits['train']:,} training and {splits['held_out']:,} held-out examples. "
        f"{made['Versions']}; {made['Machine']}; {about['machine']}. {trained:.2f} hours of training, "
        "all networks added up, beside other work. What was asked and predicted: [../README.md](../README.md).\n",
        "## Verdicts\n",
        "Estimates with 95 % intervals, positive where they speak for the claim; of accuracy, confidence, NLL and ECE "
        "over seeds and examples, of the others over seeds. \\* survives Holm's correction for the number of tests.\n",
        table(
            ["claim", "measured", "paper", f"ours, on {about['on']}", "verdict"],
            [
                [
                    f"{each['id']} {each['claim']}",
                    each["measure"] + (f" ({each['note']})" if each["settings"] and each["note"] else ""),
                    each["paper"] or "no number",
                    settings(each) or f"not judged: {each['note']}",
                    f"**{each['outcome']}**",
                ]
                for each in study.verdicts
            ],
        ),
        "## The paper's numbers\n",
        "Mean ± standard deviation over seeds; ECE is the plug-in value of 15 bins, as in the paper.\n",
        table(["", "paper", f"ours, on {about['on']}"], _beside_paper(study)),
        "## Every kind of network\n",
        "Held-out; mean ± standard deviation over seeds; ECE is bias-reduced, NLL in nats, γ how soft a student's "
        "targets are.\n",
        table(["network", "γ", *LEVELS.values()], [_levels(study, arm) for arm in study.arms]),
    ]
    observed = [arm for arm in study.arms if not all(map(math.isnan, study.values(arm, "information, end")))]
    if observed:
        parts += [
            "## Mutual information\n",
            "Nats, at the start, when training accuracy is first observed at 0.95 and 0.999, and at the end; mean ± "
            "standard deviation over seeds.\n",
            table(
                ["network", *MOMENTS.values()],
                [[arm, *(level(study.values(arm, name)) for name in MOMENTS)] for arm in observed],
            ),
        ]
    figures = sorted(path.name for path in (HERE / study.folder).glob("figure_*.png"))
    parts += [
        f"![The paper's {name[:-4].replace('f', 'F').replace('_', ' ')}, on these data]({name})\n" for name in figures
    ]
    return "\n".join(parts)


def _beside_paper(study: Study) -> list[list[str]]:
    names = {"accuracy": "accuracy", "ece": "ECE, T = 1", "ece at temperature": "ECE, T fitted", "error": "error"}
    rows = []
    for (name, arm), paper in PAPER.items():
        if arm not in study.arms or (name == "error" and "A.5: dropout teacher" not in study.arms):
            continue
        values = study.values(arm, "accuracy" if name == "error" else name)
        values = [1 - value for value in values] if name == "error" else values
        percent = name in ("accuracy", "error")
        ours = level(values, 100, " %") if percent else level(values)
        rows.append([f"{names[name]}, {arm}", paper, ours])
    return rows


def _levels(study: Study, arm: str) -> list[str]:
    gamma = [value for value in study.values(arm, "gamma", "facts") if not math.isnan(value)]
    return [arm, f"{statistics.mean(gamma):.3f}" if gamma else "", *(level(study.values(arm, name)) for name in LEVELS)]


def overview(studies: dict[str, Study]) -> str:
    """Return what results/README.md holds below its mark."""
    return "\n".join(
        [
            "## What was found\n",
            "Verdicts of each study; its page has every number.\n",
            table(
                ["study", "networks", "hours of training", *OUTCOMES],
                [
                    [
                        f"[{study.about['title']}]({folder}/README.md)",
                        str(len(study.networks)),
                        f"{sum(network['seconds'] for network in study.networks) / 3600:.2f}",
                        *(
                            ", ".join(each["id"] for each in study.verdicts if each["outcome"] == name)
                            for name in OUTCOMES
                        ),
                    ]
                    for folder, study in studies.items()
                ],
            ),
            *_curves(studies),
            *_compared(studies, ("C5", "C8a", "C8c"), "Accuracy and NLL of smoothed teachers"),
            *_compared(studies, ("C9a", "C9b"), "Students of hard-target teachers against smoothed labels"),
            *_compared(studies, ("C10a", "C10c", "C10d", "C10f"), "Students of smoothed teachers"),
            *_compared(studies, ("C11a", "C11b", "C11c", "C11d"), "The four networks of A.5"),
            *_compared(studies, ("C12a", "C12b", "C12c", "C12d"), "Mutual information"),
        ]
    )


def _curves(studies: dict[str, Study]) -> list[str]:
    """Set calibration over the size of the training set."""
    arms = [HARD, "α = 0.02", "α = 0.05", "α = 0.1", "α = 0.3"]
    shown = list(studies.values())
    return [
        "### C6 on all data\n",
        "Hard targets, then ECE of every α at T = 1 (bias-reduced); mean ± standard deviation over seeds.\n",
        table(
            ["study", "confidence − accuracy", "T", "ECE at T", *(f"ECE, {arm}" for arm in arms)],
            [
                [
                    study.about["on"],
                    *(
                        level(study.values(HARD, name))
                        for name in ("overconfidence", "temperature", "bias-reduced ece at temperature")
                    ),
                    *(level(study.values(arm, "bias-reduced ece")) for arm in arms),
                ]
                for study in shown
            ],
        ),
    ]


def _compared(studies: dict[str, Study], names: Sequence[str], title: str) -> list[str]:
    shown = [study for study in studies.values() if any(study.verdict(name)["settings"] for name in names)]
    claims = {
        name: next((study.verdict(name) for study in shown if study.verdict(name)["settings"]), None) for name in names
    }
    claims = {name: claim for name, claim in claims.items() if claim}
    if not claims:
        return []
    return [
        f"### {title}\n",
        "\n".join(f"- {name}: {claim['claim']} {claim['measure']}." for name, claim in claims.items()) + "\n",
        table(
            ["study", *claims],
            [
                [
                    study.about["on"],
                    *(
                        f"**{study.verdict(name)['outcome']}** {settings(study.verdict(name))}".strip()
                        for name in claims
                    ),
                ]
                for study in shown
            ],
        ),
    ]


def advice(studies: dict[str, Study]) -> str:
    """Return the page for those who must decide: its template with each number put in."""

    def said(folder: str, claim: str, at: str, scale: float, unit: str) -> str:
        (found,) = (each for each in studies[folder].verdict(claim)["settings"] if each["at"] == at)
        ends = sorted(scale * found[name] for name in ("low", "high"))
        text = setting({"at": "", "estimate": scale * found["estimate"], "low": ends[0], "high": ends[1]})
        return text.replace(" [", f" {unit} [")

    def mean(folder: str, arm: str, name: str) -> str:
        return f"{statistics.mean(studies[folder].values(arm, name)):.3f}".replace("-", "−")

    template = (HERE / "should_i_smooth.md.jinja").read_text(encoding="utf-8")
    return jinja2.Template(template, undefined=jinja2.StrictUndefined, keep_trailing_newline=True).render(
        points=lambda folder, claim, at="", sign=1: said(folder, claim, at, 100 * sign, "points"),
        nats=lambda folder, claim, at="", sign=1: said(folder, claim, at, sign, "nats"),
        mean=mean,
    )


def written() -> dict[Path, str]:
    """Return each file and what it should hold."""
    about = json.loads((HERE / "studies.json").read_text(encoding="utf-8"))
    studies = {folder: Study(folder, each) for folder, each in about.items()}
    pages = {HERE / folder / "README.md": page(study) for folder, study in studies.items()}
    head = (HERE / "README.md").read_text(encoding="utf-8").partition(MARK)[0]
    return {
        HERE / "README.md": f"{head}{MARK}\n{overview(studies)}",
        HERE / "should_i_smooth.md": advice(studies),
        **pages,
    }


def differing() -> list[Path]:
    """Return the files that are not what the records say."""
    return [path for path, text in written().items() if not path.exists() or path.read_text(encoding="utf-8") != text]


def main(arguments: Sequence[str]) -> int:
    """Write, or with --check compare."""
    checking = "--check" in arguments
    wrong = differing()
    for path in wrong:
        print(f"{path.relative_to(HERE.parent)}{' is not what the records say' if checking else ' written'}")
        if not checking:
            path.write_text(written()[path], encoding="utf-8")
    return int(bool(wrong) and checking)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
