"""Images in files against PIL, coordinates that can be read off a crop, and every fault that files may have."""

import colorsys
import io
import itertools
import json

from ls_keras import distribution
from ls_keras.data import load_records, rebuild

import keras
import numpy as np
import original_formats
import pytest
from original_formats import encoded, flat_colour, flat_jpeg, write_image_folder
from PIL import Image


def photograph(height, width, seed=0):
    """A smooth image, for formats that forget details."""
    draw = np.random.default_rng(seed)
    small = Image.fromarray(draw.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def coordinates(height=100, width=100):
    """Red says how far right a pixel is, green how far down, in parts of 250."""
    y, x = np.mgrid[:height, :width]
    parts = [250 * (x + 0.5) / width, 250 * (y + 0.5) / height, 0 * x]
    return np.round(np.stack(parts, -1)).astype(np.uint8)


def folder_of_colours(folder, per_class=3, classes=("cat", "dog")):
    """Examples n = 0, 1, … in the colours of their numbers."""
    number = itertools.count()
    images = {name: {f"{i}.JPEG": flat_jpeg(next(number)) for i in range(per_class)} for name in classes}
    write_image_folder(folder, images)


def numbers_of(images):
    """Which colours a batch shows."""
    colours = np.array([flat_colour(k) for k in range(1000)])
    seen = 127.5 * (np.asarray(images).mean((1, 2)) + 1)
    return np.abs(seen[:, None] - colours).sum(-1).argmin(-1)


PLAIN = {"colour": "none", "image_size": 8}


def batches(dataset, count):
    return [tuple(part.numpy() for part in batch) for batch in dataset.take(count)]


# --- Evaluation


@pytest.mark.parametrize(("form", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB")])
def test_evaluation_shows_the_central_part_of_any_kind_of_image(form, mode, tmp_path):
    """PIL decodes, cuts and enlarges: 40·56 pixels less 5·7 around, 2 and 3 of them before."""
    content = encoded(photograph(40, 56), form, mode)
    write_image_folder(tmp_path, {"a": {"x.JPEG": content}, "b": {"y.JPEG": content, "z.jpg": content}})
    data = load_records("folder", data_dir=tmp_path, held_out_size=1, image_size=60, split_seed=2)
    ((images, labels, weights),) = batches(data.evaluation("held_out", 1), 1)
    whole = Image.open(io.BytesIO(content)).convert("RGB")
    part = whole.crop((3, 2, 53, 38)).resize((60, 60), Image.Resampling.BILINEAR)
    assert images.dtype == np.float32
    np.testing.assert_allclose(127.5 * (images[0] + 1), np.asarray(part, float), atol=8 if form == "JPEG" else 1)
    assert (labels.tolist(), weights.tolist()) == ([1], [1.0])


def test_every_example_is_evaluated_once(tmp_path):
    folder_of_colours(tmp_path / "train")
    folder_of_colours(tmp_path / "val", per_class=5)
    data = load_records("folder", data_dir=tmp_path, held_out_size=2, **PLAIN)
    assert [data.size(split) for split in ("train", "held_out", "test")] == [4, 2, 10]
    shown, labels, weights = (
        np.concatenate(part) for part in zip(*batches(data.evaluation("test", 4), 9), strict=True)
    )
    np.testing.assert_array_equal(numbers_of(shown), [*range(10), 9, 9])
    np.testing.assert_array_equal(labels, [0] * 5 + [1] * 7)
    np.testing.assert_array_equal(weights, [1] * 10 + [0] * 2)
    assert labels.dtype == np.int32
    held_out = numbers_of(batches(data.evaluation("held_out", 2), 1)[0][0])
    trained = numbers_of(np.concatenate([x for x, _ in batches(data.train(4, seed=0), 1)]))
    assert sorted([*held_out, *trained]) == list(range(6))


# --- Training


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    folder_of_colours(tmp_path)
    data = load_records("folder", data_dir=tmp_path, held_out_size=1, image_size=8, colour="full")
    straight = batches(data.train(4, seed=3), 6)
    for step in (1, 5):
        for one, other in zip(straight[step:], batches(data.train(4, seed=3, start_step=step), 6 - step), strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)
    assert not np.array_equal(straight[0][0], batches(data.train(4, seed=4), 1)[0][0])


def test_an_epoch_is_a_permutation(tmp_path):
    folder_of_colours(tmp_path, per_class=6)
    data = load_records("folder", data_dir=tmp_path, held_out_size=2, **PLAIN)
    shown = batches(data.train(4, seed=0), 10)
    order = np.concatenate([numbers_of(images) for images, _ in shown])
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in shown]), order // 6)
    epochs = order.reshape(4, 10)
    assert len({tuple(sorted(epoch)) for epoch in epochs.tolist()}) == 1
    assert len(set(order.tolist())) == 10
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 4


@pytest.mark.parametrize("flip", [True, False])
def test_crops_keep_their_bounds(flip, tmp_path):
    """Read off the colours of opposite edges, of an image that PNG keeps as it is."""
    content = encoded(coordinates(), "PNG")
    write_image_folder(tmp_path, {name: {"x.png": content, "y.png": content} for name in "ab"})
    options = {"crop_area": (0.2, 0.7), "crop_aspect": (0.8, 1.3), "flip": flip}
    data = load_records("folder", data_dir=tmp_path, held_out_size=1, **{**PLAIN, "image_size": 50}, **options)
    ((images, _),) = batches(data.train(200, seed=0), 1)
    places = 127.5 * (images + 1) / 250
    left, right = places[:, :, 0, 0].mean(1), places[:, :, -1, 0].mean(1)
    height = (places[:, -1, :, 1].mean(1) - places[:, 0, :, 1].mean(1)) * 50 / 49
    width = np.abs(right - left) * 50 / 49
    area, aspect = width * height, width / height
    assert 0.2 - 0.03 < area.min() < 0.3 and 0.6 < area.max() < 0.7 + 0.03
    assert 0.8 - 0.06 < aspect.min() < 0.9 and 1.2 < aspect.max() < 1.3 + 0.06
    assert height.min() > 0
    mirrored = np.mean(right < left)
    assert abs(mirrored - 0.5) < 5 * 0.5 / np.sqrt(200) if flip else mirrored == 0
    assert np.ptp(np.minimum(left, right)) > 0.2


def hsv(images):
    colours = (np.asarray(images).mean((1, 2)) + 1) / 2
    return np.array([colorsys.rgb_to_hsv(*colour) for colour in colours])


def coloured(folder, colour, rgb):
    content = encoded(np.full((16, 16, 3), rgb, np.uint8), "PNG")
    write_image_folder(folder, {name: {"x.png": content, "y.png": content} for name in "ab"})
    data = load_records("folder", data_dir=folder, held_out_size=1, image_size=4, colour=colour)
    return batches(data.train(300, seed=0), 1)[0][0]


def test_fast_colours_change_brightness_and_saturation(tmp_path):
    """Of grey, brightness alone: uniform in ±32/255. Of a colour, hue stays."""
    shift = (coloured(tmp_path / "grey", "fast", (128, 128, 128)).mean((1, 2, 3)) + 1) / 2 - 128 / 255
    assert np.abs(shift).max() == pytest.approx(32 / 255, rel=0.05) and np.abs(shift).max() <= 32 / 255 + 1e-6
    assert abs(shift.mean()) < 5 * 32 / 255 / np.sqrt(3 * 300)
    seen = hsv(coloured(tmp_path / "red", "fast", (160, 80, 80)))
    np.testing.assert_allclose(np.minimum(seen[:, 0], 1 - seen[:, 0]), 0, atol=1e-3)
    # Brightness has moved 0.5 to 80 / (160 ± 32) before it is multiplied.
    assert 0.5 * 80 / 192 - 0.01 < seen[:, 1].min() < 0.3
    assert 0.8 < seen[:, 1].max() < 1.5 * 80 / 128 + 0.01


def test_full_colours_change_the_hue_too(tmp_path):
    hue = hsv(coloured(tmp_path, "full", (160, 80, 80)))[:, 0]
    turned = np.minimum(hue, 1 - hue)
    assert 0.17 < turned.max() < 0.2 + 0.01
    assert len(np.unique(np.round(hue, 5))) > 200


# --- ImageNet, by TFDS's own builder


@pytest.fixture(scope="module")
def tars():
    return original_formats.imagenet_tars()


@pytest.fixture(scope="module")
def imagenet(tars, tmp_path_factory):
    folder = tmp_path_factory.mktemp("imagenet")
    original_formats.write_imagenet(folder, *tars)
    return folder, load_records("imagenet2012", data_dir=folder, held_out_size=100, **PLAIN)


def test_imagenet_is_read_from_its_tar_files(imagenet):
    _, data = imagenet
    assert [data.size(split) for split in ("train", "held_out", "test")] == [900, 100, 6]
    assert (data.num_classes, data.class_names[0], data.class_names[999]) == (1000, "n01440764", "n15075141")
    seen = batches(data.evaluation("test", 6), 1) + batches(data.evaluation("held_out", 100), 1)
    for images, labels, weights in seen:
        np.testing.assert_array_equal(numbers_of(images), labels)
        assert weights.all()
    images, labels = batches(data.train(900, seed=0), 1)[0]
    np.testing.assert_array_equal(numbers_of(images), labels)
    assert set(labels) | set(seen[1][1]) == set(range(1000))


def test_a_prepared_directory_is_used_again_and_rebuilt(imagenet):
    folder, data = imagenet
    description = json.loads(json.dumps(data.describe()))
    assert rebuild(description, folder).fingerprint == data.fingerprint
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["imagenet2012"]
    with pytest.raises(ValueError, match="holds other examples than before"):
        rebuild(description | {"held_out_size": 99}, folder)


def broken(tars, change):
    train, val = (dict(part) for part in tars)
    change(train, val)
    return train, val


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t, v: t.pop("n01440764.tar"), "received 999, and n01440764 are missing"),
        (lambda t, v: t.update({"n00000001.tar": t["n01440764.tar"]}), "received 1001, and n00000001 are missing or"),
        (lambda t, v: t.update({"n01440764.tar": original_formats.tar_of({})}), "n01440764.tar holds no image"),
        (lambda t, v: t.update({"n01440764.tar": b"no tar" * 200}), "n01440764.tar is no whole tar file"),
        (lambda t, v: t.update({"n01440764.tar": b""}), "holds n01440764.tar with 0 bytes"),
        (
            lambda t, v: t.update({"n01440764.tar": original_formats.tar_of({"n01440764_1.JPEG": b""})}),
            "n01440764.tar holds n01440764_1.JPEG with 0 bytes",
        ),
        (lambda t, v: v.pop("ILSVRC2012_val_00000002.JPEG"), "without a gap.*ILSVRC2012_val_00000003.JPEG"),
        (lambda t, v: v.clear(), "nothing is what it holds"),
    ],
)
def test_damaged_tar_files_are_named(tars, change, message, tmp_path):
    original_formats.write_imagenet(tmp_path, *broken(tars, change))
    with pytest.raises(ValueError, match=message):
        load_records("imagenet2012", data_dir=tmp_path, held_out_size=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda path: path.unlink(), FileNotFoundError, "lacks ILSVRC2012_img_val.tar: .* without a split"),
        (lambda path: path.write_bytes(b"<html>" * 1000), ValueError, "ILSVRC2012_img_val.tar is no whole tar file"),
        (lambda path: path.write_bytes(b""), ValueError, "ILSVRC2012_img_val.tar is no whole tar file"),
        (lambda path: path.write_bytes(path.read_bytes()[:2500]), ValueError, "ILSVRC2012_img_val.tar is no whole tar"),
        # After a member, where tarfile sees nothing wrong.
        (lambda path: path.write_bytes(path.read_bytes()[:-8192]), ValueError, "its end is missing"),
    ],
)
def test_tar_files_that_are_none_are_named(tars, change, error, message, tmp_path):
    train, val = tars
    original_formats.write_imagenet(tmp_path, train, dict(itertools.islice(val.items(), 5)))
    path = tmp_path / "ILSVRC2012_img_val.tar"
    content = path.read_bytes().rstrip(b"\0")
    if message == "its end is missing":
        path.write_bytes(content + b"\0" * (-len(content) % 512) + b"\0" * 8192)
    change(path)
    with pytest.raises(error, match=message):
        load_records("imagenet2012", data_dir=tmp_path, held_out_size=1)


