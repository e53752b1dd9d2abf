"""The paper's experiments, declared: which runs, measured on what, make which table or figure.

One plan for both scales: at mini scale the embedded corpus and `mini-vit` stand where the paper has the web pairs,
ImageNet and ViT-B/32.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from advflyp.config import suggest
from advflyp.documents import read_json_object
from advflyp.files import write_text
from advflyp.model.precision import Precision, check_precision, resolve

Scale = Literal["mini", "paper"]
MOST_SEEDS = 100
PLAN_FILE = "plan.json"
RADII = (1 / 255, 2 / 255, 4 / 255)
ORIGINAL = "original"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A model of the comparison.

    name:      of its folders
    label:     of its rows
    recipe:    file below configs/ (mini/ at mini scale); none is the model as it was pretrained
    overrides: recipe keys on top
    rate_of:   the run whose learning rate it takes; none searches its own
    """

    name: str
    label: str
    recipe: str | None
    overrides: dict[str, Any] = field(default_factory=dict)
    rate_of: str | None = None


@dataclass(frozen=True, kw_only=True)
class Measure:
    """Attacks at radii on sets.

    limit:      so many images of each set, classes evenly represented
    first_seed: only for the first seed, where it costs too much for all
    """

    sets: tuple[str, ...]
    attacks: tuple[str, ...]
    eps: tuple[float, ...] = RADII
    limit: int | None = None
    first_seed: bool = False


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or a figure.

    runs:         by name
    attacks, eps: what it shows
    measures:     what has to be measured for it; runs that several experiments share are measured once for all
    """

    id: str
    title: str
    runs: tuple[str, ...]
    attacks: tuple[str, ...]
    eps: tuple[float, ...]
    measures: tuple[Measure, ...]
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that is to be run, the most important first.

    precision: of training and of the search for adversarial images, which are evaluated in float32; "auto" is settled
               when the study begins, so that all of it is of one precision
    grid:      learning rates that are tried for each method; empty keeps those of the recipes
    """

    scale: Scale
    seeds: int
    steps: int | None
    precision: Precision
    grid: tuple[float, ...]
    runs: tuple[Run, ...]
    experiments: tuple[Experiment, ...]

    def run(self, name: str) -> Run:
        return next(run for run in self.runs if run.name == name)

    def only(self, wanted: Sequence[str]) -> "Plan":
        """The part that these experiments need; ValueError for an unknown one."""
        known = [experiment.id for experiment in self.experiments]
        for name in wanted:
            if name not in known:
                raise ValueError(f"the plan has no experiment '{name}'{suggest(name, known)}")
        chosen = tuple(e for e in self.experiments if e.id in wanted)
        needed = {name for experiment in chosen for name in experiment.runs}
        # The search for a learning rate needs their recipes; they are measured by no chosen experiment, so not run.
        needed |= {run.rate_of for run in self.runs if run.name in needed and run.rate_of}
        return Plan(
            **{
                **vars(self),
                "experiments": chosen,
                "runs": tuple(r for r in self.runs if r.name in needed),
            }
        )

    def measures(self, run: Run) -> list[Measure]:
        """What is to be measured of a run, each once, cheap ones first."""
        found = [m for e in self.experiments if run.name in e.runs for m in e.measures]
        return sorted(dict.fromkeys(found), key=lambda m: "autoattack" in m.attacks)

    def seeds_of(self, run: Run) -> range:
        """A model that is not trained has one."""
        return range(self.seeds if run.recipe else 1)

    def settled(self, folder: Path, device: str | torch.device) -> "Plan":
        """The plan with the precision that the study in `folder` was begun with, or, at its beginning, the device's."""
        begun = folder / PLAN_FILE
        precision = self.precision
        if begun.is_file():
            plan = read_json_object(begun)
            if not {"scale", "runs", "experiments"} <= plan.keys():
                raise ValueError(f"{begun} is no plan of `advflyp reproduce`; name a new folder with --out")
            precision = check_precision(str(plan.get("precision")), f"{begun}: precision")
        return replace(self, precision=resolve(precision, device))

    def write(self, folder: Path) -> None:
        """`folder`/plan.json, from which the report learns what belongs together."""
        labels = {run.name: run.label for run in self.runs}
        experiments = [
            {
                "id": e.id,
                "title": e.title,
                "rows": [labels[name] for name in e.runs],
                "unranked": [labels[name] for name in e.runs if name.startswith(ORIGINAL)],
                "sets": list(dict.fromkeys(name for m in e.measures for name in m.sets)),
                "attacks": list(e.attacks),
                "eps": list(e.eps),
                "note": e.note,
                "measures": [asdict(m) for m in e.measures],
            }
            for e in self.experiments
        ]
        tree = {
            "scale": self.scale,
            "seeds": self.seeds,
            "steps": self.steps,
            "precision": self.precision,
            "grid": list(self.grid),
            "runs": [asdict(run) for run in self.runs],
            "experiments": experiments,
        }
        write_text(folder / PLAN_FILE, json.dumps(tree, indent=1) + "\n")


