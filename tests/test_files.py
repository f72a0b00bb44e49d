"""Files are written whole or not at all, whatever stops the writer."""

import errno
import io
import os
import threading

import numpy as np
import pytest
from waiting import patience_s

from distilldepth.files import atomic_path, write_atomically


def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "map.npy"
    write_atomically(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as temporary:
        temporary.write_bytes(b"half of the n" * (1 // 0))
    assert path.read_bytes() == b"old"
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [found.name for found in tmp_path.iterdir()] == ["map.npy"]


def test_the_folder_is_made_and_the_longest_name_works(tmp_path):
    path = tmp_path / "a b" / "c" / f"{'n' * 251}.npy"
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("names_file", [False, True])
def test_a_full_disk_names_the_file(tmp_path, names_file):
    path = tmp_path / "map.npy"
    with pytest.raises(OSError, match=r"map\.npy") as caught, atomic_path(path) as temporary:
        raise OSError(errno.ENOSPC, "No space left on device", *([str(temporary)] if names_file else []))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)


def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    pipe, received = tmp_path / "pipe.npy", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    with atomic_path(pipe) as temporary:
        np.save(temporary, np.arange(5))
    reader.join(timeout=patience_s())
    assert pipe.is_fifo()
    np.testing.assert_array_equal(np.load(io.BytesIO(received[0])), np.arange(5))
    assert [path.name for path in tmp_path.iterdir()] == ["pipe.npy"]
