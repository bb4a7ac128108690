"""Write small image data sets in the formats their authors published them in, for tests without a network."""

import gzip
import io
import struct
import tarfile
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


def flat_colour(k: int) -> tuple[int, int, int]:
    """A colour for each of 1,000 classes, 25 apart in one channel at least."""
    return 25 * (k % 10), 25 * (k // 10 % 10), 25 * (k // 100)


def encoded(image: np.ndarray, form: str = "JPEG", mode: str = "RGB") -> bytes:
    """An image file of bytes [height, width, 3]."""
    from PIL import Image

    buffer = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if form == "JPEG" else {}
    Image.fromarray(image).convert(mode).save(buffer, form, **options)
    return buffer.getvalue()


def flat_jpeg(k: int, shape: tuple[int, int] = (18, 24)) -> bytes:
    """An image of one colour, that of class k."""
    return encoded(np.full((*shape, 3), flat_colour(k), np.uint8))


def write_image_folder(folder: Path, images: dict[str, dict[str, bytes]]) -> None:
    """Files by class folder and name."""
    for name, files in images.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            (folder / name / file).write_bytes(content)


def synsets() -> tuple[list[str], list[str]]:
    """ImageNet's 1,000 classes in order, and the class of each validation image."""
    import tensorflow_datasets as tfds

    folder = Path(tfds.__file__).parent / "datasets" / "imagenet2012"
    return tuple((folder / name).read_text().split() for name in ("labels.txt", "validation_labels.txt"))


def tar_of(files: dict[str, bytes]) -> bytes:
    """A tar file of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def imagenet_tars(num_val: int = 6) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """What is in ILSVRC2012_img_train.tar, one image of each class, and in ILSVRC2012_img_val.tar."""
    classes, validation = synsets()
    train = {f"{name}.tar": tar_of({f"{name}_1.JPEG": flat_jpeg(k)}) for k, name in enumerate(classes)}
    val = {
        f"ILSVRC2012_val_{number:08d}.JPEG": flat_jpeg(classes.index(name))
        for number, name in enumerate(validation[:num_val], start=1)
    }
    return train, val


def write_imagenet(folder: Path, train: dict[str, bytes], val: dict[str, bytes]) -> None:
    """The two tar files of ILSVRC 2012."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar_of(train))
    (folder / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val))
