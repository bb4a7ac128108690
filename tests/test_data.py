import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from ls_keras.data import Images, load_images, rebuild
from ls_keras.data.sources import read_arrays

import numpy as np
import pytest
import scipy.stats
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from original_formats import examples, write_cifar_binary, write_idx, write_prepared_tfds
from sklearn.datasets import load_digits


@pytest.fixture
def offline(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)


def tiny(count, *, max_shift=0, flip=False, scaling="unit", shape=(4, 4, 1)):
    """A data set whose training image i has the value i (below 256) everywhere."""
    values = np.arange(count, dtype=np.uint8)
    images = np.broadcast_to(values[:, None, None, None], (count, *shape)).copy()
    labels = (values % 3).astype(np.int32)
    arrays = {"train": (images, labels), "held_out": (images[:5], labels[:5]), "test": (images[:0], labels[:0])}
    return Images("tiny", shape, 3, ("a", "b", "c"), "here", scaling, max_shift, flip, arrays)


def rows(batches):
    """Which training examples of `tiny` were shown, in order."""
    return np.rint(np.concatenate([x[:, 0, 0, 0] for x, _ in batches]) * 255).astype(int)


# --- Sources


def test_digits_are_scikit_learns():
    arrays, digits = read_arrays("digits"), load_digits()
    assert arrays.train_images.shape == (1797, 8, 8, 1)
    np.testing.assert_array_equal(np.rint(arrays.train_images[..., 0] * (16 / 255)), digits.images)
    np.testing.assert_array_equal(arrays.train_labels, digits.target)
    assert arrays.train_images.max() == 255
    assert len(arrays.test_labels) == 0


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files_round_trip(tmp_path, name, compress):
    train, test = examples(30, (28, 28), seed=1), examples(10, (28, 28), seed=2)
    write_idx(tmp_path / (name if compress else ""), train=train, test=test, compress=compress)
    arrays = read_arrays(name, tmp_path)
    np.testing.assert_array_equal(arrays.train_images, train[0][..., None])
    np.testing.assert_array_equal(arrays.train_labels, train[1])
    np.testing.assert_array_equal(arrays.test_images, test[0][..., None])
    np.testing.assert_array_equal(arrays.test_labels, test[1])
    assert arrays.train_labels.dtype == np.int32


@pytest.mark.parametrize("num_classes", [10, 100])
def test_cifar_files_round_trip(tmp_path, num_classes):
    train, test = write_cifar_binary(tmp_path, num_classes=num_classes, num_train=200, num_test=100)
    arrays = read_arrays(f"cifar{num_classes}", tmp_path)
    np.testing.assert_array_equal(arrays.train_images, train[0])
    np.testing.assert_array_equal(arrays.train_labels, train[1])
    np.testing.assert_array_equal(arrays.test_images, test[0])
    np.testing.assert_array_equal(arrays.test_labels, test[1])


def test_files_are_found_in_their_own_folder(tmp_path):
    write_cifar_binary(tmp_path)
    assert read_arrays("cifar10", tmp_path / "cifar-10-batches-bin").origin.endswith("cifar-10-batches-bin")


def test_class_names():
    names = {name: read_arrays_class_names(name) for name in ("cifar10", "cifar100", "fashion_mnist", "mnist")}
    assert [len(names[name]) for name in names] == [10, 100, 10, 10]
    assert names["cifar10"][:3] == ("airplane", "automobile", "bird")
    assert names["fashion_mnist"][9] == "Ankle boot"
    assert list(names["cifar100"]) == sorted(set(names["cifar100"]))
    # Three superclasses of CIFAR-100 by the fine labels published with them.
    for fine, members in (
        ([4, 30, 55, 72, 95], "beaver dolphin otter seal whale"),
        ([54, 62, 70, 82, 92], "orchid poppy rose sunflower tulip"),
        ([47, 52, 56, 59, 96], "maple_tree oak_tree palm_tree pine_tree willow_tree"),
    ):
        assert [names["cifar100"][k] for k in fine] == members.split()


def read_arrays_class_names(name):
    from ls_keras.data import sources

    return sources._SOURCES[name].class_names


