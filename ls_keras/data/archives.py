"""Where image files are: an image folder, ImageNet's tar files, or what TensorFlow Datasets has made of these.

What is missing, empty or of the wrong kind is found here, before any work, as far as names and sizes tell.
"""

import hashlib
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

from ls_keras.data import sources

import numpy as np
import tensorflow as tf

IMAGENET = "imagenet2012"
_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
_SUFFIXES = (".jpeg", ".jpg", ".png")
_SPLITS = ("train", "validation")
# TFDS's format that is read example by example, in any order.
_FORMAT = "array_record"
# Two blocks of zeros end a tar file.
_TAR_END = bytes(1024)
_SHOWN = 5


class Examples(Protocol):
    """Encoded images with labels, to be read one by one in any order."""

    labels: np.ndarray | None
    """int [examples], where they are known without reading the examples"""

    @property
    def digest(self) -> str: ...

    def __len__(self) -> int: ...

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return, within a tf.data pipeline, an encoded image, its int32 label and the name of its file."""


class Found(NamedTuple):
    """A set of image files.

    Attributes:
        class_names: The name of class k at index k.
        train: The training examples.
        test: The validation examples; none if there is no validation set.
        origin: Where they are.
    """

    class_names: tuple[str, ...]
    train: Examples
    test: Examples
    origin: str


class _Files:
    """Files of an image folder: paths below it, and their sizes in bytes."""

    def __init__(self, folder: Path, paths: list[str], sizes: list[int], labels: list[int]) -> None:
        self.folder, self.paths, self.sizes = folder, paths, sizes
        self.labels = np.array(labels, np.int32)

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def digest(self) -> str:
        lines = (f"{path} {size}\n" for path, size in zip(self.paths, self.sizes, strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @cached_property
    def _tensors(self) -> tuple[tf.Tensor, tf.Tensor]:
        # Held by reference: a graph may not exceed 2 GB, nor should it hold a million names.
        with tf.init_scope(), tf.device("CPU:0"):
            return tf.convert_to_tensor(self.paths), tf.convert_to_tensor(self.labels)

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        paths, labels = self._tensors
        path = tf.strings.join([f"{self.folder}{os.sep}", tf.gather(paths, index)])
        return tf.io.read_file(path), tf.gather(labels, index), path


class _Prepared:
    """One split of a directory that TensorFlow Datasets has prepared."""

    labels = None

    def __init__(self, source: Any, folder: Path, split: Any) -> None:
        self.source, self.folder = source, folder
        self.digest = f"{folder.name} {split.name} {split.shard_lengths} {split.num_bytes}"

    def __len__(self) -> int:
        return len(self.source)

    def read(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        record = tf.numpy_function(lambda number: self.source[int(number)], [index], tf.string, stateful=False)
        text, number = (tf.io.FixedLenFeature([], dtype) for dtype in (tf.string, tf.int64))
        example = tf.io.parse_single_example(
            tf.ensure_shape(record, []), {"image": text, "label": number, "file_name": text}
        )
        name = tf.strings.join([f"{self.folder}: ", example["file_name"]])
        return example["image"], tf.cast(example["label"], tf.int32), name


def find(name: str, data_dir: str | os.PathLike | None) -> Found:
    """Find the examples of `load_records`; of ImageNet's tar files, prepare a directory first."""
    if name == "folder":
        if data_dir is None:
            raise ValueError("An image folder has no usual place: name it with --data-dir FOLDER (data_dir=...).")
        return _folder(Path(data_dir))
    if name != IMAGENET:
        raise ValueError(f"Unknown data set {name!r}: expected {IMAGENET} or folder.")
    home = sources.tfds_folder(data_dir)
    places = (home, home / "downloads" / "manual")
    manual = [folder for folder in places if any((folder / tar).exists() for tar in _TARS)]
    prepared = sources.newest_prepared(home / IMAGENET)
    if prepared is None and manual:
        _check_tars(manual[0])
        prepared = sources.prepare(IMAGENET, home, file_format=_FORMAT, manual_dir=manual[0])
    if prepared is not None:
        return _prepared(prepared)
    if (home / "train").is_dir():
        return _folder(home)
    raise FileNotFoundError(
        f"ImageNet is not on this machine. Looked for a prepared TFDS directory {home / IMAGENET}/<version>, then for "
        f"{' and '.join(_TARS)} in {places[0]} and {places[1]}, then for an image folder {home}/train.\n"
        "To get it: register at https://image-net.org/download-images, save the two tar files in a folder and give it "
        "with --data-dir FOLDER (data_dir=...)."
    )


