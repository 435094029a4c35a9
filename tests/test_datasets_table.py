"""Metadata of corpora, in folders and in archives; what it says about a clip reaches the clips."""

from __future__ import annotations

import csv
import json
import tarfile
from pathlib import Path

import pytest

from src.datasets import store, tree
from src.datasets.prepare import DataSettings, prepare
from src.datasets.source import Corpus, Recording
from src.datasets.table import table
from src.datasets.tree import open_tree
from src.registry import DATASETS


def packed(folder: Path, archive: Path, name: str = ".") -> Path:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, arcname=name)
    return archive


@pytest.mark.parametrize("name", [".", "top"])
def test_any_file_reads_the_same_from_folder_and_archive(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    (folder / "meta").mkdir(parents=True)
    for file in ("meta/list.csv", "notes.TXT", "a.tsv", "b.json", "meta/data.bin"):
        (folder / file).write_bytes(file.encode() * 10)
    monkeypatch.setattr(tree, "LARGEST_KEPT", 60)  # meta/list.csv is longer: it takes a pass of its own
    for source in (open_tree(folder), open_tree(packed(folder, tmp_path / "c.tar.gz", name))):
        for file in ("meta/list.csv", "notes.TXT", "a.tsv", "b.json", "meta/data.bin"):
            assert source.content(file) == file.encode() * 10
        with pytest.raises(FileNotFoundError, match=r"holds no meta/none\.csv"):
            source.content("meta/none.csv")


def test_table_of_real_metadata(shared: Path, tmp_path: Path) -> None:
    folder = tmp_path / "esc10"
    folder.mkdir()
    (folder / "manifest.csv").write_bytes((shared / "esc10" / "manifest.csv").read_bytes())
    with (folder / "manifest.csv").open(newline="") as file:
        expected = list(csv.DictReader(file))
    columns = list(expected[0])[:2]
    for source in (open_tree(folder), open_tree(packed(folder, tmp_path / "c.tar"))):
        assert table(source, "manifest.csv", columns) == [{c: row[c] for c in columns} for row in expected]


def test_mistakes_in_a_table_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_bytes(b'\xef\xbb\xbffile, speaker\r\na.wav, "ann, x"\r\n')
    (tmp_path / "short.csv").write_text("file,speaker\na.wav,ann\nb.wav\n")
    (tmp_path / "bytes.csv").write_bytes(b"file\n\xff\xfe\n")
    (tmp_path / "quote.csv").write_text('file,speaker\n"a"b,c\n')
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "tabs.tsv").write_text("file\tspeaker\na,b.wav\tann\n")
    source = open_tree(tmp_path)
    assert table(source, "good.csv", ["file", "speaker"]) == [{"file": "a.wav", "speaker": "ann, x"}]
    assert table(source, "tabs.tsv", ["speaker", "file"]) == [{"speaker": "ann", "file": "a,b.wav"}]
    for name, columns, message in (
        ("good.csv", ["fold"], r"good\.csv: no column 'fold' \(columns: file, speaker\)"),
        ("short.csv", ["file", "speaker"], r"short\.csv: line 3 has no 'speaker'"),
        ("bytes.csv", ["file"], r"bytes\.csv: not a text file in UTF-8"),
        ("quote.csv", ["file"], r"quote\.csv: not valid CSV after line 1"),
        ("empty.csv", ["file"], r"empty\.csv: no column 'file' \(columns: none\)"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            table(source, name, columns)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"holds no none\.csv"):
        table(source, "none.csv", ["file"])


def test_a_corpus_of_a_table_and_its_tags_reach_the_clips(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A corpus as they are published: an archive of wavs and a CSV that says everything about them."""
    folder = tmp_path / "corpus" / "audio"
    folder.mkdir(parents=True)
    files = sorted((shared / "fsdd" / "recordings").glob("[01]_*_[0-3].wav"))
    lines = ["file,digit,speaker,take"]
    for path in files:
        (folder / path.name).write_bytes(path.read_bytes())
        digit, speaker, take = path.stem.split("_")
        lines.append(f"audio/{path.name},{digit},{speaker},{take}")
    (folder.parent / "index.csv").write_text("\n".join(lines) + "\n")
    archive = packed(folder.parent, tmp_path / "corpus.tar")

    def corpus(**_: object) -> Corpus:
        source = open_tree(archive)
        recordings = []
        for row in table(source, "index.csv", ["file", "digit", "speaker", "take"]):
            split = store.SPLITS[min(int(row["take"]), 2)]
            tags = {"take": row["take"]} if row["digit"] == "0" else {}
            recordings.append(Recording(row["file"], row["digit"], split, row["speaker"], tags=tags))
        return Corpus(source.stamp, ("0", "1"), tuple(recordings), source.audio)

    DATASETS.names()
    monkeypatch.setitem(DATASETS._builders, "published", corpus)
    settings = DataSettings(source="published", data_dir=tmp_path / "store", sample_rate=8000)
    assert prepare(settings, {})[1]
    clips = store.load(tmp_path / "store", "test")
    assert len(clips) == sum(int(path.stem.split("_")[2]) >= 2 for path in files)
    for i, example in enumerate(clips.ids):
        digit, speaker, take = Path(example).stem.split("_")
        assert clips.speakers[i] == speaker
        assert clips.tags["take"][i] == (take if digit == "0" else "")
    part = clips.select([3, 0])
    assert part.speakers == (clips.speakers[3], clips.speakers[0])
    assert part.tags["take"] == (clips.tags["take"][3], clips.tags["take"][0])
    assert part.source == "published"
    assert not prepare(settings, {})[1]

    path = tmp_path / "store" / "test.json"
    index = json.loads(path.read_text())
    path.write_text(json.dumps({name: index[name] for name in ("ids", "labels", "lengths")}))
    assert store.load(tmp_path / "store", "test").speakers == ("",) * len(clips)
    path.write_text(json.dumps({**index, "speakers": index["speakers"][1:]}))
    with pytest.raises(ValueError, match="array and index disagree"):
        store.load(tmp_path / "store", "test")


def test_tags_are_part_of_what_is_prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.test_datasets_roles import noise

    DATASETS.names()
    settings = DataSettings(source="published", data_dir=tmp_path / "store", seconds=0.01)
    for fold, fresh in (("1", True), ("1", False), ("2", True)):
        recordings = tuple(Recording(f"{split}", "a", split, tags={"fold": fold}) for split in store.SPLITS)
        corpus = Corpus("1", ("a",), recordings, noise)
        monkeypatch.setitem(DATASETS._builders, "published", lambda corpus=corpus, **_: corpus)
        assert prepare(settings, {})[1] is fresh
        assert store.load(tmp_path / "store", "train").tags == {"speaker": ("",), "fold": (fold,)}
