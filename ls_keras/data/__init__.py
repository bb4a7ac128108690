"""What the recipes train and evaluate on: the paper's splits, in batches that are reproducible by step."""

from ls_keras.data.dataset import Dataset, rebuild
from ls_keras.data.images import Images, load_images
from ls_keras.data.records import Records, load_records
from ls_keras.data.sources import SHAPES

__all__ = ["SHAPES", "Dataset", "Images", "Records", "load_images", "load_records", "rebuild"]
