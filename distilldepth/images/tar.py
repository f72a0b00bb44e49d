"""Plain tar files, read by position: one walk over the headers, and one clear line for a file that cannot be walked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from distilldepth.errors import DistillDepthError
from distilldepth.images.decode import check_regular

_HEADER_BYTES = 1 << 20
"""Of one member, long names and extended attributes included."""
_AGAIN = "copy or download it again"
_COMPRESSION_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


def walk_tar(path: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield every member of an uncompressed tar file with its name without `./`; only headers are read.

    `offset_data` and `size` say where the bytes are of a member for which `is_plain` holds.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: it is empty, compressed, damaged, truncated or no tar file.
    """
    check_regular(path)
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
            if not magic:
                raise DistillDepthError(f"{path}: is empty")
            if magic in _COMPRESSION_MAGIC:
                raise compressed_error(path, f"compressed with {_COMPRESSION_MAGIC[magic]}")
            file.seek(0)
            headers = _Headers(file)
            # Its type asks for a file that can be written too.
            with tarfile.open(fileobj=headers, mode="r:") as archive:  # type: ignore[call-overload]
                end = -1
                while (member := archive.next()) is not None:
                    if member.size < 0 or archive.offset <= end:
                        raise DistillDepthError(f"{path}: is damaged: a member has a negative size; {_AGAIN}")
                    end = archive.offset
                    # tarfile keeps every member it has seen; a million of them would fill the memory.
                    archive.members = []
                    headers.left = _HEADER_BYTES
                    yield member.name.removeprefix("./"), member
                end = archive.offset
            # tarfile takes a damaged header after the first one for the end; the true end is zeros or the file's end.
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise DistillDepthError(f"{path}: is damaged or truncated at byte {end}; {_AGAIN}")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except tarfile.TarError as error:
        raise DistillDepthError(f"{path}: is not a plain tar file, or is truncated ({error})") from error
    except OSError as error:
        raise DistillDepthError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, LookupError, OverflowError, RecursionError, MemoryError) as error:
        # What tarfile stumbles over in extended headers.
        raise DistillDepthError(f"{path}: is damaged: a header cannot be read; {_AGAIN}") from error


class _Headers:
    """A tar file of which only headers are read, and of each no more than a real one has."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.left = file, _HEADER_BYTES
        self.seek, self.tell, self.name = file.seek, file.tell, file.name

    def read(self, size: int = -1) -> bytes:
        """Return bytes; raises tarfile.ReadError beyond what a header may have."""
        self.left -= size
        if size < 0 or self.left < 0:
            raise tarfile.ReadError(f"a header of more than {_HEADER_BYTES} bytes")
        return self.file.read(size)


def is_plain(member: tarfile.TarInfo) -> bool:
    """Say whether a member is a file whose bytes lie in the archive as they are."""
    return member.isreg() and not member.issparse()


def compressed_error(path: str, how: str) -> DistillDepthError:
    """Return what to raise for an archive in which single files cannot be found."""
    return DistillDepthError(
        f"{path}: is {how}, and single files cannot be found in it; unpack it, or store it as a plain .tar "
        "(photographs are compressed already)"
    )
