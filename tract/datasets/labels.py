"""Labels of image files: from class folders, or from EDM's dataset.json."""

import itertools
import json
import re
from collections import Counter
from collections.abc import Sequence

from tract.base.checks import reading, shown
from tract.datasets.images import Images, first_few

SPLITS = {"train", "training", "val", "valid", "validation", "test", "testing"}
# Shards of a data set, by number or as EDM's tool numbers its images.
SHARD = re.compile(r"(shard|part|chunk)[-_.]?\d+/|\d{5}/img\d{8}\.", re.IGNORECASE)


def labels_of(images: Images) -> tuple[list[int], list[str]]:
    """Return a label for each image, and the class names; both empty if there are none.

    Uses dataset.json if there is one, else folders, and prints what was found. Raises ValueError if
    folders are splits or shards, or dataset.json is damaged.
    """
    if images.listing is not None:
        labels = _listed(images, images.listing)
        classes = numbered(labels)
        where = "dataset.json"
    else:
        labels, classes = folder_labels(images.names)
        where = "folders"
    tell_classes(labels, classes, where)
    return labels, classes


def tell_classes(labels: Sequence[int], classes: Sequence[str], where: str) -> None:
    """Print the classes and the number of images of each."""
    counts = Counter(labels)
    found = [f"{name} ({counts[i]:,})" for i, name in enumerate(classes) if counts[i]]
    print(f"{len(found):,} classes in {where}: {first_few(found)}" if found else "no classes")


def numbered(labels: Sequence[int]) -> list[str]:
    """Name classes by their number."""
    return [str(number) for number in range(max(labels, default=-1) + 1)]


def folder_labels(names: list[str]) -> tuple[list[int], list[str]]:
    """Return a label for each name, and the sorted names of the class folders.

    Folders shared by all images are skipped; those on the next level are the classes, sorted as
    numbers if all are. Both lists are empty unless every image is in one. Raises ValueError for
    splits or shards.
    """
    parents = [name.split("/")[:-1] for name in names]
    # A prefix of the first and last in alphabetical order is shared by all.
    pairs = zip(min(parents), max(parents), strict=False)
    depth = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
    if any(len(parent) == depth for parent in parents):
        return [], []
    classes = {parent[depth] for parent in parents}
    splits = [name for name in sorted(classes) if name.lower() in SPLITS]
    if len(splits) > 1 or len(splits) == len(classes):
        raise ValueError(f"{' and '.join(splits)} are splits, not classes: give one of these")
    if all(SHARD.match("/".join(name.split("/")[depth:])) for name in names):
        raise ValueError(
            f"{first_few(sorted(classes))} are parts of a data set, not classes: put all images "
            "into one folder or into folders of their class, or add EDM's dataset.json"
        )
    numbered = all(re.fullmatch("[0-9]{1,18}", name) for name in classes)
    order = sorted(classes, key=lambda name: (int(name), name) if numbered else name)
    numbers = {name: number for number, name in enumerate(order)}
    return [numbers[parent[depth]] for parent in parents], order


def _listed(images: Images, content: bytes) -> list[int]:
    """Return labels from EDM's dataset.json, [[name, label], ...]; empty if it has none."""
    path = f"{images.source}: dataset.json"
    with reading(path, "lists no labels", "restore or remove it"):
        listed = json.loads(content)["labels"]
        if listed is None:
            return []
        by_name = {name.replace("\\", "/"): number for name, number in listed}
    labels = [by_name.get(name) for name in images.names]
    for name, label in zip(images.names, labels, strict=True):
        if type(label) is not int or not 0 <= label < 10**6:
            raise ValueError(
                f"{path} has {shown(label)} as the label of {name}: use a class's number"
            )
    return labels
