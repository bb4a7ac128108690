"""Figures, tables and a page about any exported networks: representations (section 2) and calibration (section 3).

    python recipes/analyse.py saved_models/mnist_mlp/digits-alpha=0.0 saved_models/mnist_mlp/digits --out analysis
    python recipes/analyse.py some/saved_model --dataset cifar10 --scaling standardize

A network is a run's folder, whose `config.json` names its data, or any SavedModel with the endpoints `serve`,
`probe` and `templates`; then the data are named here. Figure 1 sets the first network beside each other one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ls_keras import analysis, data, experiment, files, plots, report, study
from ls_keras.analysis import calibration

import tyro
from tqdm import tqdm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_NETWORKS = 6


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


def run(config: Config) -> None:
    """Analyse the networks and write the page."""
    _check(config)
    probes = [analysis.Probe(_saved_model(path)) for path in config.networks]
    images = _common_data(config)
    pairs = zip(probes, _names(config.networks), strict=True)
    shown = tqdm(pairs, total=len(probes), desc="networks", unit="network", leave=False)
    networks = [study.collect(probe, name, images, config.limit) for probe, name in shown]
    chosen = study.similar_classes(networks[0])
    measured = {network.name: _measured(network, chosen) for network in networks}
    config.out.mkdir(parents=True, exist_ok=True)
    files.replace(config.out / "statistics.json", json.dumps(measured, indent=2) + "\n")
    similar = f"{images.class_names[chosen[0]]} and {images.class_names[chosen[1]]}"
    several = len(networks) > 1
    content = study.page.Content(
        [_finding(name, values) for name, values in measured.items()] + [_best(measured)] * several,
        {
            "figure_1": report.Illustration(
                _planes(networks, config.classes, images.class_names),
                "Penultimate activations on the plane through three templates (stars).",
                "Scatter plots of three classes in the template plane.",
                paper="Figure 1",
            ),
            "figure_2": report.Illustration(
                plots.reliability_figure([_reliability(network) for network in networks]),
                "Accuracy over confidence of the held-out examples; on the dashed line a network is calibrated.",
                "Reliability diagrams with the number of examples in each bin.",
                paper="Figure 2",
            ),
        },
        [_table(measured), _calibration_table(networks)],
    )
    study.page.publish(
        config.out,
        content,
        title=f"Representations and calibration on {images.name}",
        lead=f"{len(networks)} exported network{'s' * several}, each run over its training and held-out examples "
        "without augmentation.",
        made=study.page.made_how(
            study.about(images),
            Classes=f"similar pair {similar}, different class {images.class_names[chosen[2]]}, chosen by the class "
            f"means of {networks[0].name}",
            **study.made(),
        ),
    )


def _measured(network: study.Network, chosen: tuple[int, int, int]) -> dict[str, float]:
    values, _ = study.statistics(network.held_out.logits, network.held_out.labels)
    return values | study.shapes(network, chosen)


def _finding(name: str, values: dict[str, float]) -> str:
    over = values["overconfidence"]
    kind = "more" if over > 0 else "less"
    return (
        f"{name}: accuracy {100 * values['accuracy']:.1f} %, {100 * abs(over):.1f} points {kind} confident than "
        f"accurate, ECE {values['ece']:.3f}; a temperature of {values['temperature']:.2f} makes it "
        f"{values['ece at temperature']:.3f} and NLL {values['nll at temperature']:.3f} of {values['nll']:.3f} nats."
    )


def _best(measured: dict[str, dict[str, float]]) -> str:
    best = min(measured, key=lambda name: measured[name]["nll at temperature"])
    return (
        f"Of these {len(measured)}, {best} has the best held-out NLL once its temperature is fitted, "
        f"{measured[best]['nll at temperature']:.3f} nats; one seed each says nothing of how much seeds differ."
    )


def _reliability(network: study.Network) -> plots.ReliabilityCurve:
    bins = calibration.reliability(network.held_out.logits, network.held_out.labels)
    return plots.ReliabilityCurve(network.name, bins.confidence, bins.accuracy, bins.count, bins.ece)


def _panels(network: study.Network, classes: Sequence[int], *, with_bias: bool = False) -> list[plots.PlanePanel]:
    splits = ("train", "held_out")
    return [plots.PlanePanel(**study.panel(network, split, classes, with_bias=with_bias)) for split in splits]


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
    study.page.check_folder(config.out)


def _common_data(config: Config) -> data.Images:
    """Load the data that all networks share; refuse classes that they do not have."""
    images = _data(config.networks[0], config)
    for path in config.networks[1:]:
        if _data(path, config).fingerprint != images.fingerprint:
            raise ValueError(
                f"{path} was trained on other data than {config.networks[0]}: compare networks of one data set."
            )
    if not all(0 <= label < images.num_classes for label in config.classes):
        raise ValueError(
            f"classes must be from 0 to {images.num_classes - 1}, those of {images.name}; received {config.classes}."
        )
    seen = len(set(images.labels("train")[: config.limit]))
    if seen < images.num_classes:
        raise ValueError(
            f"The first {config.limit} training examples show {seen} of the {images.num_classes} classes of "
            f"{images.name}: raise --limit."
        )
    return images


def _names(paths: Sequence[Path]) -> list[str]:
    names = [(path.parent if path.name == "saved_model" else path).name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _saved_model(path: Path) -> Path:
    return path / "saved_model" if (path / "saved_model" / "saved_model.pb").exists() else path


def _data(path: Path, config: Config) -> data.Images:
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
        return data.rebuild(described, config.data_dir)
    if not {"dataset", "scaling"} <= set(given):
        raise ValueError(f"{folder} has no config.json that describes its data: give --dataset and --scaling.")
    return data.load_images(given.pop("dataset"), data_dir=config.data_dir, **given)


def _planes(networks: Sequence[study.Network], classes: Sequence[int], class_names: Sequence[str]) -> Figure:
    names = [class_names[label] for label in classes]
    first = networks[0]
    if len(networks) == 1:
        panels = _panels(first, classes) + _panels(first, classes, with_bias=True)
        return plots.template_plane_figure(panels, names, pair_titles=("templates without bias", "templates with bias"))
    panels = [panel for other in networks[1:] for network in (first, other) for panel in _panels(network, classes)]
    if len(networks) == 2:
        return plots.template_plane_figure(panels, names, pair_titles=(first.name, networks[1].name))
    rows = [other.name for other in networks[1:]]
    return plots.template_plane_figure(panels, names, row_names=rows, pair_titles=(first.name, "the row's network"))


def _table(measured: dict[str, dict[str, float]]) -> report.Table:
    header = ["quantity", *measured]
    rows = [
        [study.representations.label(name), *(values[name] for values in measured.values())]
        for name in next(iter(measured.values()))
    ]
    return report.Table("What was measured; NLL in nats, distances in the units of the activations.", header, rows)


def _calibration_table(networks: Sequence[study.Network]) -> report.Table:
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
