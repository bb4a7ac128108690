"""Figures are tested by what is drawn (data, limits, text), not by pixels."""

import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path

from ls_keras import plots
from ls_keras.plots import InformationCurve, PlanePanel, ReliabilityCurve, SeedCurve

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

OKABE_ITO = {"#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#000000"}
CLASSES = ["airplane", "automobile", "bird"]


def panel(scale: float, seed: int, offset: float = 0.0, spread: float = 0.2) -> PlanePanel:
    templates = scale * np.array([[0.0, 0.0], [1.0, 0.0], [0.5, 3**0.5 / 2]]) + offset
    labels = np.arange(30) % 3
    noise = np.random.default_rng(seed).normal(size=(30, 2))
    return PlanePanel(templates[labels] + spread * scale * noise, labels, templates)


def plane_panels() -> list[PlanePanel]:
    return [panel(10, 0), panel(10, 1), panel(0.5, 2, 0.01, 0.02), panel(0.5, 3, 0.01, 0.1)]


def reliability_curves(size: int = 10_000) -> list[ReliabilityCurve]:
    edges = np.linspace(0, 1, 16)
    confidence = edges[:-1] + np.linspace(0.01, 0.06, 15)
    count = np.r_[0, 0, np.geomspace(3, size, 13).astype(int)]
    accuracy = np.round(confidence**2 * count) / np.maximum(count, 1)
    hard = ReliabilityCurve("hard targets, T = 1", confidence, accuracy, count, 0.15)
    return [
        hard,
        replace(hard, name="hard targets, T = 1.9", accuracy=confidence, ece=0.0213),
        replace(hard, name="label smoothing, α = 0.05", count=count[::-1], ece=0.024),
    ]


def distillation_curves() -> dict[str, SeedCurve]:
    rng = np.random.default_rng(0)
    gamma = np.arange(6) * 0.15

    def curve(name: str, level: float) -> SeedCurve:
        return SeedCurve(name, gamma, level + 0.01 * rng.random((6, 5)))

    return {
        "teacher": curve("ResNet-56 teacher", 0.93),
        "baseline": curve("AlexNet student, label smoothing", 0.86),
        "hard_teacher": curve("students of the hard teacher, T varied", 0.88),
        "smoothed_teacher": curve("students of smoothed teachers, T = 1", 0.85),
    }


def information_curves() -> list[InformationCurve]:
    steps = np.arange(0, 64_001, 4000)
    hard = np.r_[0.1, np.linspace(2.9, 1.7, 16)]
    smoothed = np.r_[0.1, np.linspace(2.3, 0.75, 16)]
    return [
        InformationCurve(name, steps, y, y - 0.07, y + 0.11)
        for name, y in (("hard targets", hard), ("label smoothing, α = 0.1", smoothed))
    ]


def high_curves() -> list[InformationCurve]:
    """Two curves far above ln 2 and far below ln 600, the first with the paper's estimate above its bracket."""
    first, second = (
        replace(curve, estimate=y, lower=y - 0.07, upper=y + 0.11)
        for curve, y in zip(information_curves(), (np.linspace(4.2, 4.9, 17), np.linspace(4.1, 4.6, 17)), strict=True)
    )
    return [replace(first, paper=first.upper + 0.3), second]


FIGURES = {
    "plane": lambda: plots.template_plane_figure(plane_panels(), CLASSES),
    "plane, tiny": lambda: plots.template_plane_figure([panel(1e-4, i) for i in range(4)], CLASSES),
    "plane, large": lambda: plots.template_plane_figure([panel(2e5, i, -1e5) for i in range(4)], CLASSES),
    "plane, two rows": lambda: plots.template_plane_figure(
        [*plane_panels(), *plane_panels()],
        [CLASSES, ["toy poodle", "miniature poodle", "tench"]],
        row_names=["CIFAR-10, AlexNet", "ImageNet, Inception-v4"],
    ),
    "plane, hundredths": lambda: plots.template_plane_figure([panel(0.04, i) for i in range(4)], CLASSES),
    "plane, thousands": lambda: plots.template_plane_figure([panel(4e3, i, -3e3) for i in range(4)], CLASSES),
    "reliability": lambda: plots.reliability_figure(reliability_curves()),
    "reliability, even counts": lambda: plots.reliability_figure(
        [replace(curve, count=np.full(15, 9_999)) for curve in reliability_curves()]
    ),
    "reliability, few": lambda: plots.reliability_figure(reliability_curves(4)),
    "distillation": lambda: plots.distillation_figure(**distillation_curves()),
    "distillation, plain student": lambda: plots.distillation_figure(**distillation_curves(), plain=[0.86, 0.87]),
    "information": lambda: plots.information_figure(information_curves(), 600),
    "information, high": lambda: plots.information_figure(high_curves(), 600),
    "information, many": lambda: plots.information_figure(information_curves(), 60_000),
}


