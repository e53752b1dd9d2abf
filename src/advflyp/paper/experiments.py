"""The paper's experiments, declared: which runs, measured on what, make which table or figure.

One plan for both scales: at mini scale the embedded corpus and `mini-vit` take the place of the paper's web pairs,
ImageNet and ViT-B/32.
"""

from dataclasses import dataclass, replace
from typing import Any

from advflyp.paper.plan import ORIGINAL, OTHER, RADII, Experiment, Measure, Plan, Run, Scale
from advflyp.paper.proxies.plan import proxy_experiment, proxy_runs, with_spaces

MOST_SEEDS = 100
FULL, FAST = "advflyp_full", "advflyp_fast"

METHODS = {
    "tecoa": "TeCoA",
    "advflyp_full": "AdvFLYP_full",
    "advflyp": "AdvFLYP",
    "pmg_aft": "PMG-AFT",
    "fare": "FARE",
    "tga_zsr": "TGA-ZSR",
    "advflyp_logit": "AdvFLYP + logit",
    "advflyp_feature": "AdvFLYP + feature",
    "clean_contrastive": "clean contrastive",
    "clean_classification": "clean classification",
    "flyp": "naive FLYP",
    "aft_captioned": "AFT, captioned",
    "advflyp_2nd": "AdvFLYP_2nd",
    "tecoa_feature": "TeCoA + feature",
    "tecoa_logit": "TeCoA + logit",
    "tecoa_full": "TeCoA + both",
    "agft": "AGFT",
    "advflyp_soft": "AdvFLYP_soft",
}
# Methods with the learning rate of AdvFLYP_full.
UNFROZEN = {
    "advflyp_text": "AdvFLYP_full, text unfrozen",
    "advflyp_all": "AdvFLYP_full, all unfrozen",
}
ON_OTHER = ("tecoa", "advflyp", "advflyp_full")
# One step from the image itself; its gradient comes from the clean pass that the regularisers need anyway.
ONE_STEP = {"attack__steps": 1, "attack__start": "zero", "attack__share_clean_forward": True}
# These are trained on labelled images, all others on image–text pairs.
LABELLED = ("tecoa", "pmg", "tga", "fare", "flyp", "clean_classification", "aft", "agft")

MAIN = (ORIGINAL, "tecoa", "pmg_aft", "tga_zsr", "fare", "advflyp", FULL)
ABLATION = (ORIGINAL, "advflyp", "advflyp_logit", "advflyp_feature", FULL)
ON_TECOA = ("tecoa", "tecoa_logit", "tecoa_feature", "tecoa_full")
BACKBONE = tuple(f"{name}{OTHER}" for name in (ORIGINAL, *ON_OTHER))
SCALING, COST, COST_OTHER = ("scaling",), ("cost",), ("cost-other",)  # filled in by the scale

SMALL, LARGER = RADII[:1], RADII[1:]
ROBUST, FEW, THIN = ("pgd10", "cw10", "autoattack"), ("clean", "pgd10", "cw10"), ("clean", "pgd10")

