"""What a data set must offer to be trained on, evaluated, exported and analysed."""

from typing import Any, Protocol

from ls_keras.data import images, records

import tensorflow as tf


class Dataset(Protocol):
    """Examples in the splits `train`, `held_out` and `test`, of which all but the first may be empty.

    `Images` is one; anything with these members is another. x may be a tensor or a dictionary of tensors, as the model
    takes it. Of sequences, every position is an example of its own: labels and weights are `[batch_size, positions]`,
    and the weight of a pad is 0.

    Attributes:
        name: What reports call it.
        num_classes: K.
        class_names: The name of class k at index k.
        num_train: Rows of the split `train`.
    """

    name: str
    num_classes: int
    class_names: tuple[str, ...]

    @property
    def num_train(self) -> int: ...

    def size(self, split: str) -> int:
        """Return the number of rows of a split, 0 if it has none."""

    def train(self, batch_size: int, *, seed: int, start_step: int = 0) -> tf.data.Dataset:
        """Return the endless stream of training batches (x, labels), from step `start_step` on.

        Batch s must be a function of (seed, s), so that a run that goes on sees what it would have seen. A third
        element, weights shaped like the labels, leaves pads out.
        """

    def evaluation(self, split: str, batch_size: int) -> tf.data.Dataset:
        """Return a split in order, every row once, as batches (x, labels, weights); rows that fill up have weight 0."""

    def describe(self) -> dict[str, Any]:
        """Return what `config.json` keeps: JSON from which `rebuild` makes the same data set again."""


# By the name that `describe` gives them.
_LOADERS = {loader.__name__: loader for loader in (images.load_images, records.load_records)}


def rebuild(description: dict[str, Any], data_dir: Any = None) -> "images.Images | records.Records":
    """Make a data set again from what `describe` returned.

    Args:
        description: `{"loader": …, …}` with the options of a loader of this package, and the fingerprint that the
            data set had.
        data_dir: The folder to search for its files.

    Returns:
        The data set.

    Raises:
        ValueError: No loader of this package made it, or the files hold other examples now.
        FileNotFoundError: As the loader.

    Example:
        >>> digits = load_images("digits", train_size=1000, held_out_size=397)
        >>> rebuild(digits.describe()).fingerprint == digits.fingerprint
        True
    """
    options = dict(description)
    loader, fingerprint = options.pop("loader", None), options.pop("fingerprint", None)
    if loader not in _LOADERS:
        raise ValueError(
            f"The data set {options.get('name', 'without a name')} was made by {loader or 'no loader'}, which is none "
            "of ls_keras.data: load it as its recipe does, and give it to analysis.Probe."
        )
    found = _LOADERS[loader](options.pop("name"), **options, data_dir=data_dir)
    if fingerprint not in (None, found.fingerprint):
        raise ValueError(
            f"{found.name} from {found.origin} holds other examples than before (fingerprint {found.fingerprint} and "
            f"not {fingerprint}). Name the folder of the files that were used with --data-dir."
        )
    return found