@pytest.fixture(params=FIGURES)
def figure(request) -> Figure:
    return FIGURES[request.param]()


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def test_text_is_inside_the_figure_readable_and_apart(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    # Ticks beyond the limits exist but are not drawn, so ask each axis which are.
    hidden = set()
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            tolerance = 1e-9 * (high - low)
            for tick in axis.get_major_ticks():
                if not low - tolerance <= tick.get_loc() <= high + tolerance:
                    hidden |= {tick.label1, tick.label2}
    shown = [text for text in texts(figure) if text not in hidden]
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in shown]
    for text, box in zip(shown, boxes, strict=True):
        assert 7 <= text.get_fontsize() <= 9, text
        assert box.x0 >= 0 and box.y0 >= 0, text
        assert box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1, text
    for (one, first), (other, second) in combinations(zip(shown, boxes, strict=True), 2):
        assert not first.overlaps(second), f"{one} overlaps {other}"


def test_legend_covers_no_data(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert figure.legends
    for legend in figure.legends:
        box = legend.get_window_extent(canvas.get_renderer())
        assert not any(box.overlaps(axes.get_window_extent()) for axes in figure.axes)


def test_widths_are_those_of_one_and_two_columns():
    widths = {name: make().get_figwidth() for name, make in FIGURES.items()}
    assert widths == {name: 7.0 if name.startswith("plane") else 3.3 for name in FIGURES}


def test_template_plane_draws_the_given_points():
    panels = plane_panels()
    figure = plots.template_plane_figure(panels, CLASSES)
    for axes, given_panel in zip(figure.axes, panels, strict=True):
        scatters = axes.collections
        for index in range(3):
            expected = given_panel.points[given_panel.labels == index]
            np.testing.assert_array_equal(scatters[index].get_offsets(), expected)
            np.testing.assert_array_equal(scatters[3 + index].get_offsets(), given_panel.templates[index : index + 1])
        colors = [to_hex(scatter.get_facecolor()[0]) for scatter in scatters]
        assert colors[:3] == colors[3:] and len(set(colors)) == 3 and set(colors) <= OKABE_ITO
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == CLASSES
    assert [axes.get_title() for axes in figure.axes] == ["train", "held-out", "train", "held-out"]


def test_panels_of_a_network_share_square_limits_with_one_unit():
    figure = plots.template_plane_figure(plane_panels(), CLASSES)
    FigureCanvasAgg(figure).draw()
    limits = [axes.viewLim.get_points() for axes in figure.axes]
    np.testing.assert_array_equal(limits[0], limits[1])
    np.testing.assert_array_equal(limits[2], limits[3])
    spans = np.array([np.diff(limit, axis=0)[0] for limit in limits])
    np.testing.assert_allclose(spans[:, 0], spans[:, 1])
    assert spans[0, 0] > 5 * spans[2, 0]
    sizes = {tuple(np.round(axes.get_window_extent().size, 6)) for axes in figure.axes}
    assert len(sizes) == 1 and len(set(sizes.pop())) == 1


def test_same_scale_gives_every_panel_the_widest_span():
    own = plots.template_plane_figure(plane_panels(), CLASSES).axes
    same = plots.template_plane_figure(plane_panels(), CLASSES, same_scale=True).axes
    np.testing.assert_allclose([axes.viewLim.width for axes in same], own[0].viewLim.width)
    np.testing.assert_allclose(np.mean(same[2].get_xlim()), np.mean(own[2].get_xlim()))


def scale_notes(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts if "Scales differ" in text.get_text()]


@pytest.mark.parametrize(("times", "shared"), [(1.0, True), (1.9, True), (2.1, False), (30.0, False)])
def test_scales_differ_only_where_one_would_make_a_network_tiny_and_the_figure_says_so(times, shared):
    large, small = panel(10 * times, 0), panel(10, 0)
    for panels, larger in (([large, large, small, small], "right"), ([small, small, large, large], "left")):
        figure = plots.template_plane_figure(panels, CLASSES)
        widths = {round(float(axes.viewLim.width), 6) for axes in figure.axes}
        notes = scale_notes(figure)
        assert len(widths) == (1 if shared else 2) and len(notes) == (0 if shared else 1)
        for note in notes:
            number = float(re.search(r"[\d.]+", note)[0])
            assert number == pytest.approx(times, rel=0.02) and f"the {larger} pair is drawn" in note


def test_each_row_states_its_own_scales():
    rows = [*[panel(10, 0)] * 2, *[panel(1, 0)] * 2, *[panel(10, 0)] * 4]
    figure = plots.template_plane_figure(rows, CLASSES)
    assert len(scale_notes(figure)) == 1 and "10 times" in scale_notes(figure)[0]
    forced = plots.template_plane_figure([*[panel(15, 0)] * 2, *[panel(10, 0)] * 2], CLASSES, same_scale=False)
    assert "1.5 times" in scale_notes(forced)[0]


def test_coordinates_are_labelled_with_their_values():
    figure = plots.template_plane_figure([panel(2e5, i, -1e5) for i in range(4)], CLASSES)
    FigureCanvasAgg(figure).draw()
    for label in figure.axes[0].get_xticklabels():
        assert float(label.get_text().replace("−", "-")) == pytest.approx(label.get_position()[0])


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(-1e3, 1e3), st.integers(0, 1000))
def test_no_point_or_template_is_outside_its_panel(scale, offset, seed):
    panels = [panel(scale, seed + i, scale * offset) for i in range(4)]
    for axes, given_panel in zip(plots.template_plane_figure(panels, CLASSES).axes, panels, strict=True):
        everything = np.concatenate([given_panel.points, given_panel.templates])
        (left, bottom), (right, top) = axes.viewLim.get_points()
        assert (everything >= (left, bottom)).all() and (everything <= (right, top)).all()


