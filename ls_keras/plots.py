"""The paper's figures: arrays in, `matplotlib.figure.Figure` out.

Every function computes nothing but means, extremes and Wilson intervals of what it is given, leaves
matplotlib's global state alone (no pyplot, no rcParams) and returns a figure that `save` writes for print.
Widths are those of a two-column page: 3.3 inches for one column, 7 inches for both. Colours are those of
Okabe and Ito, told apart by readers with any colour vision; markers and dashes tell the same things apart
in black and white.
"""

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ls_keras import files

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter
from matplotlib.transforms import blended_transform_factory
from scipy import stats

# Okabe & Ito, "Color Universal Design" (2008).
_BLUE, _VERMILION, _GREEN, _SKY = "#0072B2", "#D55E00", "#009E73", "#56B4E9"
_PURPLE, _ORANGE = "#CC79A7", "#E69F00"
_GREY = "#595959"
_COLORS = (_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY)
_MARKERS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))

# Inches and points, for the width at which the figure is printed.
_COLUMN, _PAGE = 3.3, 7.0
_LABEL, _TICK = 8.0, 7.0
_HAIRLINE = 0.6
_THIN = {"linewidth": 0.6, "markersize": 2.6, "markerfacecolor": "white", "markeredgewidth": 0.6}


@dataclass(frozen=True, eq=False)
class PlanePanel:
    """Examples of three classes projected onto the plane through their templates.

    Attributes:
        points: float [N, 2], projected penultimate activations, in units of the activations.
        labels: int [N], 0, 1 or 2: the position of the example's class in `class_names` and `templates`.
        templates: float [3, 2], the projected templates, in the same units.
    """

    points: np.ndarray
    labels: np.ndarray
    templates: np.ndarray


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """Accuracy over confidence of one network, in M bins of equal width over (0, 1].

    Attributes:
        name: What the legend calls it, for example "hard targets, T = 1.9".
        confidence: float [M], mean confidence of the bin's examples, a fraction; ignored where `count` is 0.
        accuracy: float [M], fraction of the bin's examples classified correctly; ignored where `count` is 0.
        count: int [M], number of examples in the bin.
        ece: Expected calibration error, a fraction, as the legend shows it.
    """

    name: str
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray
    ece: float


@dataclass(frozen=True, eq=False)
class SeedCurve:
    """Accuracy at P degrees of smoothing over S seeds.

    Attributes:
        name: What the legend calls it, for example "ResNet-56 teacher".
        gamma: float [P], equivalent label smoothing γ of the targets, from 0 to K/(K − 1), increasing.
        accuracy: float [P, S], held-out accuracy, a fraction, one column per seed.
    """

    name: str
    gamma: np.ndarray
    accuracy: np.ndarray


@dataclass(frozen=True)
class SweepPoint:
    """A point of a sweep.

    Attributes:
        settings: The values of its fields, as text.
        estimate: The objective's mean over seeds.
        low: Lower end of its interval; NaN if there is none.
        high: Upper end.
        best: Whether it cannot be told from the best point.
    """

    settings: tuple[str, ...]
    estimate: float
    low: float
    high: float
    best: bool


@dataclass(frozen=True, eq=False)
class InformationCurve:
    """Mutual information I(X; Y) at P moments of training, with the bracket that holds it.

    Attributes:
        name: What the legend calls it, for example "label smoothing, α = 0.1".
        steps: int [P], training steps done, increasing.
        estimate: float [P], in nats.
        lower: float [P], lower end of the bracket, in nats.
        upper: float [P], upper end of the bracket, in nats.
        paper: float [P], the estimate as the paper makes it, from L = 5 draws an example, in nats; it may lie outside
            the bracket.
    """

    name: str
    steps: np.ndarray
    estimate: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    paper: np.ndarray | None = None


