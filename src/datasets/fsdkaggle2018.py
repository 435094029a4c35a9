"""FSDKaggle2018 (Fonseca et al. 2018, "General-purpose tagging of Freesound audio with AudioSet labels"): 41 classes of
sound events, 0.3 to 30 s long."""

from __future__ import annotations

from pathlib import Path

from src.datasets.folds import check_apart
from src.datasets.source import Corpus, Recording, pick
from src.datasets.splits import by_class, check_shares, seeded_split
from src.datasets.table import beside, check_present, locate, table
from src.datasets.tree import open_tree
from src.registry import DATASETS, Fraction

NAME = "FSDKaggle2018"
TRAIN = "train_post_competition.csv"
TEST = "test_post_competition_scoring_clips.csv"
GET_IT = (
    f"get {NAME}.audio_train.zip, {NAME}.audio_test.zip and {NAME}.meta.zip at https://zenodo.org/record/2552860 and "
    "unzip them side by side into source_dir"
)


@DATASETS.register("fsdkaggle2018")
def fsdkaggle2018(
    *,
    include: tuple[str, ...],
    default: tuple[str, ...],
    sample_rate: int,
    seconds: float,
    seed: int,
    source_dir: Path = Path("data/raw/fsdkaggle2018"),
    validation: Fraction = 0.1,
    only_verified: bool = False,
) -> Corpus:
    """FSDKaggle2018, sound events of 41 classes: the published test clips test, a seeded share of the others validates.

    Test clips of usage "Ignored" are left out. Clips of one Freesound recording are never in two splits. include_dirs
    names classes; its default, the ten keywords, means all of them. Each clip has a Creative Commons license of its
    own, some of them not for commercial use.

    Args:
        source_dir: folder (or tar archive) that holds FSDKaggle2018.audio_train, .audio_test and .meta.
        validation: share of the training clips of each class that validates.
        only_verified: train and validate only on clips whose label a person has verified.
    """
    check_shares(validation, 0)
    tree = open_tree(source_dir, GET_IT)
    train_list, test_list = (locate(tree, f"{NAME}.meta/{name}") for name in (TRAIN, TEST))
    if train_list is None or test_list is None:
        missing = TEST if train_list else TRAIN
        raise FileNotFoundError(f"{tree.path}: holds no {NAME}.meta/{missing}; {GET_IT}")
    labels, sounds, tags = {}, {}, {}
    for row in table(tree, train_list, ("fname", "label", "manually_verified", "freesound_id")):
        if only_verified and row["manually_verified"] != "1":
            continue
        name = f"{beside(train_list, 2)}{NAME}.audio_train/{row['fname']}"
        labels[name], sounds[name] = row["label"], row["freesound_id"]
        tags[name] = {"verified": row["manually_verified"]}
    check_present(tree, labels, train_list)
    splits = seeded_split(labels, sounds, validation, 0, seed)
    tested = []
    for row in table(tree, test_list, ("fname", "label", "usage", "freesound_id")):
        if row["usage"] == "Ignored":
            continue
        name = f"{beside(test_list, 2)}{NAME}.audio_test/{row['fname']}"
        labels[name], sounds[name], tags[name] = row["label"], row["freesound_id"], {"usage": row["usage"]}
        splits[name] = "test"
        tested.append(name)
    check_present(tree, tested, test_list)
    check_apart(splits, sounds, tree.path)
    classes = pick(None if include == default else include, sorted(set(labels.values())), "class")
    labels = {name: label for name, label in labels.items() if label in classes}
    recordings = tuple(
        Recording(name, labels[name], splits[name], sounds[name], tags=tags[name])
        for name in by_class(list(labels), labels, classes)
    )
    return Corpus(
        tree.stamp, classes, recordings, tree.audio, speech=False, may_be_empty=() if validation else ("validation",)
    )
