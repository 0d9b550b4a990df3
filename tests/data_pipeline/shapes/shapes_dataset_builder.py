"""A data set of grey levels, which test_tfds builds. TFDS wants it in a folder of its own."""

import numpy as np
import tensorflow_datasets as tfds


class Builder(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=["even", "odd"]),
            "mean": np.int64,
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(0, 7), "test": self._generate_examples(7, 10)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            image = np.full((8, 12, 3), 20 * i, np.uint8)
            yield i, {"image": image, "label": i % 2, "mean": 20 * i}
