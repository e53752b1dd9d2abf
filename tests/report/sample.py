"""A whole comparison on disk, as `advflyp reproduce` leaves it: plan, seeds' results, runs without weights."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from advflyp.evaluation.results import Cell, append_cell
from advflyp.report.figures.embedding import TSNEResult, write_tsne
from report.cells import cell

METHODS = {
    # label: clean points against the original, share of clean accuracy kept at 1/255 and out of the proxy
    "original": (0.0, 0.25, 1.0),
    "Clean finetuning": (2.0, 0.22, 1.0),
    "TeCoA": (-7.0, 0.66, 0.84),
    "PMG-AFT": (-4.0, 0.64, 0.90),
    "TGA-ZSR": (-5.0, 0.65, 0.86),
    "FARE": (-2.0, 0.55, 1.0),
    "naive FLYP": (-8.0, 0.65, 0.85),
    "AdvFLYP": (-3.0, 0.68, 0.99),
    "AdvFLYP_logit": (-3.5, 0.70, 1.0),
    "AdvFLYP_feature": (-1.0, 0.67, 1.0),
    "AdvFLYP_full": (-1.5, 0.71, 1.01),
}
# name: clean accuracy of the original, number of images
SETS = {
    "animals": (31.0, 108),
    "food": (63.0, 88),
    "objects-3d": (88.0, 316),
    "icons": (27.0, 986),
    "flags": (76.0, 233),
    "fashion": (40.0, 1000),
    "clipart": (35.0, 604),
}
OUT_OF_PROXY = {"flags", "fashion", "clipart"}
PAIRS, BATCHES = (1250, 2500, 5000, 10000), (64, 128, 256)


def accuracy(label: str, name: str, grey: float, attack: str, generator: np.random.Generator) -> float:
    shift, kept, outside = METHODS[label]
    clean = (SETS[name][0] + shift) * (outside if name in OUT_OF_PROXY else 1.0)
    left = clean * kept**grey * {"clean": 1.0, "pgd10": 1.0, "cw10": 0.97, "autoattack": 0.92}[attack]
    return min(99.0, max(0.0, left + generator.normal(0, 1.2))) / 100


def sha(label: str, seed: int = 0) -> str:
    return f"{label}/{seed}".encode().hex().ljust(64, "0")[:64]


def measured(
    label: str, seed: int, generator: np.random.Generator, sets: Sequence[str] = tuple(SETS)
) -> list[Cell]:
    cells = []
    for name in sets:
        n = SETS[name][1]
        for attack, greys in (("clean", (0,)), ("pgd10", (1, 2, 4)), ("cw10", (1,)), ("autoattack", (1,))):
            for grey in greys:
                right = round(n * accuracy(label, name, grey, attack, generator))
                cells.append(
                    cell(
                        label,
                        f"mini/{name}",
                        grey,
                        right,
                        n,
                        attack=attack,
                        checkpoint_sha256=sha(label, seed),
                    )
                )
    return cells


def plan() -> dict[str, object]:
    every = {"sets": [f"mini/{name}" for name in SETS]}
    rows = list(METHODS)
    scale = [f"AdvFLYP_full {p} pairs batch {b}" for b in BATCHES for p in PAIRS]
    runs = [
        {"name": label, "label": label, "recipe": None if label == "original" else "x.toml"}
        | {"overrides": {"model.name": "mini"}}
        for label in METHODS
    ]
    for b in BATCHES:
        for p in PAIRS:
            # The largest amount is all pairs, of which a recipe says nothing.
            over = {"data.batch_size": b} | ({"data.limit": p} if p < PAIRS[-1] else {})
            label = f"AdvFLYP_full {p} pairs batch {b}"
            runs.append({"name": label, "label": label, "recipe": "x.toml", "overrides": over})
    return {
        "scale": "mini",
        "runs": runs,
        "experiments": [
            {"id": "table1", "title": "Table 1: robust accuracy at ε = 1/255", "rows": rows, **every}
            | {
                "attacks": ["pgd10", "cw10", "autoattack"],
                "eps": [1 / 255],
                "note": "",
                "unranked": ["original"],
            },
            {"id": "table2", "title": "Table 2: clean accuracy", "rows": rows, **every}
            | {
                "attacks": ["clean"],
                "eps": [],
                "note": "The original is not ranked.",
                "unranked": ["original"],
            },
            {"id": "table3", "title": "Table 3: stronger attacks", "rows": rows, **every}
            | {"attacks": ["pgd10"], "eps": [2 / 255, 4 / 255], "note": ""},
            {
                "id": "table6",
                "title": "Table 6: tunable modules",
                "rows": ["AdvFLYP_full", "text encoder too"],
            }
            | {**every, "attacks": ["clean", "pgd10"], "eps": [1 / 255], "note": "Not run yet in part."},
            {"id": "figure3", "title": "Fig. 3: amount of data and batch size", "rows": scale, **every}
            | {"attacks": ["clean", "pgd10"], "eps": [1 / 255], "note": ""},
            {
                "id": "figure5",
                "title": "Fig. 5: cosine deviation φ",
                "rows": ["original", "AdvFLYP", "AdvFLYP_full"],
                **every,
            }
            | {"attacks": ["pgd10"], "eps": [1 / 255], "note": ""},
        ],
    }


def cloud(label: str, moved: float, n: int = 256) -> TSNEResult:
    generator = np.random.default_rng(len(label))
    clean = generator.normal(0, 6, (n, 2)) + 18 * generator.integers(-1, 2, (n, 2))
    adversarial = clean + generator.normal(0, 12 * moved, (n, 2))
    return TSNEResult(
        label=label,
        checkpoint_sha256=sha(label),
        sets=["mini/food"] * n,
        index=list(range(n)),
        attack="pgd10",
        norm="linf",
        eps=1 / 255,
        seed=0,
        phi=np.abs(generator.normal(moved, moved / 4, n)).tolist(),
        clean=clean.tolist(),
        adversarial=adversarial.tolist(),
        perplexity=30.0,
    )


def write_sample(folder: Path, *, seeds: int = 3, embedding: bool = True) -> Path:
    """The folder of a comparison: every method with `seeds` seeds, the original once, Fig. 3 half done."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    (folder / "plan.json").write_text(json.dumps(plan()))
    for label in METHODS:
        for seed in range(1 if label == "original" else seeds):
            name = f"{label.lower().replace(' ', '-')}-s{seed}"
            for one in measured(label, seed, generator):
                flagged = label == "TGA-ZSR" and one.set == "mini/fashion" and one.attack == "pgd10"
                verdict = {"n": 200, "passed": not flagged, "failed": ["noise beats PGD"] if flagged else []}
                changed = {**vars(one), "sanity": verdict if one.attack == "pgd10" and seed == 0 else None}
                append_cell(folder / "results" / f"{name}.jsonl", Cell(**changed))
            if label != "original":
                _run(folder / "runs" / name, seed, generator)
    for batch in BATCHES:
        for pairs in PAIRS:
            label = f"AdvFLYP_full {pairs} pairs batch {batch}"
            METHODS[label] = (-1.5 + 0.8 * math.log2(pairs / 10000) + batch / 200, 0.71 - batch / 4000, 1.0)
            for one in measured(label, 0, generator):
                if one.attack in ("clean", "pgd10") and one.eps < 1.5 / 255:
                    append_cell(folder / "results" / f"pairs{pairs}-batch{batch}-s0.jsonl", one)
            del METHODS[label]
    if embedding:
        shown = {"original": 0.6, "AdvFLYP": 0.12, "AdvFLYP_full": 0.1}
        write_tsne(folder / "embedding.json", [cloud(*pair) for pair in shown.items()])
    return folder


def _run(folder: Path, seed: int, generator: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    lines = []
    for step in range(20, 401, 20):
        loss = 2.0 * math.exp(-step / 150) + 0.6 + generator.normal(0, 0.03)
        lines.append(
            {"kind": "train", "step": step, "time": step / 4, "seen": step * 128, "loss": loss}
            | {"loss/clip": loss * 0.8, "loss/feature": loss * 0.2, "pairs_per_second": 130.0}
        )
        if step % 100 == 0:
            at = {"step": step, "time": step / 4, "best": True, "clean": 0.4, "robust": 0.2 + step / 4000}
            lines.append({"kind": "validate", **at})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "recipe.toml").write_text(
        f'[model]\nname = "mini"\n[data]\nbatch_size = 128\n[attack]\neps = 0.00784313725490196\nsteps = 2\n'
        f'[optim]\nname = "adamw"\nlr = 3e-4\n[train]\nseed = {seed}\n'
    )