def test_truncated_and_corrupt_files_are_named(tmp_path):
    train, test = examples(20, (28, 28)), examples(10, (28, 28))
    write_idx(tmp_path, train=train, test=test)
    images = tmp_path / "train-images-idx3-ubyte"
    whole = images.read_bytes()
    images.write_bytes(whole[:-100])
    with pytest.raises(
        ValueError, match=rf"train-images-idx3-ubyte is truncated.*{len(whole)} bytes.*{len(whole) - 100}"
    ):
        read_arrays("mnist", tmp_path)
    images.write_bytes(whole[:10])
    with pytest.raises(ValueError, match="header of 16 bytes, received 10"):
        read_arrays("mnist", tmp_path)
    images.write_bytes(b"\x00\x00\x0d\x03" + whole[4:])
    with pytest.raises(ValueError, match="00 00 08 03, received 00 00 0d 03"):
        read_arrays("mnist", tmp_path)
    images.write_bytes(whole)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes((tmp_path / "t10k-labels-idx1-ubyte").read_bytes())
    with pytest.raises(ValueError, match="20 train images, but 10 train labels"):
        read_arrays("mnist", tmp_path)


def test_truncated_and_corrupt_gzip_files_are_named(tmp_path):
    write_idx(tmp_path, train=examples(20, (28, 28)), test=examples(10, (28, 28)), compress=True)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    whole = labels.read_bytes()
    labels.write_bytes(whole[:-9])
    with pytest.raises(ValueError, match=rf"train-labels-idx1-ubyte.gz is truncated: its {len(whole) - 9} bytes"):
        read_arrays("fashion_mnist", tmp_path)
    labels.write_bytes(whole[:-8] + bytes(4) + whole[-4:])  # another checksum
    with pytest.raises(ValueError, match=r"train-labels-idx1-ubyte.gz .* is no sound gzip file"):
        read_arrays("fashion_mnist", tmp_path)


def test_truncated_cifar_files_are_named(tmp_path):
    write_cifar_binary(tmp_path)
    batch = tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin"
    whole = batch.read_bytes()
    batch.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=rf"data_batch_3.bin is truncated.*multiple of 3073 bytes.*{len(whole) - 1}"):
        read_arrays("cifar10", tmp_path)
    batch.write_bytes(whole[:-3073])
    with pytest.raises(ValueError, match=r"equal size, received \[10, 10, 9, 10, 10\]"):
        read_arrays("cifar10", tmp_path)


def test_labels_out_of_range_are_refused(tmp_path):
    images, labels = examples(20, (28, 28))
    write_idx(tmp_path, train=(images, labels + 1), test=(images, labels))
    with pytest.raises(ValueError, match="train labels run from 1 to 10, expected 0 to 9"):
        read_arrays("mnist", tmp_path)


def test_a_part_of_the_files_is_refused(tmp_path):
    write_idx(tmp_path, train=examples(20, (28, 28)), test=examples(10, (28, 28)))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte missing"):
        read_arrays("mnist", tmp_path)


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match=r"Unknown data set 'cifr10'.*Perhaps you meant 'cifar10'"):
        load_images("cifr10")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("fashion_mnist", "apt-get install dataset-fashion-mnist"),
        ("mnist", "--data-dir FOLDER"),
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("cifar100", "cifar-100-binary/train.bin"),
    ],
)
def test_what_is_missing_gets_one_message(tmp_path, offline, name, remedy):
    folder = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError) as caught:
        read_arrays(name, folder)
    assert remedy in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "no route to host" in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert not folder.exists()


def test_a_broken_download_leaves_nothing_behind(tmp_path, monkeypatch):
    import requests

    class Reached:
        def close(self):
            pass

    def hang_up(*_, **__):
        raise requests.ConnectionError("connection reset")

    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: Reached())
    monkeypatch.setattr(requests.Session, "get", hang_up)
    folder = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match="connection reset"):
        read_arrays("mnist", folder)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="connection reset"):
        read_arrays("mnist", folder)
    assert list(folder.iterdir()) == []


def test_a_prepared_tfds_directory_comes_first(tmp_path, offline):
    train, test = examples(40, (32, 32, 3), seed=5), examples(20, (32, 32, 3), seed=6)
    write_cifar_binary(tmp_path)
    write_prepared_tfds(tmp_path, "cifar10", "3.0.2", train=train, test=test)
    arrays = read_arrays("cifar10", tmp_path)
    # TFDS shuffles on disk; "id" gives the original order back.
    np.testing.assert_array_equal(arrays.train_images, train[0])
    np.testing.assert_array_equal(arrays.train_labels, train[1])
    np.testing.assert_array_equal(arrays.test_images, test[0])
    assert arrays.origin.endswith("3.0.2")

    (tmp_path / "cifar10" / "3.0.2" / "dataset_info.json").write_text("{")
    with pytest.raises(ValueError, match=r"3\.0\.2 cannot be read"):
        read_arrays("cifar10", tmp_path)


