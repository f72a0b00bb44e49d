"""Plain tar files, read by position: one walk over the headers, and one clear line for a file that cannot be walked."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator

from distilldepth.errors import DistillDepthError

_COMPRESSION_MAGIC = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


def walk_tar(path: str) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield every member of an uncompressed tar file with its name without `./`; only headers are read.

    `offset_data` and `size` say where the bytes are of a member for which `is_plain` holds.

    Raises:
        FileNotFoundError: there is no such file.
        DistillDepthError: it is empty, compressed, damaged, truncated or no tar file.
    """
    try:
        with open(path, "rb") as file:
            magic = file.read(2)
            if not magic:
                raise DistillDepthError(f"{path}: is empty")
            if magic in _COMPRESSION_MAGIC:
                raise compressed_error(path, f"compressed with {_COMPRESSION_MAGIC[magic]}")
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:") as archive:
                while (member := archive.next()) is not None:
                    # tarfile keeps every member it has seen; a million of them would fill the memory.
                    archive.members = []
                    yield member.name.removeprefix("./"), member
                end = archive.offset
            # tarfile takes a damaged header after the first one for the end; the true end is zeros or the file's end.
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise DistillDepthError(f"{path}: is damaged or truncated at byte {end}; copy or download it again")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except tarfile.TarError as error:
        raise DistillDepthError(f"{path}: is not a plain tar file, or is truncated ({error})") from error
    except OSError as error:
        raise DistillDepthError(f"{path}: cannot be read ({error.strerror or error})") from error


def is_plain(member: tarfile.TarInfo) -> bool:
    """Say whether a member is a file whose bytes lie in the archive as they are."""
    return member.isreg() and not member.issparse()


def compressed_error(path: str, how: str) -> DistillDepthError:
    """Return what to raise for an archive in which single files cannot be found."""
    return DistillDepthError(
        f"{path}: is {how}, and single files cannot be found in it; unpack it, or store it as a plain .tar "
        "(photographs are compressed already)"
    )
