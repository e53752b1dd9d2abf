"""A synthetic study of the experiment `proxies` on disk: results of chosen accuracy, with the outcome of each image."""

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from advflyp.evaluation.samples import write_samples
from advflyp.paper.experiments import make_plan
from advflyp.paper.plan import Plan
from advflyp.paper.proxies.coverage import FILE
from advflyp.paper.proxies.plan import CELLS
from report.cells import cell
from report.sample import sha

# name: (images in the set, classes, how much easier it is than the mean)
SETS = {"icons": (986, 10, 0.1), "flags": (233, 8, -0.1), "food": (88, 8, 0.0), "fashion": (1000, 10, 0.3)}
MEASURED = 40
Accuracy = Callable[[str, int, str], float]  # run, seed, attack


def proxy_plan(seeds: int = 3) -> Plan:
    return make_plan("mini", seeds=seeds, proxies=True).only(["proxies"])


def write_study(
    folder: Path, accuracy: Accuracy, *, seeds: int = 3, samples: Collection[str] = (), noise: int = 0
) -> Path:
    """Every run of the plan at the accuracy that is asked for, in all sets, and the outcome of each image of `samples`.

    Of two runs with one accuracy the same images are right.
    """
    plan = proxy_plan(seeds)
    make_plan("mini", seeds=seeds, proxies=True).write(folder)
    generator = np.random.default_rng(noise)
    hardness = {name: generator.permutation(MEASURED) for name in SETS}
    for run in plan.runs:
        for seed in plan.seeds_of(run):
            store, lines = folder / "results" / f"{run.name}-s{seed}.jsonl", []
            for name, (size, classes, easier) in SETS.items():
                labels = np.arange(MEASURED) % classes
                for attack in ("clean", "pgd10"):
                    right = round(MEASURED * min(1.0, max(0.0, accuracy(run.name, seed, attack) + easier)))
                    correct = hardness[name] < right
                    per_class = {
                        str(k): [int(correct[labels == k].sum()), int((labels == k).sum())]
                        for k in range(classes)
                    }
                    one = cell(
                        run.label, f"mini/{name}", 0 if attack == "clean" else 1, int(correct.sum()), MEASURED,
                        checkpoint_sha256=sha(run.name, seed), per_class=per_class,
                        subset={"of": size, "limit": MEASURED, "seed": 0},
                    )  # fmt: skip
                    lines.append(json.dumps(asdict(one)))
                    if run.name in samples:
                        predicted = np.where(correct, labels, (labels + 1) % classes)
                        clean = labels if attack == "pgd10" else predicted
                        write_samples(
                            store,
                            one,
                            index=np.arange(MEASURED),
                            label=labels,
                            clean=clean,
                            attacked=predicted,
                        )
            store.parent.mkdir(exist_ok=True)
            store.write_text("\n".join(lines) + "\n")
    write_coverage(folder, seeds)
    return folder


def write_coverage(folder: Path, seeds: int) -> None:
    """Every proxy has the classes of even number, but those of no proxy flags."""
    records = [
        {
            "data": one.name,
            "seed": seed,
            "set": f"mini/{name}",
            "share": 0.0 if name == "flags" else 0.5,
            "distance": 0.4 if one.data == "foreign" else 0.1,
            "covered": [] if name == "flags" else list(range(0, classes, 2)),
        }
        for one in CELLS
        for seed in range(seeds)
        for name, (_, classes, _) in SETS.items()
    ]
    (folder / FILE).write_text(json.dumps(records))


def by_points(points: Mapping[str, float], base: float = 0.5) -> Accuracy:
    """So many points above the base under attack, and a tenth more on clean images; the same for the best weights."""
    return lambda run, seed, attack: (
        base + points.get(run.removesuffix("-best"), 0.0) / 100 + (0.1 if attack == "clean" else 0.0)
    )
