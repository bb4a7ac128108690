"""What the recipes train and evaluate on: the paper's splits, in batches that are reproducible by step."""

from ls_keras.data.images import Data, load_images

__all__ = ["Data", "load_images"]