def test_a_prepared_tfds_directory_without_ids(tmp_path, offline, monkeypatch):
    train, test = examples(40, (28, 28, 1), seed=5), examples(20, (28, 28, 1), seed=6)
    write_prepared_tfds(tmp_path, "fashion_mnist", "3.0.1", train=train, test=test)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    arrays = read_arrays("fashion_mnist")
    shown = sorted(zip(map(bytes, arrays.train_images), arrays.train_labels, strict=True))
    assert shown == sorted(zip(map(bytes, train[0]), train[1], strict=True))
    assert len(arrays.test_labels) == 20


# --- Splits


def test_official_training_images_are_split_at_both_ends(tmp_path):
    (images, labels), (test_images, test_labels) = write_cifar_binary(tmp_path, num_train=100, num_test=30)
    data = load_images("cifar10", train_size=60, held_out_size=25, data_dir=tmp_path)
    np.testing.assert_array_equal(data.images("train"), images[:60])
    np.testing.assert_array_equal(data.images("held_out"), images[75:])
    np.testing.assert_array_equal(data.labels("held_out"), labels[75:])
    np.testing.assert_array_equal(data.images("test"), test_images)
    np.testing.assert_array_equal(data.labels("test"), test_labels)
    assert data.num_train == 60
    assert data.labels("train").dtype == np.int32


@pytest.mark.parametrize(
    ("train_size", "held_out_size", "expected"),
    [(None, None, (80, 20)), (70, None, (70, 30)), (None, 0, (100, 0)), (None, 10, (90, 10)), (100, None, (100, 0))],
)
def test_default_sizes(tmp_path, train_size, held_out_size, expected):
    write_cifar_binary(tmp_path, num_train=100)
    data = load_images("cifar10", train_size=train_size, held_out_size=held_out_size, data_dir=tmp_path)
    assert (data.num_train, len(data.labels("held_out"))) == expected


def test_digits_are_split_in_three():
    digits = load_digits().target
    data = load_images("digits", train_size=1000, held_out_size=397)
    for split, part in (("train", digits[:1000]), ("held_out", digits[1000:1397]), ("test", digits[1397:])):
        np.testing.assert_array_equal(data.labels(split), part)
    assert data.input_shape == (8, 8, 1)

    shuffled = load_images("digits", train_size=1000, held_out_size=397, split_seed=1)
    assert (shuffled.labels("train") != digits[:1000]).any()
    pixels = [bytes(image) for split in ("train", "held_out", "test") for image in shuffled.images(split)]
    assert sorted(pixels) == sorted(map(bytes, read_arrays("digits").train_images))
    again = load_images("digits", train_size=1000, held_out_size=397, split_seed=1)
    assert again.fingerprint == shuffled.fingerprint != data.fingerprint


def test_label_noise_replaces_its_fraction_of_the_training_labels_by_other_classes():
    sizes = {"train_size": 1000, "held_out_size": 397}
    clean = load_images("digits", **sizes)
    for noise in (0.2, 0.9):
        noisy = load_images("digits", **sizes, label_noise=noise)
        np.testing.assert_array_equal(noisy.images("train"), clean.images("train"))
        for split in ("held_out", "test"):
            np.testing.assert_array_equal(noisy.labels(split), clean.labels(split))
        moved = (noisy.labels("train") - clean.labels("train")) % 10
        assert (moved != 0).sum() == 1000 * noise
        # Each of the nine other classes is equally likely: χ² with 8 degrees of freedom.
        expected = 1000 * noise / 9
        assert ((np.bincount(moved, minlength=10)[1:] - expected) ** 2 / expected).sum() < scipy.stats.chi2.ppf(
            0.999, 8
        )
        assert noisy.labels("train").dtype == clean.labels("train").dtype
        batch = next(noisy.train(1000, seed=0).as_numpy_iterator())[1]
        assert sorted(batch) == sorted(noisy.labels("train"))


