"""Where each image data set comes from: a prepared TFDS directory, files on the machine, or a TFDS download.

Everything is read into memory as unsigned bytes, in the order of the original files. The largest, CIFAR, is
184 MB.
"""

import contextlib
import difflib
import os
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

_DIGITS = tuple(["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"])
# Position = label in the files: the order of the authors' batches.meta.txt and fine_label_names.txt.
_FASHION = "T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, Ankle boot"
_CIFAR10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CIFAR100 = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can
    castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin
    elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard
    lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear
    pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal
    shark shrew skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank
    telephone television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

_IDX_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
_DEBIAN_FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_CONNECT_SECONDS = 10.0

SHAPES = {
    "digits": (8, 8, 1, 10),
    "mnist": (28, 28, 1, 10),
    "fashion_mnist": (28, 28, 1, 10),
    "cifar10": (32, 32, 3, 10),
    "cifar100": (32, 32, 3, 100),
}
"""height, width, channels and number of classes of each data set"""


@dataclass(frozen=True, eq=False)
class Arrays:
    """One image data set in memory, in the order of its source.

    Args:
        train_images: Unsigned bytes, shape [examples, height, width, channels].
        train_labels: int32 class indices, shape [examples].
        test_images: As `train_images`; no examples for `digits`, which has no official test set.
        test_labels: As `train_labels`.
        class_names: The name of class k at index k.
        origin: The folder or package that it was read from.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str


@dataclass(frozen=True)
class _Source:
    class_names: tuple[str, ...]
    read_files: Callable[[list[Path]], tuple[tuple[np.ndarray, ...], Path] | None]
    files: str  # as the message about missing files names them
    system_folders: tuple[Path, ...]
    url: str  # where TFDS downloads from; asked first, because TFDS retries for minutes
    remedy: str


def read_arrays(name: str, data_dir: str | os.PathLike | None = None) -> Arrays:
    """Read an image data set from the first place that has it.

    In this order: a directory prepared by TensorFlow Datasets; the original files, compressed by gzip or not
    (MNIST and Fashion-MNIST: IDX; CIFAR: the binary version); a TFDS download, prepared in `data_dir`.
    TFDS stores examples in an order of its own: CIFAR is put back in the order of the original files by its
    `id`; MNIST and Fashion-MNIST have none and keep TFDS's order.

    Args:
        name: `digits`, `fashion_mnist`, `mnist`, `cifar10` or `cifar100`. `digits` is in scikit-learn: 1,797
            handwritten digits of 8×8 pixels, intensities 0–16 stored as round(x·255/16), in writing order.
        data_dir: The only folder to search, also in its subfolder called `name`. None: TFDS's own
            (`$TFDS_DATA_DIR` or `~/tensorflow_datasets`), then that of the Debian package
            dataset-fashion-mnist.

    Returns:
        The images and labels, see `Arrays`.

    Raises:
        FileNotFoundError: Nothing there and no download; the message names files, folders and commands.
        ValueError: An unknown name, a folder for `digits`, or a file that is truncated or corrupt.

    Example:
        >>> read_arrays("digits").train_images.shape
        (1797, 8, 8, 1)
    """
    if name == "digits":
        if data_dir is not None:
            raise ValueError(f"The digits come with scikit-learn, so that --data-dir cannot act; received {data_dir}.")
        return _read_digits()
    source = _SOURCES.get(name)
    if source is None:
        known = ["digits", *_SOURCES]
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f" Perhaps you meant {near[0]!r}?" if near else ""
        raise ValueError(f"Unknown data set {name!r}: expected one of {', '.join(known)}.{hint}")
    home = tfds_folder(data_dir)
    folders = [home, home / name]
    if data_dir is None:
        folders += source.system_folders

    prepared = newest_prepared(home / name)
    if prepared is not None:
        return _checked(_read_prepared(prepared), source.class_names, prepared)
    found = source.read_files(folders)
    if found is not None:
        return _checked(found[0], source.class_names, found[1])
    prepared = _download(name, source, home, folders)
    return _checked(_read_prepared(prepared), source.class_names, prepared)


def _checked(arrays: tuple[np.ndarray, ...], class_names: tuple[str, ...], origin: Path) -> Arrays:
    for split, images, labels in (("train", *arrays[:2]), ("test", *arrays[2:])):
        if len(images) != len(labels):
            raise ValueError(f"{origin}: {len(images)} {split} images, but {len(labels)} {split} labels.")
        if len(labels) and not 0 <= labels.min() <= labels.max() < len(class_names):
            raise ValueError(
                f"{origin}: {split} labels run from {labels.min()} to {labels.max()}, expected 0 to "
                f"{len(class_names) - 1}. The files are corrupt or belong to another data set."
            )
    train_images, train_labels, test_images, test_labels = arrays
    return Arrays(
        train_images=train_images,
        train_labels=train_labels.astype(np.int32),
        test_images=test_images,
        test_labels=test_labels.astype(np.int32),
        class_names=class_names,
        origin=str(origin),
    )


def _read_digits() -> Arrays:
    from sklearn.datasets import load_digits  # noqa: PLC0415  (a second to import, for one data set)

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = digits.target
    return _checked((images, labels, images[:0], labels[:0]), _DIGITS, Path("scikit-learn"))


# --- IDX: MNIST and Fashion-MNIST


def _read_idx_files(folders: list[Path]) -> tuple[tuple[np.ndarray, ...], Path] | None:
    for folder in folders:
        paths = [_plain_or_gzip(folder / file) for file in _IDX_FILES]
        if any(paths):
            _refuse_incomplete(folder, _IDX_FILES, paths)
            train_images, train_labels, test_images, test_labels = (
                _read_idx(path, rank) for path, rank in zip(paths, (3, 1, 3, 1), strict=True)
            )
            return (train_images[..., np.newaxis], train_labels, test_images[..., np.newaxis], test_labels), folder
    return None


def _plain_or_gzip(path: Path) -> Path | None:
    zipped = path.with_name(path.name + ".gz")
    return path if path.is_file() else zipped if zipped.is_file() else None


def _refuse_incomplete(folder: Path, names: tuple[str, ...], paths: list[Path | None]) -> None:
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        raise FileNotFoundError(
            f"{folder} has only a part of the data set: {', '.join(missing)} missing. Add what is missing, or give "
            "another folder with --data-dir (data_dir=...)."
        )


def _read_idx(path: Path, rank: int) -> np.ndarray:
    # http://yann.lecun.com/exdb/mnist: two zero bytes, 8 = unsigned byte, rank, one big-endian int32 per
    # dimension, then the values.
    content = _read_bytes(path)
    header_bytes = 4 + 4 * rank
    if len(content) < header_bytes:
        raise ValueError(f"{path} is truncated: expected a header of {header_bytes} bytes, received {len(content)}.")
    if content[:4] != bytes((0, 0, 8, rank)):
        raise ValueError(
            f"{path} is no IDX file of unsigned bytes with {rank} dimension(s): expected it to start with the bytes "
            f"00 00 08 0{rank}, received {content[:4].hex(' ')}."
        )
    shape = np.frombuffer(content[4:header_bytes], ">i4").tolist()
    expected = header_bytes + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise ValueError(
            f"{path} is truncated or corrupt: its header announces shape {tuple(shape)}, so {expected} bytes, "
            f"received {len(content)}."
        )
    if rank == 3 and shape[1:] != [28, 28]:
        raise ValueError(f"{path}: expected images of 28×28 pixels, received {shape[1]}×{shape[2]}.")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix != ".gz":
        return content
    # A decompressor, unlike gzip.open, also returns what a truncated file still holds, so that it can be
    # counted.
    stream = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        unpacked = stream.decompress(content)
    except zlib.error as error:
        raise ValueError(f"{path} ({len(content)} bytes) is no sound gzip file: {error}. Fetch it again.") from error
    if not stream.eof:
        raise ValueError(
            f"{path} is truncated: its {len(content)} bytes end before the gzip stream does, {len(unpacked)} bytes "
            "could be unpacked. Fetch it again."
        )
    return unpacked


# --- CIFAR, binary version


def _read_cifar_files(
    subfolder: str, train_files: tuple[str, ...], test_file: str, label_bytes: int, folders: list[Path]
) -> tuple[tuple[np.ndarray, ...], Path] | None:
    names = (*train_files, test_file)
    for folder in [candidate for parent in folders for candidate in (parent, parent / subfolder)]:
        paths = [path if path.is_file() else None for path in (folder / file for file in names)]
        if any(paths):
            _refuse_incomplete(folder, names, paths)
            *train, test = (_read_cifar(path, label_bytes) for path in paths)
            sizes = [len(labels) for _, labels in train]
            if len(set(sizes)) > 1:
                raise ValueError(
                    f"{folder}: expected {', '.join(train_files)} to be of equal size, received {sizes} images. "
                    "The shorter ones are truncated."
                )
            train_images, train_labels = (np.concatenate(part) for part in zip(*train, strict=True))
            return (train_images, train_labels, *test), folder
    return None


def _read_cifar(path: Path, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    # https://www.cs.toronto.edu/~kriz/cifar.html: label byte(s), then 1,024 red, 1,024 green, 1,024 blue,
    # by rows.
    record_bytes = label_bytes + 3 * 32 * 32
    content = np.fromfile(path, np.uint8)
    if len(content) == 0 or len(content) % record_bytes:
        raise ValueError(
            f"{path} is truncated or corrupt: expected a multiple of {record_bytes} bytes (one image), received "
            f"{len(content)}."
        )
    records = content.reshape(-1, record_bytes)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), records[:, label_bytes - 1].copy()


# --- TensorFlow Datasets


def tfds_folder(data_dir: str | os.PathLike | None) -> Path:
    """Return the folder that TFDS prepares data sets in: the one given, or its own."""
    folder = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"`data_dir` must be a folder; received the file {folder}.")
    return folder


def newest_prepared(folder: Path) -> Path | None:
    """Return the newest version that TFDS has prepared in a data set's folder, or None."""
    versions = {
        tuple(int(part) for part in info.parent.name.split(".")): info.parent
        for info in folder.glob("*/dataset_info.json")
        if info.parent.name.replace(".", "").isdigit()
    }
    return versions[max(versions)] if versions else None


