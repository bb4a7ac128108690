"""Figures, tables and a page about any exported networks: representations (section 2) and calibration (section 3).

    python recipes/analyse.py saved_models/mnist_mlp/digits-alpha=0.0 saved_models/mnist_mlp/digits --out analysis
    python recipes/analyse.py some/saved_model --dataset cifar10 --scaling standardize

A network is a run's folder, whose `config.json` names its data, or any SavedModel with the endpoints `serve`,
`probe` and `templates`; then the data are named here. Figure 1 sets the first network beside each other one.
"""

import functools
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ls_keras import analysis, distillation, experiment, files, plots, report
from ls_keras.analysis import calibration, geometry, information, intervals
from ls_keras.data import Images, load_images, rebuild

import numpy as np
import tensorflow as tf
import tyro
from matplotlib.figure import Figure
from scipy import special
from tqdm import tqdm

OBSERVED_PAIR = (0, 5)
MOST_NETWORKS = 6
# Examples of a split that are looked at in training.
MOST_OBSERVED = 10_000


@dataclass(frozen=True)
class Config:
    """What is analysed, and where the result goes."""

    networks: tyro.conf.Positional[tuple[Path, ...]]
    """run folders, or SavedModel folders"""
    out: Path = Path("analysis")
    """folder for report.html, statistics.json and the figures"""
    classes: tuple[int, int, int] = (0, 1, 2)
    """the three classes of Figure 1 [the paper's CIFAR-10 row shows the first three]"""
    dataset: str | None = None
    """data set, where config.json does not say"""
    train_size: int | None = None
    """training examples, where config.json does not say"""
    held_out_size: int | None = None
    """held-out examples, where config.json does not say; without any, the test set stands in"""
    scaling: Literal["standardize", "unit"] | None = None
    """of the pixels, where config.json does not say"""
    data_dir: Path | None = None
    """folder with data files, if they are not in their usual places"""
    limit: int = 50_000
    """greatest number of training examples to look at"""
    traceback: bool = False
    """show the Python traceback of an error instead of its message alone"""


@dataclass(frozen=True, eq=False)
class Network:
    """An exported network and what it makes of its training and held-out examples."""

    name: str
    kernel: np.ndarray
    bias: np.ndarray
    train: analysis.probe.Collected
    held_out: analysis.probe.Collected


@dataclass(frozen=True, eq=False)
class Statistics:
    """What `statistics` measures of a network.

    Attributes:
        values: Numbers by name.
        examples: For those that are means over held-out examples, each example's part, float64 [N]: the value is
            their mean, or in the case of ECE changes as their mean does.
    """

    values: dict[str, float]
    examples: dict[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Findings:
    """Verdicts, figures by file name, and tables, ready for a page."""

    verdicts: list[report.Verdict]
    figures: dict[str, report.Illustration]
    tables: list[report.Table]

    def __add__(self, other: "Findings") -> "Findings":
        verdicts = sorted(self.verdicts + other.verdicts, key=lambda v: int(re.search(r"\d+", v.id)[0]))
        return Findings(verdicts, self.figures | other.figures, self.tables + other.tables)


def publish(
    findings: Findings, out: Path, *, title: str, lead: str, made_how: dict[str, str], quiet: bool = False
) -> list[report.Verdict]:
    """Write the page, the figures as PNG and PDF, and the verdicts as JSON; print the verdicts unless `quiet`."""
    out.mkdir(parents=True, exist_ok=True)
    for name, illustration in findings.figures.items():
        for ending in ("png", "pdf"):
            plots.save(illustration.figure, out / f"{name}.{ending}")
    verdicts = findings.verdicts
    if verdicts:
        pairs = zip(verdicts, report.survivors(verdicts), strict=True)
        content = [verdict.to_dict() | {"survives_holm": survives} for verdict, survives in pairs]
        files.replace(out / "verdicts.json", json.dumps(content, indent=2) + "\n")
        if not quiet:
            print(report.verdicts_text(verdicts), end="\n\n")
    page = report.write_report(
        out / "report.html",
        title=title,
        lead=lead,
        verdicts=verdicts,
        figures=list(findings.figures.values()),
        tables=findings.tables,
        made_how=made_how,
    )
    if not quiet:
        print(f"In a browser: {page}")
    return verdicts


def check_folder(out: Path) -> None:
    """Refuse, before any work, a folder that `publish` could not make."""
    nearest = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise ValueError(f"The page cannot go to {out}: {nearest} is a file. Name another folder, or move it away.")
    if not os.access(nearest, os.W_OK):
        raise ValueError(f"The page cannot go to {out}: {nearest} cannot be written. Name another folder.")


def check_series(name: str, values: Sequence[float], *, below: float = 1.0, zero: bool = False) -> None:
    """Refuse a list of α or T that is empty, repeats itself or leaves the open interval (0, below)."""
    received = f"received {', '.join(map(str, values)) or 'none'}"
    if not values or not all(0 < value < below or (zero and value == 0) for value in values):
        raise ValueError(f"{name} must be {'at least' if zero else 'above'} 0 and below {below:g}; {received}.")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} must hold each number once; {received}.")


