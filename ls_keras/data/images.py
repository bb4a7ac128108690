"""Image data in memory as `tf.data` batches that depend on (seed, step) alone, whatever was run before.

Images stay unsigned bytes until they are batched. A batch is gathered, moved, mirrored and scaled as a whole,
by stateless random numbers, so training resumes at any step with the batches it would have seen.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from ls_keras.data.sources import read_arrays

import numpy as np
import tensorflow as tf

# Independent streams of random numbers under one seed.
_ORDER, _AUGMENTATION, _DRAWS, _NOISE = 0, 1, 2, 3


@dataclass(frozen=True, eq=False)
class Images:
    """A data set to train and evaluate on, in the splits `train`, `held_out` and `test`; see `load_images`.

    All batches hold float32 images and int32 labels. Those of `train` and `evaluation` have a static batch size,
    which always is the global one: `tf.distribute` splits it over replicas and workers.

    Args:
        name: The data set's name.
        input_shape: Height and width in pixels, channels.
        num_classes: Number of classes, K.
        class_names: The name of class k at index k.
        origin: Where the data set was read from.
        scaling: `standardize` or `unit`.
        max_shift: Largest move of a training image along each axis, in pixels.
        flip: Whether training images are mirrored left to right with probability ½.
        arrays: Per split, the images as unsigned bytes [examples, *input_shape] and the int32 labels [examples].
        targets: What training batches hold in place of labels, float32 [training examples, ...] or, of images that are
            moved, [training examples, positions, ...]; see `with_targets`.
        options: What `load_images` was given; nothing of data that were put together by hand.
    """

    name: str
    input_shape: tuple[int, int, int]
    num_classes: int
    class_names: tuple[str, ...]
    origin: str
    scaling: Literal["standardize", "unit"]
    max_shift: int
    flip: bool
    arrays: dict[str, tuple[np.ndarray, np.ndarray]] = field(repr=False)
    targets: np.ndarray | None = field(default=None, repr=False)
    options: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return self.size("train")

    def size(self, split: str) -> int:
        """Return the number of a split's examples."""
        return len(self.labels(split))

    def describe(self) -> dict[str, Any]:
        """Return the options of `load_images` and the fingerprint, for `rebuild`."""
        loader = load_images.__name__ if self.options else None
        return {"loader": loader, "name": self.name, **self.options, "fingerprint": self.fingerprint}

    @property
    def augmented(self) -> bool:
        """Whether training images are moved or mirrored, so that the same example differs between epochs."""
        return self.max_shift > 0 or self.flip

    @property
    def num_positions(self) -> int:
        """Number of places that a training image is moved to, all equally likely; 1 where none is moved."""
        return (2 * self.max_shift + 1) ** 2

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any pixel, label, split, order or scaling, for caches.

        Augmentation is left out: it does not change the examples that `evaluation` shows.
        """
        digest = hashlib.sha256(f"{self.name} {self.scaling} {self.input_shape}".encode())
        for split, (images, labels) in self.arrays.items():
            digest.update(f"{split} {len(labels)}".encode())
            digest.update(np.ascontiguousarray(images))
            digest.update(np.ascontiguousarray(labels))
        return digest.hexdigest()[:16]

    def images(self, split: str) -> np.ndarray:
        """Return a split's images in order: unsigned bytes [examples, *input_shape], read-only."""
        return self._split(split)[0]

    def labels(self, split: str) -> np.ndarray:
        """Return a split's labels in order: int32 [examples], read-only."""
        return self._split(split)[1]

    def with_targets(self, targets: np.ndarray) -> "Images":
        """Return the same data, whose training batches hold these targets in place of the labels.

        For what a teacher says of each training example; `labels` and `evaluation` stay as they are.

        Args:
            targets: [training examples, ...], in the order of `labels("train")`, and of images that are moved
                [training examples, positions, ...], in the order of `at_every_position`; kept as float32.

        Raises:
            ValueError: There is not one target for each training example and position, or training images are
                mirrored.

        Example:
            `with_targets(np.eye(10)[data.labels("train")])` trains on one-hot labels.
        """
        targets = np.array(targets, np.float32)
        if self.flip:
            raise ValueError(
                f"The training images of {self.name} are mirrored anew in each epoch, the targets are not. Load it "
                "without flip, or ask the teacher about each batch."
            )
        wanted = (self.num_train, self.num_positions) if self.augmented else (self.num_train,)
        if targets.shape[: len(wanted)] != wanted:
            places = f" and {self.num_positions} positions" if self.augmented else ""
            raise ValueError(
                f"`targets` must have one row for each of the {self.num_train} training examples{places} of "
                f"{self.name}; received shape {targets.shape}."
            )
        targets.flags.writeable = False
        return replace(self, targets=targets)

    def train(self, batch_size: int, *, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """Return the endless stream of training batches, from step `start_step` on.

        Every epoch is a permutation of the training set, drawn from (seed, epoch); batches run on over the end
        of an epoch, so nothing is dropped. Augmentation is drawn from (seed, step). So batch s is a function of
        (seed, s), and starting at step s costs one permutation, not s batches.

        Args:
            batch_size: Examples in a batch over all replicas.
            seed: A whole number from 0 to 2⁶³−1.
            start_step: The number of batches already trained on.

        Returns:
            Batches (images float32 [batch_size, *input_shape], labels int32 [batch_size]), or the rows of `targets`
            in place of the labels.

        Raises:
            ValueError: An argument is no whole number or is too small.

        Example:
            With 1,000 examples and batch size 128, batches 0 to 6 lie in the first epoch; batch 7 ends it with
            104 examples and opens the second with 24.
        """
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", seed, 0)
        check_whole("start_step", start_step, 0)
        images, targets = self._tensors("train")
        if self.targets is not None:
            with tf.device("CPU:0"):
                targets = tf.convert_to_tensor(self.targets)
        num_examples = self.num_train
        first_epoch, seen = divmod(start_step * batch_size, num_examples)
        order_key, augmentation_key = stream_key(seed, _ORDER), stream_key(seed, _AUGMENTATION)

        def permutation(epoch: tf.Tensor) -> tf.Tensor:
            examples = tf.range(num_examples)
            order = tf.random.experimental.stateless_shuffle(examples, [order_key, epoch], alg="philox")
            return order[tf.where(epoch == first_epoch, seen, 0) :]

        def batch(step: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            moves = self._moves(batch_size, [augmentation_key, step])
            augmented = self._augment(tf.gather(images, rows), moves)
            if self.targets is not None and self.augmented:
                return self._scale(augmented), tf.gather_nd(targets, tf.stack([rows, self._position(moves)], axis=1))
            return self._scale(augmented), tf.gather(targets, rows)

        return (
            tf.data.Dataset.range(first_epoch, tf.int64.max)
            .map(permutation)
            .rebatch(batch_size, drop_remainder=True)
            .enumerate(start=start_step)
            .map(batch, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(data_options())
        )

    def evaluation(self, split: str, batch_size: int) -> tf.data.Dataset:
        """Return a split in order and without augmentation, every example once.

        The last batch is filled up with copies of the last example at weight 0; use Keras's `weighted_metrics`,
        so that they do not count.

        Args:
            split: `train`, `held_out` or `test`.
            batch_size: Examples in a batch over all replicas.

        Returns:
            ⌈examples / batch_size⌉ batches (images float32 [batch_size, *input_shape], labels int32
            [batch_size], weights float32 [batch_size], 1 or 0).

        Raises:
            ValueError: An unknown or an empty split, or a batch size below 1.

        Example:
            1,000 examples in batches of 128: eight batches, whose weights sum to 1,000.
        """
        check_whole("batch_size", batch_size, 1)
        num_examples = self.size(split)
        if num_examples == 0:
            raise ValueError(
                f"{self.name} was loaded with no {split!r} examples to evaluate on. Choose another split, or other "
                "sizes with train_size and held_out_size."
            )
        images, labels = self._tensors(split)

        def batch(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            positions = step * batch_size + tf.range(batch_size, dtype=tf.int64)
            rows = tf.minimum(positions, num_examples - 1)
            weights = tf.cast(positions < num_examples, tf.float32)
            return self._scale(tf.gather(images, rows)), tf.gather(labels, rows), weights

        return (
            tf.data.Dataset.range(-(-num_examples // batch_size))
            .map(batch, num_parallel_calls=tf.data.AUTOTUNE)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(data_options())
        )

    def at_every_position(self, batch_size: int) -> tf.data.Dataset:
        """Return every training example at every place that it is moved to, for a teacher that is asked once.

        All positions of the first example, from the top left to the bottom right, then all of the second, and so on.

        Args:
            batch_size: Images in a batch; the last batch may be smaller.

        Returns:
            Batches of images, float32 [≤ batch_size, *input_shape], `num_train` · `num_positions` in all.

        Raises:
            ValueError: Training images are mirrored, too; a batch size below 1.
        """
        check_whole("batch_size", batch_size, 1)
        if self.flip:
            raise ValueError(f"The training images of {self.name} are mirrored, so that positions are not all of them.")
        images, _ = self._tensors("train")
        count = self.num_positions
        top, left = (
            tf.reshape(each, [-1]) for each in tf.meshgrid(*[tf.range(2 * self.max_shift + 1)] * 2, indexing="ij")
        )

        def versions(index: tf.Tensor) -> tf.Tensor:
            moves = top, left, tf.zeros([count], tf.bool)
            return self._scale(self._augment(tf.gather(images, tf.fill([count], index)), moves))

        return (
            tf.data.Dataset.range(self.num_train)
            .map(versions, num_parallel_calls=tf.data.AUTOTUNE)
            .rebatch(batch_size)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(data_options())
        )

    def draws(
        self, indices: Sequence[int] | np.ndarray, num_draws: int, *, seed: int, batch_size: int = 128
    ) -> tf.data.Dataset:
        """Return augmented versions of chosen training examples, for mutual information.

        All draws of the first example, then all of the second, and so on. The draws of an example are a function
        of (seed, index, num_draws), whichever other examples are chosen, and independent of those of `train`.

        Args:
            indices: Positions in the training split, as in `labels("train")`.
            num_draws: Draws for each example.
            seed: A whole number from 0 to 2⁶³−1; another seed gives fresh draws.
            batch_size: Draws in a batch; the last batch may be smaller.

        Returns:
            Batches (images float32 [≤ batch_size, *input_shape], indices int32 [≤ batch_size]).

        Raises:
            ValueError: Training images are not augmented, so that draws would be copies; or an index is out of
                range.

        Example:
            `draws([7, 3], 5, seed=0)` gives one batch with indices 7 7 7 7 7 3 3 3 3 3.
        """
        check_whole("num_draws", num_draws, 1)
        check_whole("seed", seed, 0)
        check_whole("batch_size", batch_size, 1)
        if not self.augmented:
            raise ValueError(
                f"{self.name} was loaded without augmentation, so all draws of an example would be equal and mutual "
                "information undefined. Load it with crop_padding, shift or flip."
            )
        chosen = np.asarray(indices)
        if chosen.ndim != 1 or len(chosen) == 0 or not np.issubdtype(chosen.dtype, np.integer):
            raise ValueError(
                "`indices` must be a list of one or more whole numbers; received an array of shape "
                f"{chosen.shape} and type {chosen.dtype}."
            )
        if chosen.min() < 0 or chosen.max() >= self.num_train:
            raise ValueError(
                f"`indices` must lie between 0 and {self.num_train - 1}, the training examples of {self.name}; "
                f"received {chosen.min()} to {chosen.max()}."
            )
        images, _ = self._tensors("train")
        key = stream_key(seed, _DRAWS)

        def versions(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            rows = tf.fill([num_draws], index)
            moves = self._moves(num_draws, [key, index])
            return self._scale(self._augment(tf.gather(images, rows), moves)), rows

        return (
            tf.data.Dataset.from_tensor_slices(chosen.astype(np.int32))
            .map(versions, num_parallel_calls=tf.data.AUTOTUNE)
            .rebatch(batch_size)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(data_options())
        )

    def _split(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        if split not in self.arrays:
            raise ValueError(f"`split` must be one of {', '.join(self.arrays)}; received {split!r}.")
        return self.arrays[split]

    def _tensors(self, split: str) -> tuple[tf.Tensor, tf.Tensor]:
        # The map functions capture these: tf.data holds them by reference and never writes them into its graph,
        # which may not exceed 2 GB. On an accelerator, every data set would first copy them back.
        images, labels = self._split(split)
        with tf.device("CPU:0"):
            return tf.convert_to_tensor(images), tf.convert_to_tensor(labels)

    def _moves(self, count: int, seed: list[int | tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Draw the corners that images are cropped at, and whether they are mirrored."""
        corners = 2 * self.max_shift + 1
        # One call for all: a range of twice the number of corners also decides evenly about mirroring.
        shape = [3, count]
        drawn = tf.random.stateless_uniform(shape, seed, 0, 2 * corners, tf.int32, alg="philox")
        return drawn[0] // 2, drawn[1] // 2, (drawn[2] < corners) & self.flip

    def _augment(self, images: tf.Tensor, moves: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        return _crop_and_flip(images, *moves, self.max_shift) if self.augmented else images

    def _position(self, moves: tuple[tf.Tensor, tf.Tensor, tf.Tensor]) -> tf.Tensor:
        """Return the places of moved images in the order of `at_every_position`."""
        top, left, _ = moves
        return top * (2 * self.max_shift + 1) + left

    def _scale(self, images: tf.Tensor) -> tf.Tensor:
        if self.scaling == "standardize":
            return tf.image.per_image_standardization(images)
        return tf.cast(images, tf.float32) / 255.0


def load_images(
    name: str,
    *,
    train_size: int | None = None,
    held_out_size: int | None = None,
    scaling: Literal["standardize", "unit"] = "standardize",
    crop_padding: int = 0,
    flip: bool = False,
    shift: int = 0,
    data_dir: str | os.PathLike | None = None,
    split_seed: int | None = None,
    label_noise: float = 0.0,
) -> Images:
    """Load an image data set and split its training images in two, as the paper does.

    The first `train_size` official training images are trained on, the last `held_out_size` of them are held
    out, the official test images stay apart. `digits` has no official test set: the first images are trained on,
    the next ones held out, the rest are the test set. Its 13 writers follow each other, about 130 images each,
    so in the order of the file held-out and test digits are by writers hardly trained on, if at all.

    Augmentation, for training batches and draws only: an image is zero-padded on every side and cropped back to
    its size at one of (2·padding + 1)² equally likely corners, then mirrored with probability ½. Scaling comes
    last, so that black borders enter the mean, as in tensor2tensor's CIFAR pipeline.

    Args:
        name: `digits`, `fashion_mnist`, `mnist`, `cifar10` or `cifar100`.
        train_size: Training examples. None: all that are not held out.
        held_out_size: Held-out examples, 0 for none. None: what `train_size` leaves, or a fifth if that is None
            too (10,000 of CIFAR's 50,000, as in the paper). `digits` needs both sizes.
        scaling: `standardize`: (x − mean) / max(std, 1/√n) over the n values of each image; `unit`: x / 255.
        crop_padding: Pixels of padding for the random crop; 4 for the paper's CIFAR networks.
        flip: Mirror left to right with probability ½.
        shift: Largest shift in pixels along each axis, zero-filled; 2 for the paper's MNIST networks, which
            makes 25 positions. A shift by s is a crop with padding s, so give one of the two.
        data_dir: The folder to search and to download to; see `ls_keras.data.sources.read_arrays`.
        split_seed: Shuffle the images to be split, from this seed. None: keep the order of the files.
        label_noise: Fraction of the training labels, from 0 to below 1, that are replaced by another class, each other
            one being equally likely (Lukasik et al. 2020). Which ones and by what depends on `split_seed` alone (None
            counts as 0), so all networks of a study see the same wrong labels. Held-out and test labels stay clean.

    Returns:
        The data in three splits.

    Raises:
        ValueError: An unknown name, sizes that do not fit, a class without training examples, a bad option, or
            a truncated or corrupt file.
        FileNotFoundError: The data set is not on the machine and cannot be downloaded.

    Example:
        >>> data = load_images("digits", train_size=1000, held_out_size=397)
        >>> data.input_shape, data.num_train, len(data.labels("test"))
        ((8, 8, 1), 1000, 400)
    """
    for option, value, minimum in (
        ("train_size", train_size, 1),
        ("held_out_size", held_out_size, 0),
        ("split_seed", split_seed, 0),
        ("crop_padding", crop_padding, 0),
        ("shift", shift, 0),
    ):
        if value is not None:
            check_whole(option, value, minimum)
    if isinstance(label_noise, bool) or not isinstance(label_noise, int | float) or not 0 <= label_noise < 1:
        raise ValueError(f"`label_noise` must be a fraction from 0 to below 1; received {label_noise!r}.")
    if crop_padding and shift:
        raise ValueError(
            f"`crop_padding={crop_padding}` and `shift={shift}` move the image in the same way: give one of them."
        )
    if not isinstance(flip, bool):
        raise ValueError(f"`flip` must be True or False; received {flip!r}.")
    if scaling not in ("standardize", "unit"):
        raise ValueError(f"`scaling` must be 'standardize' or 'unit'; received {scaling!r}.")

    source = read_arrays(name, data_dir)
    images, labels = source.train_images, source.train_labels
    has_test = len(source.test_labels) > 0
    max_shift, side = crop_padding or shift, min(images.shape[1:3])
    if max_shift >= side:
        raise ValueError(
            f"`crop_padding` or `shift` must be smaller than the images of {name}, {side} pixels; received {max_shift}."
        )
    train_size, held_out_size = _split_sizes(name, len(labels), train_size, held_out_size, has_test)
    if split_seed is not None:
        order = np.random.default_rng(split_seed).permutation(len(labels))
        images, labels = images[order], labels[order]

    held_out_start = len(labels) - held_out_size if has_test else train_size
    held_out = slice(held_out_start, held_out_start + held_out_size)
    rest = slice(held_out.stop, None)
    noisy = _with_noise(labels[:train_size], len(source.class_names), label_noise, split_seed or 0)
    arrays = {
        "train": (images[:train_size], noisy),
        "held_out": (images[held_out], labels[held_out]),
        "test": (source.test_images, source.test_labels) if has_test else (images[rest], labels[rest]),
    }
    _check_every_class(name, arrays["train"][1], source.class_names)
    for part in (array for pair in arrays.values() for array in pair):
        part.flags.writeable = False
    return Images(
        name=name,
        input_shape=images.shape[1:],
        num_classes=len(source.class_names),
        class_names=source.class_names,
        origin=source.origin,
        scaling=scaling,
        max_shift=max_shift,
        flip=flip,
        arrays=arrays,
        options={
            "name": name,
            "train_size": train_size,
            "held_out_size": held_out_size,
            "scaling": scaling,
            "crop_padding": crop_padding,
            "flip": flip,
            "shift": shift,
            "split_seed": split_seed,
            "label_noise": label_noise,
        },
    )


def _crop_and_flip(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, mirrored: tf.Tensor, padding: int) -> tf.Tensor:
    # One gather of whole pixels from the padded batch takes half the time of ImageProjectiveTransformV3, or of a
    # gather of rows followed by one of columns.
    count, height, width, channels = images.shape
    padded = tf.pad(images, [[0, 0], [padding, padding], [padding, padding], [0, 0]])
    rows = tf.range(height) + top[:, tf.newaxis] + tf.range(count)[:, tf.newaxis] * (height + 2 * padding)
    columns = tf.where(mirrored[:, tf.newaxis], tf.range(width)[::-1], tf.range(width)) + left[:, tf.newaxis]
    pixels = rows[:, :, tf.newaxis] * (width + 2 * padding) + columns[:, tf.newaxis, :]
    return tf.gather(tf.reshape(padded, [-1, channels]), pixels)


def stream_key(seed: int, purpose: int) -> int:
    """Return the key of one of the independent streams of random numbers under a seed."""
    # [key, index] is the two-part seed of TensorFlow's stateless operations, which scramble it themselves.
    return int(np.random.SeedSequence([seed, purpose]).generate_state(1, np.uint64)[0] >> 1)


def data_options() -> tf.data.Options:
    """Return the options of all pipelines: the same batches in the same order, whole on every worker."""
    options = tf.data.Options()
    options.deterministic = True
    # There are no files to share out: every worker takes its part of each global batch.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    return options


def check_whole(name: str, value: int, minimum: int) -> None:
    """Refuse what is no whole number of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not minimum <= value < 2**63:
        raise ValueError(f"`{name}` must be a whole number of at least {minimum}; received {value!r}.")


def _split_sizes(
    name: str, available: int, train_size: int | None, held_out_size: int | None, has_test: bool
) -> tuple[int, int]:
    if not has_test and (train_size is None or held_out_size is None):
        raise ValueError(
            f"{name} has no official test set: give train_size and held_out_size, and the rest of its {available} "
            "images becomes the test set."
        )
    if held_out_size is None:
        held_out_size = available // 5 if train_size is None else max(available - train_size, 0)
    if train_size is None:
        train_size = available - held_out_size
    if train_size < 1 or train_size + held_out_size > available:
        raise ValueError(
            f"{name} has {available} images to split: train_size={train_size} and held_out_size={held_out_size} do "
            f"not fit. Their sum must be at most {available}, with at least one image to train on."
        )
    return train_size, held_out_size


def _with_noise(labels: np.ndarray, num_classes: int, fraction: float, seed: int) -> np.ndarray:
    """Return labels of which a fraction is replaced by another class, uniformly."""
    if not fraction:
        return labels
    count = round(fraction * len(labels))
    if not count:
        raise ValueError(f"`label_noise={fraction}` replaces none of {len(labels)} training labels: raise it.")
    generator = np.random.default_rng([seed, _NOISE])
    rows = generator.permutation(len(labels))[:count]
    noisy = labels.copy()
    noisy[rows] = (labels[rows] + generator.integers(1, num_classes, count)) % num_classes
    return noisy


def _check_every_class(name: str, labels: np.ndarray, class_names: tuple[str, ...]) -> None:
    counts = np.bincount(labels, minlength=len(class_names))
    unseen = [class_names[k] for k in np.flatnonzero(counts == 0)]
    if unseen:
        shown = ", ".join(unseen[:5]) + (", …" if len(unseen) > 5 else "")
        raise ValueError(
            f"{name}: {len(unseen)} of the {len(class_names)} classes ({shown}) have no example among the first "
            f"{len(labels)} training images. Raise train_size, or set split_seed to shuffle."
        )
