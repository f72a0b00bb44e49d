"""A marked folder is emptied of what is ours, and of nothing else."""

import os

import pytest

from distilldepth.errors import DistillDepthError
from distilldepth.folders import LOCK, MARK, FolderKind, claim_folder

KIND = FolderKind("toy", "play", ("a.txt", "maps/*.npy", "deep/x-*/y.txt"))
OURS = ("a.txt", "maps/1.npy", "deep/x-1/y.txt", ".distilldepth-00ff.npy", "maps/.distilldepth-00ff.npy")


@pytest.fixture
def folder(tmp_path):
    for name in OURS:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("ours")
    KIND.mark(tmp_path)
    return tmp_path


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_what_is_ours_goes_and_the_lock_stays(folder):
    (folder / LOCK).touch()
    KIND.check_clearable(folder)
    KIND.clear(folder)
    assert everything(folder) == [LOCK]


def test_listed_files_are_ours_with_their_folders(folder):
    named = folder / "some" / "where" / "photo 1.npy"
    named.parent.mkdir(parents=True)
    named.touch()
    with pytest.raises(DistillDepthError, match="some"):
        KIND.clear(folder)
    KIND.clear(folder, [named, folder / "not there"])
    assert everything(folder) == []


@pytest.mark.parametrize(
    "name",
    ["b.txt", "maps/a.txt", "maps/2/1.npy", "deep/y.txt", "deep/x-1/z/y.txt", "a.txt.bak", "other/", "maps/sub/"],
)
def test_anything_else_stops_it_before_a_file_is_gone(folder, name):
    path = folder / name
    (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
    if not name.endswith("/"):
        path.write_text("mine")
    before = everything(folder)
    for act in (KIND.check_clearable, KIND.clear):
        with pytest.raises(DistillDepthError, match="was not made by distilldepth play"):
            act(folder)
    assert everything(folder) == before


@pytest.mark.parametrize("name", ["a.txt", "maps"])
def test_a_link_is_not_ours(folder, tmp_path_factory, name):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "1.npy").write_text("mine")
    os.rename(folder / name, elsewhere / "old")
    (folder / name).symlink_to(elsewhere)
    with pytest.raises(DistillDepthError, match=name):
        KIND.clear(folder)
    assert (elsewhere / "1.npy").read_text() == "mine"


@pytest.mark.parametrize("mark", [None, "", "{}", '{"format": "distilldepth run"}', "[" * 9000])
def test_without_our_mark_nothing_goes(folder, mark):
    (folder / MARK).unlink()
    if mark is not None:
        (folder / MARK).write_text(mark)
    before = everything(folder)
    with pytest.raises(DistillDepthError, match="does not carry the mark of a distilldepth toy"):
        KIND.clear(folder)
    assert everything(folder) == before


def test_a_folder_made_for_nothing_is_gone(tmp_path):
    with claim_folder(tmp_path / "new", "play"):
        assert (tmp_path / "new").is_dir()
    assert not (tmp_path / "new").exists()
    with claim_folder(tmp_path / "kept", "play"):
        (tmp_path / "kept" / "a.txt").touch()
    assert everything(tmp_path) == ["kept", "kept/a.txt"]
    with pytest.raises(ValueError, match="is a file"), claim_folder(tmp_path / "kept" / "a.txt", "play"):
        pass