def make_plan(
    scale: Scale,
    *,
    seeds: int = 1,
    steps: int | None = None,
    pairs: str | None = None,
    captioned: str | None = None,
) -> Plan:
    """The whole plan of a scale.

    seeds:     trainings of each method, numbered from 0
    steps:     updates of each training (mini: 100 unless told otherwise; paper: the recipes' epochs)
    pairs:     the web pairs, in place of the recipes' shards/*.tar
    captioned: pairs of captioned ImageNet images, in place of the recipe's
    ValueError for an impossible number.
    """
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {seeds}")
    if seeds > MOST_SEEDS:
        raise ValueError(f"--seeds is how many trainings each method gets, at most {MOST_SEEDS}, not {seeds}")
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")
    mini = scale == "mini"
    if mini and (pairs or captioned):
        raise ValueError("--pairs and --captioned go with --scale paper; the mini scale has its own pairs")
    steps = (steps or 100) if mini else steps
    common: dict[str, Any] = {"model.name": "mini-vit" if mini else "ViT-B-32/openai"}
    if steps:
        # As many updates for all, whatever an epoch of their data is.
        common |= {"train.max_steps": steps, "train.epochs": 1000}
    if mini:
        # The last weights: early stopping would give methods budgets of their own.
        common |= {"validate.set": "none", "checkpoint.every": 25}

    def trained(name: str, label: str, recipe: str = "", rate_of: str | None = None, **keys: Any) -> Run:
        recipe = f"{recipe or name}.toml"
        over = common | {key.replace("__", "."): value for key, value in keys.items()}
        web = not recipe.startswith(("tecoa", "pmg", "tga", "fare", "flyp", "clean_classification", "aft"))
        if pairs and web:
            over["data.train"] = pairs
        if captioned and recipe.startswith("aft"):
            over["data.train"] = captioned
        return Run(name=name, label=label, recipe=recipe, overrides=over, rate_of=rate_of)

    def original(name: str, label: str, model: str) -> Run:
        return Run(name=name, label=label, recipe=None, overrides={"model.name": model})

    backbone, other = ("mini-vit", "mini") if mini else ("ViT-B-32/openai", "ViT-B-16/openai")
    # "(mini)" would be read as the scale.
    of_other = ", ResNet" if mini else f", {other.removesuffix('/openai')}"
    amounts = [1500, 6000, None] if mini else [100_000, 500_000, 1_000_000]
    batches = (64, 128, 256) if mini else (256, 512, 1024)
    scaling = [_scaled(trained, limit, batch, steps) for limit in amounts for batch in batches]
    levers = _levers(trained, steps) if mini and steps else []
    runs = (
        original(ORIGINAL, ORIGINAL, backbone),
        trained("tecoa", "TeCoA"),
        trained("advflyp_full", "AdvFLYP_full"),
        trained("advflyp", "AdvFLYP"),
        trained("pmg_aft", "PMG-AFT"),
        trained("fare", "FARE"),
        trained("tga_zsr", "TGA-ZSR"),
        trained("advflyp_logit", "AdvFLYP + logit"),
        trained("advflyp_feature", "AdvFLYP + feature"),
        trained("clean_contrastive", "clean contrastive"),
        trained("clean_classification", "clean classification"),
        trained("flyp", "naive FLYP"),
        trained("aft_captioned", "AFT, captioned"),
        trained("advflyp_2nd", "AdvFLYP_2nd"),
        trained("tecoa_feature", "TeCoA + feature"),
        trained("tecoa_logit", "TeCoA + logit"),
        trained("tecoa_full", "TeCoA + both"),
        trained("advflyp_text", "AdvFLYP_full, text unfrozen", rate_of="advflyp_full"),
        trained("advflyp_all", "AdvFLYP_full, all unfrozen", rate_of="advflyp_full"),
        original("original-other", ORIGINAL + of_other, other),
        *(
            trained(f"{name}-other", label + of_other, recipe=name, rate_of=name, model__name=other)
            for name, label in (("tecoa", "TeCoA"), ("advflyp", "AdvFLYP"), ("advflyp_full", "AdvFLYP_full"))
        ),
        *scaling,
        *levers,
    )
    return Plan(
        scale=scale,
        seeds=seeds,
        steps=steps,
        precision="auto",
        grid=(1e-4, 3e-4, 1e-3, 3e-3) if mini else (),
        runs=runs,
        experiments=_experiments(
            scale, tuple(run.name for run in scaling), tuple(run.name for run in levers)
        ),
    )


