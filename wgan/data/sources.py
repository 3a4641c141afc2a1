"""Where images come from: the files below a folder or in a zip archive, or a database of LSUN."""

import io
import os
import stat
import sys
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from wgan.data.images import open_image
from wgan.errors import one_line
from wgan.files import GENERATED

LABEL_FILES = {"dataset.json", "metadata.csv", "metadata.jsonl", "labels.csv"}
# A folder with the first and one of the others is a run's.
RUN_FILES = ("config.toml", "log.csv", "checkpoint.pt", "checkpoint.previous.pt", "best.pt")
# Thumbnails, deleted files and snapshots of storage servers and systems, in lower case.
SYSTEM_FOLDERS = {"@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot"}
SYSTEM_FOLDERS |= {"$recycle.bin", "system volume information", "lost+found", "__macosx"}
MAX_ENTRY = 2**29  # bytes of a file in an archive, which is read whole


class ImageFile(NamedTuple):
    """An image's name, and the size and times that tell whether its file has changed."""

    name: str
    size: int  # bytes
    mtime: int  # nanoseconds; in an archive, the checksum of the content
    ctime: int = 0  # the same, but no program can set it; on Windows the time of creation


@dataclass(frozen=True)
class FolderSource:
    """All files below a folder except hidden ones, those of the system, those below `leave_out`
    and, unless the folder itself is part of them, this project's runs and generated images."""

    path: Path
    leave_out: Path | None = None
    left_out: list[str] = field(default_factory=list)  # runs and generated images, once listed
    label_files: list[str] = field(default_factory=list)  # once listed

    @cached_property
    def is_output(self) -> bool:
        """Whether the folder is part of this project's output. The user named it, so it is used."""
        path = self.path.resolve()
        return any(map(is_output_folder, (path, *path.parents)))

    def list(self) -> list[ImageFile]:
        """The files sorted by name, which is the path relative to the folder, with "/", in
        the same order on systems that store accents differently."""
        files: list[ImageFile] = []
        self.left_out.clear()
        # Links are followed, and each folder is entered once, so that a loop of links ends.
        entered = {os.path.realpath(self.leave_out)} if self.leave_out else set()
        for path, folders, names in os.walk(self.path, onerror=self.report, followlinks=True):
            if (real := os.path.realpath(path)) in entered:
                folders.clear()
                continue
            entered.add(real)
            if not self.is_output and is_output(set(names).__contains__):
                self.left_out.append(os.path.relpath(path, self.path))
                folders.clear()
                continue
            kept = {name for name in folders if name.lower() not in SYSTEM_FOLDERS}
            folders[:] = sorted(name for name in kept if not name.startswith("."))
            relative = os.path.relpath(path, self.path)
            prefix = "" if relative == "." else relative.replace(os.sep, "/") + "/"
            for name in names:
                if not name.startswith("."):
                    files += stat_file(f"{path}/{name}", prefix + name)
        return in_order(files, self.label_files)

    def report(self, error: OSError) -> None:
        if error.filename == str(self.path):
            raise error
        print(one_line(f"{error.filename} is left out: {error}"), file=sys.stderr)

    def read(self, name: str) -> bytes:
        return (self.path / name).read_bytes()

    def open(self, name: str) -> AbstractContextManager[Image.Image]:
        return open_image(self.path / name)


def in_order(files: list[ImageFile], label_files: list[str]) -> list[ImageFile]:
    """The files in the order of their names, without files of labels, which are stored apart."""
    files.sort(key=lambda file: (unicodedata.normalize("NFC", file.name), file))
    label_files[:] = [f.name for f in files if f.name.rpartition("/")[2] in LABEL_FILES]
    return [file for file in files if file.name not in label_files]


def stat_file(path: str, name: str) -> list[ImageFile]:
    """The file at that path; none if it is not a regular file."""
    try:
        status = os.stat(path)
    except OSError:  # a link to nothing, for example, which is then reported as unreadable
        return [ImageFile(name, 0, 0)]
    if not stat.S_ISREG(status.st_mode):
        return []
    return [ImageFile(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns)]


def is_output_folder(path: Path) -> bool:
    return is_output(lambda name: os.path.exists(path / name))


def is_output(has: Callable[[str], bool]) -> bool:
    """Whether a folder is a run's or was written by generate.py, if it has the files it says."""
    return has(GENERATED) or (has(RUN_FILES[0]) and any(map(has, RUN_FILES[1:])))


