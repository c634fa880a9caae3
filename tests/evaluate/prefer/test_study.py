"""Plans: balanced, blind, checked; votes kept; ranked; out to a crowd platform and back."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from svdcli.errors import InputError, UsageError
from svdcli.evaluate.prefer.exchange import export_study, import_votes, tasks
from svdcli.evaluate.prefer.rank import active_pick, rank_study
from svdcli.evaluate.prefer.study import MEDIA, Study, load_study, plan_study
from svdcli.evaluate.prefer.votes import Vote, VoteStore, failed_checks
from svdcli.io.video import read_metadata, read_video, write_video

Planned = tuple[Path, Study]


def test_every_pair_meets_on_every_prompt_and_sides_are_balanced(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    study = plan_study(folders, tmp_path / "study", votes=3)
    assert len(study.pairs) == 3 * 6
    for pair, num in Counter((c.a, c.b) for c in study.pairs).items():
        left = sum(c.left(0) == "a" for c in study.pairs if (c.a, c.b) == pair)
        assert (num, left) == (6, 3)
    assert all(c.left(0) != c.left(1) for c in study.pairs)
    prompts = [c.prompt for c in study.pairs]
    assert prompts != sorted(prompts)  # in no order that a rater could follow
    assert load_study(tmp_path / "study") == study


def test_nothing_that_a_rater_can_reach_names_a_model(study: Planned) -> None:
    folder, planned = study
    for file in (folder / MEDIA).iterdir():
        assert file.stem in planned.media and "secret" not in file.name
        assert "secret" not in str(read_metadata(file)) and b"secret" not in file.read_bytes()
    text = json.dumps(tasks(planned))
    assert "secret" not in text and "prompt-" not in text


def test_copies_show_the_same_pictures(study: Planned, folders: dict[str, Path]) -> None:
    folder, planned = study
    chosen = planned.pairs[0]
    copy, fps = read_video(folder / MEDIA / planned.media[chosen.media_a])
    original, own_fps = read_video(folders[chosen.a] / f"{chosen.prompt}.mp4")
    assert np.array_equal(copy, original) and fps == own_fps


def test_what_browsers_do_not_play_becomes_mp4(folders: dict[str, Path], tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 48, 3), dtype=np.uint8)
    for kind in ("gif", "png"):
        (tmp_path / kind).mkdir()
        write_video(tmp_path / kind / ("prompt-1" + (".gif" if kind == "gif" else "")), frames, 8, {}, kind)  # type: ignore[arg-type]
    planned = plan_study({"one": tmp_path / "gif", "two": tmp_path / "png"}, tmp_path / "study")
    assert {Path(name).suffix for name in planned.media.values()} == {".mp4"}
    assert read_video(tmp_path / "study" / MEDIA / planned.media[planned.pairs[0].media_a])[0].shape == (
        4,
        32,
        48,
        3,
    )


def test_attention_checks_have_a_right_answer(study: Planned) -> None:
    folder, planned = study
    checks = planned.checks("quality")
    assert len(checks) == 2
    good, bad = (
        read_video(folder / MEDIA / planned.media[m])[0] for m in (checks[0].media_a, checks[0].media_b)
    )
    assert good.shape == bad.shape and np.abs(good.astype(float) - bad).mean() > 15


def test_prompts_and_pictures_reach_the_rater_on_the_axis_that_needs_them(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="Nothing says what"):
        plan_study(folders, tmp_path / "study", axes=["following"])
    assert not (tmp_path / "study").exists()
    texts = {f"prompt-{i}": f"a square, {i}" for i in range(6)}
    planned = plan_study(folders, tmp_path / "study", axes=["quality", "following"], prompts=texts)
    asked = {(row["axis"], row["prompt"]) for row in tasks(planned)}
    assert (
        ("quality", "") in asked
        and ("following", "a square, 3") in asked
        and ("quality", "a square, 3") not in asked
    )
    assert {c.check for c in planned.comparisons if c.check} == {"quality", "following"}


def test_folders_that_differ_are_told(folders: dict[str, Path], tmp_path: Path) -> None:
    frames = np.zeros((9, 32, 32, 3), np.uint8)
    (tmp_path / "other").mkdir()
    for name in ("prompt-0", "prompt-1", "more"):
        write_video(tmp_path / "other" / f"{name}.mp4", frames, 24, {}, "mp4")
    planned = plan_study({"a": folders["secret-one"], "b": tmp_path / "other"}, tmp_path / "study")
    assert len(planned.pairs) == 2
    told = " ".join(planned.notes)
    assert "more, prompt-2" in told and "a: 64x48, 6 frames, 12 fps; b: 32x32, 9 frames, 24 fps" in told


def test_bad_plans_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    one = {"a": folders["secret-one"]}
    with pytest.raises(UsageError, match="two models"):
        plan_study(one, tmp_path / "s")
    with pytest.raises(UsageError, match="no axis beauty"):
        plan_study(folders, tmp_path / "s", axes=["beauty"])
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="may hold votes"):
        plan_study(folders, tmp_path / "there")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "prompt-0.mp4").write_bytes(b"no video")
    with pytest.raises(InputError):
        plan_study(one | {"b": tmp_path / "bad"}, tmp_path / "s")
    assert not (tmp_path / "s").exists()


# ---- votes


def vote_for(store: VoteStore, rater: str, better: str, choice: str | None = None) -> bool:
    """Answer what is asked next: for the model `better`, checks rightly; False where nothing is asked."""
    task = store.next_task(rater)
    if task is None:
        return False
    wanted = "a" if task.comparison.check or task.comparison.a == better else "b"
    said = choice or ("left" if task.left == wanted else "right")
    store.add(Vote(rater, task.comparison.id, task.axis, said, task.left, 1500))  # type: ignore[arg-type]
    return True


def test_each_rater_sees_each_pair_once_and_the_next_rater_sees_it_turned(study: Planned) -> None:
    store = VoteStore(*study)
    while vote_for(store, "ann", "secret-one"):
        pass
    first = {v.comparison: v for v in store.votes()}
    assert len(first) == 6 + 2
    while vote_for(store, "bob", "secret-one"):
        pass
    second = {v.comparison: v for v in store.votes() if v.rater == "bob"}
    pairs = {c.id for c in study[1].pairs}
    assert set(second) == set(first)
    assert all(first[c].left != second[c].left for c in pairs)
    assert store.next_task("cid") is None or store.next_task("cid").comparison.check  # type: ignore[union-attr]
    assert store.progress("bob") == {"mine": 8, "all": 12, "wanted": 12}
    store.close()


def test_checks_come_in_between_and_failures_are_counted(study: Planned) -> None:
    store, order = VoteStore(*study), []
    while (task := store.next_task("ann")) is not None:
        order.append(bool(task.comparison.check))
        store.add(Vote("ann", task.comparison.id, task.axis, "left", task.left))
    assert sum(order) == 2 and not order[0]
    checks = {c.id for c in study[1].comparisons if c.check}
    wrong = sum(v.comparison in checks and v.left == "b" for v in store.votes())
    assert failed_checks(study[1], store.votes()) == {"ann": (wrong, 2)}
    store.close()


def test_a_repeated_vote_replaces_itself_and_foreign_ones_are_refused(study: Planned) -> None:
    folder, planned = study
    store, asked = VoteStore(folder, planned), planned.pairs[0].id
    store.add(Vote("ann", asked, "quality", "left", "a"))
    store.add(Vote("ann", asked, "quality", "right", "a"))
    store.add(Vote("bob", asked, "quality", "tie", "b"))
    assert [(v.rater, v.winner) for v in store.votes()] == [("ann", "b"), ("bob", None)]
    for wrong in (
        Vote("ann", "unknown", "quality", "left", "a"),
        Vote("ann", asked, "following", "left", "a"),
        Vote("ann", asked, "quality", "middle", "a"),  # type: ignore[arg-type]
        Vote("", asked, "quality", "left", "a"),
        Vote("a\nb", asked, "quality", "left", "a"),
    ):
        with pytest.raises(InputError):
            store.add(wrong)
    store.close()


def test_a_vote_survives_a_kill_right_after_it(study: Planned) -> None:
    """Another process votes and is killed by SIGKILL at once, without closing anything."""
    folder, planned = study
    script = (
        "import os, signal, sys\nfrom pathlib import Path\nfrom svdcli.evaluate.prefer.study import load_study\n"
        "from svdcli.evaluate.prefer.votes import Vote, VoteStore\nfolder = Path(sys.argv[1])\nstudy = load_study(folder)\n"
        "store = VoteStore(folder, study)\nfor c in study.pairs[:5]:\n    store.add(Vote('ann', c.id, 'quality', 'left', 'a'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    code = subprocess.run([sys.executable, "-c", script, str(folder)], env=os.environ, check=False).returncode
    assert code == -signal.SIGKILL
    store = VoteStore(folder, planned)
    assert len(store.votes()) == 5
    store.close()


# ---- ranking


def test_the_better_model_is_ranked_first_and_careless_raters_do_not_count(study: Planned) -> None:
    folder, planned = study
    store = VoteStore(folder, planned)
    for index in range(6):
        while vote_for(store, "ann", "secret-two", "tie" if index == 0 else None):
            index = 1
    while vote_for(store, "lefty", "", "bad"):
        pass
    result = rank_study(planned, store.votes())
    quality = result["axes"]["quality"]
    assert [row["model"] for row in quality["models"]] == ["secret-two", "secret-one"]
    assert result["raters_excluded"] == {"lefty": {"failed": 2, "seen": 2}}
    assert (quality["num_votes"], quality["num_ties"]) == (6, 1)
    assert quality["pairs"][0]["won"] == 5
    assert rank_study(planned, store.votes(), keep_all=True)["axes"]["quality"]["num_ties"] == 7
    elo = rank_study(planned, store.votes(), "svd-elo")["axes"]["quality"]["models"]
    assert [row["model"] for row in elo] == ["secret-two", "secret-one"] and 1000 < elo[0]["rating"] < 1003
    store.close()


def test_no_votes_are_said_so(study: Planned) -> None:
    with pytest.raises(InputError, match="no votes"):
        rank_study(study[1], [])


def test_active_choice_asks_of_the_models_that_are_close(folders: dict[str, Path], tmp_path: Path) -> None:
    """secret-three loses always, the other two win in turn: their pair is asked next."""
    planned = plan_study(folders, tmp_path / "study", votes=9)
    votes = []
    for index, c in enumerate(planned.pairs):
        weak = "a" if c.a == "secret-three" else "b" if c.b == "secret-three" else "ab"[index % 2]
        votes += [
            Vote(r, c.id, "quality", "right" if weak == left else "left", left)
            for r, left in (("x", "a"), ("y", "b"))
        ]  # type: ignore[arg-type]
    chosen = active_pick(planned)(planned.pairs, votes)
    assert {chosen.a, chosen.b} == {"secret-one", "secret-two"}
    assert active_pick(planned)(planned.pairs, []) in planned.pairs


# ---- crowd platforms


def test_out_to_a_platform_and_back(study: Planned, tmp_path: Path) -> None:
    folder, planned = study
    num = export_study(planned, folder, tmp_path / "out", "https://host/x/")
    with (tmp_path / "out" / "tasks.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert num == len(rows) == 6 * 2 + 2
    for row in rows:
        assert (tmp_path / "out" / row["left_url"].removeprefix("https://host/x/")).is_file()
    with (tmp_path / "votes.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, ["Input.task", "WorkerId", "Answer.choice"])
        writer.writeheader()
        for index, row in enumerate(rows):
            writer.writerow({"Input.task": row["task"], "WorkerId": f"w{index % 4}", "Answer.choice": "LEFT"})
    store = VoteStore(folder, planned)
    assert import_votes(store, tmp_path / "votes.csv") == 14
    assert (
        import_votes(store, tmp_path / "votes.csv") == 14 and len(store.votes()) <= 14
    )  # the same again changes nothing
    page = (tmp_path / "out" / "index.html").read_text()
    assert "secret" not in page and rows[0]["task"].split(":")[0] in page
    store.close()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("task,rater,choice\n", "no votes"),
        ("task,choice\nTASK,left\n", "Row 2 has no column rater"),
        ("task,rater,choice\nTASK,ann,left\nTASK,bob,middle\n", "Row 3: the choice 'middle'"),
        ("task,rater,choice\nx:quality:a:0,ann,left\n", "no task of this study"),
        ("task,rater,choice\nTASK,,left\n", "names no rater"),
    ],
)
def test_a_bad_table_is_refused_whole(study: Planned, tmp_path: Path, text: str, said: str) -> None:
    folder, planned = study
    (tmp_path / "votes.csv").write_text(text.replace("TASK", tasks(planned)[0]["task"]))
    store = VoteStore(folder, planned)
    with pytest.raises(InputError, match=said):
        import_votes(store, tmp_path / "votes.csv")
    assert store.votes() == []
    store.close()
