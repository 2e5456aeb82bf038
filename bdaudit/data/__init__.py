"""Clean labelled samples: read, digest, split."""

from bdaudit.data.arrays import from_arrays
from bdaudit.data.images import ImageShape, fit_images, read_image
from bdaudit.data.loading import load_poisoned_tree, load_sample, with_classes
from bdaudit.data.objects import load_for_task, load_objects
from bdaudit.data.sample import Sample
from bdaudit.data.split import Split, split_sample, stratified_indices

__all__ = [
    "ImageShape",
    "Sample",
    "Split",
    "fit_images",
    "from_arrays",
    "load_for_task",
    "load_objects",
    "load_poisoned_tree",
    "load_sample",
    "read_image",
    "split_sample",
    "stratified_indices",
    "with_classes",
]