def _scaled(trained: Any, limit: int | None, batch: int, steps: int | None) -> Run:
    """A run of Fig. 3: as many images seen as all others at mini scale."""
    keys: dict[str, Any] = {"data__batch_size": batch}
    if limit:
        keys["data__limit"] = limit
    if steps:
        keys["train__max_steps"] = max(1, steps * 128 // batch)
    amount = f"{limit:,}".replace(",", "\u202f") if limit else "all"
    label = f"AdvFLYP_full, {amount} pairs, batch {batch}"
    return trained(f"pairs-{limit or 'all'}-{batch}", label, "advflyp_full", "advflyp_full", **keys)


def _levers(trained: Any, steps: int) -> list[Run]:
    """What makes AdvFLYP_full cheaper, one by one and together; not in the paper."""
    one_step = {"attack__steps": 1, "attack__start": "zero", "attack__share_clean_forward": True}
    noise = {"attack__steps": 1, "attack__start": "noise"}
    smaller = {"data__schedule": [[48, 0.8], [64, 0.2]]}
    full, fast = "advflyp_full", "advflyp_fast"
    # Forward equivalents of an image: 11, and with both levers 5.2.
    longer = {"train__max_steps": round(steps * 11 / 5.2)}
    return [
        trained(
            "full-half", "AdvFLYP_full, half the updates", full, full, train__max_steps=max(1, steps // 2)
        ),
        trained("full-one-step", "AdvFLYP_full, one step", full, full, **one_step),
        trained("full-noise", "AdvFLYP_full, one step from noise", full, full, **noise),
        trained("full-smaller", "AdvFLYP_full, smaller images", full, full, **smaller),
        trained(fast, "AdvFLYP_fast", fast, full),
        trained("fast-longer", "AdvFLYP_fast, arithmetic of full", fast, full, **longer),
    ]


def _experiments(scale: Scale, scaling: tuple[str, ...], levers: tuple[str, ...]) -> tuple[Experiment, ...]:
    mini = scale == "mini"
    sets = ("mini",) if mini else ("paper",)
    limit = 60 if mini else None
    small, larger = RADII[:1], RADII[1:]
    # AutoAttack takes some 10,000 forward passes for every image that stands: 100 images and one seed at mini scale.
    full = {"limit": 10, "first_seed": True} if mini else {}

    def m(*attacks: str, eps: tuple[float, ...] = RADII, **others: Any) -> Measure:
        return Measure(**{"sets": sets, "attacks": attacks, "eps": eps, "limit": limit, **others})

    # Measured together, so that runs that several experiments share are measured once.
    cheap = m("clean", "pgd10", "cw10")
    strong = m("autoattack", eps=small, **full)
    strongest = m("autoattack", eps=larger, **full)
    main = (ORIGINAL, "tecoa", "pmg_aft", "tga_zsr", "fare", "advflyp", "advflyp_full")
    on_tecoa = ("tecoa", "tecoa_logit", "tecoa_feature", "tecoa_full")
    others = (f"{ORIGINAL}-other", "tecoa-other", "advflyp-other", "advflyp_full-other")
    thin = m("clean", "pgd10", eps=small)
    ablation = (ORIGINAL, "advflyp", "advflyp_logit", "advflyp_feature", "advflyp_full")
    higher = (cheap,) if mini else (cheap, strongest)
    shift = (cheap,) if mini else (m("clean", "pgd10", eps=small, sets=("imagenet-variants",)),)

    robust = ("pgd10", "cw10", "autoattack")
    few = ("clean", "pgd10", "cw10")

    def e(
        id: str,
        title: str,
        runs: tuple[str, ...],
        *measures: Measure,
        attacks: tuple[str, ...] = few,
        eps: tuple[float, ...] = small,
        note: str = "",
    ) -> Experiment:
        return Experiment(
            id=id, title=title, runs=runs, attacks=attacks, eps=eps, measures=measures, note=note
        )

    return (
        e("table1", "Table 1: robust accuracy, ε = 1/255", main, cheap, strong, attacks=robust),
        e("table2", "Table 2: accuracy on clean images", main, cheap, attacks=("clean",)),
        e("table4", "Table 4: which regulariser does what", ablation, cheap),
        e("table3", "Table 3: stronger attacks", main, *higher, attacks=robust, eps=larger),
        e("table10", "Table 10: ε = 2/255", main, *higher, attacks=robust, eps=larger[:1]),
        e("table11", "Table 11: ε = 4/255", main, *higher, attacks=robust, eps=larger[1:]),
        e(
            "table5",
            "Table 5: under domain shift",
            (ORIGINAL, "pmg_aft", "advflyp_full"),
            *shift,
            attacks=("clean", "pgd10"),
            note="Mini scale: sets whose concepts the labelled proxy covers beside those it does not."
            if mini
            else "",
        ),
        e(
            "table13",
            "Table 13: finetuning on clean images",
            (ORIGINAL, "clean_classification", "clean_contrastive"),
            cheap,
            attacks=("clean", "pgd10"),
        ),
        e("table8", "Table 8: naive FLYP", ("tecoa", "pmg_aft", "flyp", "advflyp"), cheap),
        e(
            "table14",
            "Table 14: labels, captions, pairs",
            ("pmg_aft", "aft_captioned", "advflyp_full"),
            cheap,
        ),
        e("table7", "Table 7: held to the original alone", ("advflyp_2nd", "advflyp_full"), cheap),
        e("table9", "Table 9: the regularisers on TeCoA", on_tecoa, cheap),
        e(
            "table6",
            "Table 6: which modules are trained",
            ("advflyp_full", "advflyp_text", "advflyp_all"),
            cheap,
        ),
        e("table12", "Table 12: another backbone", others, cheap),
        e("figure3", "Figure 3: amount of data and batch size", scaling, thin, attacks=thin.attacks),
        e(
            "figure5",
            "Figure 5 and Eq. 14: where attacked images land",
            (ORIGINAL, "advflyp", "advflyp_full"),
            cheap,
            attacks=thin.attacks,
        ),
        *(
            [
                e(
                    "cost",
                    "Cost: accuracy and arithmetic",
                    (ORIGINAL, "advflyp_full", *levers),
                    *(cheap, strong, strongest),
                    attacks=("clean", "pgd10", "autoattack"),
                    eps=RADII,
                    note="Not in the paper. One step of the attack, from the image or from noise; four fifths of "
                    "the updates on images of 48 pixels a side in place of 64; AdvFLYP_fast does both.",
                )
            ]
            if levers
            else []
        ),
    )