def test_label_noise_is_fixed_by_the_split_alone():
    def noisy(**options):
        return load_images("digits", train_size=1000, held_out_size=397, label_noise=0.2, **options)

    assert noisy().fingerprint == noisy().fingerprint == noisy(shift=2).fingerprint
    clean = load_images("digits", train_size=1000, held_out_size=397)
    assert noisy().fingerprint != clean.fingerprint
    places = [
        np.flatnonzero(data.labels("train") != plain.labels("train"))
        for data, plain in (
            (noisy(), clean),
            (noisy(split_seed=3), load_images("digits", train_size=1000, held_out_size=397, split_seed=3)),
        )
    ]
    assert [len(each) for each in places] == [200, 200] and (places[0] != places[1]).any()


def test_without_held_out_data_evaluation_says_so():
    data = load_images("digits", train_size=1500, held_out_size=0)
    with pytest.raises(ValueError, match="no 'held_out' examples"):
        data.evaluation("held_out", 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_size": 1700, "held_out_size": 98}, "1797 images to split.*at most 1797"),
        ({"train_size": 1000}, "no official test set"),
        ({"train_size": 5, "held_out_size": 10}, r"5 of the 10 classes \(five, six, seven, eight, nine\)"),
        ({"train_size": 0, "held_out_size": 10}, "`train_size` must be a whole number of at least 1; received 0"),
        ({"train_size": 10, "held_out_size": -1}, "`held_out_size` must be"),
        ({"scaling": "unit8"}, "`scaling` must be 'standardize' or 'unit'; received 'unit8'"),
        ({"crop_padding": 4, "shift": 2}, "give one of them"),
        ({"crop_padding": 8, "train_size": 1000, "held_out_size": 1}, "8 pixels; received 8"),
        ({"crop_padding": -1}, "`crop_padding` must be"),
        ({"shift": 1.0}, "`shift` must be a whole number"),
        ({"flip": 1}, "`flip` must be True or False"),
        ({"split_seed": "0"}, "`split_seed` must be"),
        ({"label_noise": 1.0}, "`label_noise` must be a fraction from 0 to below 1; received 1.0"),
        ({"label_noise": -0.1}, "`label_noise` must be"),
        ({"label_noise": True}, "`label_noise` must be"),
        ({"label_noise": 1e-4, "train_size": 800, "held_out_size": 9}, "replaces none of 800 training labels"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_images("digits", **options)


def test_arrays_cannot_be_changed_and_change_the_fingerprint():
    data = load_images("digits", train_size=1000, held_out_size=397, scaling="unit")
    with pytest.raises(ValueError, match="read-only"):
        data.images("train")[0] = 0
    prints = {
        load_images("digits", train_size=size, held_out_size=300, scaling=scaling).fingerprint
        for size in (1000, 1001)
        for scaling in ("unit", "standardize")
    }
    assert len(prints) == 4
    assert load_images("digits", train_size=1000, held_out_size=300, shift=1, scaling="unit").fingerprint in prints


# --- Training batches


@settings(deadline=None, max_examples=12)
@given(
    count=st.integers(2, 40),
    batch_size=st.integers(1, 50),
    seed=st.integers(0, 2**63 - 1),
    start=st.integers(0, 5),
)
def test_every_epoch_is_a_permutation_and_resumes_anywhere(count, batch_size, seed, start):
    data = tiny(count)
    steps = start + 1 + 2 * count // batch_size
    batches = list(data.train(batch_size, seed=seed).take(steps).as_numpy_iterator())
    shown = rows(batches)
    for epoch in range(len(shown) // count):
        assert sorted(shown[epoch * count :][:count]) == list(range(count))
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), shown % 3)
    resumed = data.train(batch_size, seed=seed, start_step=start).take(steps - start).as_numpy_iterator()
    np.testing.assert_array_equal(rows(list(resumed)), shown[start * batch_size :])


def test_order_differs_between_epochs_and_seeds():
    data = tiny(200)
    first, second = np.split(rows(list(data.train(100, seed=0).take(4).as_numpy_iterator())), 2)
    other = rows(list(data.train(100, seed=1).take(2).as_numpy_iterator()))
    # Two permutations agree in one place on average, in six or more with probability .0006.
    for a, b in ((first, second), (first, other), (first, np.arange(200))):
        assert (a == b).sum() < 6


def test_augmented_batches_resume_far_into_training(tmp_path):
    write_cifar_binary(tmp_path)
    data = load_images("cifar10", crop_padding=4, flip=True, data_dir=tmp_path)
    whole = list(data.train(16, seed=3).take(8).as_numpy_iterator())
    late = list(data.train(16, seed=3, start_step=5).take(3).as_numpy_iterator())
    for (x, y), (resumed_x, resumed_y) in zip(whole[5:], late, strict=True):
        np.testing.assert_array_equal(x, resumed_x)
        np.testing.assert_array_equal(y, resumed_y)
    begun = time.perf_counter()
    next(iter(data.train(16, seed=3, start_step=10**12)))
    assert time.perf_counter() - begun < 10


def test_batches_are_static_and_typed():
    data = tiny(10)
    images, labels = data.train(4, seed=0).element_spec
    assert images == tf.TensorSpec((4, 4, 4, 1), tf.float32)
    assert labels == tf.TensorSpec((4,), tf.int32)
    assert data.evaluation("train", 4).element_spec[2] == tf.TensorSpec((4,), tf.float32)
    assert data.num_train == 10
    assert not data.augmented


def test_targets_travel_with_their_examples():
    data = tiny(20)
    targets = np.stack([np.arange(20), -np.arange(20)], axis=1)
    targeted = data.with_targets(targets)
    x, y = next(iter(targeted.train(8, seed=3)))
    np.testing.assert_array_equal(x, next(iter(data.train(8, seed=3)))[0])
    np.testing.assert_array_equal(y, targets[rows([(x, y)])])
    assert (y.shape, y.dtype) == ((8, 2), tf.float32)
    np.testing.assert_array_equal(targeted.labels("train"), data.labels("train"))
    np.testing.assert_array_equal(next(iter(targeted.evaluation("train", 8)))[1], data.labels("train")[:8])
    assert targeted.fingerprint == data.fingerprint
    targets[:] = 0
    assert targeted.targets[1, 0] == 1
    with pytest.raises(ValueError, match="read-only"):
        targeted.targets[0] = 1


def test_targets_that_do_not_belong_to_the_batches_are_refused():
    for targets in (np.zeros((19, 2)), np.zeros(())):
        with pytest.raises(ValueError, match="one row for each of the 20 training examples of"):
            tiny(20).with_targets(targets)
    for targets in (np.zeros((20, 2)), np.zeros((20, 25)), np.zeros((9, 20))):
        with pytest.raises(ValueError, match=r"each of the 20 training examples and 9 positions of .* received shape"):
            tiny(20, max_shift=1).with_targets(targets)
    for options in ({"flip": True}, {"flip": True, "max_shift": 1}):
        with pytest.raises(ValueError, match="ask the teacher about each batch"):
            tiny(20, **options).with_targets(np.zeros((20, 2)))
        with pytest.raises(ValueError, match="are mirrored"):
            tiny(20, **options).at_every_position(8)


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_every_position_comes_once_in_order_and_targets_travel_with_it(shift):
    data = load_images("digits", train_size=200, held_out_size=397, shift=shift, scaling="unit")
    places, (height, width) = 2 * shift + 1, data.input_shape[:2]
    padded = np.pad(data.images("train"), ((0, 0), (shift, shift), (shift, shift), (0, 0)))
    expected = [padded[:, top : top + height, left : left + width] for top in range(places) for left in range(places)]
    shown = np.concatenate(list(data.at_every_position(64).as_numpy_iterator()))
    np.testing.assert_array_equal(np.rint(shown * 255), np.stack(expected, axis=1).reshape(shown.shape))
    assert data.num_positions == places**2
    # What a batch holds as its target is what was said of the very image that it shows.
    said = shown.reshape(200, places**2, -1)
    targeted = data.with_targets(said if shift else said[:, 0])
    for (x, y), (plain, _) in zip(targeted.train(50, seed=4).take(6), data.train(50, seed=4).take(6), strict=True):
        np.testing.assert_array_equal(x, plain)
        np.testing.assert_array_equal(np.reshape(x, y.shape), y)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0, "seed": 0}, "`batch_size` must be a whole number of at least 1; received 0"),
        ({"batch_size": True, "seed": 0}, "`batch_size` must be"),
        ({"batch_size": 1, "seed": -1}, "`seed` must be"),
        ({"batch_size": 1, "seed": 2**63}, "`seed` must be"),
        ({"batch_size": 1, "seed": 0, "start_step": -1}, "`start_step` must be"),
    ],
)
def test_bad_training_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(4).train(**arguments)


