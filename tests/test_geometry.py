import doctest
import itertools
import math

from ls_keras.analysis import geometry

import numpy as np
import pytest
import scipy.special
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st


def problem(seed=0, num_features=7, num_classes=5, num_examples=120):
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=(num_features, num_classes))
    bias = generator.normal(size=num_classes)
    labels = np.arange(num_examples) % num_classes
    penultimate = 3 * kernel.T[labels] + generator.normal(size=(num_examples, num_features))
    return kernel, bias, penultimate.astype(np.float32), labels


def simplex(num_classes):
    """Templates of a simplex equiangular tight frame, [K, K]."""
    return np.eye(num_classes) - 1 / num_classes


@pytest.mark.parametrize("with_bias", [False, True])
def test_projection_is_the_nearest_point_of_the_plane(with_bias):
    kernel, bias, penultimate, _ = problem()
    plane = geometry.template_plane(kernel, bias, (3, 0, 4), with_bias=with_bias)
    extended = np.vstack([kernel, bias]) if with_bias else kernel
    first, second, third = extended[:, 3], extended[:, 0], extended[:, 4]
    edges = np.stack([second - first, third - first], axis=1)
    x = np.hstack([penultimate, np.ones((len(penultimate), 1))]) if with_bias else penultimate.astype(float)
    # Least squares: the nearest point of the plane, first + edges @ s.
    s = np.linalg.lstsq(edges, (x - first).T, rcond=None)[0]
    nearest = first + (edges @ s).T
    origin = first - edges @ np.linalg.lstsq(edges, first, rcond=None)[0]  # nearest to the zero activation
    points = plane.project(penultimate)
    np.testing.assert_allclose(origin + points @ plane.basis, nearest, atol=1e-10)
    np.testing.assert_allclose(origin + plane.templates @ plane.basis, [first, second, third], atol=1e-12)
    np.testing.assert_allclose(plane.basis @ plane.basis.T, np.eye(2), atol=1e-14)


def test_orientation():
    kernel, bias, _, _ = problem()
    for classes in itertools.permutations((0, 2, 4)):
        first, second, third = geometry.template_plane(kernel, bias, classes).templates
        assert second[0] > first[0] and second[1] == pytest.approx(first[1], abs=1e-12)
        assert third[1] > first[1]


@pytest.mark.parametrize("with_bias", [False, True])
def test_distances_in_the_plane_are_kept(with_bias):
    kernel, bias, _, _ = problem()
    plane = geometry.template_plane(kernel, bias, (1, 2, 3), with_bias=with_bias)
    extended = np.vstack([kernel, bias]) if with_bias else kernel
    for a, b in itertools.combinations(range(3), 2):
        expected = np.linalg.norm(extended[:, plane.classes[a]] - extended[:, plane.classes[b]])
        assert np.linalg.norm(plane.templates[a] - plane.templates[b]) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("with_bias", [False, True])
def test_coordinates_are_logit_differences(with_bias):
    kernel, bias, penultimate, _ = problem()
    plane = geometry.template_plane(kernel, bias, (1, 2, 3), with_bias=with_bias)
    logits = penultimate @ kernel + (bias if with_bias else 0)
    points = plane.project(penultimate)
    for a, b in itertools.combinations(range(3), 2):
        expected = logits[:, plane.classes[a]] - logits[:, plane.classes[b]]
        np.testing.assert_allclose(points @ (plane.templates[a] - plane.templates[b]), expected, atol=1e-5)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), with_bias=st.booleans())
def test_rotating_the_features_changes_nothing(seed, with_bias):
    kernel, bias, penultimate, _ = problem(seed)
    penultimate = penultimate.astype(float)
    rotation = scipy.stats.ortho_group.rvs(kernel.shape[0], random_state=seed)
    plane = geometry.template_plane(kernel, bias, (0, 1, 2), with_bias=with_bias)
    turned = geometry.template_plane(rotation @ kernel, bias, (0, 1, 2), with_bias=with_bias)
    points, turned_points = plane.project(penultimate), turned.project(penultimate @ rotation.T)
    np.testing.assert_allclose(turned_points, points, atol=1e-8)
    np.testing.assert_allclose(turned.templates, plane.templates, atol=1e-8)