def template_plane_figure(
    panels: Sequence[PlanePanel],
    class_names: Sequence[str] | Sequence[Sequence[str]],
    *,
    row_names: Sequence[str] = (),
    pair_titles: tuple[str, str] = ("without label smoothing", "with label smoothing"),
    same_scale: bool | None = None,
) -> Figure:
    """Draw penultimate activations on the plane through three templates (the paper's Figure 1).

    Each row holds four panels: one network's training and held-out examples, then the other's. The two
    panels of a network share their axes; both axes of a panel have the same unit, so that angles and a
    regular triangle are seen as they are. Where the networks of a row are drawn to different scales, a line
    above the row says by how much they differ.

    Args:
        panels: 4·R panels in reading order: R rows of (first network train, held-out, second network train,
            held-out).
        class_names: The three names, or R triples of names where the rows show different classes.
        row_names: R short names such as "CIFAR-10, AlexNet"; none by default.
        pair_titles: What the left and the right pair of columns show.
        same_scale: Draw both networks of a row to one scale (True) or each to its own (False); by default to
            one where that makes neither less than half as large.

    Returns:
        A figure 7 inches wide with 4·R axes in reading order.

    Raises:
        ValueError: If the number of panels, names, shapes or labels do not fit, or if a coordinate is not
            finite.

    Example:
        >>> templates = np.array([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0**0.5]])
        >>> panel = PlanePanel(templates + 0.1, np.arange(3), templates)
        >>> len(template_plane_figure([panel] * 4, ["airplane", "automobile", "bird"]).axes)
        4
    """
    num_rows = _check_panels(panels, row_names)
    names = _names_per_row(class_names, num_rows)
    left, gap, pair_gap, right = 0.58, 0.08, 0.46, 0.08
    side = (_PAGE - left - 2 * gap - pair_gap - right) / 4
    strip, headings, ticks, xlabel = 0.26, 0.36, 0.22, 0.18
    squares = [_pair_squares(panels[4 * row : 4 * row + 4], same_scale) for row in range(num_rows)]
    notes = [_scale_note(*(half for _, half in pair)) for pair in squares]
    note = 0.17 if any(notes) else 0.0
    height = headings + num_rows * (strip + note + side + ticks) + xlabel
    figure = Figure(figsize=(_PAGE, height))
    columns = np.cumsum([left, side + gap, side + pair_gap, side + gap])
    for row in range(num_rows):
        strip_top = height - row * (strip + note + side + ticks) - (headings if row else 0)
        bottom = strip_top - strip - note - side - (0 if row else headings)
        for column, panel in enumerate(panels[4 * row : 4 * row + 4]):
            box = (columns[column] / _PAGE, bottom / height, side / _PAGE, side / height)
            axes = figure.add_axes(box)
            _draw_panel(axes, panel, squares[row][column // 2])
            axes.tick_params(labelleft=column % 2 == 0)
            if row == 0:
                axes.set_title(("train", "held-out")[column % 2], size=_LABEL, pad=3)
        figure.axes[4 * row].set_ylabel("second coordinate", size=_LABEL)
        figure.axes[4 * row].yaxis.set_label_coords(-0.43 / side, 0.5)
        strip_centre = (strip_top - strip / 2) / height
        legend = _plane_legend(figure, names[row])
        legend.set_bbox_to_anchor((left / _PAGE, strip_centre))
        note_centre = (strip_top - strip - note / 2) / height
        figure.text(left / _PAGE, note_centre, notes[row], size=_TICK, va="center_baseline")
        if row_names:
            legend.set(loc="center right", bbox_to_anchor=((_PAGE - right) / _PAGE, strip_centre))
            figure.text(left / _PAGE, strip_centre, row_names[row], size=_LABEL, va="center_baseline")
    for column, title in zip(columns[::2], pair_titles, strict=True):
        centre = (column + side + gap / 2) / _PAGE
        figure.text(centre, 1 - (strip + note + 0.10) / height, title, size=_LABEL, ha="center", va="center_baseline")
    middle = (left + _PAGE - right) / 2 / _PAGE
    label = "first coordinate in the template plane"
    figure.text(middle, 0.04 / height, label, size=_LABEL, ha="center", va="bottom")
    return figure


def reliability_figure(curves: Sequence[ReliabilityCurve], *, intervals: bool = True) -> Figure:
    """Draw accuracy over confidence, and how many examples each bin holds (the paper's Figure 2).

    A point sits at the *mean* confidence of its bin, not at the bin's centre, so that its distance from the
    dashed diagonal is the bin's term of the expected calibration error. Empty bins have no point.

    Args:
        curves: One to six networks with the same number of bins.
        intervals: Draw the 95 % Wilson interval of each accuracy, given the bin's count.

    Returns:
        A figure 3.3 inches wide with two axes: reliability above, bin counts below.

    Raises:
        ValueError: If there are no curves or too many, if the bins differ, if a count is negative or not
            whole, or if a confidence or accuracy of a filled bin lies outside [0, 1].

    Example:
        >>> confidence, accuracy, count = np.array([0.0, 0.9]), np.array([0.0, 0.7]), np.array([0, 50])
        >>> curve = ReliabilityCurve("hard", confidence, accuracy, count, 0.2)
        >>> reliability_figure([curve]).axes[0].get_legend_handles_labels()[1]
        ['hard (ECE 0.200)', 'perfect calibration']
    """
    _check_reliability(curves)
    legend_height = _legend_height(len(curves) + 1)
    left, right, bottom, counts_height, gap = 0.60, 0.08, 0.38, 0.75, 0.10
    side = _COLUMN - left - right
    height = legend_height + side + gap + counts_height + bottom
    figure = Figure(figsize=(_COLUMN, height))
    width = side / _COLUMN
    upper = figure.add_axes((left / _COLUMN, (bottom + counts_height + gap) / height, width, side / height))
    lower = figure.add_axes((left / _COLUMN, bottom / height, width, counts_height / height), sharex=upper)
    edges = np.linspace(0.0, 1.0, len(curves[0].count) + 1)
    for curve, color, marker, dashes in zip(curves, _COLORS, _MARKERS, _DASHES, strict=False):
        filled = np.asarray(curve.count) > 0
        confidence, accuracy = np.asarray(curve.confidence)[filled], np.asarray(curve.accuracy)[filled]
        count = np.asarray(curve.count)[filled]
        line = {"color": color, "linestyle": dashes, "linewidth": 1.1}
        if intervals:
            low, high = _wilson(accuracy, count)
            upper.vlines(confidence, low, high, color=color, linewidth=0.6, alpha=0.5, zorder=2)
        upper.plot(
            confidence,
            accuracy,
            **line,
            marker=marker,
            markersize=3.2,
            label=f"{curve.name} (ECE {curve.ece:.3f})",
        )
        lower.stairs(curve.count, edges, **line)
    diagonal = {"color": _GREY, "linestyle": (0, (4, 3)), "linewidth": 0.9, "zorder": 1}
    upper.plot([0, 1], [0, 1], **diagonal, label="perfect calibration")
    _style(upper, "", "accuracy")
    _style(lower, "confidence", "examples")
    upper.tick_params(labelbottom=False)
    upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    upper.set_yticks(np.linspace(0, 1, 6))
    upper.set_xticks(np.linspace(0, 1, 6))
    _count_scale(lower, np.concatenate([np.asarray(curve.count) for curve in curves]))
    _legend_above(figure, upper)
    for axes in (upper, lower):
        # One place for both, whatever the width of the tick labels.
        transform = blended_transform_factory(figure.transFigure, axes.transAxes)
        axes.yaxis.set_label_coords(0.16 / _COLUMN, 0.5, transform=transform)
    return figure


def distillation_figure(
    *,
    teacher: SeedCurve,
    baseline: SeedCurve,
    hard_teacher: SeedCurve | None = None,
    smoothed_teacher: SeedCurve | None = None,
    plain: float | Sequence[float] | np.ndarray | None = None,
) -> Figure:
    """Draw accuracy over the equivalent label smoothing γ (the paper's Figure 5).

    Lines join the means over seeds; a vertical bar spans the smallest and the largest. The plain student's mean is a
    grey line across, in a band from its smallest to its largest accuracy: what lies below it is no help.

    Args:
        teacher: The teacher over its own label smoothing (γ = α).
        baseline: The student without a teacher over its own label smoothing (γ = α); γ = 0 is the plain student.
        hard_teacher: Students of the teacher trained with hard targets, over its temperature.
        smoothed_teacher: Students of teachers trained with label smoothing, at temperature 1.
        plain: [S] or one number, held-out accuracy of the student with hard targets and no teacher, a fraction.

    Returns:
        A figure 3.3 inches wide with one axes.

    Raises:
        ValueError: If shapes do not fit, if γ does not increase, or if a value lies outside [0, 1].

    Example:
        >>> curve = SeedCurve("teacher", np.array([0.0, 0.15]), np.array([[0.90, 0.92], [0.91, 0.95]]))
        >>> distillation_figure(teacher=curve, baseline=curve).axes[0].lines[0].get_ydata()
        array([0.91, 0.93])
    """
    styles = (
        (teacher, _BLUE, "-", "o"),
        (baseline, _SKY, "-", "s"),
        (hard_teacher, _VERMILION, "--", "^"),
        (smoothed_teacher, _BLUE, "--", "D"),
    )
    drawn = [style for style in styles if style[0] is not None]
    for curve, *_ in drawn:
        _check_seeds(curve)
    figure, axes = _column_figure(len(drawn) + (plain is not None))
    for curve, color, dashes, marker in drawn:
        accuracy = np.asarray(curve.accuracy)
        axes.vlines(curve.gamma, accuracy.min(axis=1), accuracy.max(axis=1), color=color, linewidth=1.0, alpha=0.7)
        axes.plot(
            curve.gamma,
            accuracy.mean(axis=1),
            color=color,
            linestyle=dashes,
            linewidth=1.2,
            marker=marker,
            markersize=3.6,
            label=curve.name,
        )
    if plain is not None:
        _draw_plain(axes, np.atleast_1d(plain))
    _style(axes, "equivalent label smoothing γ", "accuracy (%)")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g}"))
    _legend_above(figure, axes)
    return figure


def information_figure(curves: Sequence[InformationCurve], num_examples: int) -> Figure:
    """Draw the mutual information between example and logit difference over training (the paper's Figure 6).

    Lines are the estimates, bands their brackets, thin lines with hollow markers the paper's own estimates. The axis
    spans these. ln 2 is what remains when two classes collapse to two points, ln N what is there when every example
    can be told from every other: a line where the axis reaches it, and a word in the legend where it does not.

    Args:
        curves: One to six networks.
        num_examples: N, the number of examples the information is about.

    Returns:
        A figure 3.3 inches wide with one axes; information is in nats.

    Raises:
        ValueError: If there are no curves or too many, if shapes do not fit, if steps do not increase, if a
            bracket does not hold its estimate, or if N < 2.

    Example:
        >>> curve = InformationCurve("hard", np.array([0, 100]), np.ones(2), np.zeros(2), np.full(2, 1.5))
        >>> axes = information_figure([curve], 600).axes[0]
        >>> axes.texts[0].get_text(), axes.get_legend_handles_labels()[1]
        ('ln 2', ['hard', 'ln 600 = 6.40 is above this axis'])
    """
    _check_information(curves, num_examples)
    low, high = _information_limits(curves)
    levels = sorted({2, num_examples})
    inside = [level for level in levels if low <= np.log(level) <= high]
    outside = [level for level in levels if level not in inside]
    entries = len(curves) + any(curve.paper is not None for curve in curves) + len(outside)
    figure, axes = _column_figure(entries, right=0.52 if inside else 0.10)
    for curve, color, marker, dashes in zip(curves, _COLORS, _MARKERS, _DASHES, strict=False):
        axes.fill_between(curve.steps, curve.lower, curve.upper, color=color, alpha=0.2, linewidth=0)
        line = {"color": color, "linestyle": dashes, "marker": marker}
        axes.plot(curve.steps, curve.estimate, **line, linewidth=1.2, markersize=3.2, label=curve.name)
        if curve.paper is not None:
            axes.plot(curve.steps, curve.paper, **line, **_THIN)
    if any(curve.paper is not None for curve in curves):
        axes.plot([], [], color=_GREY, marker="o", **_THIN, label="thin: estimated as in the paper, 5 draws")
    for level in inside:
        axes.axhline(np.log(level), color=_GREY, linestyle=(0, (1, 2)), linewidth=0.9, zorder=1)
        # Beside the axes, where no curve can run through it.
        place = {"xy": (1, np.log(level)), "xycoords": ("axes fraction", "data"), "va": "center"}
        offset = {"xytext": (3, 0), "textcoords": "offset points"}
        axes.annotate(f"ln {level:,}", **place, **offset, size=_TICK, color=_GREY, annotation_clip=False)
    for level in outside:
        side = "above" if np.log(level) > high else "below"
        axes.plot([], [], linestyle="", label=f"ln {level:,} = {np.log(level):.2f} is {side} this axis")
    _style(axes, "training steps", "mutual information (nats)")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    axes.set_ylim(low, high)
    _legend_above(figure, axes)
    return figure


def sweep_figure(
    points: Sequence[SweepPoint], fields: Sequence[str], values: Sequence[Sequence[str]], ylabel: str, note: str = ""
) -> Figure:
    """Draw an objective over one field, with a line for each value of a second one.

    Vertical bars are intervals. A filled mark cannot be told from the best one; a hollow one is worse.

    Args:
        points: Of a grid, each with as many settings as there are fields.
        fields: Names of one or two fields.
        values: All values of each field, as text, in their order; evenly spaced along the axis.
        ylabel: The objective, with its unit.
        note: What else a reader must know, in the legend.

    Returns:
        A figure 3.3 inches wide with one axes.

    Raises:
        ValueError: Not one or two fields, or points with other settings.

    Example:
        >>> points = [SweepPoint(("0.0",), 0.30, 0.28, 0.32, False), SweepPoint(("0.1",), 0.25, 0.23, 0.27, True)]
        >>> sweep_figure(points, ["alpha"], [["0.0", "0.1"]], "NLL, nats").axes[0].get_xlabel()
        'alpha'
    """
    if not 1 <= len(fields) <= 2 or len(values) != len(fields):
        raise ValueError(f"Expected one or two fields with the values of each; received {', '.join(fields)}.")
    _check_settings(points, len(fields))
    lines = list(values[1]) if len(fields) == 2 else [""]
    entries = (len(lines) if len(fields) == 2 else 0) + bool(note)
    figure, axes = _column_figure(entries, num_columns=_sweep_columns(len(lines)))
    for k, line in enumerate(lines):
        own = {point.settings[0]: point for point in points if len(fields) == 1 or point.settings[1] == line}
        at = [x for x, value in enumerate(values[0]) if value in own]
        label = f"{fields[1]} = {line}" if line else ""
        x = np.array(at) + _dodge(k, len(lines))
        _draw_sweep_line(axes, [own[values[0][each]] for each in at], x, k, label)
    axes.set_xticks(range(len(values[0])), values[0], rotation=0 if sum(map(len, values[0])) < 45 else 60)
    axes.set_xlim(-0.5, len(values[0]) - 0.5)
    _style(axes, fields[0], ylabel)
    if note:
        axes.plot([], [], " ", label=note)
    _legend_above(figure, axes, num_columns=_sweep_columns(len(lines)))
    return figure


def ranking_figure(points: Sequence[SweepPoint], fields: Sequence[str], xlabel: str, note: str = "") -> Figure:
    """Draw an objective point by point, the best one on top.

    Args:
        points: The best ones, in their order.
        fields: Names of their settings.
        xlabel: The objective, with its unit.
        note: What else a reader must know, above the axes.

    Returns:
        A figure 7 inches wide with one axes.

    Raises:
        ValueError: No points, or settings that do not fit the fields.

    Example:
        >>> ranking_figure([SweepPoint(("0.1", "2"), 0.25, 0.23, 0.27, True)], ["a", "b"], "NLL").axes[0].get_xlabel()
        'NLL'
    """
    _check_settings(points, len(fields))
    height = 0.17 * len(points) + 0.85
    figure = Figure(figsize=(_PAGE, height))
    axes = figure.add_axes((0.45, 0.40 / height, 0.53, (height - 0.80) / height))
    for y, point in enumerate(points):
        axes.hlines(y, point.low, point.high, color=_BLUE, linewidth=1.0, alpha=0.7)
        axes.plot(point.estimate, y, "o", color=_BLUE, markersize=3.6, markerfacecolor=_BLUE if point.best else "white")
    labels = [", ".join(f"{f} = {s}" for f, s in zip(fields, point.settings, strict=True)) for point in points]
    axes.set_yticks(range(len(points)), labels)
    axes.set_ylim(len(points) - 0.4, -0.6)
    _style(axes, xlabel, "")
    figure.text(0.98, 1 - 0.08 / height, note, size=_TICK, ha="right", va="top")
    return figure


def save(figure: Figure, path: str | os.PathLike) -> Path:
    """Write a figure as PNG, PDF or SVG; the same figure gives the same bytes.

    The file is whole or absent: see `files.replace`.

    Args:
        figure: The figure.
        path: A file name that ends in .png, .pdf or .svg, in a folder that exists.

    Returns:
        The path.

    Raises:
        ValueError: If the ending is another one.
        FileNotFoundError: If the folder does not exist.
    """
    path = Path(path)
    files.replace(path, encode(figure, path.suffix.lstrip(".")))
    return path


def encode(figure: Figure, file_format: str) -> bytes:
    """Render a figure to the bytes of a file without time stamps.

    Args:
        figure: The figure.
        file_format: "png" (200 dots an inch), "pdf" (fonts embedded as TrueType, as journals ask) or "svg".

    Returns:
        The content of the file.

    Raises:
        ValueError: If the format is another one.
    """
    dated = {"png": {"Software": None}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    if file_format not in dated:
        raise ValueError(
            f"a figure is written as .png, .pdf or .svg; received {file_format!r}; change the file name's ending"
        )
    content = io.BytesIO()
    # The salt makes SVG element ids, and so the file, the same in every run.
    with matplotlib.rc_context({"svg.hashsalt": "ls_keras", "pdf.fonttype": 42}):
        figure.savefig(content, format=file_format, dpi=200, metadata=dated[file_format])
    return content.getvalue()


def _sweep_columns(num_lines: int) -> int:
    return 1 if num_lines < 4 else 2


def _dodge(k: int, count: int) -> float:
    """Return how far the k-th of several marks at one place stands aside, in units of places."""
    return 0.5 * ((k + 0.5) / count - 0.5)


def _draw_sweep_line(axes: Axes, points: Sequence[SweepPoint], x: np.ndarray, k: int, label: str) -> None:
    color, dashes = _COLORS[k % len(_COLORS)], _DASHES[k // len(_COLORS) % len(_DASHES)]
    marker = _MARKERS[k % len(_MARKERS)]
    axes.plot(x, [point.estimate for point in points], color=color, linestyle=dashes, linewidth=0.8, alpha=0.6)
    axes.vlines(x, [p.low for p in points], [p.high for p in points], color=color, linewidth=1.0, alpha=0.7)
    for at, point in zip(x, points, strict=True):
        face = color if point.best else "white"
        axes.plot(at, point.estimate, marker, color=color, markersize=3.8, markerfacecolor=face, markeredgewidth=0.8)
    if label:
        axes.plot([], [], color=color, linestyle=dashes, linewidth=0.8, marker=marker, markersize=3.8, label=label)


def _check_settings(points: Sequence[SweepPoint], number: int) -> None:
    if not points or any(len(point.settings) != number for point in points):
        raise ValueError(f"Expected points with {number} settings each; received {list(points)[:3]}.")


def _draw_plain(axes: Axes, accuracy: np.ndarray) -> None:
    name = "student with hard targets, no teacher"
    if accuracy.ndim != 1 or not len(accuracy):
        raise ValueError(f"plain must be one accuracy or one for each seed; received shape {accuracy.shape}")
    _check_fractions(name, accuracy)
    axes.axhspan(accuracy.min(), accuracy.max(), color=_GREY, alpha=0.15, linewidth=0, zorder=0)
    axes.axhline(accuracy.mean(), color=_GREY, linestyle=(0, (4, 3)), linewidth=0.9, zorder=1, label=name)


def _information_limits(curves: Sequence[InformationCurve]) -> tuple[float, float]:
    """Return the ends of an axis that spans brackets and paper's estimates, with 5 % to spare at each."""
    drawn = [array for curve in curves for array in (curve.lower, curve.upper, curve.paper) if array is not None]
    low, high = min(map(np.min, drawn)), max(map(np.max, drawn))
    margin = 0.05 * (high - low) or 0.05
    return low - margin, high + margin


def _style(axes: Axes, xlabel: str, ylabel: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_linewidth(_HAIRLINE)
    axes.tick_params(labelsize=_TICK, width=_HAIRLINE, length=2.5, pad=2)
    axes.set_xlabel(xlabel, size=_LABEL, labelpad=2)
    axes.set_ylabel(ylabel, size=_LABEL, labelpad=3)


def _column_figure(num_entries: int, right: float = 0.10, num_columns: int = 1) -> tuple[Figure, Axes]:
    left, bottom, plot = 0.50, 0.38, 1.9
    height = _legend_height(-(-num_entries // num_columns)) + plot + bottom
    figure = Figure(figsize=(_COLUMN, height))
    box = (left / _COLUMN, bottom / height, (_COLUMN - left - right) / _COLUMN, plot / height)
    return figure, figure.add_axes(box)


def _legend_height(num_entries: int) -> float:
    return 0.128 * num_entries + 0.14


def _legend_above(figure: Figure, axes: Axes, num_columns: int = 1) -> None:
    # Above the axes a legend can hide no data, wherever the curves run.
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(axes.get_position().x0, 1.0),
        borderaxespad=0.3,
        borderpad=0,
        labelspacing=0.25,
        handlelength=3.2,
        ncols=num_columns,
        fontsize=_TICK,
        frameon=False,
    )


def _names_per_row(class_names: Sequence[str] | Sequence[Sequence[str]], num_rows: int) -> list[list[str]]:
    nested = [class_names] * num_rows if class_names and isinstance(class_names[0], str) else class_names
    if len(nested) != num_rows or any(len(names) != 3 for names in nested):
        raise ValueError(
            f"class_names must be three names, or three for each of {num_rows} rows; received {class_names!r}"
        )
    return [list(names) for names in nested]


def _pair_squares(quartet: Sequence[PlanePanel], same_scale: bool | None) -> list[tuple[np.ndarray, float]]:
    """Return the centre and half width of the square that holds both panels of each network."""
    squares = []
    for pair in (quartet[:2], quartet[2:]):
        everything = np.concatenate([np.asarray(a) for panel in pair for a in (panel.points, panel.templates)])
        low, high = everything.min(axis=0), everything.max(axis=0)
        # 10 % keeps the stars off the frame; a plane with all points in one place still needs some width.
        squares.append(((low + high) / 2, 0.55 * float((high - low).max()) or 1.0))
    narrowest, widest = sorted(half for _, half in squares)
    if same_scale or (same_scale is None and widest < 2 * narrowest):
        squares = [(centre, widest) for centre, _ in squares]
    return squares


def _scale_note(left: float, right: float) -> str:
    """Return what to say of two pairs of panels with these half widths; nothing if they look equally large."""
    ratio = max(left, right) / min(left, right)
    factor = f"{ratio:.1f}" if ratio < 10 else f"{ratio:,.0f}"
    if factor == "1.0":
        return ""
    larger, smaller = ("right", "left") if left > right else ("left", "right")
    return f"Scales differ: the {larger} pair is drawn {factor} times as large as the {smaller} one."


def _draw_panel(axes: Axes, panel: PlanePanel, square: tuple[np.ndarray, float]) -> None:
    points, labels, templates = (np.asarray(a) for a in (panel.points, panel.labels, panel.templates))
    for index in range(3):
        chosen = points[labels == index]
        axes.scatter(*chosen.T, s=7, color=_COLORS[index], marker=_MARKERS[index], alpha=0.55, linewidths=0, zorder=2)
    for index in range(3):
        axes.scatter(
            *templates[index],
            s=60,
            color=_COLORS[index],
            marker="*",
            edgecolors="black",
            linewidths=0.7,
            zorder=3,
        )
    centre, half = square
    axes.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half), aspect="equal")
    _style(axes, "", "")
    axes.spines[["top", "right"]].set_visible(True)
    axes.spines[["top", "right"]].set_linewidth(_HAIRLINE)
    axes.set_xticks(_fitting_ticks(*axes.get_xlim(), axes.get_position().width * _PAGE))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10], min_n_ticks=3))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_coordinate))


