import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch

from advflyp.data.sets.labelled import LabelledSet
from advflyp.model.clip import CLIP
from advflyp.report.figures import embedding
from advflyp.report.figures.embedding import (
    cosine_deviation,
    embed,
    phi_plot,
    phi_table,
    read_tsne,
    tsne,
    tsne_plot,
    write_tsne,
)
from advflyp.report.figures.plots import Look, svg
from report.sample import cloud


def by_definition(a: torch.Tensor, b: torch.Tensor) -> float:
    """Eq. 14 as printed, with 60 digits."""
    with mpmath.workdps(60):
        x, y = ([mpmath.mpf(value) for value in row.tolist()] for row in (a.double(), b.double()))
        dot = mpmath.fsum(p * q for p, q in zip(x, y, strict=True))
        norms = mpmath.sqrt(mpmath.fsum(p * p for p in x)) * mpmath.sqrt(mpmath.fsum(q * q for q in y))
        return float(mpmath.acos(max(mpmath.mpf(-1), min(mpmath.mpf(1), dot / norms))))


@pytest.mark.parametrize("move", [1.0, 1e-2, 1e-4, 1e-6, 1e-8, 1e-10])
def test_the_angle_is_eq_14(move: float) -> None:
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(5, 64, generator=generator, dtype=torch.float64)
    adversarial = 3 * (clean + move * torch.randn(5, 64, generator=generator, dtype=torch.float64))
    angle = cosine_deviation(clean, adversarial)
    assert angle.shape == (5,) and angle.dtype == torch.float64
    for got, a, b in zip(angle.tolist(), clean, adversarial, strict=True):
        # Unit vectors of 64 entries, each rounded to 2⁻⁵³ of it: their difference is in error by some 2⁻⁵³ of 1.
        assert got == pytest.approx(by_definition(a, b), rel=1e-14, abs=8 * 2**-53)


def test_the_ends_of_the_range() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0]])
    assert cosine_deviation(x, 5 * x).item() == pytest.approx(0, abs=1e-15)
    assert cosine_deviation(x, -x).item() == pytest.approx(math.pi, abs=1e-12)
    right = cosine_deviation(x, torch.tensor([[3.0, 0.0, -1.0]])).item()
    assert right == pytest.approx(math.pi / 2, abs=1e-12)
    assert math.isnan(cosine_deviation(x, 0 * x).item())


def test_float32_embeddings_are_not_rounded_to_zero() -> None:
    a = torch.nn.functional.normalize(torch.randn(1, 512, generator=torch.Generator().manual_seed(1)), dim=1)
    b = a.clone()
    b[0, 0] += 2e-4
    assert cosine_deviation(a, b).item() == pytest.approx(by_definition(a[0], b[0]), rel=1e-9)
    assert by_definition(a[0], b[0]) > 1e-4


def test_tsne_keeps_groups_apart_and_is_reproducible() -> None:
    generator = torch.Generator().manual_seed(0)
    points = torch.cat([torch.randn(30, 16, generator=generator) + 12 * k for k in range(3)])
    first = tsne(points, perplexity=10, seed=3)
    assert first.shape == (90, 2) and np.array_equal(first, tsne(points, perplexity=10, seed=3))
    centres = first.reshape(3, 30, 2).mean(1)
    inside = np.linalg.norm(first.reshape(3, 30, 2) - centres[:, None], axis=-1).max()
    between = min(np.linalg.norm(centres[i] - centres[j]) for i in range(3) for j in range(i))
    assert between > inside


@pytest.fixture
def found(tiny: CLIP, other: CLIP, sets: dict[str, LabelledSet], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(embedding, "load_set", sets.__getitem__)
    return embed({"one": tiny, "two": other}, list(sets), eps=8 / 255, n=21)


def test_all_results_are_of_the_same_images(found, tiny: CLIP, sets: dict[str, LabelledSet]) -> None:
    one, two = found
    assert (one.sets, one.index) == (two.sets, two.index) and one.phi != two.phi
    assert [one.sets.count(name) for name in sets] == [11, 10]
    assert len(one.phi) == len(one.clean) == len(one.adversarial) == 21
    assert all(0 < angle < math.pi for angle in one.phi)
    assert one.mean_phi == pytest.approx(np.mean(one.phi))


def test_a_stronger_attack_moves_further(found, tiny: CLIP, sets: dict[str, LabelledSet]) -> None:
    (weak,) = embed({"one": tiny}, list(sets), eps=1 / 255, n=21)
    assert weak.mean_phi < found[0].mean_phi


def test_stored_and_read(found, tmp_path: Path) -> None:
    path = tmp_path / "embedding.json"
    assert read_tsne(path) == []
    write_tsne(path, found)
    assert read_tsne(path) == found and [p.name for p in tmp_path.iterdir()] == ["embedding.json"]
    path.write_text(json.dumps([{"label": "x"}]))
    with pytest.raises(ValueError, match="does not hold embeddings.*delete it"):
        read_tsne(path)


def test_picture_and_table(found) -> None:
    picture = svg(tsne_plot(found[0], width=300, height=320, largest=1.0), "")
    assert f"φ = {found[0].mean_phi:.4f} rad" in picture
    words = svg(phi_plot(found, Look.of([cloud.label for cloud in found]), width=500), "")
    assert all(f">{cloud.label}<" in words and f"{cloud.mean_phi:.4f}" in words for cloud in found)
    table = phi_table(found, title="t")
    assert table.rows[1][:2] == ["two", f"{found[1].mean_phi:.4f}"] and "21 images" in table.note
    error = np.std(found[0].phi, ddof=1) / math.sqrt(21)
    assert table.rows[0][2] == f"{error:.4f}"


def test_marks_grow_with_the_angle_on_one_scale() -> None:
    """Maps look alike, since t-SNE keeps no distances: the angles must be seen all the same."""
    calm, moved = (cloud(str(move), move) for move in (0.05, 0.6))
    largest = max(*calm.phi, *moved.phi)
    areas = [
        tsne_plot(one, width=300, height=320, largest=largest).axes[0].collections[0].get_sizes()  # type: ignore[attr-defined]
        for one in (calm, moved)
    ]
    assert (np.sqrt(areas[1]).mean() - 2) / (np.sqrt(areas[0]).mean() - 2) == pytest.approx(
        moved.mean_phi / calm.mean_phi, rel=1e-6
    )