def test_adding_one_vector_to_all_templates_moves_no_point():
    kernel, bias, penultimate, _ = problem()
    shift = np.random.default_rng(1).normal(size=(kernel.shape[0], 1))
    points = geometry.template_plane(kernel, bias, (0, 1, 2)).project(penultimate)
    moved = geometry.template_plane(kernel + shift, bias, (0, 1, 2)).project(penultimate)
    np.testing.assert_allclose(moved, points, atol=1e-10)


@pytest.mark.parametrize("num_classes", [3, 10, 100])
def test_simplex_templates_are_equilateral(num_classes):
    plane = geometry.template_plane(simplex(num_classes), np.zeros(num_classes), (0, 1, 2))
    regularity = geometry.triangle_regularity(plane.templates)
    assert regularity.edge_variation < 1e-6 and regularity.angle_spread < 1e-6
    np.testing.assert_allclose(plane.templates[0] - plane.templates[1], [-np.sqrt(2), 0], atol=1e-12)


def test_statistics_are_their_definitions():
    kernel, bias, penultimate, labels = problem()
    plane = geometry.template_plane(kernel, bias, (4, 1, 2))
    points = plane.project(penultimate)
    variances, means, sizes = [], [], []
    for label in (4, 1, 2):
        mine = [point for point, y in zip(points, labels, strict=True) if y == label]
        means.append(sum(mine) / len(mine))
        variances.append(sum(np.dot(p - means[-1], p - means[-1]) for p in mine) / len(mine))
        sizes.append(sum(math.hypot(*p) for p in mine) / len(mine))
    pairs = [(4, 1), (1, 2), (2, 4)]
    distance = np.mean([np.linalg.norm(kernel[:, a] - kernel[:, b]) for a, b in pairs])
    spread = np.sqrt(np.mean(variances))
    assert geometry.tightness(points, labels, plane) == pytest.approx(spread / distance)
    assert geometry.scale(points, labels, plane) == pytest.approx(np.mean(sizes))
    centres = geometry.cluster_centres(points, labels, plane)
    np.testing.assert_allclose(centres, means)
    between = np.mean([np.linalg.norm(centres[a] - centres[b]) for a, b in ((0, 1), (1, 2), (2, 0))])
    assert geometry.tightness(points, labels, plane, reference=centres) == pytest.approx(spread / between)


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10**6), order=st.permutations((0, 2, 4)))
def test_statistics_do_not_depend_on_the_order_of_classes(seed, order):
    kernel, bias, penultimate, labels = problem(seed)
    for statistic in (geometry.tightness, geometry.scale):
        first, second = (
            statistic(plane.project(penultimate), labels, plane)
            for plane in (geometry.template_plane(kernel, bias, classes) for classes in ((0, 2, 4), order))
        )
        assert second == pytest.approx(first, rel=1e-9)


def test_scale_is_measured_from_where_the_logits_are_equal():
    # A point at its template t of a simplex lies |t| = sqrt(2/3) from the centre of the triangle, the origin.
    plane = geometry.template_plane(simplex(3), np.zeros(3), (0, 1, 2))
    assert geometry.scale(plane.templates, np.arange(3), plane) == pytest.approx(math.sqrt(2 / 3))


def test_kinds_of_labels():
    kernel, bias, penultimate, labels = problem()
    plane = geometry.template_plane(kernel, bias, (0, 1, 2))
    points = plane.project(penultimate)
    one_hot = np.eye(5)[labels]
    for same in (labels[:, None], labels.astype(float), one_hot, one_hot.astype(bool), one_hot.astype(int)):
        assert geometry.scale(points, same, plane) == geometry.scale(points, labels, plane)
        np.testing.assert_array_equal(
            geometry.class_means(penultimate, same, 5), geometry.class_means(penultimate, labels, 5)
        )
    smoothed = 0.9 * one_hot + 0.02
    for bad, message in (
        (labels + 0.7, "no whole number"),
        (labels - 1, "at least 0"),
        (labels.astype(str), "integer labels"),
        (labels == 1, "integer labels"),
        (smoothed, "one-hot"),
        (np.where(labels == 1, np.nan, labels), "no whole number"),
        (np.ma.masked_equal(labels, 4), "masked"),
    ):
        with pytest.raises(ValueError, match=message):
            geometry.scale(points, bad, plane)