def accuracy(run: experiment.Run) -> float:
    """Return a finished run's accuracy on the held-out examples or, where there are none, on the test set."""
    return (run.metrics.get("held_out") or run.metrics["test"])["accuracy"]


def correct(run: experiment.Run) -> np.ndarray:
    """Return whether a finished run is right about each held-out or, where there are none, test example: bool [N]."""
    return run.examples("held_out" if "held_out" in run.metrics else "test").correct


def interval_text(interval: intervals.Interval) -> str:
    """Set an estimate with the half width of its interval, the wider one where tails are heavy."""
    half_width = max(interval.high - interval.estimate, interval.estimate - interval.low)
    return f"{interval.estimate:.4g} ± {half_width:.2g}".replace("-", "−")


def load(path: Path, name: str, data: Images, limit: int | None = None) -> Network:
    """Run a SavedModel over its data, without augmentation."""
    return collect(analysis.Probe(path), name, data, limit)


def collect(probe: analysis.Probe, name: str, data: Images, limit: int | None = None) -> Network:
    """Run a network over its data, without augmentation."""
    if probe.num_classes != data.num_classes:
        raise ValueError(
            f"The {probe.name} tells {probe.num_classes} classes apart, but {data.name} has {data.num_classes}."
        )
    train, held_out = (
        probe.collect(data.evaluation(split, 500), most) for split, most in (("train", limit), (_held_out(data), None))
    )
    return Network(name, probe.kernel, probe.bias, train, held_out)


def statistics(network: Network, chosen: tuple[int, int, int]) -> Statistics:
    """Return the numbers behind claims C1 to C6.

    Geometry is averaged over the planes of all classes (k, k + 1, k + 2), so that none is picked by hand. The
    temperature is fitted on each half of the held-out examples and scored on the other. ECE comes plug-in, as the
    literature reports it, and bias-reduced, as networks are compared by it.

    Args:
        network: What `load` gives.
        chosen: Two similar classes and a different one, for `geometry.continuum`.
    """
    logits, labels = network.held_out.logits, network.held_out.labels
    halves = calibration.cross_fitted(logits, labels)
    confidence, correct = calibration.top_label(logits, labels)
    examples = {"accuracy": correct.astype(float), "overconfidence": confidence - correct}
    means, ece, reduced = {name: float(rows.mean()) for name, rows in examples.items()}, {}, {}
    for at, temperature in (("", 1.0), (" at temperature", halves.temperature)):
        means["nll" + at] = calibration.negative_log_likelihood(logits, labels, temperature=temperature)
        examples["nll" + at] = _negative_log_likelihoods(logits, labels, temperature)
        ece["ece" + at] = calibration.expected_calibration_error(logits, labels, temperature=temperature)
        name = "bias-reduced ece" + at
        reduced[name], examples[name] = calibration.calibration_contributions(logits, labels, temperature=temperature)
    planes = {split: _plane_statistics(network, split) for split in ("train", "held_out")}
    return Statistics(
        {
            **means,
            **reduced,
            **ece,
            "reliability slope": calibration.reliability(logits, labels).slope,
            "temperature": float(np.mean([fit.temperature for fit in halves.fits])),
            "continuum": geometry.continuum(network.train.logits, network.train.labels, chosen[:2], chosen[2]),
            **{f"{n}, {split.replace('_', '-')}": value for split in planes for n, value in planes[split].items()},
        },
        examples,
    )


