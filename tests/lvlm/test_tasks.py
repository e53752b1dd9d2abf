import json
from pathlib import Path

import pytest

from advflyp.lvlm.tasks import TASKS, load_task


@pytest.mark.parametrize("name", TASKS)
def test_official_files(root: Path, name: str) -> None:
    task = load_task(name, root)
    assert (task.name, task.of, len(task.samples)) == (name, 4, 4)
    assert len({sample.key for sample in task.samples}) == 4
    assert all(sample.image.is_file() and sample.prompt for sample in task.samples)
    counts = {"cider": (5, 6), "vqa": (10,), "yes-no": (1,)}[task.metric]
    assert {len(sample.references) for sample in task.samples} <= set(counts)


def test_questions_and_answers_belong_together(root: Path) -> None:
    path = root / "vqav2/v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        one["answers"] = [{"answer": str(one["question_id"])}]
    path.write_text(json.dumps(content))
    task = load_task("vqav2", root)
    assert all(sample.references == (sample.key,) for sample in task.samples)
    assert [sample.image.name[-6:-4] for sample in task.samples] == ["00", "01", "02", "03"]


def test_the_most_frequent_answers(root: Path) -> None:
    sample = load_task("vizwiz", root).samples[0]
    assert sample.frequent(5) == ["red", "blue", "cat", "a dog", "no"]
    assert sample.frequent(2) == ["red", "blue"]


def test_a_draw_is_a_function_of_its_seed(root: Path) -> None:
    task = load_task("coco", root)
    drawn = task.drawn(2, 42)
    assert len(drawn.samples) == 2
    assert drawn == task.drawn(2, 42)
    assert drawn.of == 4
    # numpy.random.seed(42); numpy.random.choice(4, 2, replace=False)
    assert [task.samples.index(one) for one in drawn.samples] == [1, 3]
    assert task.drawn(9, 1) == task


@pytest.mark.parametrize("name", TASKS)
def test_what_is_missing_and_where_it_belongs(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} needs {tmp_path}/\w+.*, which is missing: .+") as caught:
        load_task(name, tmp_path)
    assert TASKS[name].files[0] in str(caught.value)


@pytest.mark.parametrize("filename", ["../../secret.jpg", "/etc/passwd", "..", 7, "a\0b"])
def test_no_annotation_leads_out_of_its_folder(root: Path, filename: object) -> None:
    path = root / "coco/dataset_coco.json"
    content = json.loads(path.read_text())
    content["images"][0]["filename"] = filename
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not the name of an image"):
        load_task("coco", root)


@pytest.mark.parametrize(
    "content", ["[]", "{}", '{"images": 3}', '{"images": [{"split": "test"}]}', '{"images": []}', "{", "null"]
)
def test_damaged_files(root: Path, content: str) -> None:
    (root / "coco/dataset_coco.json").write_text(content)
    with pytest.raises(ValueError, match="dataset_coco.json"):
        load_task("coco", root)


def test_a_label_of_pope(root: Path) -> None:
    path = root / "pope/coco_pope_random.json"
    path.write_text(path.read_text().replace('"no"', '"perhaps"'))
    with pytest.raises(ValueError, match='label "perhaps" is neither yes nor no'):
        load_task("pope-random", root)


def test_lines_of_pope_end_at_newlines_only(root: Path) -> None:
    path = root / "pope/coco_pope_random.json"
    path.write_text(path.read_text().replace("a cat", "a\u2028cat").replace("\n", "\r\n\n"))
    assert [sample.references for sample in load_task("pope-random", root).samples] == [("yes",), ("no",)] * 2
    path.write_text("{\n")
    with pytest.raises(ValueError, match="coco_pope_random.json cannot be used for pope-random: "):
        load_task("pope-random", root)


@pytest.mark.parametrize("number", ['"abc"', "Infinity", "[1]"])
def test_an_image_without_a_number(root: Path, number: str) -> None:
    path = root / "vqav2/v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_text(path.read_text().replace('"image_id": 0', f'"image_id": {number}'))
    with pytest.raises(ValueError, match="questions.json cannot be used for vqav2: "):
        load_task("vqav2", root)


@pytest.mark.parametrize(("name", "file"), [("vizwiz", "val.json"), ("vqav2", "annotations.json")])
def test_a_sample_that_nobody_answered(root: Path, name: str, file: str) -> None:
    path = root / TASKS[name].files[-1]
    content = json.loads(path.read_text())
    (content if name == "vizwiz" else content["annotations"])[0]["answers"] = []
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{file} has no references for the sample"):
        load_task(name, root)


def test_no_such_task(root: Path) -> None:
    with pytest.raises(ValueError, match="no task 'cocoa'; did you mean 'coco'"):
        load_task("cocoa", root)