# id, title, runs, attacks and radii shown, names of what is measured (`_measures`). The most important come first.
EXPERIMENTS: tuple[tuple[str, str, tuple[str, ...], tuple[str, ...], tuple[float, ...], str], ...] = (
    ("table1", "Table 1: robust accuracy, ε = 1/255", MAIN, ROBUST, SMALL, "cheap strong"),
    ("table2", "Table 2: accuracy on clean images", MAIN, ("clean",), SMALL, "cheap"),
    ("table4", "Table 4: which regulariser does what", ABLATION, FEW, SMALL, "cheap"),
    ("table3", "Table 3: stronger attacks", MAIN, ROBUST, LARGER, "higher"),
    ("table10", "Table 10: ε = 2/255", MAIN, ROBUST, LARGER[:1], "higher"),
    ("table11", "Table 11: ε = 4/255", MAIN, ROBUST, LARGER[1:], "higher"),
    ("table5", "Table 5: under domain shift", (ORIGINAL, "pmg_aft", FULL), THIN, SMALL, "shift"),
    (
        "table13",
        "Table 13: finetuning on clean images",
        (ORIGINAL, "clean_classification", "clean_contrastive"),
        THIN,
        SMALL,
        "cheap",
    ),
    ("table8", "Table 8: naive FLYP", ("tecoa", "pmg_aft", "flyp", "advflyp"), FEW, SMALL, "cheap"),
    ("table14", "Table 14: labels, captions, pairs", ("pmg_aft", "aft_captioned", FULL), FEW, SMALL, "cheap"),
    ("table7", "Table 7: held to the original alone", ("advflyp_2nd", FULL), FEW, SMALL, "cheap"),
    ("table9", "Table 9: the regularisers on TeCoA", ON_TECOA, FEW, SMALL, "cheap"),
    ("table6", "Table 6: which modules are trained", (FULL, *UNFROZEN), FEW, SMALL, "cheap"),
    ("table12", "Table 12: another backbone", BACKBONE, FEW, SMALL, "cheap"),
    ("figure3", "Figure 3: amount of data and batch size", SCALING, THIN, SMALL, "thin"),
    (
        "figure5",
        "Figure 5 and Eq. 14: where attacked images land",
        (ORIGINAL, "advflyp", FULL),
        THIN,
        SMALL,
        "cheap",
    ),
    ("later", "Later methods", (*MAIN, "agft", "advflyp_soft"), FEW, RADII, "cheap"),
    ("cost", "Cost: accuracy and arithmetic", COST, (*THIN, "autoattack"), RADII, "radii strong strongest"),
    ("cost-other", "Cost on the ResNet", COST_OTHER, (*THIN, "autoattack"), RADII, "radii strong strongest"),
)
NOTES = {
    "later": "Not in the paper: AGFT and AdvFLYP with soft targets beside its methods.",
    "cost": "Not in the paper. One step of the attack, from the image or from noise; four fifths of the updates on "
    "images of 48 pixels a side (or 40) in place of 64; AdvFLYP_fast does both.",
    "cost-other": "Not in the paper. This tower takes multiples of 32 pixels, so 32 is the only smaller size.",
}
MINI_NOTES = {"table5": "Mini scale: sets whose concepts the labelled proxy covers beside those it does not."}


def make_plan(
    scale: Scale,
    *,
    seeds: int = 1,
    steps: int | None = None,
    pairs: str | None = None,
    captioned: str | None = None,
    proxies: bool = False,
) -> Plan:
    """The whole plan of a scale.

    Args:
        scale: "mini" or "paper".
        seeds: Trainings of each method, numbered from 0.
        steps: Updates of each training (mini: 100 by default; paper: the recipes' epochs).
        pairs: The web pairs, in place of the recipes' shards/*.tar.
        captioned: Pairs of captioned ImageNet images, in place of the recipe's.
        proxies: Whether to add the experiment of docs/proxies.md (mini scale), which needs sets that are not embedded.

    Raises:
        ValueError: For an impossible number.
    """
    _check_numbers(seeds, steps)
    mini = scale == "mini"
    if mini and (pairs or captioned):
        raise ValueError("--pairs and --captioned are for --scale paper; the mini scale has its own pairs")
    make = _Runs(mini, (steps or 100) if mini else steps, pairs, captioned)
    if proxies and not mini:
        raise ValueError("the experiment 'proxies' exists at the mini scale only; use --scale mini")
    scaling, levers, on_other = make.scaling(), make.levers(on_other=False), make.levers(on_other=True)
    of_proxies = proxy_runs(make.trained) if proxies else []
    compared = ((COST, "", levers), (COST_OTHER, OTHER, on_other))
    names: dict[tuple[str, ...], tuple[str, ...]] = {SCALING: tuple(run.name for run in scaling)}
    for id, other, runs in compared:
        names[id] = (f"{ORIGINAL}{other}", f"{FULL}{other}", *(run.name for run in runs)) if runs else ()
    measures = _measures(mini)
    notes = NOTES | (MINI_NOTES if mini else {})
    return Plan(
        scale=scale,
        seeds=seeds,
        steps=make.steps,
        precision="auto",
        grid=(1e-4, 3e-4, 1e-3, 3e-3) if mini else (),
        runs=(*make.methods(), *scaling, *levers, *on_other, *of_proxies),
        experiments=tuple(
            Experiment(
                id=id,
                title=title,
                runs=names.get(runs, runs),
                attacks=attacks,
                eps=eps,
                measures=tuple(one for name in measured.split() for one in measures[name]),
                note=notes.get(id, ""),
            )
            for id, title, runs, attacks, eps, measured in EXPERIMENTS
            if names.get(runs, runs)
        )
        + ((proxy_experiment(of_proxies),) if proxies else ()),
    )