@dataclass(frozen=True)
class ZipSource:
    """The files in a zip archive, those that `FolderSource` lists once it is unpacked. Threads read
    them in place. Nothing is written to a path. ValueError if the archive is corrupt."""

    path: Path
    left_out: list[str] = field(default_factory=list)
    label_files: list[str] = field(default_factory=list)

    @cached_property
    def archive(self) -> zipfile.ZipFile:
        try:
            return zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
            reason = f"{self.path} is incomplete or not a zip archive ({error}): copy it again"
            raise ValueError(reason) from error

    @cached_property
    def entries(self) -> dict[str, zipfile.ZipInfo]:
        """By name; of several entries of one name, the last, as when they are unpacked."""
        entries = {unpacked_name(e): e for e in self.archive.infolist() if not e.is_dir()}
        left_out = [n for n in entries if not SYSTEM_FOLDERS.isdisjoint(n.lower().split("/"))]
        return {name: entries[name] for name in entries.keys() - left_out}

    @cached_property
    def is_output(self) -> bool:
        return self.is_output_folder(common_folder(self.entries))

    def is_output_folder(self, folder: str) -> bool:
        return is_output(lambda name: folder + name in self.entries)

    def list(self) -> list[ImageFile]:
        """The files, in the order of `FolderSource.list`."""
        folders = {name[: name.rfind("/") + 1] for name in self.entries}
        self.left_out[:] = [] if self.is_output else sorted(filter(self.is_output_folder, folders))
        files = [
            ImageFile(name, entry.file_size, entry.CRC)
            for name, entry in self.entries.items()
            if not (name.startswith((".", *self.left_out)) or "/." in name)
        ]
        return in_order(files, self.label_files)

    def read(self, name: str) -> bytes:
        """The content of a file; UnidentifiedImageError with the reason if it cannot be read."""
        entry, reason = self.entries[name], ""
        if name.lower().endswith(".zip"):
            reason = "an archive: unpack it, and name it as --dataset"
        elif entry.flag_bits & 1:
            reason = "encrypted: unpack the archive with its password"
        elif entry.file_size > MAX_ENTRY:
            reason = f"too large ({entry.file_size:,} bytes)"
        if reason:
            raise UnidentifiedImageError(reason)
        try:
            return self.archive.read(entry)
        except Exception as error:  # corrupt archives raise all kinds
            raise UnidentifiedImageError(f"cannot be unpacked ({error})") from error

    def open(self, name: str) -> AbstractContextManager[Image.Image]:
        content = io.BytesIO(self.read(name))
        content.name = name
        return open_image(content)


def unpacked_name(entry: zipfile.ZipInfo) -> str:
    """An entry's name. `zip` writes it in UTF-8 without setting the flag for UTF-8."""
    if not entry.flag_bits & 0x800:
        with suppress(UnicodeError):
            return entry.filename.encode("cp437").decode()
    return entry.filename


def common_folder(names: Iterable[str]) -> str:
    """The folder that contains all files of these names, with "/" at its end, or nothing."""
    start = os.path.commonprefix(list(names))  # noqa: RUF071 - it is cut at a slash
    return start[: start.rfind("/") + 1]


@dataclass(frozen=True)
class LsunSource:
    """The images in one of LSUN's databases; if the database has changed, all of them have.

    Raises ValueError if the package lmdb is missing or the database cannot be read.
    """

    path: Path
    is_output, left_out = False, ()

    @cached_property
    def database(self):
        try:
            import lmdb
        except ImportError as error:
            raise ValueError("lsun needs the package lmdb: pip install lmdb") from error
        try:
            return lmdb.open(str(self.path), readonly=True, lock=False)
        except lmdb.Error as error:
            raise ValueError(
                f"the database {self.path} cannot be read ({error}): remove it, and unpack "
                "bedroom_train_lmdb.zip again"
            ) from error

    def list(self) -> list[ImageFile]:
        status = (self.path / "data.mdb").stat()
        with self.database.begin() as transaction:
            keys = list(transaction.cursor().iternext(values=False))
        names = (key.decode("utf-8", "surrogateescape") for key in keys)
        return [ImageFile(name, status.st_size, status.st_mtime_ns) for name in names]

    def open(self, name: str) -> AbstractContextManager[Image.Image]:
        with self.database.begin() as transaction:
            return open_image(io.BytesIO(transaction.get(name.encode("utf-8", "surrogateescape"))))


Source = FolderSource | ZipSource | LsunSource