def test_tightness_against_centres_ignores_how_scale_is_divided():
    kernel, bias, penultimate, labels = problem()
    results = []
    for factor in (1.0, 7.0):
        plane = geometry.template_plane(kernel / factor, bias, (0, 1, 2))
        points = plane.project(penultimate * factor)
        centres = geometry.cluster_centres(points, labels, plane)
        results.append(geometry.tightness(points, labels, plane, reference=centres))
    assert results[1] == pytest.approx(results[0], rel=1e-6)


def test_statistics_weigh_classes_equally():
    kernel, bias, penultimate, labels = problem()
    plane = geometry.template_plane(kernel, bias, (0, 1, 2))
    points = plane.project(penultimate)
    more = np.concatenate([np.arange(len(labels)), *[np.flatnonzero(labels == 0)] * 3])
    for statistic in (geometry.tightness, geometry.scale):
        assert statistic(points[more], labels[more], plane) == pytest.approx(statistic(points, labels, plane))


@pytest.mark.parametrize("angle", [20.0, 60.0, 137.0])
def test_regularity_of_isosceles_triangles(angle):
    half = np.radians(angle) / 2
    triangle = np.array([[0, 0], [np.cos(half), np.sin(half)], [np.cos(half), -np.sin(half)]])
    regularity = geometry.triangle_regularity(3 * triangle + [5, -2])
    base = (180 - angle) / 2
    assert regularity.angle_spread == pytest.approx(np.std([angle, base, base]))
    assert regularity.edge_variation == pytest.approx(np.std(e := [1, 1, 2 * np.sin(half)]) / np.mean(e))
    mirrored = geometry.triangle_regularity(triangle[::-1])
    assert mirrored.angle_spread == pytest.approx(regularity.angle_spread)


def test_regularity_of_degenerate_triangles():
    line = geometry.triangle_regularity(np.array([[0.0, 0], [1, 0], [3, 0]]))
    assert line.angle_spread == pytest.approx(np.std([0, 180, 0]))
    two = geometry.triangle_regularity(np.array([[0.0, 0], [0, 0], [1, 0]]))
    assert two.edge_variation == pytest.approx(np.std([0, 1, 1]) / np.mean([0, 1, 1]))
    assert np.isnan(two.angle_spread)
    assert np.isnan(geometry.triangle_regularity(np.zeros((3, 2))).edge_variation)


def test_class_means():
    _, _, penultimate, labels = problem()
    means = geometry.class_means(penultimate, labels, 5)
    for label in range(5):
        np.testing.assert_allclose(means[label], penultimate[labels == label].astype(float).mean(axis=0))


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), num_classes=st.integers(3, 7))
def test_similar_and_different_by_brute_force(seed, num_classes):
    vectors = np.random.default_rng(seed).normal(size=(num_classes, 4))
    centred = [v - vectors.mean(axis=0) for v in vectors]

    def cosine(a, b):
        return centred[a] @ centred[b] / np.linalg.norm(centred[a]) / np.linalg.norm(centred[b])

    pair = max(itertools.combinations(range(num_classes), 2), key=lambda ab: cosine(*ab))
    rest = [c for c in range(num_classes) if c not in pair]
    different = min(rest, key=lambda c: cosine(pair[0], c) + cosine(pair[1], c))
    assert geometry.similar_and_different(vectors) == (*pair, different)
    assert geometry.similar_and_different(3 * vectors + 11) == (*pair, different)


def continuum_by_hand(logits, labels, a, b, c):
    others = [k for k in range(logits.shape[1]) if k not in (a, b, c)]
    variances, spreads = [], []
    for y in (a, b):
        rows = [row for row, label in zip(logits, labels, strict=True) if label == y]
        r = [row[c] - sum(row[k] for k in others) / len(others) for row in rows]
        variances.append(sum((x - sum(r) / len(r)) ** 2 for x in r) / len(r))
        spreads.append(sum(sum((z - sum(row) / len(row)) ** 2 for z in row) / len(row) for row in rows) / len(rows))
    return sum(variances) / sum(spreads)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), factor=st.floats(0.01, 100))
