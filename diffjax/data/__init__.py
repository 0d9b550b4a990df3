"""Data: sources (random-access data sets), the input pipeline, and images as numbers and files.

source = create("digits")
for batch in batches(source, batch_size=128, seed=0):
    x = to_float(batch["image"])
"""

from diffjax.data.base import ArraySource, Example, Source, check_labels, in_memory
from diffjax.data.images import (
    centre_crop,
    class_columns,
    contact_sheet,
    image_grid,
    save_png,
    shrink,
    to_float,
    to_uint8,
)
from diffjax.data.pipeline import Batch, batches, epoch
from diffjax.data.sources import create
from diffjax.data.sources import images as create_images

__all__ = [
    "ArraySource",
    "Batch",
    "Example",
    "Source",
    "batches",
    "centre_crop",
    "check_labels",
    "class_columns",
    "contact_sheet",
    "create",
    "create_images",
    "epoch",
    "image_grid",
    "in_memory",
    "save_png",
    "shrink",
    "to_float",
    "to_uint8",
]