# --- Augmentation


def windows(image, padding, flip):
    """Every crop of the padded image, by its bytes: NumPy's own sliding windows."""
    padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
    crops = np.moveaxis(sliding_window_view(padded, image.shape[:2], axis=(0, 1)), 2, -1)
    crops = crops.reshape(-1, *image.shape)
    crops = np.concatenate([crops, crops[:, :, ::-1]]) if flip else crops
    return {crop.tobytes(): position for position, crop in enumerate(crops)}


def as_bytes(images):
    return [image.tobytes() for image in np.rint(images * 255).astype(np.uint8)]


@pytest.mark.parametrize(
    ("padding", "flip", "positions"), [(4, True, 162), (2, False, 25), (0, True, 2), (1, False, 9)]
)
def test_draws_are_uniform_over_all_crops_and_flips(padding, flip, positions):
    image = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    arrays = {"train": (image[None], np.zeros(1, np.int32))}
    data = Images("one", image.shape, 1, ("a",), "here", "unit", padding, flip, arrays)
    oracle = windows(image, padding, flip)
    assert len(oracle) == positions
    batches = data.draws([0], 40 * positions, seed=7, batch_size=1000).as_numpy_iterator()
    counts = np.bincount([oracle[x] for images, _ in batches for x in as_bytes(images)], minlength=positions)
    assert counts.sum() == 40 * positions
    assert scipy.stats.chisquare(counts).pvalue > 0.001