def _check_numbers(seeds: int, steps: int | None) -> None:
    """ValueError for an impossible number."""
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, not {seeds}")
    if seeds > MOST_SEEDS:
        raise ValueError(
            f"--seeds, the number of trainings of each method, must be at most {MOST_SEEDS}, not {seeds}"
        )
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, not {steps}")


def _measures(mini: bool) -> dict[str, tuple[Measure, ...]]:
    """What experiments measure, by name. Equal measures of a run that several experiments share are taken once."""
    sets = ("mini",) if mini else ("paper",)
    limit = 60 if mini else None
    cheap = Measure(sets=sets, attacks=FEW, limit=limit)
    thin = Measure(sets=sets, attacks=THIN, eps=SMALL, limit=limit)
    radii = Measure(sets=sets, attacks=THIN, limit=limit)
    # AutoAttack takes some 10,000 forward passes per robust image: mini scale has 10 images per set and one seed.
    full = {"sets": sets, "attacks": ("autoattack",), "limit": 10 if mini else None, "first_seed": mini}
    strong, strongest = Measure(**full, eps=SMALL), Measure(**full, eps=LARGER)
    variants = Measure(sets=("imagenet-variants",), attacks=THIN, eps=SMALL)
    return {
        "cheap": (cheap,),
        "thin": (thin,),
        "radii": (radii,),
        "strong": (strong,),
        "strongest": (strongest,),
        "higher": (cheap,) if mini else (cheap, strongest),
        "shift": (cheap,) if mini else (variants,),
    }


