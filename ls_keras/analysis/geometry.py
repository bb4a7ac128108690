"""Where penultimate activations lie in the plane through three templates, and how tightly.

The paper's picture: the template of class k is column k of the last layer's kernel, and the activations of
three classes are projected onto the plane through their templates. The statistics below put numbers to what
it shows; all are computed in float64.
"""

import dataclasses
from collections.abc import Sequence

from ls_keras.analysis import arguments

import numpy as np

# Templates whose third lies this close to the line through the other two, as a share of the longest edge,
# span no plane that float32 weights could tell from rounding.
COLLINEAR_TOLERANCE = 1e-6
# Rows that are turned into float64 at a time.
_BLOCK = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """The plane through the templates of three classes, as `template_plane` makes it.

    Attributes:
        classes: The three classes, in the order given.
        basis: float64 `[2, d]` (`[2, d + 1]` with the bias coordinate), orthonormal rows.
        templates: float64 `[3, 2]`, the templates' coordinates.
        with_bias: Whether the bias is the templates' last coordinate, and 1 that of the activations.
    """

    classes: tuple[int, int, int]
    basis: np.ndarray
    templates: np.ndarray
    with_bias: bool

    def project(self, penultimate: np.ndarray) -> np.ndarray:
        """Return the coordinates float64 `[N, 2]` of activations `[N, d]` in this plane."""
        penultimate = arguments.real(penultimate, "penultimate activations")
        num_features = self.basis.shape[1] - self.with_bias
        if penultimate.ndim != 2 or penultimate.shape[1] != num_features:
            raise ValueError(
                f"Expected penultimate activations of shape [N, {num_features}], as the kernel has "
                f"{num_features} rows; received {penultimate.shape}."
            )
        axes = self.basis[:, :num_features].T
        blocks = (penultimate[at : at + _BLOCK] for at in range(0, len(penultimate), _BLOCK))
        points = np.concatenate([np.empty((0, 2)), *(block.astype(float) @ axes for block in blocks)])
        return points + self.basis[:, -1] if self.with_bias else points


@dataclasses.dataclass(frozen=True)
class TriangleRegularity:
    """How far a triangle is from equilateral; both are 0 where it is.

    Attributes:
        edge_variation: Standard deviation of the three edge lengths over their mean; NaN if all are 0.
        angle_spread: Standard deviation of the three angles, degrees; NaN where two corners coincide.
    """

    edge_variation: float
    angle_spread: float


def template_plane(kernel: np.ndarray, bias: np.ndarray, classes: Sequence[int], *, with_bias: bool = False) -> Plane:
    """Return the affine plane through the templates of three classes, with an orthonormal basis.

    The first axis points from the first template towards the second; the second axis is the part of
    (third - first) across it, so the third template lies on the positive side. Coordinates are inner products
    with these axes, u = basis @ x: the origin is the point of the plane nearest to the zero activation, not
    the middle of the templates. So for a, b among the three classes

        (templates[a] - templates[b]) . u = logit_a - logit_b

    up to the biases, and exactly where `with_bias` appends the bias to the templates and 1 to the
    activations. A point's distance from the origin thus measures logit differences, and stays the same when
    one vector is added to all templates, which changes no probability.

    Args:
        kernel: `[d, K]`, a template per column.
        bias: `[K]`; used only where `with_bias`.
        classes: Three different classes in [0, K).
        with_bias: The paper's section 1.1 counts the bias among the weights; its figures need no such choice.

    Returns:
        A `Plane`; `plane.project(penultimate)` gives the picture's points.

    Raises:
        ValueError: Shapes that do not fit, not three different classes in range, NaN or infinity, or
            templates on one line (within 1e-6 of the longest edge).

    Example: The corners (1, 0), (0, 1), (0, 0), seen along the first edge.

    >>> plane = template_plane(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]), np.zeros(3), (0, 1, 2))
    >>> plane.templates.round(3)  # the first two 1.414 apart, the third below their middle: at 0
    array([[-0.707, -0.707],
           [ 0.707, -0.707],
           [ 0.   ,  0.   ]])

    Reference: Müller, Kornblith and Hinton, 2019, "When Does Label Smoothing Help?", section 2.
    """
    with_bias = arguments.flag(with_bias, "with_bias")
    kernel, bias = (arguments.real(values, name).astype(float) for values, name in ((kernel, "kernel"), (bias, "bias")))
    if kernel.ndim != 2 or bias.shape != kernel.shape[1:]:
        raise ValueError(f"Expected a kernel [d, K] and a bias [K]; received shapes {kernel.shape} and {bias.shape}.")
    classes = arguments.classes(classes, "classes", 3, kernel.shape[1])
    templates = (np.vstack([kernel, bias]) if with_bias else kernel)[:, classes].T
    if not np.isfinite(templates).all():
        raise ValueError(f"The templates of classes {classes} hold NaN or infinity.")
    first, second = templates[1] - templates[0], templates[2] - templates[0]
    longest = max(np.linalg.norm(edge) for edge in (first, second, second - first))
    if np.linalg.norm(first) <= COLLINEAR_TOLERANCE * longest:
        raise ValueError(_collinear(classes))
    first = first / np.linalg.norm(first)
    second = second - (second @ first) * first
    second = second - (second @ first) * first  # once more, for what rounding left of a flat triangle
    if np.linalg.norm(second) <= COLLINEAR_TOLERANCE * longest:
        raise ValueError(_collinear(classes))
    basis = np.stack([first, second / np.linalg.norm(second)])
    return Plane(classes, basis, templates @ basis.T, with_bias)