def test_a_plane_with_all_points_in_one_place_can_be_drawn():
    point = PlanePanel(np.ones((3, 2)), np.arange(3), np.ones((3, 2)))
    assert plots.template_plane_figure([point] * 4, CLASSES).axes[0].get_xlim() == (0.0, 2.0)


def test_reliability_draws_mean_confidences_without_empty_bins():
    curves = reliability_curves()
    figure = plots.reliability_figure(curves)
    upper, lower = figure.axes
    for line, curve in zip(upper.lines, curves, strict=False):
        np.testing.assert_array_equal(line.get_xdata(), curve.confidence[curve.count > 0])
        np.testing.assert_array_equal(line.get_ydata(), curve.accuracy[curve.count > 0])
    np.testing.assert_array_equal(upper.lines[-1].get_xydata(), [[0, 0], [1, 1]])
    for patch, curve in zip(lower.patches, curves, strict=True):
        np.testing.assert_array_equal(patch.get_data().values, curve.count)
        np.testing.assert_allclose(patch.get_data().edges, np.arange(16) / 15)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels[1] == "hard targets, T = 1.9 (ECE 0.021)" and labels[-1] == "perfect calibration"
    assert upper.get_xlim() == upper.get_ylim() == lower.get_xlim()


def test_reliability_accepts_nan_in_empty_bins():
    curve = ReliabilityCurve("hard", np.array([np.nan, 0.8]), np.array([np.nan, 0.5]), np.array([0, 10]), 0.3)
    assert len(plots.reliability_figure([curve]).axes[0].lines[0].get_xdata()) == 1


