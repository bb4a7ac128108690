"""Write small image data sets in the formats their authors published them in, for tests without a network."""

import gzip
import struct
from pathlib import Path

import numpy as np

Examples = tuple[np.ndarray, np.ndarray]


def examples(count: int, shape: tuple[int, ...], num_classes: int = 10, seed: int = 0) -> Examples:
    """Noise images [count, *shape], bytes; class k cycles through the examples and lights up its own pixels."""
    images = np.random.default_rng(seed).integers(0, 128, (count, *shape), dtype=np.uint8)
    labels = np.arange(count) % num_classes
    for image, label in zip(images, labels, strict=True):
        image.reshape(-1)[label::num_classes] += 127
    return images, labels.astype(np.uint8)


def write_idx(folder: Path, *, train: Examples, test: Examples, compress: bool = False) -> None:
    """MNIST and Fashion-MNIST: four IDX files, gzipped if `compress`; images [examples, 28, 28]."""
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, pair in (("train", train), ("t10k", test)):
        for kind, values in zip(("images", "labels"), pair, strict=True):
            content = struct.pack(f">BBBB{values.ndim}i", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
            file = folder / f"{prefix}-{kind}-idx{values.ndim}-ubyte"
            if compress:
                file.with_name(file.name + ".gz").write_bytes(gzip.compress(content))
            else:
                file.write_bytes(content)


def write_cifar_binary(
    folder: Path, *, num_classes: int = 10, num_train: int = 50, num_test: int = 10, seed: int = 0
) -> tuple[Examples, Examples]:
    """CIFAR-10 or CIFAR-100, binary version; `num_train` a multiple of five. Return what was written."""
    train = examples(num_train, (32, 32, 3), num_classes, seed)
    test = examples(num_test, (32, 32, 3), num_classes, seed + 1)
    if num_classes == 10:
        batches = {
            f"data_batch_{i + 1}.bin": [part[i * num_train // 5 :][: num_train // 5] for part in train]
            for i in range(5)
        }
        batches["test_batch.bin"] = test
        folder = folder / "cifar-10-batches-bin"
    else:
        batches = {"train.bin": train, "test.bin": test}
        folder = folder / "cifar-100-binary"
    folder.mkdir(parents=True, exist_ok=True)
    for name, pair in batches.items():
        (folder / name).write_bytes(
            b"".join(_cifar_record(*example, num_classes) for example in zip(*pair, strict=True))
        )
    return train, test


def _cifar_record(image: np.ndarray, label: int, num_classes: int) -> bytes:
    # CIFAR-100 stores a superclass first; here any number that is not the class.
    label_bytes = bytes([label]) if num_classes == 10 else bytes([(label + 1) % 20, label])
    return label_bytes + b"".join(image[:, :, channel].tobytes() for channel in range(3))


def write_prepared_tfds(data_dir: Path, name: str, version: str, *, train: Examples, test: Examples) -> None:
    """A directory as `tfds.load(name, data_dir=data_dir)` leaves it, with the features of TFDS's own builder."""
    import tensorflow_datasets as tfds

    shape = train[0].shape[1:]
    with_id = name.startswith("cifar")
    features = {"image": tfds.features.Image(shape=shape), "label": tfds.features.ClassLabel(num_classes=10)}
    splits = {
        split: [(i, {"image": image, "label": int(label)}) for i, (image, label) in enumerate(zip(*pair, strict=True))]
        for split, pair in (("train", train), ("test", test))
    }
    if with_id:
        features["id"] = tfds.features.Text()
        for split, records in splits.items():
            for i, record in records:
                record["id"] = f"{split}_{i:05d}"
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version=version,
        data_dir=data_dir,
        features=tfds.features.FeaturesDict(features),
        split_datasets=splits,
        disable_shuffling=False,
    )