def cluster_centres(points: np.ndarray, labels: np.ndarray, plane: Plane) -> np.ndarray:
    """Return the mean point `[3, 2]` of each of the plane's classes.

    Args:
        points: `[N, 2]`, from `plane.project`.
        labels: Integers `[N]`, or one-hot; examples of other classes are left out.
        plane: Names the classes.

    Returns:
        float64 `[3, 2]`, in the order of `plane.classes`.

    Raises:
        ValueError: Shapes that do not fit, or a class without an example.
    """
    return np.stack([cluster.mean(axis=0) for cluster in _clusters(points, labels, plane)])


def tightness(points: np.ndarray, labels: np.ndarray, plane: Plane, *, reference: np.ndarray | None = None) -> float:
    """Return the spread of the clusters as a share of the distance between templates; lower is tighter.

    The spread is the root mean square distance of a point from its cluster's centre, each of the three
    classes weighing the same; the distance is the mean edge of the templates' triangle.

    Args:
        points: `[N, 2]`, from `plane.project`.
        labels: Integers `[N]`, or one-hot; examples of other classes are left out.
        plane: Names the classes and holds the templates.
        reference: The triangle `[3, 2]` whose mean edge is the unit, in place of the templates'. With
            `cluster_centres` the result no longer depends on how the network divides its scale between
            activations and kernel, and compares networks whose templates differ in length.

    Returns:
        A number of at least 0.

    Raises:
        ValueError: Shapes that do not fit, a class without an example, or a reference of one point.

    Example: Each cluster is two points at distance 1 on either side of its template; edges are 2 and sqrt 2.

    >>> plane = template_plane(np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), np.zeros(3), (0, 1, 2))
    >>> points = np.concatenate([plane.templates + (0, 1), plane.templates - (0, 1)])
    >>> round(tightness(points, np.array([0, 1, 2, 0, 1, 2]), plane), 6)  # 3 / (2 + 2 sqrt 2)
    0.62132
    """
    clusters = _clusters(points, labels, plane)
    edges = _edges(plane.templates if reference is None else reference)
    if edges.mean() == 0.0:
        raise ValueError("The three points of the reference coincide: there is no distance to divide by.")
    variances = [np.sum(cluster.var(axis=0)) for cluster in clusters]
    return float(np.sqrt(np.mean(variances)) / edges.mean())


def triangle_regularity(triangle: np.ndarray) -> TriangleRegularity:
    """Return how far three points, such as `cluster_centres`, are from an equilateral triangle.

    Args:
        triangle: `[3, 2]`.

    Returns:
        A `TriangleRegularity`: spread of edge lengths (relative) and of angles (degrees).

    Raises:
        ValueError: Not three finite points of the plane.

    Example: Half a square has edges 1, 1, sqrt 2 and angles 90, 45, 45.

    >>> regularity = triangle_regularity(np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
    >>> round(regularity.edge_variation, 6), round(regularity.angle_spread, 6)  # the angles: 15 sqrt 2
    (0.171573, 21.213203)
    """
    edges, triangle = _edges(triangle), np.asarray(triangle, float)
    if edges.min() == 0.0:
        variation = float(edges.std() / edges.mean()) if edges.max() > 0.0 else float("nan")
        return TriangleRegularity(variation, float("nan"))
    to_next = np.roll(triangle, -1, axis=0) - triangle
    to_last = np.roll(triangle, 1, axis=0) - triangle
    across = to_next[:, 0] * to_last[:, 1] - to_next[:, 1] * to_last[:, 0]
    angles = np.degrees(np.arctan2(np.abs(across), np.vecdot(to_next, to_last)))
    return TriangleRegularity(float(edges.std() / edges.mean()), float(angles.std()))