def test_where_imagenet_was_looked_for_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"(?s)ImageNet is not on this machine.*image-net\.org.*--data-dir"):
        load_records("imagenet2012", data_dir=tmp_path, held_out_size=1)


# --- Image folders that are none


ONE = {"x.jpg": b"1"}


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ({"a": {}, "b": ONE}, {}, "a holds no image: add images of that class, or remove the folder"),
        ({"a": {"x.jpg": b"", "y.jpg": b"1"}, "b": ONE}, {}, r"x.jpg is empty \(0 bytes\)"),
        ({"a": {"x.gif": b"1"}, "b": ONE}, {}, "x.gif is no .jpeg or .jpg or .png file. Remove it"),
        ({"a": ONE}, {}, "at least two classes; received 1"),
        ({"": ONE, "b": ONE}, {}, "holds 1 files beside class folders, x.jpg"),
        ({"a": ONE, "b": ONE}, {}, "all images are held out. Lower held_out_size"),
        (
            {"a": ONE, "b": ONE},
            {"held_out_size": 2},
            "2 training images: .* 2 does not fit",
        ),
        ({"a": ONE, "b": ONE}, {"held_out_size": 0}, "nothing is left to evaluate on"),
        (
            {
                "train/a": ONE,
                "train/b": ONE,
                "val/a": ONE,
                "val/c": ONE,
            },
            {},
            "train has 2 classes and val 2; b, c are in one of them alone",
        ),
        (
            {"train/a": ONE, "train/b": ONE, "val": {"ILSVRC2012_val_00000001.JPEG": b"1"}},
            {},
            "val holds 1 files beside class folders",
        ),
        ({"val/a": ONE, "val/b": ONE}, {}, "has a folder val, but none named train"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused(images, options, message, tmp_path):
    write_image_folder(tmp_path, images)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_records("folder", data_dir=tmp_path, **{"held_out_size": 1, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "imagenet"}, "Unknown data set 'imagenet': expected imagenet2012 or folder"),
        ({"data_dir": None}, "no usual place: name it with --data-dir"),
        ({"held_out_size": -1}, "`held_out_size` must be a whole number"),
        ({"image_size": 0}, "`image_size` must be a whole number"),
        (
            {"crop_area": (0.0, 1.0)},
            "`crop_area` must be two .* above 0 and at most 1; received 0.0, 1.0",
        ),
        ({"crop_aspect": (1.33, 0.75)}, "`crop_aspect` must be two ascending numbers above 0; received 1.33, 0.75"),
        ({"flip": 1}, "`flip` must be True or False"),
        ({"colour": "slow"}, "`colour` must be 'none', 'fast' or 'full'; received 'slow'"),
        ({"central_crop": 1.5}, "`central_crop` must be above 0 and at most 1"),
    ],
)
def test_options_out_of_range_are_refused_before_any_file_is_read(options, message, tmp_path):
    options = {"name": "folder", "held_out_size": 1, "data_dir": tmp_path / "none", **options}
    with pytest.raises(ValueError, match=message):
        load_records(options.pop("name"), **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: flat_jpeg(1, (99, 99))[:-300], r"bad.JPEG is truncated \(\d+ bytes\). Fetch it again, or remove it"),
        (lambda: encoded(photograph(20, 20), "PNG")[:-20], r"bad.JPEG is truncated \(\d+ bytes\)"),
        (lambda: b"<html>not found</html>", r"bad.JPEG is neither JPEG nor PNG \(22 bytes\)"),
    ],
)
def test_a_damaged_image_stops_training_and_evaluation_with_its_name(content, message, tmp_path):
    folder_of_colours(tmp_path / "train", per_class=2)
    write_image_folder(tmp_path / "train", {"cat": {"bad.JPEG": content()}})
    folder_of_colours(tmp_path / "val", per_class=2)
    data = load_records("folder", data_dir=tmp_path, held_out_size=0, **PLAIN)
    inputs = keras.Input(data.input_shape)
    model = distribution.Model(inputs, keras.layers.Dense(2)(keras.layers.Flatten()(inputs)))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False)
    with pytest.raises(ValueError, match=message):
        model.fit(data.train(5, seed=0), steps_per_epoch=2, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(data.evaluation("train", 5), verbose=0)


def test_asking_for_what_is_not_there_is_refused(tmp_path):
    folder_of_colours(tmp_path)
    data = load_records("folder", data_dir=tmp_path, held_out_size=1, **PLAIN)
    with pytest.raises(ValueError, match="no 'test' examples to evaluate on"):
        data.evaluation("test", 1)
    with pytest.raises(ValueError, match="`split` must be one of train, held_out, test; received 'val'"):
        data.size("val")
    with pytest.raises(ValueError, match="`batch_size` must be a whole number"):
        data.train(0, seed=0)