def _read_prepared(folder: Path) -> tuple[np.ndarray, ...]:
    import tensorflow_datasets as tfds  # noqa: PLC0415  (seconds to import, and not needed for files)

    try:
        builder = tfds.builder_from_directory(folder)
        # One shard after the other: the order on disk, whatever their number.
        config = tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False)
        arrays = []
        for split in ("train", "test"):
            columns = tfds.as_numpy(builder.as_dataset(split=split, batch_size=-1, read_config=config))
            # "train_00042": the position in the original files.
            order = np.argsort(columns["id"]) if "id" in columns else slice(None)
            arrays += [columns["image"][order], columns["label"][order]]
    except Exception as error:
        raise ValueError(
            f"The prepared TFDS directory {folder} cannot be read: {error}. Delete it, and it is prepared again."
        ) from error
    return tuple(arrays)


def _download(name: str, source: _Source, home: Path, folders: list[Path]) -> Path:
    try:
        _refuse_unreachable(source.url)
        return prepare(name, home)
    except Exception as error:
        raise FileNotFoundError(
            f"The data set {name!r} is not on this machine, and downloading it failed: {error}\n"
            f"Looked for a prepared TFDS directory {home / name}/<version>, then for {source.files} in "
            f"{', '.join(str(folder) for folder in folders)}.\n"
            f"{source.remedy}"
        ) from error


