from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from svdcli.curate.run import inputs
from svdcli.curate.run.fetch import SCRATCH, clear_scratch, local_file
from svdcli.curate.run.inputs import Input, list_inputs
from svdcli.errors import InputError, UsageError

MP4 = b"\0\0\0\x18ftypisom" + b"x" * 20
ODD = ["with space.mp4", "quo'te\".mp4", "new\nline.mp4", "-rf.mp4", "$(touch x).mp4", "ünïcode.mp4"]


def listed(source: object) -> dict[str, Input]:
    found = list(list_inputs(os.fspath(source)))  # type: ignore[call-overload]
    assert len({one.path for one in found}) == len(found)
    return {one.path: one for one in found}


def touch(folder: Path, *names: str, data: bytes = MP4) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def tar(path: Path, entries: list[tuple[str | tarfile.TarInfo, bytes]], mode: str = "w") -> None:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, data in entries:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            if info.isreg():
                info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_a_folder_gives_its_videos_by_name_or_by_first_bytes(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.mp4", "a.MKV", "movie.txt", "noending")
    touch(tmp_path, "notes.txt", "b/2.json", data=b"{}")
    found = listed(tmp_path)
    kinds = {os.path.relpath(path, tmp_path): one.kind for path, one in found.items()}
    assert kinds == {
        "a.MKV": "file",
        "b/2.json": "other",
        "b/2.mp4": "file",
        "movie.txt": "file",
        "noending": "file",
        "notes.txt": "other",
    }
    assert list(found) == [one.path for one in list_inputs(str(tmp_path))] == sorted(found)
    stamp = found[str(tmp_path / "a.MKV")].stamp
    touch(tmp_path, "a.MKV", data=MP4 + b"more")
    assert listed(tmp_path)[str(tmp_path / "a.MKV")].stamp != stamp


@pytest.mark.parametrize("name", [*ODD, os.fsdecode(b"not-utf8-\xff\xfe.mp4")])
def test_odd_names_are_names_like_any_other(tmp_path: Path, name: str) -> None:
    touch(tmp_path, name)
    (one,) = listed(tmp_path).values()
    assert one.kind == "file" and one.path == str(tmp_path / name)
    with local_file(one, tmp_path, 1 << 20) as path:
        assert path.read_bytes() == MP4 and path.is_absolute()


def test_loops_dead_links_devices_and_closed_folders_are_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "in/a.mp4", "closed/b.mp4", "elsewhere/c.mp4", "z.mp4")
    (tmp_path / "in/loop").symlink_to(tmp_path)
    (tmp_path / "in/self").symlink_to("self")
    (tmp_path / "in/dead.mp4").symlink_to("nothing")
    (tmp_path / "in/linked.mp4").symlink_to(tmp_path / "elsewhere/c.mp4")
    os.mkfifo(tmp_path / "in/pipe.mp4")
    real = os.scandir

    def closed(path: str) -> object:  # tests may run as root, who may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(inputs.os, "scandir", closed)
    found = {os.path.relpath(path, tmp_path): one for path, one in listed(tmp_path).items()}
    usable = {path for path, one in found.items() if one.kind == "file"}
    assert usable == {"in/a.mp4", "elsewhere/c.mp4", "in/linked.mp4", "z.mp4"}
    reasons = {path: one.reason for path, one in found.items() if one.kind == "unusable"}
    assert "leads back" in reasons["in/loop"]
    assert "leads nowhere" in reasons["in/dead.mp4"] and "leads nowhere" in reasons["in/self"]
    assert "no regular file" in reasons["in/pipe.mp4"]
    assert "permission denied" in reasons["closed"] and len(reasons) == 5


def test_playlists_and_archives_are_refused_and_never_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    touch(tmp_path, "p.m3u8", data=b"#EXTM3U\nhttp://localhost:1/secret.ts\n")
    touch(tmp_path, "bomb.zip", "bomb.tar.gz", data=b"PK\x03\x04")
    monkeypatch.setattr("builtins.open", lambda *a, **k: pytest.fail("opened"))
    reasons = [one.reason for one in list_inputs(str(tmp_path))]
    assert len(reasons) == 3 and sum("playlist" in r for r in reasons) == 1
    assert sum("compressed archive" in r for r in reasons) == 2