def _fitting_ticks(low: float, high: float, side: float) -> np.ndarray:
    """Return ticks whose labels reach neither each other nor those of the next panel."""
    ticks = MaxNLocator(4, steps=[1, 2, 5, 10], min_n_ticks=3).tick_values(low, high)
    # A digit of 7 points is 0.062 inches wide.
    reach = np.array([0.033 * len(_coordinate(tick, 0)) for tick in ticks])
    place = side * (ticks - low) / (high - low)
    inside = (place - reach > -0.03) & (place + reach < side + 0.03)
    if 2 * reach.max() > np.diff(place).min():
        inside &= np.round(ticks / (ticks[1] - ticks[0])) % 2 == 0
    return ticks[inside]


def _coordinate(value: float, _: int) -> str:
    # Seven characters at most: what fits between two panels.
    plain = value == 0 or 0.01 <= abs(value) < 10_000
    text = f"{value:g}" if plain else f"{value:.1e}".replace(".0e", "e").replace("e+0", "e").replace("e-0", "e-")
    return text.replace("-", "−")


def _plane_legend(figure: Figure, names: Sequence[str]) -> Legend:
    bare = {"linestyle": "", "xdata": [], "ydata": []}
    points = [Line2D(**bare, marker=_MARKERS[i], color=_COLORS[i], markersize=4, mew=0) for i in range(3)]
    star = Line2D(**bare, marker="*", color="#DDDDDD", markersize=7, mec="black", mew=0.7)
    return figure.legend(
        [*points, star],
        [*names, "template of its class"],
        loc="center left",
        ncols=4,
        handlelength=1.6,
        handletextpad=0.4,
        columnspacing=1.5,
        fontsize=_TICK,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
    )


