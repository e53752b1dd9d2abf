"""The paper's experiments, declared: which runs, measured on what, make which table or figure.

One plan for both scales: at mini scale the embedded corpus and `mini-vit` take the place of the paper's web pairs,
ImageNet and ViT-B/32.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from advflyp.paper.plan import ORIGINAL, OTHER, RADII, Experiment, Measure, Plan, Run, Scale
from advflyp.paper.proxies.plan import proxy_experiment, proxy_runs, with_spaces

MOST_SEEDS = 100
# The pairs that the paper has for Tables 7, 12 and 13, in place of a million.
FEWER_PAIRS = 100_000
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
# At paper scale. Table 13's recipes say so themselves.
ON_FEWER_PAIRS = ("advflyp_2nd", f"advflyp{OTHER}", f"advflyp_full{OTHER}")
# One step from the image itself; its gradient comes from the clean pass that the regularisers need anyway.
ONE_STEP = {"attack__steps": 1, "attack__start": "zero", "attack__share_clean_forward": True}
# These are trained on labelled images, all others on image–text pairs.
LABELLED = ("tecoa", "pmg", "tga", "fare", "flyp", "clean_classification", "aft", "agft")

MAIN = (ORIGINAL, "tecoa", "pmg_aft", "tga_zsr", "fare", "advflyp", FULL)
ABLATION = (ORIGINAL, "advflyp", "advflyp_logit", "advflyp_feature", FULL)
ON_TECOA = ("tecoa", "tecoa_logit", "tecoa_feature", "tecoa_full")
BACKBONE = tuple(f"{name}{OTHER}" for name in (ORIGINAL, *ON_OTHER))
ON_CLEAN = (ORIGINAL, "clean_classification", "clean_contrastive")
NAIVE = ("tecoa", "pmg_aft", "flyp", "advflyp")
CAPTIONS = ("pmg_aft", "aft_captioned", FULL)
EMBEDDED = (ORIGINAL, "advflyp", FULL)
SCALING, COST, COST_OTHER = ("scaling",), ("cost",), ("cost-other",)  # filled in by the scale

SMALL, LARGER = RADII[:1], RADII[1:]
ROBUST, FEW, THIN = ("pgd10", "cw10", "autoattack"), ("clean", "pgd10", "cw10"), ("clean", "pgd10")
WITH_STRONG = (*THIN, "autoattack")


class Entry(NamedTuple):
    """An experiment: its runs, the attacks and radii shown, and the names of what is measured (`_measures`)."""

    id: str
    title: str
    runs: tuple[str, ...]
    attacks: tuple[str, ...]
    eps: tuple[float, ...]
    measured: str


# The most important come first.
EXPERIMENTS = (
    Entry("table1", "Table 1: robust accuracy, ε = 1/255", MAIN, ROBUST, SMALL, "cheap strong"),
    Entry("table2", "Table 2: accuracy on clean images", MAIN, ("clean",), SMALL, "cheap"),
    Entry("table4", "Table 4: which regulariser does what", ABLATION, FEW, SMALL, "cheap"),
    Entry("table3", "Table 3: stronger attacks", MAIN, ROBUST, LARGER, "higher"),
    Entry("table10", "Table 10: ε = 2/255", MAIN, ROBUST, LARGER[:1], "higher"),
    Entry("table11", "Table 11: ε = 4/255", MAIN, ROBUST, LARGER[1:], "higher"),
    Entry("table5", "Table 5: under domain shift", (ORIGINAL, "pmg_aft", FULL), THIN, SMALL, "shift"),
    Entry("table13", "Table 13: finetuning on clean images", ON_CLEAN, THIN, SMALL, "cheap"),
    Entry("table8", "Table 8: naive FLYP", NAIVE, FEW, SMALL, "cheap"),
    Entry("table14", "Table 14: labels, captions, pairs", CAPTIONS, FEW, SMALL, "cheap"),
    Entry("table7", "Table 7: held to the original alone", ("advflyp_2nd", FULL), FEW, SMALL, "cheap"),
    Entry("table9", "Table 9: the regularisers on TeCoA", ON_TECOA, FEW, SMALL, "cheap"),
    Entry("table6", "Table 6: which modules are trained", (FULL, *UNFROZEN), FEW, SMALL, "cheap"),
    Entry("table12", "Table 12: another backbone", BACKBONE, FEW, SMALL, "cheap"),
    Entry("figure3", "Figure 3: amount of data and batch size", SCALING, THIN, SMALL, "thin"),
    Entry("figure5", "Figure 5 and Eq. 14: where attacked images land", EMBEDDED, THIN, SMALL, "cheap"),
    Entry("later", "Later methods", (*MAIN, "agft", "advflyp_soft"), FEW, RADII, "cheap"),
    Entry("cost", "Cost: accuracy and arithmetic", COST, WITH_STRONG, RADII, "radii strong strongest"),
    Entry("cost-other", "Cost on the ResNet", COST_OTHER, WITH_STRONG, RADII, "radii strong strongest"),
)
# At paper scale these are measured under the paper's attacks, on its images and with its number of pairs.
_ATTACKED = {"attacks": (*FEW, "autoattack"), "measured": "cheap strong"}
AT_PAPER_SCALE: dict[str, dict[str, Any]] = {
    "table6": _ATTACKED,
    "table8": _ATTACKED,
    "table14": _ATTACKED,
    "table7": {"runs": ("advflyp_2nd", f"pairs-{FEWER_PAIRS}-256")},
    "figure5": {"measured": "imagenet"},
}
AT_PAPER_SCALE_ONLY = (
    Entry("table14-imagenet", "Table 14: on ImageNet", CAPTIONS, ROBUST[2:], SMALL, "strong-imagenet"),
)
NOTES = {
    "later": "Not in the paper: AGFT and AdvFLYP with soft targets beside its methods.",
    "cost": "Not in the paper. One step of the attack, from the image or from noise; four fifths of the updates on "
    "images of 48 pixels a side (or 40) in place of 64; AdvFLYP_fast does both.",
    "cost-other": "Not in the paper. This tower takes multiples of 32 pixels, so 32 is the only smaller size.",
}
PAPER_NOTES = {
    "table7": "Both are trained on 100,000 pairs, as in the paper.",
    "table12": "AdvFLYP and AdvFLYP_full are trained on 100,000 pairs, as in the paper. It does not say how many "
    "labelled images the others had; here TeCoA has all of ImageNet's.",
    "figure5": "On images of ImageNet, as in the paper.",
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
    mini = scale == "mini"
    _check_numbers(seeds, steps)
    if mini and (pairs or captioned):
        raise ValueError("--pairs and --captioned are for --scale paper; the mini scale has its own pairs")
    if proxies and not mini:
        raise ValueError("the experiment 'proxies' exists at the mini scale only; use --scale mini")
    make = _Runs(mini, (steps or 100) if mini else steps, pairs, captioned)
    scaling, levers, on_other = make.scaling(), make.levers(on_other=False), make.levers(on_other=True)
    of_proxies = proxy_runs(make.trained) if proxies else []
    compared = ((COST, "", levers), (COST_OTHER, OTHER, on_other))
    names: dict[tuple[str, ...], tuple[str, ...]] = {SCALING: tuple(run.name for run in scaling)}
    for id, other, runs in compared:
        names[id] = (f"{ORIGINAL}{other}", f"{FULL}{other}", *(run.name for run in runs)) if runs else ()
    measures = _measures(mini)
    notes = NOTES | (MINI_NOTES if mini else PAPER_NOTES)
    return Plan(
        scale=scale,
        seeds=seeds,
        steps=make.steps,
        precision="auto",
        grid=(1e-4, 3e-4, 1e-3, 3e-3) if mini else (),
        runs=(*make.methods(), *scaling, *levers, *on_other, *of_proxies),
        experiments=tuple(
            Experiment(
                id=entry.id,
                title=entry.title,
                runs=names.get(entry.runs, entry.runs),
                attacks=entry.attacks,
                eps=entry.eps,
                measures=tuple(one for name in entry.measured.split() for one in measures[name]),
                note=notes.get(entry.id, ""),
            )
            for entry in _entries(mini)
            if names.get(entry.runs, entry.runs)
        )
        + ((proxy_experiment(of_proxies),) if proxies else ()),
    )


def _entries(mini: bool) -> tuple[Entry, ...]:
    """The experiments of a scale."""
    if mini:
        return EXPERIMENTS
    own = (entry._replace(**AT_PAPER_SCALE.get(entry.id, {})) for entry in EXPERIMENTS)
    return (*own, *AT_PAPER_SCALE_ONLY)


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
    imagenet = replace(variants, sets=("imagenet",))
    return {
        "cheap": (cheap,),
        "thin": (thin,),
        "radii": (radii,),
        "strong": (strong,),
        "strongest": (strongest,),
        "higher": (cheap,) if mini else (cheap, strongest),
        "shift": (cheap,) if mini else (variants,),
        "imagenet": (imagenet,),
        "strong-imagenet": (replace(imagenet, attacks=("autoattack",)),),
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
        amounts = (1500, 6000, None) if self.mini else (FEWER_PAIRS, 500_000, 1_000_000)
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
            return self.trained(
                f"full-{name}{end}", f"{label}, {what}", FULL, FULL, most_seeds, **model, **keys
            )

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
            return self.trained(f"fast-{name}", f"AdvFLYP_fast, {what}", FAST, FULL, most_seeds, **keys)

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
        self,
        name: str,
        label: str,
        recipe: str = "",
        rate_of: str | None = None,
        most_seeds: int | None = None,
        **keys: Any,
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
        elif name in ON_FEWER_PAIRS:
            over["data.limit"] = FEWER_PAIRS
        over |= {key.replace("__", "."): value for key, value in keys.items()}
        if self.pairs and not recipe.startswith(LABELLED):
            over["data.train"] = self.pairs
        if self.captioned and recipe.startswith("aft"):
            over["data.train"] = self.captioned
        return Run(
            name=name, label=label, recipe=recipe, overrides=over, rate_of=rate_of, most_seeds=most_seeds
        )


def _original(name: str, label: str, model: str) -> Run:
    return Run(name=name, label=label, recipe=None, overrides={"model.name": model})
