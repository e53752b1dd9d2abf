"""Tables of retrieval and of answers: rows that nobody could tell apart are refused, tables are told apart."""

from dataclasses import replace
from typing import Any

import pytest

from advflyp.evaluation.recall import CUTOFFS, Recall
from advflyp.evaluation.retrieval import RetrievalCell
from advflyp.lvlm.results import AnswerCell
from advflyp.report.measure.answers import answers_tables
from advflyp.report.measure.recall import recall_tables

EPS = 2 / 255


def found(**changes: Any) -> RetrievalCell:
    """Recall on 10 of 30 pairs under attack."""
    hits = [Recall(k=k, hits=k, n=10, recall=k / 10, ci95=[0.0, 1.0]) for k in CUTOFFS]
    one = RetrievalCell(
        model="m",
        checkpoint_sha256="1" * 64,
        config_sha256="c" * 64,
        pairs="pairs",
        captions_sha256="x",
        subset={"of": 30, "limit": 10, "seed": 0},
        n_images=10,
        n_captions=10,
        attack="pgd10",
        attack_args={"steps": 10},
        norm="linf",
        eps=EPS,
        precision="fp32",
        seed=0,
        version="0.1.0",
        image_to_text=hits,
        text_to_image=hits,
    )
    return replace(one, **changes)


def answered(**changes: Any) -> AnswerCell:
    """Captions of 10 of 30 images under attack."""
    one = AnswerCell(
        model="m",
        vision="v",
        checkpoint_sha256="1" * 64,
        config_sha256="c" * 64,
        task="coco",
        metric="cider",
        samples_sha256="x",
        subset={"of": 30, "limit": 10, "seed": 42},
        attack="apgd100",
        attack_args={},
        norm="linf",
        eps=EPS,
        precision="fp32",
        seed=0,
        version="0.1.0",
        n=10,
        score=50.0,
        ci95=(40.0, 60.0),
        idf_images=10,
    )
    return replace(one, **changes)


@pytest.mark.parametrize(
    ("make", "tables", "under"),
    [(found, recall_tables, "m on pairs under pgd10"), (answered, answers_tables, "m on coco under apgd100")],
)
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 5}, r" twice, with different seed \(0 and 5\)"),
        ({"precision": "bf16"}, r" twice, with different precision \(fp32 and bf16\)"),
        ({"attack_args": {"steps": 3}}, " twice, with different attack_args"),
    ],
)
def test_rows_that_differ_only_in_a_setting_are_refused(
    make: Any, tables: Any, under: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=f"the results hold {under}{message}.*; give the report one of them"):
        tables([make(), make(**changes)])
    # Not if a table tells them apart, nor if they are one measurement, as in two files or of two versions.
    assert [len(table.rows) for table in tables([make(), make(eps=2 * EPS, **changes)])] == [2]
    for again in (make(), make(version="0.2.0"), make(config_sha256="")):
        assert [len(table.rows) for table in tables([make(), again])] == [1]


@pytest.mark.parametrize(("make", "tables"), [(found, recall_tables), (answered, answers_tables)])
def test_models_of_one_name_have_tables_with_different_titles(make: Any, tables: Any) -> None:
    titles = [table.title for table in tables([make(), make(checkpoint_sha256="2" * 64, seed=5)])]
    assert ["(11111111)" in titles[0], "(22222222)" in titles[1]] == [True, True]
    titles = [table.title for table in tables([make(), make(config_sha256="d" * 64)])]
    assert ["(config cccccccc)" in titles[0], "(config dddddddd)" in titles[1]] == [True, True]
    assert "(" not in tables([make()])[0].title


def test_pairs_that_changed_or_were_drawn_anew() -> None:
    with pytest.raises(ValueError, match="m on two states of pairs, which has changed in between; measure"):
        recall_tables([found(), found(captions_sha256="y")])
    drawn = found(captions_sha256="y", subset={"of": 30, "limit": 10, "seed": 3})
    notes = [table.note.splitlines()[0] for table in recall_tables([found(), drawn])]
    assert notes == [f"10 images, 10 captions, drawn from 30 with seed {seed}" for seed in (0, 3)]
    # The same captions under another name are the same pairs.
    (table,) = recall_tables([found(attack="clean", norm=None, eps=0.0), found(pairs="./pairs")])
    assert len(table.rows) == 2
    with pytest.raises(ValueError, match="twice, with different seed"):
        recall_tables([found(), found(pairs="./pairs", seed=5)])


def test_samples_of_a_task_that_changed_or_were_drawn_anew() -> None:
    with pytest.raises(ValueError, match="m on two states of coco, which has changed in between"):
        answers_tables([answered(), answered(samples_sha256="y")])
    with pytest.raises(ValueError, match="m on coco under apgd100 twice, with different subset"):
        answers_tables([answered(), answered(samples_sha256="y", subset={"of": 30, "limit": 10, "seed": 1})])
    more = answered(samples_sha256="z", subset={"of": 30}, n=30, idf_images=30)
    assert [[row[-1] for row in table.rows] for table in answers_tables([answered(), more])] == [["10", "30"]]


def test_notes_on_answers() -> None:
    """On how many images each score of captions rests, and radii in their own unit."""
    cells = [
        answered(attack="clean", norm=None, eps=0.0, n=500, idf_images=500),
        answered(n=500, idf_images=500),
        answered(),
        answered(task="flickr30k", n=40, idf_images=40),
        answered(task="vqav2", metric="vqa", norm="l2", eps=0.5, idf_images=0, reached={"maybe": 3}),
        answered(task="vqav2", metric="vqa", idf_images=0, reached={"maybe": 4}),
    ]
    (table,) = answers_tables(cells)
    assert table.note.splitlines()[1:] == [
        "coco: CIDEr's rarity of words is that among the references of 500 images",
        "coco: CIDEr's rarity of words is that among the references of 10 images",
        "flickr30k: CIDEr's rarity of words is that among the references of 40 images",
        "vqav2, apgd100 0.5 (L2): 3 of 10 worst answers hold “maybe”",
        "vqav2, apgd100 2/255: 4 of 10 worst answers hold “maybe”",
    ]
    assert [row[2] for row in table.rows][-2:] == ["apgd100 0.5 (L2)", "apgd100 2/255"]