def test_continuum_is_its_definition_and_invariant(seed, factor):
    generator = np.random.default_rng(seed)
    logits, labels = generator.normal(size=(40, 6)), np.arange(40) % 4
    result = geometry.continuum(logits, labels, (3, 1), 2)
    assert result == pytest.approx(continuum_by_hand(logits, labels, 3, 1, 2))
    changed = factor * (logits + generator.normal(scale=10, size=(40, 1)))
    assert geometry.continuum(changed, labels, (3, 1), 2) == pytest.approx(result, rel=1e-6)
    assert geometry.continuum(logits, labels, (1, 3), 2) == pytest.approx(result)


def test_continuum_vanishes_at_the_optimum_of_label_smoothing():
    # Log-probabilities of smoothed targets, for sure examples and for those torn between the similar classes.
    generator = np.random.default_rng(0)
    alpha, num_classes = 0.1, 10
    share = generator.uniform(size=200)
    targets = np.full((200, num_classes), alpha / num_classes)
    targets[:, 0] += (1 - alpha) * share
    targets[:, 1] += (1 - alpha) * (1 - share)
    labels = (share < 0.5).astype(int)
    smoothed = geometry.continuum(np.log(targets), labels, (0, 1), 7)
    assert smoothed == pytest.approx(0.0, abs=1e-25)
    hard = np.log(targets) + generator.normal(size=targets.shape)
    assert geometry.continuum(hard, labels, (0, 1), 7) > 0.1


# Bad input


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((0, 1), "three different classes"),
        ((0, 1, 2, 3), "three different classes"),
        ((0, 1, 1), r"\(0, 1, 1\)"),
        ((0, 1, 5), r"\[0, 5\)"),
        ((-1, 0, 1), r"\[0, 5\)"),
        ((0.5, 1, 2), "integers"),
        ((0.0, 1, 2), "integers"),
        ((True, 0, 2), "integers"),
        (("0", "1", "2"), "integers"),
        ("012", "integers"),
        (3, "three different classes"),
        (np.array([0.5, 1, 2]), "integers"),
    ],
)
def test_bad_classes(classes, message):
    kernel, bias, _, _ = problem()
    with pytest.raises(ValueError, match=message):
        geometry.template_plane(kernel, bias, classes)


@pytest.mark.parametrize("height", [0.0, 1e-7])
def test_collinear_templates(height):
    kernel = np.array([[0.0, 1.0, 2.0], [0.0, height, 0.0], [5.0, 5.0, 5.0]])
    for classes in itertools.permutations(range(3)):
        with pytest.raises(ValueError, match="one line"):
            geometry.template_plane(kernel, np.zeros(3), classes)
    with pytest.raises(ValueError, match="one line"):
        geometry.template_plane(kernel[:, [0, 0, 2]], np.zeros(3), (0, 1, 2))
    # A bias can lift them off the line, and a higher triangle is accepted.
    geometry.template_plane(kernel, np.array([0.0, 1.0, 0.0]), (0, 1, 2), with_bias=True)
    kernel[1, 1] = 1e-4
    geometry.template_plane(kernel, np.zeros(3), (0, 1, 2))


def test_bad_templates():
    kernel, bias, penultimate, _ = problem()
    with pytest.raises(ValueError, match=r"\(7, 5\) and \(4,\)"):
        geometry.template_plane(kernel, bias[:4], (0, 1, 2))
    with pytest.raises(ValueError, match="NaN"):
        geometry.template_plane(kernel * np.nan, bias, (0, 1, 2))
    with pytest.raises(ValueError, match=r"\[N, 7\].*\(120, 6\)"):
        geometry.template_plane(kernel, bias, (0, 1, 2)).project(penultimate[:, :6])


@pytest.mark.parametrize("statistic", [geometry.tightness, geometry.scale, geometry.cluster_centres])
def test_bad_points(statistic):
    kernel, bias, penultimate, labels = problem()
    plane = geometry.template_plane(kernel, bias, (0, 1, 2))
    points = plane.project(penultimate)
    with pytest.raises(ValueError, match="Class 1 has no example"):
        statistic(points[labels != 1], labels[labels != 1], plane)
    with pytest.raises(ValueError, match=r"shape \(120, 7\)"):
        statistic(penultimate, labels, plane)
    with pytest.raises(ValueError, match=r"shape \[120\].*received shape \(119,\)"):
        statistic(points, labels[:-1], plane)
    with pytest.raises(ValueError, match="finite"):
        statistic(points * np.nan, labels, plane)