def test_reliability_intervals_are_wilson_score_intervals():
    curve = reliability_curves()[0]
    bars = [c for c in plots.reliability_figure([curve]).axes[0].collections if isinstance(c, LineCollection)]
    n, p, z = curve.count[2:], curve.accuracy[2:], 1.959963984540054
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    drawn = np.array([segment[:, 1] for segment in bars[0].get_segments()])
    np.testing.assert_allclose(drawn, np.stack([centre - half, centre + half], axis=1), atol=1e-9)
    assert not plots.reliability_figure([curve], intervals=False).axes[0].collections


@pytest.mark.parametrize(("counts", "scale"), [([5, 5, 9_000], "log"), ([200, 300, 500], "linear")])
def test_counts_are_logarithmic_only_when_one_bin_dwarfs_the_others(counts, scale):
    thirds = np.array([0.2, 0.5, 0.8])
    figure = plots.reliability_figure([ReliabilityCurve("hard", thirds, thirds, np.array(counts), 0.0)])
    low, high = figure.axes[1].get_ylim()
    assert figure.axes[1].get_yscale() == scale
    assert low < min(counts) and high > max(counts)


def test_distillation_draws_mean_and_extremes_over_seeds():
    curves = distillation_curves()
    figure = plots.distillation_figure(**curves)
    axes = figure.axes[0]
    for line, bars, curve in zip(axes.lines, axes.collections, curves.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), curve.gamma)
        np.testing.assert_allclose(line.get_ydata(), np.sum(curve.accuracy, axis=1) / 5)
        ends = np.array([segment[:, 1] for segment in bars.get_segments()])
        np.testing.assert_array_equal(ends, np.sort(curve.accuracy, axis=1)[:, [0, -1]])
    assert [line.get_linestyle() for line in axes.lines] == ["-", "-", "--", "--"]
    assert len({line.get_marker() for line in axes.lines}) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [c.name for c in curves.values()]
    assert all(to_hex(line.get_color()) in OKABE_ITO for line in axes.lines)


def test_distillation_tick_labels_are_percentages():
    figure = plots.distillation_figure(**distillation_curves())
    axis = figure.axes[0].yaxis
    assert [axis.get_major_formatter()(value, 0) for value in (0.94, 0.945)] == ["94", "94.5"]


def test_students_of_teachers_are_optional():
    curves = distillation_curves()
    figure = plots.distillation_figure(teacher=curves["teacher"], baseline=curves["baseline"])
    assert len(figure.axes[0].lines) == 2


@pytest.mark.parametrize("plain", [[0.86, 0.87, 0.85], 0.86])
def test_the_plain_student_is_a_line_in_a_band_across_all_of_the_figure(plain):
    curves = distillation_curves()
    axes = plots.distillation_figure(**curves, plain=plain).axes[0]
    line = axes.lines[-1]
    assert line.get_ydata() == pytest.approx([0.86, 0.86]) and list(line.get_xdata()) == [0, 1]  # of the axes' width
    (band,) = axes.patches
    corners = band.get_bbox()
    assert (corners.y0, corners.y1) == (np.min(plain), np.max(plain)) and (corners.x0, corners.x1) == (0, 1)
    assert (
        line.get_label()
        == axes.figure.legends[0].get_texts()[-1].get_text()
        == ("student with hard targets, no teacher")
    )
    low, high = axes.get_ylim()
    assert low < np.min(plain) and high > max(np.max(curve.accuracy) for curve in curves.values())


@pytest.mark.parametrize(("plain", "message"), [([], "one for each seed"), ([[0.9]], "one for each seed")])
def test_a_bad_plain_student_is_refused(plain, message):
    with pytest.raises(ValueError, match=message):
        plots.distillation_figure(**distillation_curves(), plain=plain)
    with pytest.raises(ValueError, match="fractions"):
        plots.distillation_figure(**distillation_curves(), plain=[86.0])


