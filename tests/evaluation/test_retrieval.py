import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advflyp.attack.adaptive import DefenceTerms
from advflyp.attack.pgd import PGD
from advflyp.attack.text import edit_texts
from advflyp.attack.threat import Threat
from advflyp.cli.main import main
from advflyp.data.sets.captioned import CaptionedImages
from advflyp.evaluation import retrieval as module
from advflyp.evaluation.journal import Journal
from advflyp.evaluation.recall import cross_entropy, ranks
from advflyp.evaluation.results import wilson
from advflyp.evaluation.retrieval import RetrievalCell, read_retrieval, retrieval
from advflyp.model.clip import CLIP
from advflyp.model.folder import weights_sha256
from helpers import assert_equal64


def write_pairs(folder: Path, model: CLIP, n: int = 24, candidates: int = 200) -> Path:
    """Noise pictures, each with two captions of which the model finds the picture's first one most similar."""
    rng = np.random.default_rng(0)
    arrays = rng.integers(0, 256, size=(n, 32, 32, 3), dtype=np.uint8)
    texts = [f"word{i} {i % 7} of {i % 11}" for i in range(candidates)]
    images = torch.stack([model.preprocess(Image.fromarray(array)) for array in arrays])
    with torch.no_grad():
        similarity = model.encode_image(images) @ model.encode_text(texts).T
    folder.mkdir()
    # What sets a picture's similarities apart from the mean picture's, greedily, each text once.
    relative = similarity - similarity.mean(0)
    taken: set[int] = set()
    for row in range(n):
        order = [j for j in relative[row].argsort(descending=True).tolist() if j not in taken][:2]
        taken |= set(order)
        Image.fromarray(arrays[row]).save(folder / f"{row:03d}.png")
        (folder / f"{row:03d}.txt").write_text("\n".join(texts[j] for j in order))
    return folder


@pytest.fixture
def folder(tmp_path: Path, tiny: CLIP) -> Path:
    return write_pairs(tmp_path / "pairs", tiny)


def recall_at(cell: RetrievalCell, way: str) -> list[float]:
    return [one.recall for one in getattr(cell, way)]


def test_clean_recall_is_that_of_the_embeddings(tiny: CLIP, folder: Path) -> None:
    (cell,) = retrieval(tiny, folder, ["clean"], batch_size=7)
    pictures = CaptionedImages(folder)
    ((_, images),) = pictures.batches(tiny.preprocess, 99)
    with torch.no_grad():
        of_images, of_captions = ranks(
            tiny.encode_image(images), tiny.encode_text(pictures.captions), pictures.owner
        )
    for name, ranked in (("image_to_text", of_images), ("text_to_image", of_captions)):
        assert recall_at(cell, name) == [int((ranked <= k).sum()) / len(ranked) for k in (1, 5, 10)]
    assert (cell.n_images, cell.n_captions, cell.subset) == (24, 48, {"of": 24})
    assert (cell.norm, cell.eps, cell.attack_args, cell.seed) == (None, 0.0, {}, 0)
    assert cell.checkpoint_sha256 == weights_sha256(tiny)
    assert cell.image_to_text[0].ci95 == list(wilson(cell.image_to_text[0].hits, 24))
    # An image's two captions are not independent of one another.
    for one in cell.text_to_image:
        assert one.n == 48 and one.ci95 == list(wilson(one.hits / 2, 24))
    assert cell.text_to_image[2].recall > 0.2, "the pairs mean something to this model"