def check_every_class(found: Found, rows: np.ndarray) -> None:
    """Refuse training examples that lack a class, where labels are known."""
    if found.train.labels is None:
        return
    counts = np.bincount(found.train.labels[rows], minlength=len(found.class_names))
    unseen = [found.class_names[k] for k in np.flatnonzero(counts == 0)]
    if unseen:
        raise ValueError(
            f"{found.origin}: of {len(unseen)} of {len(found.class_names)} classes ({_listed(unseen)}) all images are "
            "held out. Lower held_out_size."
        )


# --- Image folders


def _folder(root: Path) -> Found:
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is no folder. Name one with CLASS/*.JPEG or train/CLASS/*.JPEG by --data-dir.")
    if not (root / "train").is_dir():
        if (root / "val").is_dir():
            raise FileNotFoundError(f"{root} has a folder val, but none named train. Add the training images.")
        names, train = _classes(root)
        return Found(names, train, _Files(root, [], [], []), str(root))
    names, train = _classes(root / "train")
    if not (root / "val").is_dir():
        return Found(names, train, _Files(root / "val", [], [], []), str(root))
    others, test = _classes(root / "val")
    if others != names:
        differing = sorted(set(names) ^ set(others))
        raise ValueError(
            f"{root}: train has {len(names)} classes and val {len(others)}; {_listed(differing)} are in one of them "
            "alone. Give both the same class folders."
        )
    return Found(names, train, test, str(root))


def _classes(folder: Path) -> tuple[tuple[str, ...], _Files]:
    names, strange = [], []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.name.startswith("."):
            (names if entry.is_dir() else strange).append(entry.name)
    if strange:
        raise ValueError(
            f"{folder} holds {len(strange)} files beside class folders, {_listed(strange)}: each image belongs in the "
            "folder of its class. Move or remove them."
        )
    if len(names) < 2:
        raise ValueError(f"{folder} must hold a folder for each of at least two classes; received {len(names)}.")
    paths, sizes, labels = [], [], []
    for label, name in enumerate(names):
        images = list(_images(folder / name))
        if not images:
            raise ValueError(f"{folder / name} holds no image: add images of that class, or remove the folder.")
        paths += [f"{name}{os.sep}{image}" for image, _ in images]
        sizes += [size for _, size in images]
        labels += [label] * len(images)
    return tuple(names), _Files(folder, paths, sizes, labels)


def _images(folder: Path) -> Iterator[tuple[str, int]]:
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith("."):
            continue
        if not entry.is_file() or not entry.name.lower().endswith(_SUFFIXES):
            raise ValueError(f"{entry.path} is no {' or '.join(_SUFFIXES)} file. Remove it from its class folder.")
        size = entry.stat().st_size
        if not size:
            raise ValueError(f"{entry.path} is empty (0 bytes). Fetch it again, or remove it.")
        yield entry.name, size


# --- ImageNet's tar files


def _check_tars(folder: Path) -> None:
    """Refuse what TFDS would leave out, give wrong labels, or end by an error without a file's name."""
    missing = [tar for tar in _TARS if not (folder / tar).exists()]
    if missing:
        raise FileNotFoundError(
            f"{folder} lacks {missing[0]}: the data set would be without a split. Save it there too; it is to be had "
            "from https://image-net.org/download-images."
        )
    train, validation = (folder / tar for tar in _TARS)
    _check_classes(train)
    with _opened(validation) as archive:
        images = sorted(name for name, _ in _members(archive, validation))
    # TFDS gives the n-th name the n-th label.
    expected = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, len(images) + 1)]
    wrong = [name for name, right in zip(images, expected, strict=True) if name != right]
    if wrong or not images:
        raise ValueError(
            f"{validation} must hold ILSVRC2012_val_00000001.JPEG and so on without a gap, or labels would be wrong; "
            f"{_listed(wrong) or 'nothing'} is what it holds instead. Fetch it again."
        )


def _check_classes(train: Path) -> None:
    import tensorflow_datasets as tfds  # noqa: PLC0415  (seconds to import)

    names = set()
    with _opened(train) as archive:
        for name, _ in _members(archive, train):
            names.add(name.removesuffix(".tar"))
            inner = Path(f"{train}:{name}")
            with _opened(inner, archive.extractfile(name)) as images:
                if not list(_members(images, inner)):
                    raise ValueError(f"{inner} holds no image. Fetch {train.name} again.")
    differing = sorted(names ^ set(tfds.builder(IMAGENET).info.features["label"].names))
    if differing:
        raise ValueError(
            f"{train} must hold one tar file for each of ImageNet's 1,000 classes; received {len(names)}, and "
            f"{_listed(differing)} are missing or too many. Fetch it again."
        )


@contextmanager
def _opened(path: Path, file: IO[bytes] | None = None) -> Iterator[tarfile.TarFile]:
    """Open a tar file, or one within another, and refuse what is none or is cut off."""
    try:
        with file or path.open("rb") as content:
            content.seek(0, os.SEEK_END)
            content.seek(max(content.tell() - len(_TAR_END), 0))
            ended = content.read() == _TAR_END
            content.seek(0)
            with tarfile.open(fileobj=content, mode="r:") as archive:
                if not ended:
                    raise tarfile.ReadError("its end is missing")
                yield archive
    except tarfile.ReadError as problem:
        raise ValueError(f"{path} is no whole tar file ({problem}). Fetch it again.") from problem


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, int]]:
    for member in archive:
        if not re.fullmatch(r"\w+\.(JPEG|tar)", member.name) or not member.isfile():
            raise ValueError(f"{path} holds {member.name}, which is neither image nor tar file. Fetch it again.")
        if not member.size:
            raise ValueError(f"{path} holds {member.name} with 0 bytes. Fetch it again.")
        yield member.name, member.size


# --- What TFDS has prepared


def _prepared(folder: Path) -> Found:
    import tensorflow_datasets as tfds  # noqa: PLC0415

    again = f"Delete {folder}, put {' and '.join(_TARS)} in {folder.parents[1]}, and it is prepared again."
    try:
        builder = tfds.builder_from_directory(folder)
    except Exception as error:
        raise ValueError(f"The prepared TFDS directory {folder} cannot be read: {error}. {again}") from error
    found = builder.info.file_format.value
    if found != _FORMAT:
        raise ValueError(
            f"{folder} was prepared as {found}, of which no example can be read alone. Convert it: python -m "
            f"tensorflow_datasets.scripts.convert_format --root_data_dir={folder.parents[1]} "
            f"--out_file_format={_FORMAT} --out_path=OTHER_FOLDER, and name that folder with --data-dir. Or: {again}"
        )
    missing = [split for split in _SPLITS if split not in builder.info.splits]
    if missing:
        raise ValueError(
            f"{folder} was prepared without the split {missing[0]!r}, whose tar file was not there. {again}"
        )
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    try:
        parts = [builder.as_data_source(split, deserialize_method=raw) for split in _SPLITS]
        short = [split for split, part in zip(_SPLITS, parts, strict=True) if not len(part)]
    except Exception as error:
        raise ValueError(f"The prepared TFDS directory {folder} cannot be read: {error}. {again}") from error
    if short:
        raise ValueError(f"{folder} has no example of the split {short[0]!r}. {again}")
    names = tuple(builder.info.features["label"].names)
    train, test = (
        _Prepared(part, folder, builder.info.splits[split]) for part, split in zip(parts, _SPLITS, strict=True)
    )
    return Found(names, train, test, str(folder))


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