def test_training_images_are_crops_of_their_own_example(tmp_path):
    (images, labels), _ = write_cifar_binary(tmp_path)
    data = load_images("cifar10", held_out_size=0, crop_padding=4, flip=True, scaling="unit", data_dir=tmp_path)
    assert data.augmented
    oracles = [windows(image, 4, flip=True) for image in images]
    seen, positions = [], []
    for x, y in data.train(25, seed=0).take(8).as_numpy_iterator():
        for image, label in zip(as_bytes(x), y, strict=True):
            (index,) = [i for i, oracle in enumerate(oracles) if image in oracle]
            assert labels[index] == label
            seen.append(index)
            positions.append(oracles[index][image])
    for epoch in range(4):
        assert sorted(seen[epoch * 50 :][:50]) == list(range(50))
    assert len(set(positions)) > 80  # of 162 by 200 draws: 115 are expected


@pytest.mark.parametrize("shift", [1, 2])
def test_shift_is_zero_filled(shift):
    data = load_images("digits", train_size=1000, held_out_size=397, shift=shift, scaling="unit")
    image = data.images("train")[5]
    drawn = {x for images, _ in data.draws([5], 400, seed=0).as_numpy_iterator() for x in as_bytes(images)}
    expected = set()
    for down in range(-shift, shift + 1):
        for right in range(-shift, shift + 1):
            moved = np.zeros_like(image)
            for row in range(8):
                for column in range(8):
                    if 0 <= row - down < 8 and 0 <= column - right < 8:
                        moved[row, column] = image[row - down, column - right]
            expected.add(moved.tobytes())
    assert drawn == expected


def test_standardisation_per_image_comes_after_the_crop(tmp_path):
    write_cifar_binary(tmp_path)
    options = {"crop_padding": 4, "flip": True, "data_dir": tmp_path}
    standardised, unit = (load_images("cifar10", scaling=s, **options) for s in ("standardize", "unit"))
    pairs = zip(standardised.train(8, seed=2).take(5), unit.train(8, seed=2).take(5), strict=True)
    for (x, _), (raw, _) in pairs:
        pixels = np.rint(raw.numpy().astype(np.float64) * 255)
        mean, std = (f(pixels, axis=(1, 2, 3), keepdims=True) for f in (np.mean, np.std))
        np.testing.assert_allclose(x, (pixels - mean) / np.maximum(std, 3072**-0.5), atol=2e-5)
        np.testing.assert_allclose(x, tf.image.per_image_standardization(pixels.astype(np.float32)), atol=1e-6)


def test_a_constant_image_is_standardised_to_zero():
    data = tiny(20, scaling="standardize")
    for x, _, _ in data.evaluation("train", 8):
        np.testing.assert_array_equal(x, np.zeros((8, 4, 4, 1)))