def crossed(
    first: Sequence[Statistics], name: str, second: Sequence[Statistics] = (), other: str = ""
) -> intervals.Interval:
    """Return the interval over seeds and examples of a quantity, or of how much it is above another one.

    Args:
        first: `statistics` of each seed.
        name: One of the quantities in `examples`.
        second: What is subtracted, paired by seed and by example; none for the quantity itself.
        other: The quantity that is subtracted, if not the same one.
    """
    values, rows = _by_seed(first, name)
    if second:
        values, rows = (one - less for one, less in zip((values, rows), _by_seed(second, other or name), strict=True))
    step = 1 / rows.shape[1] if name == "accuracy" else 0.0
    return intervals.crossed(rows, values=values, step=step, heavy_tails=name.startswith("nll"))


def similar_classes(network: Network) -> tuple[int, int, int]:
    """Return the two most similar classes and the one most different from both, by a network's class means."""
    num_classes = network.kernel.shape[1]
    means = geometry.class_means(network.train.penultimate, network.train.labels, num_classes)
    return geometry.similar_and_different(means)


def observe(probe: analysis.Probe, data: Images) -> dict[str, float]:
    """Return what Figure 6 follows through training: mutual information, tightness, γ and ECE.

    Mutual information is between up to 300 training examples of each of the classes 0 and 5 (airplane and dog on
    CIFAR-10, as in the paper) and the difference of these two logits under augmentation, by 20 draws for the means and
    5 fresh ones; nothing is drawn where training images are not augmented.
    """
    datasets = _observed(data)
    train, held_out = (probe.collect(datasets[split], limit=MOST_OBSERVED) for split in ("train", "held_out"))
    network = Network("", probe.kernel, probe.bias, train, held_out)
    seen = {
        "tightness": _plane_statistics(network, "train")["spread over distance of centres"],
        "gamma": distillation.equivalent_smoothing(train.logits, train.labels),
        "held_out_ece": calibration.expected_calibration_error(held_out.logits, held_out.labels),
    }
    if not data.augmented:
        return seen
    draws, fresh = (probe.logit_differences(datasets[name], OBSERVED_PAIR) for name in ("draws", "fresh"))
    bracket = information.mutual_information(draws, fresh)
    paper = information.mutual_information(draws[:, :5])
    return {
        **seen,
        "information": bracket.corrected,
        "information_low": bracket.lower_bound,
        "information_high": bracket.same_draws,
        "information_paper": paper.same_draws,
    }