@dataclass(frozen=True)
class _Runs:
    """The runs of a scale; the fields are the arguments of `make_plan`."""

    mini: bool
    steps: int | None
    pairs: str | None
    captioned: str | None

    def methods(self) -> list[Run]:
        backbone, other = ("mini-vit", "mini") if self.mini else ("ViT-B-32/openai", "ViT-B-16/openai")
        # "(mini)" would be read as the scale.
        of_other = ", ResNet" if self.mini else f", {other.removesuffix('/openai')}"
        labels = {ORIGINAL: ORIGINAL, **METHODS}
        return [
            _original(ORIGINAL, ORIGINAL, backbone),
            *(self.trained(name, label) for name, label in METHODS.items()),
            *(self.trained(name, label, rate_of=FULL) for name, label in UNFROZEN.items()),
            _original(f"{ORIGINAL}{OTHER}", ORIGINAL + of_other, other),
            *(
                self.trained(f"{name}{OTHER}", labels[name] + of_other, name, name, model__name=other)
                for name in ON_OTHER
            ),
        ]

    def scaling(self) -> list[Run]:
        """The runs of Fig. 3; with a number of steps they see as many images as all other runs."""
        amounts = (1500, 6000, None) if self.mini else (100_000, 500_000, 1_000_000)
        found = []
        for limit in amounts:
            for batch in (64, 128, 256) if self.mini else (256, 512, 1024):
                keys: dict[str, Any] = {"data__batch_size": batch}
                if limit:
                    keys["data__limit"] = limit
                if self.steps:
                    # The other runs' batches are of 128 or 256 images: all see as many.
                    keys["train__max_steps"] = max(1, self.steps * (128 if self.mini else 256) // batch)
                amount = with_spaces(limit) if limit else "all"
                label = f"AdvFLYP_full, {amount} pairs, batch {batch}"
                found.append(self.trained(f"pairs-{limit or 'all'}-{batch}", label, FULL, FULL, **keys))
        return found

    def levers(self, *, on_other: bool) -> list[Run]:
        """Cheaper variants of AdvFLYP_full at mini scale, on `mini-vit` or on the ResNet; not in the paper."""
        if not self.mini or not self.steps:
            return []
        end, model = (OTHER, {"model__name": "mini"}) if on_other else ("", {})
        label = "AdvFLYP_full, ResNet" if on_other else "AdvFLYP_full"

        def lever(name: str, what: str, most_seeds: int | None = 3, **keys: Any) -> Run:
            run = self.trained(f"full-{name}{end}", f"{label}, {what}", FULL, FULL, **model, **keys)
            return replace(run, most_seeds=most_seeds)

        half = lever("half", "half the updates", train__max_steps=max(1, self.steps // 2))
        # Forward-pass equivalents per image: 11 in full, 8 with one step, 5.2 with smaller images as well, 4.4 with the
        # weights of the first blocks alone.
        if on_other:
            longer = ONE_STEP | {"train__max_steps": round(self.steps * 11 / 8)}
            return [
                lever("one-step", "one step", None, **ONE_STEP),
                lever("longer", "one step, arithmetic of full", None, **longer),
                half,
                lever("smaller", "32 pixels first", data__schedule=[[32, 0.8], [64, 0.2]]),
            ]

        def fast(name: str, what: str, most_seeds: int | None = None, **keys: Any) -> Run:
            run = self.trained(f"fast-{name}", f"AdvFLYP_fast, {what}", FAST, FULL, **keys)
            return replace(run, most_seeds=most_seeds)

        first: dict[str, Any] = {"train__unfreeze": "vision[:2]"}
        longer, longest = (round(self.steps * 11 / passes) for passes in (5.2, 4.4))
        return [
            self.trained(FAST, "AdvFLYP_fast", FAST, FULL),
            fast("longer", "arithmetic of full", train__max_steps=longer),
            fast("first-blocks", "first third trained", **first),
            fast("first-blocks-longer", "first third, arithmetic of full", **first, train__max_steps=longest),
            half,
            lever("one-step", "one step", **ONE_STEP),
            lever("noise", "one step from noise", attack__steps=1, attack__start="noise"),
            lever("smaller", "smaller images", data__schedule=[[48, 0.8], [64, 0.2]]),
            lever("constant", "clean embedding constant", method__clean_gradients=False),
            lever("original-clean", "original sees clean images", method__original_sees="clean"),
            lever("first-blocks", "first third trained", **first),
            fast("coarser", "40 pixels first", 3, data__schedule=[[40, 0.8], [64, 0.2]]),
        ]

    def trained(
        self, name: str, label: str, recipe: str = "", rate_of: str | None = None, **keys: Any
    ) -> Run:
        """A training. keys: recipe keys, with two underscores for the dot"""
        recipe = f"{recipe or name}.toml"
        over: dict[str, Any] = {"model.name": "mini-vit" if self.mini else "ViT-B-32/openai"}
        if self.steps:
            # The same number of updates for all, whatever the size of their epochs.
            over |= {"train.max_steps": self.steps, "train.epochs": 1000}
        if self.mini:
            # The last weights: early stopping would give methods different budgets.
            over |= {"validate.set": "none", "checkpoint.every": 25}
        over |= {key.replace("__", "."): value for key, value in keys.items()}
        if self.pairs and not recipe.startswith(LABELLED):
            over["data.train"] = self.pairs
        if self.captioned and recipe.startswith("aft"):
            over["data.train"] = self.captioned
        return Run(name=name, label=label, recipe=recipe, overrides=over, rate_of=rate_of)


def _original(name: str, label: str, model: str) -> Run:
    return Run(name=name, label=label, recipe=None, overrides={"model.name": model})