def _wilson(accuracy: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ends of the 95 % Wilson score interval of each accuracy."""
    tests = [
        stats.binomtest(round(a * n), int(n)).proportion_ci(method="wilson")
        for a, n in zip(accuracy.tolist(), count.tolist(), strict=True)
    ]
    return np.array([test.low for test in tests]), np.array([test.high for test in tests])


def _count_scale(axes: Axes, counts: np.ndarray) -> None:
    # A confident network keeps most examples in one bin; on a linear scale the others would look empty.
    if counts.max() > 20 * max(1, np.median(counts[counts > 0])):
        axes.set_yscale("log", nonpositive="clip")
        axes.set_ylim(0.7, 2 * counts.max())
        decades = np.arange(int(np.log10(counts.max())) + 1)
        axes.set_yticks(10.0 ** decades[:: 1 if len(decades) <= 4 else 2])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    else:
        axes.set_ylim(0, 1.1 * counts.max())
        axes.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _check_panels(panels: Sequence[PlanePanel], row_names: Sequence[str]) -> int:
    num_rows, left_over = divmod(len(panels), 4)
    if not num_rows or left_over:
        raise ValueError(f"panels come in rows of four (train, held-out, train, held-out); received {len(panels)}")
    if row_names and len(row_names) != num_rows:
        raise ValueError(f"row_names must name each of the {num_rows} rows or none; received {len(row_names)}")
    for index, panel in enumerate(panels):
        points, labels, templates = (np.asarray(a) for a in (panel.points, panel.labels, panel.templates))
        if points.ndim != 2 or points.shape[1] != 2 or labels.shape != points.shape[:1] or templates.shape != (3, 2):
            raise ValueError(
                f"panel {index} must hold points [N, 2], labels [N] and templates [3, 2]; "
                f"received {points.shape}, {labels.shape} and {templates.shape}"
            )
        if not (np.isfinite(points).all() and np.isfinite(templates).all()):
            raise ValueError(f"panel {index} holds NaN or infinite coordinates; look for them in the activations")
        if not np.isin(labels, (0, 1, 2)).all():
            raise ValueError(
                f"labels of panel {index} must be 0, 1 or 2, the place in class_names; received {np.unique(labels)}"
            )
    return num_rows


def _check_number(curves: Sequence[object]) -> None:
    if not 1 <= len(curves) <= len(_COLORS):
        raise ValueError(f"a figure shows one to {len(_COLORS)} curves; received {len(curves)}")


def _check_reliability(curves: Sequence[ReliabilityCurve]) -> None:
    _check_number(curves)
    num_bins = len(curves[0].count)
    for curve in curves:
        confidence, accuracy, count = (np.asarray(a) for a in (curve.confidence, curve.accuracy, curve.count))
        if not confidence.shape == accuracy.shape == count.shape == (num_bins,):
            raise ValueError(
                f"curve {curve.name!r} must hold confidence, accuracy and count of {num_bins} bins each; "
                f"received {confidence.shape}, {accuracy.shape} and {count.shape}"
            )
        if not (count.sum() > 0 and (count >= 0).all() and (count == np.round(count)).all()):
            raise ValueError(
                f"curve {curve.name!r} must count at least one example, in whole numbers; received {count}"
            )
        _check_fractions(curve.name, confidence[count > 0], accuracy[count > 0])


def _check_fractions(name: str, *arrays: np.ndarray) -> None:
    for array in arrays:
        if not ((array >= 0) & (array <= 1)).all():  # NaN fails too
            raise ValueError(f"curve {name!r} must hold fractions between 0 and 1; received {array}")


def _check_increasing(name: str, values: np.ndarray, what: str) -> None:
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (np.diff(values) <= 0).any():
        raise ValueError(f"curve {name!r} needs {what} in increasing order; received {values}")


def _check_seeds(curve: SeedCurve) -> None:
    gamma, accuracy = np.asarray(curve.gamma), np.asarray(curve.accuracy)
    _check_increasing(curve.name, gamma, "γ")
    if accuracy.ndim != 2 or len(accuracy) != len(gamma) or not accuracy.shape[1]:
        raise ValueError(
            f"curve {curve.name!r} needs accuracy [{len(gamma)}, seeds] for its {len(gamma)} values of γ; "
            f"received {accuracy.shape}"
        )
    _check_fractions(curve.name, accuracy)
    if not ((gamma >= 0) & (gamma <= 2)).all():  # K/(K − 1), of a teacher that is surely wrong, is at most 2
        raise ValueError(f"curve {curve.name!r} must hold γ between 0 and K/(K − 1); received {gamma}")


def _check_information(curves: Sequence[InformationCurve], num_examples: int) -> None:
    _check_number(curves)
    if num_examples < 2:
        raise ValueError(f"num_examples must be at least 2; received {num_examples}")
    for curve in curves:
        steps, estimate, lower, upper = (np.asarray(a) for a in (curve.steps, curve.estimate, curve.lower, curve.upper))
        _check_increasing(curve.name, steps, "training steps")
        if not steps.shape == estimate.shape == lower.shape == upper.shape:
            raise ValueError(
                f"curve {curve.name!r} needs estimate, lower and upper for its {len(steps)} steps; "
                f"received {estimate.shape}, {lower.shape} and {upper.shape}"
            )
        if not ((lower <= estimate) & (estimate <= upper) & np.isfinite(lower) & np.isfinite(upper)).all():
            raise ValueError(f"curve {curve.name!r} must have finite lower <= estimate <= upper at each step")
        if curve.paper is not None and not (
            np.shape(curve.paper) == steps.shape and np.isfinite(np.asarray(curve.paper)).all()
        ):
            raise ValueError(
                f"curve {curve.name!r} needs a finite estimate of the paper for its {len(steps)} steps; received "
                f"{curve.paper}"
            )