def test_bad_reference():
    kernel, bias, penultimate, labels = problem()
    plane = geometry.template_plane(kernel, bias, (0, 1, 2))
    with pytest.raises(ValueError, match="coincide"):
        geometry.tightness(plane.project(penultimate), labels, plane, reference=np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        geometry.triangle_regularity(np.ones((2, 3)))


def test_bad_classes_for_the_continuum():
    logits, labels = np.random.default_rng(0).normal(size=(10, 5)), np.arange(10) % 5
    with pytest.raises(ValueError, match="three different classes"):
        geometry.continuum(logits, labels, (0, 1), 1)
    with pytest.raises(ValueError, match=r"two different classes.*\[0, 5\)"):
        geometry.continuum(logits, labels, (0, 5), 1)
    with pytest.raises(ValueError, match="beyond the three"):
        geometry.continuum(logits[:, :3], labels % 3, (0, 1), 2)
    with pytest.raises(ValueError, match="Class 0 has no example"):
        geometry.continuum(logits, np.ones(10, int), (0, 1), 2)
    with pytest.raises(ValueError, match="as probabilities do"):
        geometry.continuum(scipy.special.softmax(logits, axis=1), labels, (0, 1), 2)
    with pytest.raises(ValueError, match="NaN"):
        geometry.continuum(logits * np.nan, labels, (0, 1), 2)
    with pytest.raises(ValueError, match="constant"):
        geometry.continuum(np.zeros_like(logits), labels, (0, 1), 2)


@pytest.mark.parametrize("similar", [(0, 1.0), (False, True), ("0", "1"), (0,), (0, 0), 1])
def test_bad_similar_classes(similar):
    logits, labels = np.random.default_rng(0).normal(size=(10, 5)), np.arange(10) % 5
    with pytest.raises(ValueError, match="two different classes"):
        geometry.continuum(logits, labels, similar, 2)
    with pytest.raises(ValueError, match="three different classes"):
        geometry.continuum(logits, labels, (0, 1), str(2))


@pytest.mark.parametrize("kind", [complex, str, object, bool])
def test_arrays_that_are_no_real_numbers(kind):
    kernel, bias, penultimate, labels = problem()
    plane = geometry.template_plane(kernel, bias, (0, 1, 2))
    for call in (
        lambda: geometry.template_plane(kernel.astype(kind), bias, (0, 1, 2)),
        lambda: geometry.template_plane(kernel, bias.astype(kind), (0, 1, 2), with_bias=True),
        lambda: plane.project(penultimate.astype(kind)),
        lambda: geometry.scale(plane.project(penultimate).astype(kind), labels, plane),
        lambda: geometry.class_means(penultimate.astype(kind), labels, 5),
        lambda: geometry.similar_and_different(kernel.T.astype(kind)),
        lambda: geometry.triangle_regularity(plane.templates.astype(kind)),
        lambda: geometry.continuum((penultimate @ kernel).astype(kind), labels, (0, 1), 2),
    ):
        with pytest.raises(ValueError, match="real numbers"):
            call()
    with pytest.raises(ValueError, match="True or False"):
        geometry.template_plane(kernel, bias, (0, 1, 2), with_bias="no")


@pytest.mark.parametrize("num_classes", [5.0, "5", True, 0, None])
def test_bad_number_of_classes(num_classes):
    _, _, penultimate, labels = problem()
    with pytest.raises(ValueError, match="num_classes to be an integer of at least 1"):
        geometry.class_means(penultimate, labels, num_classes)


def test_bad_class_means():
    _, _, penultimate, labels = problem()
    with pytest.raises(ValueError, match="Class 5 has no example"):
        geometry.class_means(penultimate, labels, 6)
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        geometry.class_means(penultimate, labels, 4)
    with pytest.raises(ValueError, match="three classes"):
        geometry.similar_and_different(np.eye(2))
    with pytest.raises(ValueError, match="no direction"):
        geometry.similar_and_different(np.array([[0.0, 0], [1, 1], [-1, -1]]))


def test_docstring_examples():
    result = doctest.testmod(geometry)
    assert result.failed == 0 and result.attempted > 8
