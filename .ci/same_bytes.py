"""Pack a .tar.gz anew, so that its bytes depend on what is in it and SOURCE_DATE_EPOCH alone."""

from __future__ import annotations

import gzip
import io
import os
import sys
import tarfile
from pathlib import Path


def main(path: Path, epoch: int) -> None:
    packed = io.BytesIO()
    with (
        tarfile.open(path) as old,
        gzip.GzipFile("", "wb", fileobj=packed, mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as new,
    ):
        for member in sorted(old.getmembers(), key=lambda member: member.name):
            member.mtime = epoch
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
            member.pax_headers = {}
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    path.write_bytes(packed.getvalue())


main(Path(sys.argv[1]), int(os.environ["SOURCE_DATE_EPOCH"]))
