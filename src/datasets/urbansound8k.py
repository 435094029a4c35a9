"""UrbanSound8K (Salamon et al. 2014, "A dataset and taxonomy for urban sound research"): slices of at most 4 s from
recordings of city sounds, of many sample rates, bit depths and numbers of channels."""

from __future__ import annotations

from pathlib import Path

from src.datasets.download import fetch
from src.datasets.folds import check_apart, check_folds, fold_splits
from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class
from src.datasets.table import beside, check_present, locate, table
from src.datasets.tree import open_tree
from src.registry import DATASETS, Count

URL = "https://zenodo.org/records/1203745/files/UrbanSound8K.tar.gz"
MD5 = "9aa69802bbf37fb986f71ec1483a196e"
TABLE = "metadata/UrbanSound8K.csv"
COLUMNS = ("slice_file_name", "fsID", "salience", "fold", "classID", "class")
GET_IT = f"set download = yes, or get {URL} and name it, or the folder that it holds, as source_dir"


@DATASETS.register("urbansound8k", check_options=check_folds)
def urbansound8k(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/UrbanSound8K.tar.gz"),
    download: bool = False,
    test_fold: Count = 10,
    valid_fold: Count = 9,
) -> Corpus:
    """UrbanSound8K, sound events of 10 classes, by its ten folds. CC BY-NC 3.0: not for commercial use.

    No slice of a recording is in two splits. include_dirs names classes; its default, the ten keywords, means all of
    them.

    Args:
        source_dir: folder of the data set, or its .tar.gz, read without extraction.
        download: fetch the archive (5.6 GB) to source_dir where nothing is there.
        test_fold: fold used for testing.
        valid_fold: fold used for validation; all others train.
    """
    source_dir = source_dir.expanduser()
    if download and not source_dir.exists():
        fetch(URL, source_dir, MD5, "md5")
    tree = open_tree(source_dir, GET_IT)
    index = locate(tree, TABLE)
    if index is None:
        raise FileNotFoundError(f"{tree.path}: holds no {TABLE}; is it UrbanSound8K?")
    rows = {
        f"{beside(index, 2)}audio/fold{row['fold']}/{row['slice_file_name']}": row
        for row in table(tree, index, COLUMNS)
    }
    check_present(tree, rows, index)
    splits = fold_splits({name: row["fold"] for name, row in rows.items()}, test_fold, valid_fold, tree.path)
    check_apart(splits, {name: row["fsID"] for name, row in rows.items()}, tree.path)
    numbers = {row["class"]: row["classID"] for row in rows.values()}
    available = sorted(numbers, key=lambda name: (len(numbers[name]), numbers[name]))
    classes = pick(None if include == default else include, available, "class")
    labels = {name: row["class"] for name, row in rows.items() if row["class"] in classes}
    recordings = []
    for name in by_class(list(labels), labels, classes):
        tags = {key: rows[name][key] for key in ("fold", "salience")}
        recordings.append(Recording(name, labels[name], splits[name], rows[name]["fsID"], tags=tags))
    return Corpus(tree.stamp, classes, tuple(recordings), tree.audio, speech=False)