def test_information_draws_estimate_bracket_and_limits():
    curves = information_curves()
    axes = plots.information_figure(curves, 600).axes[0]
    for line, band, curve in zip(axes.lines, axes.collections, curves, strict=False):
        np.testing.assert_array_equal(line.get_xydata(), np.stack([curve.steps, curve.estimate], axis=1))
        vertices = {tuple(vertex) for vertex in band.get_paths()[0].vertices}
        for edge in (curve.lower, curve.upper):
            assert set(zip(curve.steps.astype(float), edge, strict=True)) <= vertices
    assert np.exp(axes.lines[2].get_ydata()[0]) == pytest.approx(2)
    assert [text.get_text() for text in axes.texts] == ["ln 2"]


def test_information_axis_is_filled_by_what_it_is_about():
    for curves in (information_curves(), high_curves()):
        axes = plots.information_figure(curves, 600).axes[0]
        everything = np.concatenate([a for c in curves for a in (c.lower, c.upper, c.paper) if a is not None])
        low, high = axes.get_ylim()
        assert low < everything.min() and everything.max() < high
        assert np.ptp(everything) > 0.9 * (high - low)


def test_logarithms_beyond_the_information_axis_are_named_with_their_value():
    figure = plots.information_figure(high_curves(), 600)
    assert not figure.axes[0].texts
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == [
        "ln 2 = 0.69 is below this axis",
        "ln 600 = 6.40 is above this axis",
    ]
    near = replace(information_curves()[0], upper=np.full(17, np.log(600)))
    assert [text.get_text() for text in plots.information_figure([near], 600).axes[0].texts] == ["ln 2", "ln 600"]


def test_the_papers_estimate_is_a_thin_line_in_the_colour_of_its_network():
    first, second = high_curves()
    figure = plots.information_figure([first, second], 600)
    own, paper, other = figure.axes[0].lines[:3]
    np.testing.assert_array_equal(paper.get_xydata(), np.stack([first.steps, first.paper], axis=1))
    np.testing.assert_array_equal(other.get_ydata(), second.estimate)
    assert paper.get_color() == own.get_color() != other.get_color()
    assert paper.get_linewidth() < own.get_linewidth()
    explained = "thin: estimated as in the paper, 5 draws"
    assert [text.get_text() for text in figure.legends[0].get_texts()][:3] == [first.name, second.name, explained]
    without = plots.information_figure(information_curves(), 600).legends[0].get_texts()
    assert explained not in [text.get_text() for text in without]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: plots.template_plane_figure(plane_panels()[:3], CLASSES), "rows of four"),
        (lambda: plots.template_plane_figure([], CLASSES), "rows of four"),
        (lambda: plots.template_plane_figure(plane_panels(), CLASSES[:2]), "three names"),
        (lambda: plots.template_plane_figure(plane_panels(), [CLASSES, CLASSES]), "each of 1 rows"),
        (lambda: plots.template_plane_figure(plane_panels(), CLASSES, row_names=["a", "b"]), "row_names"),
        (lambda: plots.reliability_figure([]), "one to 6 curves"),
        (lambda: plots.reliability_figure(reliability_curves()[:1] * 7), "one to 6 curves"),
        (lambda: plots.information_figure(information_curves(), 1), "at least 2"),
        (lambda: plots.information_figure([], 600), "one to 6 curves"),
    ],
)
def test_wrong_numbers_of_things_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": np.zeros((30, 3))}, r"points \[N, 2\]"),
        ({"labels": np.zeros(29, int)}, r"labels \[N\]"),
        ({"templates": np.zeros((2, 2))}, r"templates \[3, 2\]"),
        ({"points": np.full((30, 2), np.nan)}, "NaN or infinite"),
        ({"templates": np.full((3, 2), np.inf)}, "NaN or infinite"),
        ({"labels": np.full(30, 3)}, "0, 1 or 2"),
    ],
)
def test_bad_panels_are_refused(changes, message):
    panels = plane_panels()
    with pytest.raises(ValueError, match=f"panel 2.*{message}|{message}.*panel 2"):
        plots.template_plane_figure([*panels[:2], replace(panels[2], **changes), panels[3]], CLASSES)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"accuracy": np.zeros(14)}, "15 bins"),
        ({"count": np.full(15, -1)}, "whole numbers"),
        ({"count": np.full(15, 0.5)}, "whole numbers"),
        ({"count": np.zeros(15, int)}, "at least one example"),
        ({"accuracy": np.full(15, np.nan)}, "fractions"),
        ({"confidence": np.full(15, 97.0)}, "fractions"),
    ],
)
def test_bad_reliability_curves_are_refused(changes, message):
    curves = reliability_curves()
    with pytest.raises(ValueError, match=message):
        plots.reliability_figure([curves[0], replace(curves[1], **changes)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": np.zeros(6)}, "increasing"),
        ({"gamma": np.arange(6.0)}, "between 0 and K"),
        ({"accuracy": np.zeros(6)}, r"\[6, seeds\]"),
        ({"accuracy": np.zeros((6, 0))}, r"\[6, seeds\]"),
        ({"accuracy": np.full((6, 5), 93.0)}, "fractions"),
    ],
)
def test_bad_seed_curves_are_refused(changes, message):
    curves = distillation_curves()
    curves["hard_teacher"] = replace(curves["hard_teacher"], **changes)
    with pytest.raises(ValueError, match=message):
        plots.distillation_figure(**curves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": np.arange(17)[::-1]}, "increasing"),
        ({"upper": np.zeros(17)}, "lower <= estimate <= upper"),
        ({"upper": np.full(17, np.inf)}, "finite"),
        ({"estimate": np.full(17, np.nan)}, "lower <= estimate <= upper"),
        ({"lower": np.zeros(3)}, "17 steps"),
        ({"paper": np.zeros(3)}, "estimate of the paper for its 17 steps"),
        ({"paper": np.full(17, np.nan)}, "finite estimate of the paper"),
    ],
)
def test_bad_information_curves_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        plots.information_figure([replace(information_curves()[0], **changes)], 600)