def test_an_image_starts_at_the_same_noise_whatever_the_limit(
    tiny: CLIP, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, original = [], module.Streams
    monkeypatch.setattr(module, "Streams", lambda seed, index: (seen.append(index), original(seed, index))[1])
    retrieval(tiny, folder, ["pgd1"], limit=6, batch_size=4)
    places = CaptionedImages(folder, limit=6, seed=0).places.tolist()
    assert torch.cat(seen).tolist() == places != list(range(6))


@pytest.mark.parametrize(("attack", "norm", "eps"), [("pgd5", "linf", 8 / 255), ("cw5", "l2", 2.0)])
def test_an_attack_spoils_both_directions(
    tiny: CLIP, folder: Path, attack: str, norm: str, eps: float
) -> None:
    clean, weak, strong = retrieval(tiny, folder, ["clean", attack], [eps / 100, eps], norm=norm)  # type: ignore[arg-type]
    for way in ("image_to_text", "text_to_image"):
        a, b, c = (sum(recall_at(cell, way)) for cell in (clean, weak, strong))
        assert a >= b - 0.05 and c < a - 0.2
    assert strong.attack_args["loss"] == ("margin" if attack == "cw5" else "multi-positive cross-entropy")
    assert strong.attack_args["steps"] == 5


def test_wrong_letters_are_chosen_against_the_text_encoder(tiny: CLIP, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    clean, chosen, drawn = retrieval(tiny, folder, ["clean"], edits=[2], out=out, seed=5)
    assert [cell.attack for cell in (clean, chosen, drawn)] == ["clean", "edits2", "random-edits2"]
    assert (chosen.norm, chosen.eps, chosen.seed) == (None, 0.0, 5)
    assert chosen.attack_args == {"edits": 2, "candidates": 50} and drawn.attack_args["candidates"] == 1
    hits = [sum(one.hits for one in cell.text_to_image) for cell in (clean, chosen, drawn)]
    assert hits[1] < hits[2] < hits[0]
    pairs = CaptionedImages(folder)
    ((_, images),) = pairs.batches(tiny.preprocess, 99)
    captions = edit_texts(tiny.encode_text, pairs.captions, edits=2, seed=5)
    assert all(a != b for a, b in zip(captions, pairs.captions, strict=True))
    with torch.no_grad():
        of_images, of_captions = ranks(tiny.encode_image(images), tiny.encode_text(captions), pairs.owner)
    for name, ranked in (("image_to_text", of_images), ("text_to_image", of_captions)):
        assert recall_at(chosen, name) == [int((ranked <= k).sum()) / len(ranked) for k in (1, 5, 10)]
    assert retrieval(tiny, folder, [], edits=[2], out=out, seed=5) == [chosen, drawn], "kept"
    (other, _) = retrieval(tiny, folder, [], edits=[2], out=out, seed=6)
    assert other.seed == 6


def test_the_attack_raises_its_loss_inside_the_ball(
    tiny: CLIP, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.double()
    seen = []
    original = module.pgd

    def spy(images: torch.Tensor, loss, threat: Threat, **rest):
        found = original(images, loss, threat, **rest)
        seen.append((images, found, loss(images).detach(), loss(found).detach()))
        return found

    monkeypatch.setattr(module, "pgd", spy)
    retrieval(tiny, folder, ["pgd5"], [4 / 255])
    ((images, found, before, after),) = seen
    assert Threat(eps=4 / 255).contains(images, found).all() and not torch.equal(images, found)
    assert (after > before).float().mean() > 0.9
    pictures = CaptionedImages(folder)
    with torch.no_grad():
        logits = tiny.logit_scale * tiny.encode_image(images) @ tiny.encode_text(pictures.captions).T
    own = pictures.owner == torch.arange(24)[:, None]
    assert_equal64(before, cross_entropy(logits, own))


def test_batch_size_changes_nothing(tiny: CLIP, folder: Path) -> None:
    cells = [retrieval(tiny.double(), folder, ["pgd2"], [4 / 255], batch_size=size) for size in (5, 24)]
    assert recall_at(cells[0][0], "image_to_text") == recall_at(cells[1][0], "image_to_text")
    assert recall_at(cells[0][0], "text_to_image") == recall_at(cells[1][0], "text_to_image")


def test_searched_in_bf16_embedded_in_float32(
    tiny: CLIP, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    original = tiny.encode_image
    monkeypatch.setattr(
        tiny, "encode_image", lambda images: (seen.append(tiny.precision), original(images))[1]
    )
    (cell,) = retrieval(tiny, folder, ["pgd2"], precision="bf16")
    assert seen == ["fp32", "bf16", "bf16", "fp32"]
    assert cell.precision == "bf16"


def test_finished_lines_are_kept(
    tiny: CLIP, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "deep" / "r.jsonl"
    first = retrieval(tiny, folder, ["clean", "pgd2"], [1 / 255, 2 / 255], out=out, limit=10, seed=3)
    assert first == read_retrieval(out) and len(first) == 3
    assert first[0].subset == {"of": 24, "limit": 10, "seed": 3} and first[0].n_images == 10
    with open(out, "a") as file:
        file.write('{"model": "cut o')
    monkeypatch.setattr(module._Gallery, "prepare", lambda *_: pytest.fail("computed again"))
    moved = folder.rename(tmp_path / "moved")
    assert retrieval(tiny, moved, ["clean", "pgd2"], [1 / 255, 2 / 255], out=out, limit=10, seed=3) == first
    monkeypatch.undo()
    (moved / "000.txt").write_text("another caption")
    (other,) = retrieval(tiny, moved, ["clean"], out=out)
    assert read_retrieval(out) == [*first, other]
    out.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is not a result that can be used here"):
        retrieval(tiny, moved, ["clean"], out=out)


KILLED = """
import os, signal
from advflyp.evaluation.retrieval import retrieval
from advflyp.model.load import load_model
def watch(cell, done):
    if cell.attack != "clean" and done >= 14:
        os.kill(os.getpid(), signal.SIGKILL)
model = load_model({model!r}).double()
retrieval(model, {pairs!r}, ["clean", "pgd2"], [4 / 255], batch_size=7, out={out!r}, precision="fp32", watch=watch)
"""


def check_continued(
    model: CLIP, folder: Path, out: Path, known: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what was stored when the pictures `known` were attacked, the rest and no more; results as if in one go."""
    (journal,) = out.with_suffix(".unfinished").iterdir()
    assert Journal(journal).read()["places"].tolist() == known
    assert len(read_retrieval(out)) == 1
    attacked: list[int] = []
    original = module.pgd
    monkeypatch.setattr(
        module, "pgd", lambda images, *a, **k: (attacked.append(len(images)), original(images, *a, **k))[1]
    )
    arguments = (model, folder, ["clean", "pgd2"], [4 / 255])
    resumed = retrieval(*arguments, batch_size=7, out=out)
    pictures = len(list(folder.glob("*.txt")))
    unreadable = [f"{place:03d}.png" for place in range(known[0])]
    assert sum(attacked) == pictures - len(unreadable) - len(known), "what is known is not attacked again"
    whole = retrieval(*arguments, batch_size=7)
    assert len(resumed) == 2 and resumed == read_retrieval(out)
    for a, b in zip(resumed, whole, strict=True):
        assert list(a.unreadable) == list(b.unreadable) == unreadable
        same = {"seconds": 0, "unreadable": {}}
        assert dataclasses.replace(a, **same) == dataclasses.replace(b, **same)
    assert not out.with_suffix(".unfinished").exists()


def test_an_interrupted_cell_is_continued(
    tiny: CLIP, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.double()

    def stop(cell: RetrievalCell, done: int) -> None:
        if cell.attack != "clean" and done >= 10:
            raise KeyboardInterrupt

    out = tmp_path / "r.jsonl"
    with pytest.raises(KeyboardInterrupt):
        retrieval(tiny, folder, ["clean", "pgd2"], [4 / 255], batch_size=7, out=out, watch=stop)
    check_continued(tiny, folder, out, list(range(14)), monkeypatch)


@pytest.mark.slow
def test_a_killed_process_is_continued(
    tiny_folder: Path, tmp_path: Path, tiny: CLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    """kill -9 in the middle of an attacked cell; one picture, which comes first, cannot be read."""
    folder, out = write_pairs(tmp_path / "pairs", tiny, n=101, candidates=300), tmp_path / "r.jsonl"
    (folder / "000.png").write_bytes(b"broken")
    script = KILLED.format(model=str(tiny_folder), pairs=str(folder), out=str(out))
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    check_continued(tiny.double(), folder, out, list(range(1, 15)), monkeypatch)


def test_a_line_that_was_written_twice_counts_once(tiny: CLIP, folder: Path, tmp_path: Path) -> None:
    store = tmp_path / "r.jsonl"
    retrieval(tiny, folder, ["clean", "pgd1"], out=store)
    cells = read_retrieval(store)
    store.write_text(store.read_text() * 2)
    assert len(cells) == 2 and read_retrieval(store) == cells


def test_results_of_others(tiny: CLIP, folder: Path, tmp_path: Path) -> None:
    record = dataclasses.asdict(*retrieval(tiny, folder, ["clean"]))
    for change, message in (
        ({"subset": {"limit": 3}}, "subset lacks 'of'"),
        ({"image_to_text": record["image_to_text"][:2]}, "image_to_text must hold the recall at 1, 5 and 10"),
    ):
        (tmp_path / "r.jsonl").write_text(json.dumps({**record, **change}) + "\n")
        with pytest.raises(ValueError, match=f"line 1 is not a result .* {message}"):
            read_retrieval(tmp_path / "r.jsonl")


def test_a_batch_is_written_once(
    tiny: CLIP, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[int, int]] = []
    real = Journal.append

    def append(self: Journal, **arrays: torch.Tensor) -> None:
        written.append((len(arrays["places"]), len(arrays["embeddings"])))
        real(self, **arrays)

    monkeypatch.setattr(Journal, "append", append)
    retrieval(tiny, folder, ["pgd1"], [4 / 255], batch_size=7, out=tmp_path / "r.jsonl")
    assert written == [(7, 7), (7, 7), (7, 7), (3, 3)]


def test_a_journal_of_other_pictures_is_not_used(tiny: CLIP, folder: Path, tmp_path: Path) -> None:
    (expected,) = retrieval(tiny, folder, ["pgd2"], [4 / 255])
    path = Journal.beside(tmp_path / "r.jsonl", expected.slug())
    for places in ([0, 2], range(25)):
        path.append(places=np.array(places), embeddings=torch.zeros(len(places), 32))
        (cell,) = retrieval(tiny, folder, ["pgd2"], [4 / 255], out=tmp_path / "r.jsonl")
        assert dataclasses.replace(cell, seconds=expected.seconds) == expected
        assert not (tmp_path / "r.unfinished").exists()
        (tmp_path / "r.jsonl").unlink()


def test_a_picture_that_vanishes_between_two_looks(
    tiny: CLIP, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(cell: RetrievalCell, done: int) -> None:
        if done == 24:
            (folder / "020.png").write_bytes(b"broken")

    monkeypatch.setattr("advflyp.data.sets.labelled.TOLERATED", 0.5)
    with pytest.raises(ValueError, match=r"can no longer be read"):
        retrieval(tiny, folder, ["pgd1"], watch=lose)


def test_an_unreadable_picture_leaves_with_its_captions(tiny: CLIP, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", tiny, n=101, candidates=300)
    without = write_pairs(tmp_path / "without", tiny, n=101, candidates=300)
    (folder / "040.png").write_bytes(b"broken")
    for suffix in ("png", "txt"):
        (without / f"040.{suffix}").unlink()
    # A random start would be another one, since places differ.
    (cell,), (expected,) = (retrieval(tiny.double(), source, ["clean"]) for source in (folder, without))
    assert list(cell.unreadable) == ["040.png"] and cell.unreadable["040.png"] == "not an image"
    same = {"pairs": "", "captions_sha256": "", "subset": {}, "unreadable": {}, "seconds": 0.0}
    assert dataclasses.replace(cell, **same) == dataclasses.replace(expected, **same)
    assert cell.n_images == 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"attacks": ["pgd"]}, "there is no attack 'pgd'"),
        ({"attacks": ["autoattack"]}, "retrieval has no attack 'autoattack'; known: clean, pgdN, cwN"),
        ({"attacks": ["pgd10x5"]}, "retrieval has no attack 'pgd10x5'"),
        (
            {"attacks": [PGD(against=DefenceTerms(terms=("feature",)))]},
            "retrieval has no attack 'pgd-ce-feature-10'",
        ),
        ({"eps": [0.0]}, "eps must be above 0"),
        ({"eps": [4.0]}, "write 4/255 for four grey levels"),
        ({"eps": 4.0}, "write 4/255 for four grey levels"),
        ({"edits": [0]}, "edits must be at least 1"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"pairs": "nowhere"}, "there are no pairs at nowhere"),
    ],
)
def test_mistakes(tiny: CLIP, folder: Path, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval(tiny, **{"pairs": folder, **arguments})


def test_the_command(
    tiny_folder: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "r.jsonl"
    arguments = ["--attacks", "clean", "pgd2", "--eps", "4/255", "--limit", "12", "--out", str(out)]
    main(["retrieval", str(tiny_folder), str(folder), *arguments, "--edits", "1"])
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("PGD-2", "4/255", "R@10", "random-edits1", "12 images, 24 captions, drawn from 24"):
        assert part in printed
    assert len(read_retrieval(out)) == 4
    table = tmp_path / "t.tsv"
    texts = [path.read_text().splitlines() for path in sorted(folder.glob("*.txt"))]
    lines = [f"pairs/{row:03d}.png\t{text}" for row, those in enumerate(texts) for text in those]
    table.write_text("\n".join(["where\twhat", *lines]))
    columns = ["--image-column", "where", "--caption-column", "what"]
    main(["retrieval", str(tiny_folder), str(table), *arguments[:5], *columns])
    assert "24 images, 48 captions" in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit, match="2"):
        main(["retrieval", str(tiny_folder), str(folder), "--eps", "much"])
    assert capsys.readouterr().err.startswith("advflyp: --eps must be a number or a fraction")
