import gzip
import io
import os
import tarfile
from pathlib import Path

from tools.mini_corpus.shards import write_tar

MEMBERS = [("a.webp", b"\x00\x01"), ("a.json", b"{}"), ("a.txt", "Côte".encode())]


def test_bytes_depend_on_the_content_only(tmp_path: Path) -> None:
    write_tar(tmp_path / "one.tar.gz", MEMBERS)
    os.utime(tmp_path / "one.tar.gz", (1, 1))
    write_tar(tmp_path / "another-name.tar.gz", iter(MEMBERS))
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "another-name.tar.gz").read_bytes()
    write_tar(tmp_path / "other.tar.gz", MEMBERS[:2])
    assert (tmp_path / "one.tar.gz").read_bytes() != (tmp_path / "other.tar.gz").read_bytes()


def test_members_have_no_time_owner_or_host(tmp_path: Path) -> None:
    path = tmp_path / "shard.tar.gz"
    write_tar(path, MEMBERS)
    raw = path.read_bytes()
    assert raw[4:8] == bytes(4)  # gzip's time stamp
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(raw))) as tar:
        for info, (name, content) in zip(tar, MEMBERS, strict=True):
            assert (info.name, info.mtime, info.uid, info.gid, info.uname) == (name, 0, 0, 0, "")
            file = tar.extractfile(info)
            assert file is not None and file.read() == content
