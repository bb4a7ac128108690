"""ImageNet and other images in files: batches that depend on (seed, step) alone, of data larger than memory.

An example is read when its batch needs it, decoded no further than it is cropped, and forgotten with its batch. Beside
names and numbers of examples, memory holds what is on its way.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from ls_keras.data import archives
from ls_keras.data.archives import Examples
from ls_keras.data.images import check_whole, data_options, stream_key

import numpy as np
import tensorflow as tf

Colour = Literal["none", "fast", "full"]

# Independent streams of random numbers under one seed.
_ORDER, _CROP, _FLIP, _BRIGHTNESS, _SATURATION, _HUE, _CONTRAST, _SEQUENCE = range(8)
# How much colours change, as slim does: additions of up to ±δ to values in [0, 1] and to the hue, factors elsewhere.
_BRIGHTNESS_DELTA, _HUE_DELTA, _FACTORS = 32 / 255, 0.2, (0.5, 1.5)
# An image ends with its format's mark; what editors append to a JPEG is short.
_TAIL = 1024
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


@dataclass(frozen=True, eq=False)
class Records:
    """Images in files to train and evaluate on, in the splits `train`, `held_out` and `test`; see `load_records`.

    Batches hold float32 images in [−1, 1] and int32 labels, and have a static size, the global one.

    Args:
        name: The data set's name.
        num_classes: Number of classes, K.
        class_names: The name of class k at index k: for ImageNet its synset.
        origin: Where the data set was read from.
        input_shape: Height and width in pixels, channels.
        crop_area: Least and greatest part of an image that a training crop takes.
        crop_aspect: Least and greatest width ÷ height of a training crop.
        flip: Whether training crops are mirrored left to right with probability ½.
        colour: How colours of training crops are changed.
        central_crop: Part of each side that evaluation sees.
        splits: Per split, where its examples are, and their numbers there.
        options: What `load_records` was given.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]
    origin: str
    input_shape: tuple[int, int, int]
    crop_area: tuple[float, float]
    crop_aspect: tuple[float, float]
    flip: bool
    colour: Colour
    central_crop: float
    splits: dict[str, tuple[Examples, np.ndarray]] = field(repr=False)
    options: dict[str, Any] = field(repr=False)

    @property
    def num_train(self) -> int:
        """Number of training examples."""
        return self.size("train")

    def size(self, split: str) -> int:
        """Return the number of a split's examples."""
        return len(self._split(split)[1])

    def describe(self) -> dict[str, Any]:
        """Return the options of `load_records` and the fingerprint, for `rebuild`."""
        return {"loader": load_records.__name__, "name": self.name, **self.options, "fingerprint": self.fingerprint}

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change with any file's name or size, split, or what evaluation shows of it.

        The content of 150 GB is not read for it.
        """
        digest = hashlib.sha256(f"{self.name} {self.input_shape} {self.central_crop} {self.class_names}".encode())
        for split, (examples, rows) in self.splits.items():
            digest.update(f"{split} {len(rows)} {examples.digest}".encode())
            digest.update(rows)
        return digest.hexdigest()[:16]

    def train(self, batch_size: int, *, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """Return the endless stream of training batches, from step `start_step` on.

        Every epoch is a permutation of the training set, drawn from (seed, epoch); batches run on over the end of an
        epoch, so nothing is dropped. Crop, mirror and colours of the p-th example are drawn from (seed, p). So batch s
        is a function of (seed, s), and starting at step s costs one permutation, not s batches.

        Args:
            batch_size: Examples in a batch over all replicas.
            seed: A whole number from 0 to 2⁶³−1.
            start_step: The number of batches already trained on.

        Returns:
            Batches (images float32 [batch_size, *input_shape], labels int32 [batch_size]).

        Raises:
            ValueError: An argument is no whole number or is too small.
            tf.errors.InvalidArgumentError: While batches are made, of a file that is empty, truncated or no image; as
                `fit` and `evaluate` see them a ValueError.

        Example:
            With 1,281,167 − 50,000 examples and batch size 4,096, batch 300 ends the first epoch with 2,367 examples
            and opens the second with 1,729.
        """
        check_whole("batch_size", batch_size, 1)
        check_whole("seed", seed, 0)
        check_whole("start_step", start_step, 0)
        examples, rows = self._split("train")
        count, start = len(rows), start_step * batch_size
        first_epoch, seen = divmod(start, count)
        keys = [stream_key(seed, purpose) for purpose in range(8)]

        def permutation(epoch: tf.Tensor) -> tf.data.Dataset:
            numbers = tf.range(count)
            order = tf.random.experimental.stateless_shuffle(numbers, [keys[_ORDER], epoch], alg="philox")
            return tf.data.Dataset.from_tensor_slices(order[tf.where(epoch == first_epoch, seen, 0) :])

        def example(position: tf.Tensor, encoded: tf.Tensor, label: tf.Tensor, name: tf.Tensor) -> tuple[Any, Any]:
            seeds = [[each, position] for each in keys]
            return self._distorted(_sound(encoded, name), seeds), label

        stored = self._stored(rows)
        return (
            tf.data.Dataset.range(first_epoch, tf.int64.max)
            .flat_map(permutation)
            .enumerate(start)
            .map(lambda position, number: (position, *examples.read(tf.gather(stored, number))), tf.data.AUTOTUNE)
            .map(example, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(data_options())
        )

    def evaluation(self, split: str, batch_size: int) -> tf.data.Dataset:
        """Return a split in order, of every example its central part, once.

        The last batch is filled up with copies of the last example at weight 0; use Keras's `weighted_metrics`,
        so that they do not count.

        Args:
            split: `train`, `held_out` or `test`.
            batch_size: Examples in a batch over all replicas.

        Returns:
            ⌈examples / batch_size⌉ batches (images float32 [batch_size, *input_shape], labels int32 [batch_size],
            weights float32 [batch_size], 1 or 0).

        Raises:
            ValueError: An unknown or an empty split, or a batch size below 1.
            tf.errors.InvalidArgumentError: As `train`.
        """
        check_whole("batch_size", batch_size, 1)
        examples, rows = self._split(split)
        if not len(rows):
            raise ValueError(f"{self.name} was loaded with no {split!r} examples to evaluate on. Choose another split.")
        count, stored = len(rows), self._stored(rows)

        def example(position: tf.Tensor, encoded: tf.Tensor, label: tf.Tensor, name: tf.Tensor) -> tuple[Any, Any, Any]:
            return self._central(_sound(encoded, name)), label, tf.cast(position < count, tf.float32)

        def read(position: tf.Tensor) -> tuple[Any, ...]:
            return position, *examples.read(tf.gather(stored, tf.minimum(position, count - 1)))

        return (
            tf.data.Dataset.range(-(-count // batch_size) * batch_size)
            .map(read, num_parallel_calls=tf.data.AUTOTUNE)
            .map(example, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(batch_size, drop_remainder=True)
            .prefetch(tf.data.AUTOTUNE)
            .with_options(data_options())
        )

    def _split(self, split: str) -> tuple[Examples, np.ndarray]:
        if split not in self.splits:
            raise ValueError(f"`split` must be one of {', '.join(self.splits)}; received {split!r}.")
        return self.splits[split]

    def _stored(self, rows: np.ndarray) -> tf.Tensor:
        with tf.device("CPU:0"):
            return tf.convert_to_tensor(rows)

    def _distorted(self, encoded: tf.Tensor, seeds: Sequence[Any]) -> tf.Tensor:
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            _shape(encoded),
            tf.zeros([1, 0, 4]),
            seeds[_CROP],
            min_object_covered=0.0,
            aspect_ratio_range=self.crop_aspect,
            area_range=self.crop_area,
            use_image_if_no_bounding_boxes=True,
        )
        image = self._resized(encoded, begin, size) / 255
        if self.flip:
            image = tf.image.stateless_random_flip_left_right(image, seeds[_FLIP])
        return 2 * tf.clip_by_value(_coloured(image, self.colour, seeds), 0, 1) - 1

    def _central(self, encoded: tf.Tensor) -> tf.Tensor:
        shape = _shape(encoded)
        border = tf.cast(tf.cast(shape, tf.float32) * (1 - self.central_crop) / 2, tf.int32) * [1, 1, 0]
        return self._resized(encoded, border, shape - 2 * border) / 127.5 - 1

    def _resized(self, encoded: tf.Tensor, begin: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        window = tf.concat([begin[:2], size[:2]], 0)
        image = tf.cond(
            tf.io.is_jpeg(encoded),
            # Rows and columns outside of the window are not decoded.
            lambda: tf.image.decode_and_crop_jpeg(encoded, window, channels=3),
            lambda: tf.slice(tf.image.decode_png(encoded, channels=3), begin * [1, 1, 0], size * [1, 1, 0] + [0, 0, 3]),
        )
        image = tf.image.resize(image, self.input_shape[:2])
        image.set_shape(self.input_shape)
        return image


def load_records(
    name: Literal["imagenet2012", "folder"],
    *,
    held_out_size: int,
    image_size: int = 299,
    crop_area: tuple[float, float] = (0.05, 1.0),
    crop_aspect: tuple[float, float] = (0.75, 1.33),
    flip: bool = True,
    colour: Colour = "fast",
    central_crop: float = 0.875,
    split_seed: int = 0,
    data_dir: str | os.PathLike | None = None,
) -> Records:
    """Find ImageNet or another set of image files, and hold out a part of its training images.

    A training image is cropped at random, resized to a square by bilinear interpolation, mirrored with probability ½
    and coloured at random: `fast` changes brightness by up to ±32/255 and saturation by a factor in [0.5, 1.5]; `full`
    also hue by up to ±0.2 of the circle and contrast by a factor in [0.5, 1.5], in one of four orders; then values
    are cut to [0, 1] and become [−1, 1]. Of an evaluated image the central part is resized. Crops keep 5–100 % of
    the area; slim, which asks for 10 % of the object's box and takes the whole image for it, keeps 10–100 %.

    Grey images become three equal channels, CMYK images RGB, and a PNG image is read whatever its name.

    Args:
        name: `imagenet2012`: a directory prepared by TensorFlow Datasets, or else the original files
            ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in `data_dir` or its downloads/manual, from which
            one is prepared there (150 GB more), or else an image folder. `folder`: an image folder,
            train/CLASS/*.JPEG and val/CLASS/*.JPEG, or without a validation set CLASS/*.JPEG. Classes are
            numbered in the order of their names, from 0; ImageNet's are named by synset, n01440764 is class 0.
        held_out_size: Training images to hold out, drawn from `split_seed`, 0 for none. The paper's A.4: about
            50,000.
        image_size: Side of a square batch image, in pixels.
        crop_area: Least and greatest part of the area.
        crop_aspect: Least and greatest width ÷ height.
        flip: Mirror left to right with probability ½.
        colour: `none`, `fast` or `full`.
        central_crop: Part of each side, in (0, 1].
        split_seed: Which training images are held out.
        data_dir: The folder to search; of ImageNet, by default TFDS's own.

    Returns:
        The data: `test` is the validation set of the files, and empty where there is none.

    Raises:
        FileNotFoundError: Nothing there, or a part of it; the message names files, folders and commands.
        ValueError: A number out of its range, files that are no archive or no images, classes without an image.

    Example:
        >>> data = load_records("folder", data_dir="flowers", held_out_size=100)
        >>> data.input_shape, data.class_names
        ((299, 299, 3), ('daisy', 'rose'))

    Reference: Szegedy et al., 2015, section 6, https://arxiv.org/abs/1409.4842; TensorFlow models,
    slim/preprocessing/inception_preprocessing.py.
    """
    _check_options(held_out_size, image_size, crop_area, crop_aspect, flip, colour, central_crop, split_seed)
    found = archives.find(name, data_dir)
    total = len(found.train)
    if held_out_size and held_out_size >= total:
        raise ValueError(
            f"{found.origin} has {total:,} training images: `held_out_size` {held_out_size:,} does not fit."
        )
    if not held_out_size and not found.test:
        raise ValueError(
            f"{found.origin} has no validation set, and `held_out_size` is 0: nothing is left to evaluate on. Hold out "
            "a part of the training images, or add a folder val."
        )
    order = np.random.default_rng(split_seed).permutation(total)
    held_out, train = np.sort(order[:held_out_size]), np.sort(order[held_out_size:])
    archives.check_every_class(found, train)
    return Records(
        name=name,
        num_classes=len(found.class_names),
        class_names=found.class_names,
        origin=found.origin,
        input_shape=(image_size, image_size, 3),
        crop_area=tuple(crop_area),
        crop_aspect=tuple(crop_aspect),
        flip=flip,
        colour=colour,
        central_crop=central_crop,
        splits={
            "train": (found.train, train),
            "held_out": (found.train, held_out),
            "test": (found.test, np.arange(len(found.test))),
        },
        options={
            "held_out_size": held_out_size,
            "image_size": image_size,
            "crop_area": list(crop_area),
            "crop_aspect": list(crop_aspect),
            "flip": flip,
            "colour": colour,
            "central_crop": central_crop,
            "split_seed": split_seed,
        },
    )


def _shape(encoded: tf.Tensor) -> tf.Tensor:
    """Return height, width and channels without decoding a JPEG."""
    return tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: tf.image.extract_jpeg_shape(encoded),
        lambda: tf.shape(tf.image.decode_png(encoded)),
    )


def _coloured(image: tf.Tensor, colour: Colour, seeds: Sequence[Any]) -> tf.Tensor:
    def brightness(image: tf.Tensor) -> tf.Tensor:
        return tf.image.stateless_random_brightness(image, _BRIGHTNESS_DELTA, seeds[_BRIGHTNESS])

    def saturation(image: tf.Tensor) -> tf.Tensor:
        return tf.image.stateless_random_saturation(image, *_FACTORS, seeds[_SATURATION])

    def hue(image: tf.Tensor) -> tf.Tensor:
        return tf.image.stateless_random_hue(image, _HUE_DELTA, seeds[_HUE])

    def contrast(image: tf.Tensor) -> tf.Tensor:
        return tf.image.stateless_random_contrast(image, *_FACTORS, seeds[_CONTRAST])

    def changed(*changes: Any) -> tf.Tensor:
        result = image
        for change in changes:
            result = change(result)
        return result

    if colour == "none":
        return image
    if colour == "fast":
        return changed(brightness, saturation)
    sequence = tf.random.stateless_uniform([], seeds[_SEQUENCE], 0, 4, tf.int32, alg="philox")
    return tf.switch_case(
        sequence,
        [
            lambda: changed(brightness, saturation, hue, contrast),
            lambda: changed(saturation, brightness, contrast, hue),
            lambda: changed(contrast, hue, brightness, saturation),
            lambda: changed(hue, saturation, contrast, brightness),
        ],
    )


def _sound(encoded: tf.Tensor, name: tf.Tensor) -> tf.Tensor:
    """Return an encoded image, or stop with the name of a file that is none: TensorFlow's decoder would not name it.

    Of a truncated JPEG it would make up the missing lines without a word.
    """
    length = tf.strings.length(encoded)
    tail = tf.strings.substr(encoded, -tf.minimum(length, _TAIL), _TAIL)
    values = tf.io.decode_raw(tail, tf.uint8)
    jpeg, png = tf.io.is_jpeg(encoded), tf.strings.substr(encoded, 0, len(_PNG_START)) == _PNG_START
    ends_as_jpeg = tf.reduce_any((values[:-1] == 0xFF) & (values[1:] == 0xD9))
    ends_as_png = tf.strings.substr(encoded, -tf.minimum(length, len(_PNG_END)), len(_PNG_END)) == _PNG_END
    whole = (jpeg & ends_as_jpeg) | (png & ends_as_png)

    def stop() -> tf.Operation:
        fault = tf.where(length == 0, "is empty", tf.where(jpeg | png, "is truncated", "is neither JPEG nor PNG"))
        text = tf.strings.join(
            [name, " ", fault, " (", tf.strings.as_string(length), " bytes). Fetch it again, or remove it."]
        )
        return tf.debugging.Assert(False, ["<!", text, "!>"])

    with tf.control_dependencies([tf.cond(whole, tf.no_op, stop)]):
        return tf.identity(encoded)


def _check_options(
    held_out_size: int,
    image_size: int,
    crop_area: Sequence[float],
    crop_aspect: Sequence[float],
    flip: bool,
    colour: str,
    central_crop: float,
    split_seed: int,
) -> None:
    for option, value, minimum in (
        ("held_out_size", held_out_size, 0),
        ("image_size", image_size, 1),
        ("split_seed", split_seed, 0),
    ):
        check_whole(option, value, minimum)
    for option, (low, high), most in (("crop_area", crop_area, 1), ("crop_aspect", crop_aspect, np.inf)):
        if not 0 < low <= high <= most:
            bound = " and at most 1" if most == 1 else ""
            raise ValueError(f"`{option}` must be two ascending numbers above 0{bound}; received {low}, {high}.")
    if not isinstance(flip, bool):
        raise ValueError(f"`flip` must be True or False; received {flip!r}.")
    if colour not in ("none", "fast", "full"):
        raise ValueError(f"`colour` must be 'none', 'fast' or 'full'; received {colour!r}.")
    if not 0 < central_crop <= 1:
        raise ValueError(f"`central_crop` must be above 0 and at most 1; received {central_crop}.")