@functools.lru_cache(maxsize=1)
def _observed(data: Images) -> dict[str, tf.data.Dataset]:
    """Build what `observe` reads: once for a network, and kept in memory, since building takes longer than reading."""
    batches = -(-MOST_OBSERVED // 500)
    datasets = {split: data.evaluation(split, 500).take(batches) for split in ("train", _held_out(data))}
    datasets["held_out"] = datasets.pop(_held_out(data))
    if data.augmented:
        labels = data.labels("train")
        rows = np.concatenate([np.flatnonzero(labels == label)[:300] for label in OBSERVED_PAIR])
        for name, number, seed in (("draws", 20, 0), ("fresh", 5, 1)):
            datasets[name] = data.draws(rows, number, seed=seed, batch_size=500)
    return {name: dataset.cache() for name, dataset in datasets.items()}


def _held_out(data: Images) -> str:
    return "held_out" if data.size("held_out") else "test"


def information_through_training(runs: Sequence[experiment.Run]) -> dict[str, np.ndarray]:
    """Return the observed steps [P], and mutual information [seed, P] in nats: estimate, low and high."""
    histories = [run.history() for run in runs]
    names = ("information", "information_low", "information_high")
    if not all(name in history for history in histories for name in names):
        raise ValueError(f"{runs[0].folder} was not observed in training: set observe_every, and augment the images.")
    seen = ~np.isnan([history["information"] for history in histories]).any(axis=0)
    return {"steps": histories[0]["step"][seen], **{n: np.array([h[n][seen] for h in histories]) for n in names}}


def information_figure(networks: dict[str, dict[str, np.ndarray]], data: Images) -> report.Illustration:
    """Draw Figure 6 from what `information_through_training` gives for each kind of network."""
    labels, (first, second) = data.labels("train"), OBSERVED_PAIR
    examples = sum(min(300, int((labels == label).sum())) for label in OBSERVED_PAIR)
    curves = []
    for name, seen in networks.items():
        # Of few examples the bound from fresh draws can come out above the estimate: both are noisy.
        three = np.stack([seen[key].mean(axis=0) for key in ("information", "information_low", "information_high")])
        curves.append(plots.InformationCurve(name, seen["steps"], three[0], three.min(axis=0), three.max(axis=0)))
    return report.Illustration(
        plots.information_figure(curves, examples),
        f"The paper's Figure 6: mutual information between {examples} examples of {data.class_names[first]} and "
        f"{data.class_names[second]} and the difference of these two logits under augmentation, mean over seeds. The "
        "band runs from the lower bound by fresh draws to the upward-biased estimate by the same draws.",
        "Mutual information over training steps, curves with bands.",
    )


def plane_panels(network: Network, classes: Sequence[int], *, with_bias: bool = False) -> list[plots.PlanePanel]:
    """Return the train and the held-out panel of Figure 1, with up to 100 examples of each class as in the paper."""
    plane = geometry.template_plane(network.kernel, network.bias, classes, with_bias=with_bias)
    panels = []
    for part in (network.train, network.held_out):
        rows = np.concatenate([np.flatnonzero(part.labels == label)[:100] for label in classes])
        position = np.searchsorted(np.sort(classes), part.labels[rows])
        panels.append(
            plots.PlanePanel(plane.project(part.penultimate[rows]), np.argsort(classes)[position], plane.templates)
        )
    return panels


def reliability_curve(
    name: str, networks: Sequence[Network], *, fitted: bool = False, num_bins: int = 15
) -> plots.ReliabilityCurve:
    """Return a curve of Figure 2 over the held-out examples of all networks, at T = 1 or at fitted temperatures."""
    logits = np.concatenate([network.held_out.logits for network in networks])
    labels = np.concatenate([network.held_out.labels for network in networks])
    temperature: Any = 1.0
    if fitted:
        halves = [calibration.cross_fitted(n.held_out.logits, n.held_out.labels) for n in networks]
        temperature = np.concatenate([half.temperature for half in halves])
    bins = calibration.reliability(logits, labels, num_bins=num_bins, temperature=temperature)
    return plots.ReliabilityCurve(name, bins.confidence, bins.accuracy, bins.count, bins.ece)


def made_how(data: Images, **more: str) -> dict[str, str]:
    """Return what a reader needs to make a page again."""
    held_out, test = (data.size(split) for split in ("held_out", "test"))
    sizes = f"{data.num_train:,} training, {held_out:,} held-out and {test:,} test examples"
    stand_in = "" if held_out else "; what is called held-out is the test set"
    versions = {module: sys.modules[module].__version__ for module in ("tensorflow", "keras", "numpy")}
    return {
        "Data": f"{data.name} from {data.origin}: {sizes}{stand_in}",
        **more,
        "Command": " ".join(["python", *sys.argv]),
        "Versions": ", ".join(f"{module} {version}" for module, version in versions.items()),
        "Machine": f"{platform.machine()}, {platform.system()}, Python {platform.python_version()}",
    }


def run(config: Config) -> None:
    """Analyse the networks and write the page."""
    _check(config)
    probes = [analysis.Probe(_saved_model(path)) for path in config.networks]
    data = _common_data(config)
    pairs = zip(probes, _names(config.networks), strict=True)
    shown = tqdm(pairs, total=len(probes), desc="networks", unit="network", leave=False)
    networks = [collect(probe, name, data, config.limit) for probe, name in shown]
    chosen = similar_classes(networks[0])
    measured = {network.name: statistics(network, chosen).values for network in networks}
    config.out.mkdir(parents=True, exist_ok=True)
    files.replace(config.out / "statistics.json", json.dumps(measured, indent=2) + "\n")
    similar = f"{data.class_names[chosen[0]]} and {data.class_names[chosen[1]]}"
    findings = Findings(
        [],
        {
            "figure_1": report.Illustration(
                _planes(networks, config.classes, data.class_names),
                "Penultimate activations on the plane through three templates (stars).",
                "Scatter plots of three classes in the template plane.",
            ),
            "figure_2": report.Illustration(
                plots.reliability_figure([reliability_curve(network.name, [network]) for network in networks]),
                "Accuracy over confidence of the held-out examples; on the dashed line a network is calibrated.",
                "Reliability diagrams with the number of examples in each bin.",
            ),
        },
        [_table(measured), _calibration_table(networks)],
    )
    publish(
        findings,
        config.out,
        title=f"Representations and calibration on {data.name}",
        lead=f"{len(networks)} exported network{'s' if len(networks) > 1 else ''}, each run over its training and "
        "held-out examples without augmentation.",
        made_how=made_how(
            data,
            Classes=f"similar pair {similar}, different class {data.class_names[chosen[2]]}, chosen by the class "
            f"means of {networks[0].name}",
        ),
    )


def _check(config: Config) -> None:
    """Refuse what needs no data to be refused."""
    if not 1 <= len(config.networks) <= MOST_NETWORKS:
        raise ValueError(
            f"received {len(config.networks)} networks: give one to {MOST_NETWORKS} run or SavedModel folders, as "
            "many as a figure can tell apart."
        )
    folders = [_saved_model(path).resolve() for path in config.networks]
    if len(set(folders)) < len(folders):
        raise ValueError(f"networks must be different ones; received {', '.join(map(str, config.networks))}.")
    if len(set(config.classes)) < len(config.classes):
        raise ValueError(f"classes must be three different ones; received {config.classes}.")
    if config.limit < 1:
        raise ValueError(f"limit must be at least 1; received {config.limit}.")
    check_folder(config.out)


def _common_data(config: Config) -> Images:
    """Load the data that all networks share; refuse classes that they do not have."""
    data = _data(config.networks[0], config)
    for path in config.networks[1:]:
        if _data(path, config).fingerprint != data.fingerprint:
            raise ValueError(
                f"{path} was trained on other data than {config.networks[0]}: compare networks of one data set."
            )
    if not all(0 <= label < data.num_classes for label in config.classes):
        raise ValueError(
            f"classes must be from 0 to {data.num_classes - 1}, those of {data.name}; received {config.classes}."
        )
    seen = len(set(data.labels("train")[: config.limit]))
    if seen < data.num_classes:
        raise ValueError(
            f"The first {config.limit} training examples show {seen} of the {data.num_classes} classes of {data.name}: "
            "raise --limit."
        )
    return data


def _names(paths: Sequence[Path]) -> list[str]:
    names = [(path.parent if path.name == "saved_model" else path).name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _saved_model(path: Path) -> Path:
    return path / "saved_model" if (path / "saved_model" / "saved_model.pb").exists() else path


def _data(path: Path, config: Config) -> Images:
    """Load the data that a network's `config.json` describes or, where it does not say, the command line."""
    folder = path.parent if path.name == "saved_model" else path
    described = None
    if (folder / "config.json").exists():
        try:
            described = json.loads((folder / "config.json").read_text()).get("data")
        except (ValueError, AttributeError) as problem:
            raise ValueError(
                f"{folder / 'config.json'} is damaged ({problem}). Move it away, and give --dataset and --scaling."
            ) from problem
    given = {name: getattr(config, name) for name in ("dataset", "train_size", "held_out_size", "scaling")}
    given = {name: value for name, value in given.items() if value is not None}
    if described:
        was = {**described, "dataset": described.get("name")}
        differing = [
            f"{name} {value} and not {was.get(name)}" for name, value in given.items() if was.get(name) != value
        ]
        if differing:
            raise ValueError(
                f"{folder} was trained with other data than the command line names: {', '.join(differing)}. Leave "
                "these options out; its config.json holds them."
            )
        return rebuild(described, config.data_dir)
    if not {"dataset", "scaling"} <= set(given):
        raise ValueError(f"{folder} has no config.json that describes its data: give --dataset and --scaling.")
    return load_images(given.pop("dataset"), data_dir=config.data_dir, **given)


def _by_seed(measured: Sequence[Statistics], name: str) -> tuple[np.ndarray, np.ndarray]:
    return np.array([each.values[name] for each in measured]), np.stack([each.examples[name] for each in measured])


def _negative_log_likelihoods(logits: np.ndarray, labels: np.ndarray, temperature: float | np.ndarray) -> np.ndarray:
    scaled = logits.astype(float) / np.reshape(temperature, (-1, 1))
    return special.logsumexp(scaled, axis=1) - np.take_along_axis(scaled, labels[:, None], axis=1)[:, 0]


def _plane_statistics(network: Network, split: Literal["train", "held_out"]) -> dict[str, float]:
    part: analysis.probe.Collected = getattr(network, split)
    num_classes = network.kernel.shape[1]
    rows = [np.flatnonzero(part.labels == label) for label in range(num_classes)]
    each = []
    for first in range(num_classes):
        classes = [(first + step) % num_classes for step in range(3)]
        plane = geometry.template_plane(network.kernel, network.bias, classes)
        shown = np.concatenate([rows[label] for label in classes])
        points, labels = plane.project(part.penultimate[shown]), part.labels[shown]
        centres = geometry.cluster_centres(points, labels, plane)
        each.append(
            {
                "spread over distance of centres": geometry.tightness(points, labels, plane, reference=centres),
                "spread over distance of templates": geometry.tightness(points, labels, plane),
                "variation of edges": geometry.triangle_regularity(centres).edge_variation,
                "mean distance from the origin": geometry.scale(points, labels, plane),
            }
        )
    return {name: float(np.mean([values[name] for values in each])) for name in each[0]}


def _planes(networks: Sequence[Network], classes: Sequence[int], class_names: Sequence[str]) -> Figure:
    names = [class_names[label] for label in classes]
    first = networks[0]
    if len(networks) == 1:
        panels = plane_panels(first, classes) + plane_panels(first, classes, with_bias=True)
        return plots.template_plane_figure(panels, names, pair_titles=("templates without bias", "templates with bias"))
    panels = [panel for other in networks[1:] for network in (first, other) for panel in plane_panels(network, classes)]
    if len(networks) == 2:
        return plots.template_plane_figure(panels, names, pair_titles=(first.name, networks[1].name))
    rows = [other.name for other in networks[1:]]
    return plots.template_plane_figure(panels, names, row_names=rows, pair_titles=(first.name, "the row's network"))


def _table(measured: dict[str, dict[str, float]]) -> report.Table:
    header = ["quantity", *measured]
    rows = [[name, *(values[name] for values in measured.values())] for name in next(iter(measured.values()))]
    return report.Table("What was measured; NLL in nats, distances in the units of the activations.", header, rows)


def _calibration_table(networks: Sequence[Network]) -> report.Table:
    rows = []
    for network in networks:
        logits, labels = network.held_out.logits, network.held_out.labels
        ece, root_mean_square = (calibration.calibration_interval(logits, labels, norm=norm) for norm in ("l1", "l2"))
        rows.append(
            [
                network.name,
                calibration.expected_calibration_error(logits, labels),
                f"{ece.low:.4f} to {ece.high:.4f}",
                calibration.adaptive_calibration_error(logits, labels),
                calibration.debiased_calibration_error(logits, labels),
                f"{root_mean_square.low:.4f} to {root_mean_square.high:.4f}",
            ]
        )
    header = ["network", "ECE", "95 % interval", "ECE, equal-mass bins", "debiased L2 error", "95 % interval"]
    caption = "Calibration errors of the held-out examples, 15 bins; the intervals cover fresh examples of one network."
    return report.Table(caption, header, rows)


if __name__ == "__main__":
    chosen = tyro.cli(Config, description=__doc__)
    with experiment.messages(chosen.traceback):
        run(chosen)