def test_members_of_a_tar_are_read_where_they_lie(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    tar(
        path,
        [("0001.mp4", MP4 + b"1"), ("0001.json", b"{}"), ("a/0002.mp4", MP4 + b"2"), ("x.m3u8", b"#EXTM3U")],
    )
    found = listed(path)
    assert [one.kind for one in found.values()] == ["member", "other", "member", "unusable"]
    out = tmp_path / "out"
    for one, data in ((found[f"{path}::0001.mp4"], MP4 + b"1"), (found[f"{path}::a/0002.mp4"], MP4 + b"2")):
        with local_file(one, out, 1 << 20) as copy:
            assert copy.read_bytes() == data and copy.is_relative_to(out / SCRATCH)
        assert not copy.exists()
        assert list(list_inputs(one.path)) == [one]  # a member by itself, as a reproducing command names it
    with pytest.raises(UsageError, match="no member"):
        listed(f"{path}::none.mp4")
    (out / SCRATCH / "left").mkdir(parents=True)
    clear_scratch(out)
    assert not (out / SCRATCH).exists()


def test_hostile_tars_harm_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    path = tmp_path / "in/hostile.tar"
    link, hard, device = (tarfile.TarInfo(f"{name}.mp4") for name in ("link", "hard", "device"))
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    hard.type, hard.linkname = tarfile.LNKTYPE, "../../etc/passwd"
    device.type = tarfile.CHRTYPE
    climbing = [("../../up.mp4", MP4), ("/tmp/abs.mp4", MP4), ("a/../../b.mp4", MP4)]
    tar(path, [*climbing, (link, b""), (hard, b""), (device, b""), ("good.mp4", MP4)])
    found = listed(tmp_path / "in")
    assert [one.kind for one in found.values()] == ["unusable"] * 6 + ["member"]
    assert sum("leads out" in one.reason for one in found.values()) == 3
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["hostile.tar", "in"]


def test_a_torn_tar_gives_what_is_whole(tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", [("1.mp4", MP4), ("2.mp4", MP4 * 100), ("3.mp4", MP4)])
    data = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(data[: 512 + 512 + 512 + 700])
    found = list(listed(tmp_path / "s.tar").values())
    assert [one.kind for one in found[:2]] == ["member", "unusable"] and "ends before" in found[1].reason
    (tmp_path / "bad.tar").write_bytes(b"not a tar at all" * 100)
    (one,) = listed(tmp_path / "bad.tar").values()
    assert one.kind == "unusable" and "cannot be read" in one.reason
    (tmp_path / "gz.tar").write_bytes(b"\x1f\x8b\x08" + b"\0" * 2000)
    (one,) = listed(tmp_path / "gz.tar").values()
    assert one.kind == "unusable"


def test_a_member_that_is_larger_than_allowed_is_given_up(tmp_path: Path) -> None:
    tar(tmp_path / "s.tar", [("1.mp4", b"\0" * (3 << 20))])
    (one,) = listed(tmp_path / "s.tar").values()
    with pytest.raises(InputError, match="more than 1 MiB"), local_file(one, tmp_path / "out", 1 << 20):
        pass
    assert not any((tmp_path / "out" / SCRATCH).iterdir())


@pytest.mark.parametrize("kind", ["txt", "nul", "csv", "tsv", "parquet"])
def test_manifests_of_every_kind(tmp_path: Path, kind: str) -> None:
    names = ["a.mp4", "sub/with space.mp4", "-rf.mp4", "gone.mp4", "https://host/v.mp4", "movie"]
    touch(tmp_path, *(name for name in names[:3]), "movie")
    path = tmp_path / f"list.{'txt' if kind == 'nul' else kind}"
    if kind == "parquet":
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"id": range(6), "video": names}), path)
    elif kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        path.write_text(f"id{mark}path\n" + "".join(f"{i}{mark}{name}\n" for i, name in enumerate(names)))
    else:
        path.write_bytes(b"".join(os.fsencode(name) + (b"\0" if kind == "nul" else b"\n") for name in names))
    found = list(listed(path).values())
    assert [one.kind for one in found] == ["file", "file", "file", "unusable", "url", "file"]
    assert found[0].path == str(tmp_path / "a.mp4") and "no such file" in found[3].reason


def test_a_table_without_such_a_column_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="no column of paths"):
        listed(tmp_path / "l.csv")


def test_patterns_braces_and_nothing(tmp_path: Path) -> None:
    touch(tmp_path, "a1.mp4", "a2.mp4", "b.mp4", "deep/er/a3.mp4")
    assert len(listed(tmp_path / "a*.mp4")) == 2 and len(listed(tmp_path / "**/a*.mp4")) == 3
    for number in (8, 9, 10):
        tar(tmp_path / f"s{number:03d}.tar", [("x.mp4", MP4)])
    assert len(listed(tmp_path / "s{008..010}.tar")) == 3
    with pytest.raises(UsageError, match="nothing at"):
        listed(tmp_path / "none*")


def test_behind_urls_through_fsspec(tmp_path: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/v/a.mp4": MP4, "/bucket/v/n.txt": b"text", "/bucket/v/p.m3u8": b"#EXTM3U"})
    tar(tmp_path / "s.tar", [("1.mp4", MP4)])
    memory.pipe("/bucket/v/s.tar", (tmp_path / "s.tar").read_bytes())
    found = listed("memory://bucket/v/")
    kinds = {path.rpartition("/")[2]: one.kind for path, one in found.items()}
    assert kinds == {"a.mp4": "url", "n.txt": "other", "p.m3u8": "unusable", "s.tar::1.mp4": "member"}
    for path in ("memory:///bucket/v/a.mp4", "memory:///bucket/v/s.tar::1.mp4"):
        one = next(one for one in found.values() if one.path.endswith(path.rpartition("/")[2]))
        with local_file(one, tmp_path, 1 << 20) as copy:
            assert copy.read_bytes() == MP4
    with (
        pytest.raises(InputError, match="more than 0 MiB"),
        local_file(found[next(iter(found))], tmp_path, 5),
    ):
        pass
    with pytest.raises(UsageError, match="nothing at"):
        listed("memory://bucket/none/*.mp4")