def test_global_state_is_left_alone():
    program = """
import sys, matplotlib
# A plain look at rcParams["backend"] imports pyplot.
settings = lambda: dict(dict.items(matplotlib.rcParams))
before = settings()
from tests import test_plots
for make in test_plots.FIGURES.values():
    test_plots.plots.encode(make(), "png")
assert "matplotlib.pyplot" not in sys.modules
assert settings() == before
"""
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", program], cwd=root, check=True)


@pytest.mark.parametrize("ending", ["png", "pdf", "svg"])
def test_saving_is_deterministic_and_leaves_one_file(tmp_path, ending):
    first = plots.save(plots.information_figure(information_curves(), 600), tmp_path / f"one.{ending}")
    second = plots.save(plots.information_figure(information_curves(), 600), str(tmp_path / f"two.{ending}"))
    assert first.read_bytes() == second.read_bytes()
    assert b"Date" not in first.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"one.{ending}", f"two.{ending}"]


def test_png_has_200_dots_an_inch(tmp_path):
    with Image.open(plots.save(plots.reliability_figure(reliability_curves()), tmp_path / "figure.png")) as image:
        assert image.size[0] == 660
        assert image.info["dpi"] == pytest.approx((200, 200), rel=1e-3)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "figure.png"
    path.write_bytes(b"old")

    def full(self, content):
        with self.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        plots.save(plots.information_figure(information_curves(), 600), path)
    assert path.read_bytes() == b"old"
    assert [child.name for child in tmp_path.iterdir()] == ["figure.png"]


def test_saving_to_a_wrong_place_or_format_is_refused(tmp_path):
    figure = plots.information_figure(information_curves(), 600)
    with pytest.raises(ValueError, match=r"\.png, \.pdf or \.svg.*'gif'"):
        plots.save(figure, tmp_path / "figure.gif")
    with pytest.raises(FileNotFoundError, match="missing"):
        plots.save(figure, tmp_path / "missing" / "figure.png")
    assert not list(tmp_path.iterdir())


def test_user_style_does_not_hide_what_is_drawn():
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 8, "axes.grid": False}):
        figure = plots.information_figure(information_curves(), 600)
    assert max(text.get_fontsize() for text in texts(figure)) <= 9