# --- Evaluation and draws


@pytest.mark.parametrize(("count", "batch_size"), [(20, 5), (20, 6), (20, 32), (1, 1)])
def test_evaluation_shows_every_example_once_in_order(count, batch_size):
    data = tiny(count, max_shift=1, flip=True)
    dataset = data.evaluation("train", batch_size)
    batches = list(dataset.as_numpy_iterator())
    assert len(batches) == dataset.cardinality() == -(-count // batch_size)
    x, y, weight = (np.concatenate(column) for column in zip(*batches, strict=True))
    np.testing.assert_array_equal(weight, np.arange(len(weight)) < count)
    np.testing.assert_array_equal(np.rint(x[:count, 0, 0, 0] * 255), np.arange(count))
    np.testing.assert_array_equal(y[:count], np.arange(count) % 3)
    assert np.isfinite(x).all()


def test_unknown_split_is_refused():
    with pytest.raises(ValueError, match="`split` must be one of train, held_out, test; received 'validation'"):
        tiny(4).evaluation("validation", 2)


def test_draws_come_example_by_example_and_depend_on_seed_and_index_only():
    data = load_images("digits", train_size=1000, held_out_size=397, shift=2)
    x, index = (np.concatenate(c) for c in zip(*data.draws([7, 3, 999], 5, seed=0, batch_size=4), strict=True))
    np.testing.assert_array_equal(index, np.repeat([7, 3, 999], 5))
    alone, _ = next(iter(data.draws(np.array([3]), 5, seed=0)))
    np.testing.assert_array_equal(x[5:10], alone)
    fresh, _ = next(iter(data.draws([3], 5, seed=1)))
    assert (fresh.numpy() != alone.numpy()).any()


def test_bad_draws_are_refused():
    with pytest.raises(ValueError, match="mutual information undefined"):
        tiny(9).draws([0], 5, seed=0)
    data = tiny(9, flip=True)
    for indices in ([9], [-1], [0, 100]):
        with pytest.raises(ValueError, match="between 0 and 8"):
            data.draws(indices, 5, seed=0)
    for indices in ([], [[1]], [0.5]):
        with pytest.raises(ValueError, match="one or more whole numbers"):
            data.draws(indices, 5, seed=0)
    with pytest.raises(ValueError, match="`num_draws` must be"):
        data.draws([0], 0, seed=0)


# --- Another process

_DIGEST = """
import hashlib, sys
from ls_keras.data import load_images
import tensorflow as tf
tf.config.experimental.enable_op_determinism()
assert "tensorflow_datasets" not in sys.modules
data = load_images("digits", train_size=1000, held_out_size=397, shift=2, flip=True)
assert "tensorflow_datasets" not in sys.modules
print(hashlib.sha256(b"".join(x.tobytes() for x, _ in data.train(64, seed=9).take(40).as_numpy_iterator())).hexdigest())
"""


def test_batches_are_the_same_in_another_process_with_op_determinism():
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", _DIGEST], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    data = load_images("digits", train_size=1000, held_out_size=397, shift=2, flip=True)
    here = b"".join(x.tobytes() for x, _ in data.train(64, seed=9).take(40).as_numpy_iterator())
    assert done.stdout.split()[-1] == hashlib.sha256(here).hexdigest()


def test_a_folder_for_digits_is_refused(tmp_path):
    with pytest.raises(ValueError, match="come with scikit-learn, so that --data-dir cannot act"):
        read_arrays("digits", tmp_path)


# --- What config.json keeps


@pytest.mark.parametrize(
    "options",
    [{}, {"scaling": "unit", "shift": 1, "split_seed": 3}, {"crop_padding": 2, "flip": True}, {"label_noise": 0.2}],
)
def test_a_description_rebuilds_the_same_data(options):
    data = load_images("digits", train_size=300, held_out_size=200, **options)
    description = json.loads(json.dumps(data.describe()))
    again = rebuild(description)
    assert again.fingerprint == data.fingerprint
    for one, other in zip(data.train(32, seed=1).take(3), again.train(32, seed=1).take(3), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
    with pytest.raises(ValueError, match="other examples than before"):
        rebuild({**description, "fingerprint": "0" * 16})


def test_data_put_together_by_hand_cannot_be_rebuilt():
    with pytest.raises(ValueError, match="tiny was made by no loader"):
        rebuild(tiny(9).describe())