def _refuse_unreachable(url: str) -> None:
    # TFDS itself retries ten times with growing pauses: 205 s until it gives up without a network.
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_CONNECT_SECONDS).close()
    except urllib.error.HTTPError:
        return  # the server answers, so TFDS may try
    except OSError as error:
        raise ConnectionError(f"no answer from {url} ({getattr(error, 'reason', error)})") from error


def prepare(name: str, home: Path, *, file_format: str | None = None, manual_dir: Path | None = None) -> Path:
    """Let TFDS prepare a data set in its folder, and return the new directory.

    Args:
        name: Of a builder of TFDS.
        home: TFDS's folder.
        file_format: In which TFDS writes examples. None: its default.
        manual_dir: Where files are that TFDS does not download.
    """
    import tensorflow_datasets as tfds  # noqa: PLC0415

    existed = home.is_dir()
    home.mkdir(parents=True, exist_ok=True)
    try:
        # Prepared beside and renamed into place, so that a broken download leaves nothing behind.
        with tempfile.TemporaryDirectory(prefix=f".{name}-", dir=home) as beside:
            builder = tfds.builder(name, data_dir=beside, file_format=file_format)
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
            version = Path(builder.data_path)
            prepared = home / name / version.name
            prepared.parent.mkdir(exist_ok=True)
            if not prepared.is_dir():  # unless another process was faster
                version.rename(prepared)
    except BaseException:
        if not existed:
            with contextlib.suppress(OSError):
                home.rmdir()
        raise
    return prepared


_SOURCES = {
    "fashion_mnist": _Source(
        class_names=tuple(_FASHION.split(", ")),
        read_files=_read_idx_files,
        files=f"{', '.join(_IDX_FILES)} (each also as .gz)",
        system_folders=(_DEBIAN_FASHION_MNIST,),
        url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/train-labels-idx1-ubyte.gz",
        remedy="To get it: apt-get install dataset-fashion-mnist; or save the four files of "
        "https://github.com/zalandoresearch/fashion-mnist in a folder and give it with --data-dir FOLDER "
        "(data_dir=...); or run again with a network.",
    ),
    "mnist": _Source(
        class_names=_DIGITS,
        read_files=_read_idx_files,
        files=f"{', '.join(_IDX_FILES)} (each also as .gz)",
        system_folders=(),
        url="https://storage.googleapis.com/cvdf-datasets/mnist/train-labels-idx1-ubyte.gz",
        remedy="To get it: save the four files of https://storage.googleapis.com/cvdf-datasets/mnist/ in a folder "
        "and give it with --data-dir FOLDER (data_dir=...); or run again with a network.",
    ),
    "cifar10": _Source(
        class_names=tuple(_CIFAR10.split()),
        read_files=partial(
            _read_cifar_files,
            "cifar-10-batches-bin",
            tuple(f"data_batch_{batch}.bin" for batch in range(1, 6)),
            "test_batch.bin",
            1,
        ),
        files="cifar-10-batches-bin/data_batch_1.bin to data_batch_5.bin and test_batch.bin",
        system_folders=(),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        remedy="To get it: unpack https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz in a folder and give it "
        "with --data-dir FOLDER (data_dir=...); or run again with a network.",
    ),
    "cifar100": _Source(
        class_names=tuple(_CIFAR100.split()),
        # The superclass stands before the class.
        read_files=partial(_read_cifar_files, "cifar-100-binary", ("train.bin",), "test.bin", 2),
        files="cifar-100-binary/train.bin and test.bin",
        system_folders=(),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
        remedy="To get it: unpack https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz in a folder and give it "
        "with --data-dir FOLDER (data_dir=...); or run again with a network.",
    ),
}