def scale(points: np.ndarray, labels: np.ndarray, plane: Plane) -> float:
    """Return the mean distance of the projected activations from the origin, each class weighing the same.

    The origin is that of `template_plane`, where the three logits are equal (but for the biases), so that a
    large scale means large logit differences. A distance does not depend on the axes, so neither does the scale on
    the order in which the three classes are named.

    Args:
        points: `[N, 2]`, from `plane.project`.
        labels: Integers `[N]`, or one-hot; examples of other classes are left out.
        plane: Names the classes.

    Returns:
        A number of at least 0, in the units of the activations.

    Raises:
        ValueError: Shapes that do not fit, or a class without an example.

    Example:

    >>> plane = template_plane(np.array([[1.0, 0.0, -1.0], [0.0, 1.0, 0.0]]), np.zeros(3), (0, 1, 2))
    >>> scale(np.array([[3.0, -4.0], [0.0, 0.0], [1.0, 0.0]]), np.array([0, 1, 2]), plane)  # (5 + 0 + 1) / 3
    2.0
    """
    return float(np.mean([np.linalg.norm(cluster, axis=1).mean() for cluster in _clusters(points, labels, plane)]))


def class_means(penultimate: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the mean activation `[K, d]` of each class.

    Args:
        penultimate: `[N, d]`.
        labels: Integers `[N]` in [0, K), or one-hot.
        num_classes: K.

    Returns:
        float64 `[K, d]`.

    Raises:
        ValueError: Shapes that do not fit, or a class without an example.
    """
    num_classes = arguments.whole(num_classes, "num_classes", 1)
    penultimate, labels = _checked_rows(penultimate, labels, num_classes, "penultimate activations")
    counts = np.bincount(labels, minlength=num_classes)
    if counts.min() == 0:
        raise ValueError(f"Class {counts.argmin()} has no example among the {len(labels)} given.")
    order = np.argsort(labels, kind="stable")
    starts = np.cumsum(counts) - counts
    means = [penultimate[rows].mean(axis=0, dtype=float) for rows in np.split(order, starts[1:])]
    return np.stack(means)


def similar_and_different(vectors: np.ndarray) -> tuple[int, int, int]:
    """Choose two similar classes and a different one, by a rule and not by eye.

    The vectors are centred by their mean. The similar pair a < b has the largest cosine; the different class c
    has the smallest sum of cosines with both. The first such choice wins a tie.

    Args:
        vectors: `[K, d]`, one per class: `class_means` of a network trained with hard targets (or the
            columns of its kernel, `kernel.T`); use one choice for all networks compared.

    Returns:
        `(a, b, c)`.

    Raises:
        ValueError: Fewer than three classes, NaN or infinity, or a class at the mean of all.

    Example: Two vectors of nearly one direction, and one opposite.

    >>> similar_and_different(np.array([[0.0, -9.0], [5.0, 4.0], [4.0, 5.0], [-9.0, 0.0]]))
    (1, 2, 0)
    """
    vectors = arguments.real(vectors, "vectors").astype(float)
    if vectors.ndim != 2 or len(vectors) < 3 or not np.isfinite(vectors).all():
        raise ValueError(f"Expected finite vectors [K, d] of at least three classes; received shape {vectors.shape}.")
    centred = vectors - vectors.mean(axis=0)
    norms = np.linalg.norm(centred, axis=1)
    if norms.min() == 0.0:
        raise ValueError(f"The vector of class {norms.argmin()} is the mean of all: it has no direction.")
    cosines = (centred @ centred.T) / np.outer(norms, norms)
    upper = np.where(np.triu(np.ones_like(cosines), 1) > 0, cosines, -np.inf)
    first, second = np.unravel_index(upper.argmax(), upper.shape)
    to_pair = cosines[first] + cosines[second]
    to_pair[[first, second]] = np.inf
    return int(first), int(second), int(to_pair.argmin())


def continuum(logits: np.ndarray, labels: np.ndarray, similar: tuple[int, int], different: int) -> float:
    """Return how much examples of two similar classes differ in their resemblance to a third, different one.

    An example's resemblance to class c is r = z_c - mean of z_k over all classes but a, b and c, where a, b
    are the similar ones: "how much a poodle is a tench", against everything else that it is not. The result is

        mean over y in {a, b} of Var(r | label y)  /  mean over y in {a, b} of mean(Var_k(z_k) | label y)

    the variance of r within a class as a share of the variance of an example's logits over the K classes.
    Label smoothing asks that an example be as far from c as from every other wrong class: r = 0 for all, also
    for those that are torn between a and b (the arc of Figure 1), so no logit of a or b may enter r. Hard
    targets leave r free. The ratio does not change when a constant is added to one example's logits, nor when
    all logits are multiplied by a number.

    Args:
        logits: `[N, K]`, K at least 4.
        labels: Integers `[N]`, or one-hot; examples of other classes than the pair are left out.
        similar: The pair (a, b).
        different: The class c.

    Returns:
        A number of at least 0; 0 where smoothing has erased the resemblance.

    Raises:
        ValueError: Shapes that do not fit, not three different classes in range, fewer than four classes, a
            similar class without an example, NaN or infinity, or logits that do not differ at all.

    Example: z_c is 1 or -1, the others but a and b are 0; Var_k = (9 + 1) / 5 - (3 ± 1)^2 / 25 on average 1.6.

    >>> logits = np.array([[3.0, 0, 1, 0, 0], [3.0, 0, -1, 0, 0], [0, 3.0, 1, 0, 0], [0, 3.0, -1, 0, 0]])
    >>> round(continuum(logits, np.array([0, 0, 1, 1]), (0, 1), 2), 6)  # 1 / 1.6
    0.625

    Reference: Müller, Kornblith and Hinton, 2019, section 2, on toy poodle, miniature poodle and tench.
    """
    logits = arguments.real(logits, "logits")
    num_classes = logits.shape[1] if logits.ndim == 2 else None
    logits, labels = _checked_rows(logits, labels, num_classes, "logits")
    if arguments.are_probabilities(logits):
        raise ValueError(
            "Expected logits; received rows that are non-negative and sum to 1, as probabilities do. Pass the values "
            "before the softmax, or their logarithms."
        )
    similar = arguments.classes(similar, "similar", 2, num_classes)
    chosen = arguments.classes((*similar, different), "similar and different", 3, num_classes)
    if num_classes < 4:
        raise ValueError(
            f"Resemblance to a third class is measured against the classes beyond the three; received {num_classes}."
        )
    others = np.setdiff1d(np.arange(num_classes), chosen)
    resemblances, spreads = [], []
    for label in similar:
        own = logits[labels == label].astype(float)
        if len(own) == 0:
            raise ValueError(f"Class {label} has no example among the {len(labels)} given.")
        if not np.isfinite(own).all():
            raise ValueError(f"The logits of class {label} hold NaN or infinity.")
        resemblances.append(np.var(own[:, different] - own[:, others].mean(axis=1)))
        spreads.append(own.var(axis=1).mean())
    spread = np.mean(spreads)
    if spread == 0.0:
        raise ValueError(f"The logits of classes {similar} do not differ at all: the network is constant.")
    return float(np.mean(resemblances) / spread)


def _collinear(classes: tuple[int, ...]) -> str:
    return (
        f"The templates of classes {classes} lie on one line (within {COLLINEAR_TOLERANCE:g} of the longest "
        "edge), so they span no plane. Choose other classes, or train the network first."
    )


def _checked_rows(
    values: np.ndarray, labels: np.ndarray, num_classes: int | None, name: str
) -> tuple[np.ndarray, np.ndarray]:
    values = arguments.real(values, name)
    if values.ndim != 2 or len(values) == 0:
        raise ValueError(f"Expected {name} with a row per example, at least one; received shape {values.shape}.")
    return values, arguments.labels(labels, len(values), num_classes)


def _clusters(points: np.ndarray, labels: np.ndarray, plane: Plane) -> list[np.ndarray]:
    points, labels = _checked_rows(points, labels, None, "points")
    if points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError(f"Expected finite points [N, 2] from plane.project; received shape {points.shape}.")
    clusters = [points[labels == label].astype(float) for label in plane.classes]
    for label, cluster in zip(plane.classes, clusters, strict=True):
        if len(cluster) == 0:
            raise ValueError(f"Class {label} has no example among the {len(points)} given.")
    return clusters


def _edges(triangle: np.ndarray) -> np.ndarray:
    triangle = arguments.real(triangle, "points").astype(float)
    if triangle.shape != (3, 2) or not np.isfinite(triangle).all():
        raise ValueError(f"Expected three finite points, shape (3, 2); received {triangle.shape}.")
    return np.linalg.norm(triangle - np.roll(triangle, -1, axis=0), axis=1)
