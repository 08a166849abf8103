"""The image sets that can be loaded from IDX files: names, sums, mirrors.

The SHA-256 sums are those of the decompressed official files, so that one check serves
every container: plain, gzip from the authors, gzip from a mirror that packed it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

#: Logical file to its official name. Some archives write a dot before "idx".
FILES: Mapping[str, str] = MappingProxyType(
    {
        "x_train": "train-images-idx3-ubyte",
        "y_train": "train-labels-idx1-ubyte",
        "x_test": "t10k-images-idx3-ubyte",
        "y_test": "t10k-labels-idx1-ubyte",
    }
)


@dataclass(frozen=True)
class ImageSet:
    """One image set in the layout of MNIST.

    Attributes:
        name: The task's name.
        folder: The folder that torchvision gives it.
        n_classes: Number of classes.
        sha256: Logical file to the sum of its decompressed bytes.
        mirrors: Addresses to which a file's name is appended, tried in order.
    """

    name: str
    folder: str
    n_classes: int
    sha256: Mapping[str, str]
    mirrors: tuple[str, ...]


MNIST = ImageSet(
    name="mnist",
    folder="MNIST",
    n_classes=10,
    sha256=MappingProxyType(
        {
            "x_train": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "y_train": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "x_test": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "y_test": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        }
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)

FASHION_MNIST = ImageSet(
    name="fashion-mnist",
    folder="FashionMNIST",
    n_classes=10,
    sha256=MappingProxyType(
        {
            "x_train": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "y_train": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "x_test": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "y_test": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        }
    ),
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    ),
)

IMAGE_SETS: Mapping[str, ImageSet] = MappingProxyType(
    {entry.name: entry for entry in (MNIST, FASHION_MNIST)}
)
