from pathlib import Path

import pytest

from svdcli.errors import UsageError
from svdcli.io.template import kind_of, output_paths

CAT, DOG = Path("in/cat.png"), Path("in/dog.v2.jpg")


def paths(output, inputs=(CAT,), seeds=(0,), kind="mp4", **more):
    return [path.as_posix() for path in output_paths(output, inputs, seeds, kind, "outputs", **more)]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("output", "kind", "expected"),
    [
        (None, "mp4", "outputs/cat-0.mp4"),
        (None, "png", "outputs/cat-0"),
        (None, "latents", "outputs/cat-0.safetensors"),
        ("a.mp4", "mp4", "a.mp4"),
        ("a.MP4", "mp4", "a.MP4"),
        ("my.v2.mp4", "mp4", "my.v2.mp4"),
        ("out/", "gif", "out/cat-0.gif"),
        ("out", "gif", "out/cat-0.gif"),
        ("frames", "png", "frames"),
        ("frames/", "png", "frames/cat-0"),
        ("out/{name}.webp", "webp", "out/cat.webp"),
        ("{bundle}/{name}_{index:03d}", "mp4", "svd-xt/cat_000.mp4"),
        ("{name}", "png", "cat"),
        ("{{x}}-{seed}.mp4", "mp4", "{x}-0.mp4"),
    ],
)
def test_one_result(output, kind, expected):
    assert paths(output, kind=kind, bundle="svd-xt") == [expected]


def test_many_results_input_by_input():
    expected = ["o/cat-1.mp4", "o/cat-2.mp4", "o/dog.v2-1.mp4", "o/dog.v2-2.mp4"]
    assert paths("o/", (CAT, DOG), (1, 2)) == expected
    assert paths("{index}.mp4", (CAT, DOG), (1, 2)) == ["0.mp4", "1.mp4", "2.mp4", "3.mp4"]


def test_an_existing_folder_is_a_folder_even_with_a_dot():
    Path("v1.mp4").mkdir()
    assert paths("v1.mp4") == ["v1.mp4/cat-0.mp4"]


@pytest.mark.parametrize(
    ("output", "inputs", "seeds"),
    [
        ("a.mp4", (CAT, DOG), (0,)),
        ("{name}.mp4", (CAT,), (0, 1)),
        ("o/", (CAT, Path("other/cat.jpg")), (0,)),
        ("x/../{bundle}.mp4", (CAT, DOG), (0,)),
    ],
)
def test_collisions(output, inputs, seeds):
    with pytest.raises(UsageError, match="would both be") as caught:
        paths(output, inputs, seeds)
    assert "{name}" in caught.value.hint


@pytest.mark.parametrize(
    "output", ["{nam}.mp4", "{name.__class__}.mp4", "{}.mp4", "{0}.mp4", "{name!r}.mp4", "{seed:{index}}.mp4"]
)
def test_unknown_fields(output):
    with pytest.raises(UsageError, match="unknown field") as caught:
        paths(output)
    assert "{name} {seed} {index} {bundle}" in caught.value.hint


@pytest.mark.parametrize("output", ["{name.mp4", "name}.mp4", "{name:03d}.mp4", "", "  "])
def test_broken_templates(output):
    with pytest.raises(UsageError):
        paths(output)


@pytest.mark.parametrize(
    ("output", "kind"),
    [("a.gif", "mp4"), ("a.txt", "mp4"), ("{name}.mp4", "gif"), ("a.png", "png"), ("a.mp4", "png")],
)
def test_suffix_of_another_kind(output, kind):
    with pytest.raises(UsageError):
        paths(output, kind=kind)


def test_existing_results_need_the_flag():
    Path("a.mp4").write_text("old")
    with pytest.raises(UsageError, match="already exists") as caught:
        paths("a.mp4")
    assert "--overwrite" in caught.value.hint
    assert paths("a.mp4", overwrite=True) == ["a.mp4"]
    Path("frames").mkdir()
    assert paths("frames", kind="png") == ["frames/cat-0"]


def test_never_over_an_input():
    Path("cat.gif").write_text("x")
    with pytest.raises(UsageError, match="is an input"):
        output_paths("cat.gif", [Path("./cat.gif")], [0], "gif", "outputs", overwrite=True)


def test_names_from_prompts_and_bundles_are_safe():
    assert paths("{bundle}-{name}.mp4", ("A cat, 4/5 of it!",), bundle="stabilityai/svd-xt") == [
        "stabilityai-svd-xt-a-cat-4-5-of-it.mp4"
    ]
    assert len(Path(paths(None, ("word " * 99,))[0]).name) < 80
    assert paths(None, ("???",)) == ["outputs/prompt-0.mp4"]
    assert paths(None, (Path(".hidden"),)) == ["outputs/hidden-0.mp4"]


def test_kind_of():
    assert kind_of("a.MP4") == "mp4" and kind_of("a.safetensors") == "latents"
    assert kind_of(None) is None and kind_of("folder") is None and kind_of("a.png") is None
