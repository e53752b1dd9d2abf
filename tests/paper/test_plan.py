"""The plan as declared: complete, consistent, and every recipe it names is there and parses."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from advflyp.evaluation.attacks import find_attack
from advflyp.paper.cost import cost
from advflyp.paper.experiments import make_plan
from advflyp.paper.plan import Plan, Scale
from advflyp.paper.reproduce import _images
from advflyp.paper.steps import recipe_file, steps_of
from advflyp.training.recipe import Recipe, read_recipe

PAPER = [f"table{n}" for n in range(1, 15)] + ["figure3", "figure5"]


@pytest.fixture(params=["mini", "paper"])
def plan(request: pytest.FixtureRequest) -> Plan:
    return make_plan(request.param, seeds=2)


def recipes(plan: Plan) -> dict[str, Recipe]:
    return {run.name: read_recipe(recipe_file(plan, run), run.overrides) for run in plan.runs if run.recipe}


def test_every_table_and_figure_is_planned(plan: Plan) -> None:
    ours = ["later", *(["cost", "cost-other"] if plan.scale == "mini" else ["table14-imagenet"])]
    assert sorted(e.id for e in plan.experiments) == sorted([*PAPER, *ours])
    assert len({run.name for run in plan.runs}) == len({run.label for run in plan.runs}) == len(plan.runs)


def test_every_run_exists_and_what_is_shown_is_measured(plan: Plan) -> None:
    for experiment in plan.experiments:
        for name in experiment.runs:
            plan.run(name)
        measured = {(a, eps) for m in experiment.measures for a in m.attacks for eps in m.eps}
        shown = {(a, eps) for a in experiment.attacks for eps in experiment.eps}
        unmeasured = {a for a, _ in shown - measured}
        # AutoAttack beyond the smallest radius is left to accelerators.
        assert unmeasured <= ({"autoattack"} if plan.scale == "mini" else set()), experiment.id
        for attack in experiment.attacks:
            find_attack(attack)


def test_at_mini_scale_all_methods_see_as_many_images() -> None:
    found = recipes(make_plan("mini", steps=40))
    assert len(found) > 25
    updates = {name: r.train.max_steps or 0 for name, r in found.items()}
    # But for those that are about fewer and more updates.
    assert updates.pop("full-half") == updates.pop("full-half-other") == 20
    assert updates.pop("fast-longer") == 85 and updates.pop("full-longer-other") == 55
    assert updates.pop("fast-first-blocks-longer") == 100
    assert {count * found[name].data.batch_size for name, count in updates.items()} == {40 * 128}
    # No method is stopped by validation, or picks its best weights.
    assert {r.validate.set for r in found.values()} == {None}
    assert {r.attack.eps for r in found.values() if r.attack.steps} == {2 / 255}


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_the_runs_of_figure_3_see_as_many_images_as_the_others(scale: Scale) -> None:
    found = recipes(make_plan(scale, steps=40))
    seen = {name: (r.train.max_steps or 0) * r.data.batch_size for name, r in found.items()}
    assert {count for name, count in seen.items() if name.startswith("pairs-")} == {seen["advflyp_full"]}


def test_at_paper_scale_the_recipes_stay_the_papers() -> None:
    plan = make_plan("paper", pairs="web/*.tar", captioned="captioned/*.tar")
    found = recipes(plan)
    assert not plan.grid
    # Of clean finetuning the paper says 5e-5.
    assert {r.optim.lr for r in found.values() if r.attack.steps} == {1e-4}
    assert {r.attack.eps for r in found.values() if r.attack.steps} == {1 / 255}
    trained_on = {name: r.data.train for name, r in found.items()}
    assert trained_on["advflyp_full"] == trained_on["clean_contrastive"] == "web/*.tar"
    assert trained_on["aft_captioned"] == "captioned/*.tar"
    assert trained_on["tecoa"] == trained_on["flyp"] == trained_on["fare"] == "imagenet@train"


def test_at_paper_scale_the_tables_are_measured_as_in_the_paper() -> None:
    """As its captions and text say: Tables 6, 8 and 14 under AutoAttack, Fig. 5 and a part of 14 on ImageNet."""
    plan = make_plan("paper")
    shown = {e.id: (set(e.attacks), {name for m in e.measures for name in m.sets}) for e in plan.experiments}
    for name in ("table6", "table8", "table14"):
        assert shown[name] == ({"clean", "pgd10", "cw10", "autoattack"}, {"paper"}), name
    assert shown["table14-imagenet"] == ({"autoattack"}, {"imagenet"})
    assert shown["figure5"][1] == {"imagenet"}
    assert {e.eps for e in plan.experiments if e.id in ("table6", "table8", "table14")} == {(1 / 255,)}
    # Sec. 7.3, 8.3 and 9.1: a hundred thousand pairs, for both rows of Table 7; a million or all of them otherwise.
    found = recipes(plan)
    fewer = {name for name, recipe in found.items() if recipe.data.limit == 100_000}
    assert fewer == {
        "advflyp_2nd", "advflyp-other", "advflyp_full-other", "clean_contrastive", "clean_classification",
        "pairs-100000-256", "pairs-100000-512", "pairs-100000-1024",
    }  # fmt: skip
    seventh = next(e for e in plan.experiments if e.id == "table7")
    second, full = (found[name] for name in seventh.runs)
    assert (second.method.reference, full.method.reference) == ("frozen", "both")
    assert replace(second, method=full.method) == full and "100,000 pairs" in seventh.note
    twelfth = next(e for e in plan.experiments if e.id == "table12")
    assert "100,000 pairs" in twelfth.note and "TeCoA has all" in twelfth.note


def test_costs_at_paper_scale_follow_the_number_of_pairs(tmp_path: Path) -> None:
    plan = make_plan("paper").only(["figure3", "table1", "table12"])
    hours = {name: one.hours for name, one in cost(plan, tmp_path, lambda _: 100)}
    full = hours["train advflyp_full-s0"]
    for run, share in (("advflyp_full-other", 0.1), ("pairs-100000-256", 0.1), ("pairs-500000-512", 0.5)):
        assert hours[f"train {run}-s0"] / full == pytest.approx(share, rel=0.01)
    # With more pairs than there are, all of them.
    assert hours["train pairs-1000000-256-s0"] == full


@pytest.mark.long
def test_the_remaining_steps_are_those_that_docs_reproduction_names(reproduce_mini: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "reproduction.md").read_text()
    stated = re.search(r"(\d+) steps, an estimated ([\d.]+) CPU.*?(\d+) steps and ([\d.]+) hours", page, re.S)
    assert stated is not None
    plan = make_plan("mini", seeds=3)
    others = plan.only([e.id for e in plan.experiments if e.id not in ("cost", "cost-other")])
    found: list[str] = []
    for part in (plan, others):
        left = cost(part, reproduce_mini, _images)
        found += [str(len(left)), f"{sum(one.hours for _, one in left):.1f}"]
    assert found == list(stated.groups())


def test_the_headline_comes_first_and_costly_attacks_last() -> None:
    steps = steps_of(make_plan("mini", seeds=3))
    assert [step.run.name for step in steps[:2]] == ["original", "tecoa"]
    strong = [n for n, step in enumerate(steps) if step.measure.attacks == ("autoattack",)]
    ours = {run.name for run in make_plan("mini").only(["cost", "cost-other"]).runs} - {
        "original",
        "advflyp_full",
    }
    for group in (ours, {steps[n].run.name for n in strong} - ours):
        costly = [n for n in strong if steps[n].run.name in group]
        cheap = [n for n, step in enumerate(steps) if step.run.name in group and n not in strong]
        assert max(cheap) < min(costly)
    assert {steps[n].seed for n in strong} == {0}
    assert len({(s.name, s.measure) for s in steps}) == len(steps)


def test_a_part_of_the_plan_needs_only_its_runs() -> None:
    part = make_plan("mini").only(["table4"])
    assert {run.name for run in part.runs} == {
        "original", "advflyp", "advflyp_logit", "advflyp_feature", "advflyp_full",
    }  # fmt: skip
    with pytest.raises(ValueError, match="no experiment 'tabel4'; did you mean 'table4'"):
        make_plan("mini").only(["tabel4"])


def test_written_plan_is_what_the_report_reads(plan: Plan, tmp_path: Path) -> None:
    plan.write(tmp_path)
    written = json.loads((tmp_path / "plan.json").read_text())
    first = written["experiments"][0]
    assert first["rows"][:2] == ["original", "TeCoA"] and first["unranked"] == ["original"]
    assert first["eps"] == [1 / 255] and first["attacks"] == ["pgd10", "cw10", "autoattack"]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"seeds": 0}, "--seeds must be at least 1"),
        ({"steps": 0}, "--steps must be at least 1"),
        ({"pairs": "x"}, "--pairs and --captioned are for --scale paper"),
    ],
)
def test_impossible_plans(keys: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan("mini", **keys)


@pytest.mark.parametrize("scale", ["mini", "paper"])
def test_a_part_finds_the_rates_of_its_runs_without_running_their_owners(scale: Scale) -> None:
    whole = make_plan(scale)
    for experiment in whole.experiments:
        part = whole.only([experiment.id])
        for source in {run.rate_of or run.name for run in part.runs}:
            assert part.run(source) == whole.run(source)
        assert {step.run.name for step in steps_of(part)} == set(experiment.runs)


def test_proxies_differ_in_their_data_alone() -> None:
    plan = make_plan("mini", seeds=3, proxies=True).only(["proxies"])
    found = recipes(plan)
    longer = {name: found.pop(name) for name in [*found] if name.endswith("-longer")}
    assert set(longer) == {
        f"{run}-longer"
        for run in ("pairs-24060", *(f"{m}-near-6651" for m in ("tecoa", "pmg_aft", "fare", "same")))
    }
    for name, recipe in longer.items():
        assert (recipe.train.max_steps, recipe.validate.every) == (400, 80), name
        assert recipe.data == found[name.removesuffix("-longer")].data
    # Validated on what no test has, and by steps, so that all are as often.
    assert {
        (
            r.model.name,
            r.train.max_steps,
            r.data.batch_size,
            r.validate.set,
            r.validate.every,
            r.validate.epochs,
        )
        for r in found.values()
    } == {("mini", 100, 128, "mini/val", 20, 1000)}
    for name in [name for name in found if name.endswith("-best")]:
        assert found.pop(name) == found[plan.run(name).best_of or ""]
    assert all(recipe.checkpoint.last for recipe in found.values())
    for name, recipe in found.items():
        number = int(name.rsplit("-", 1)[1])
        every = number == (24_060 if "pairs-" in name else 6651)
        assert recipe.data.limit == (None if every else number), name
    # Without regularisers on as many pairs as with them, and as many seeds.
    full = {name: found[name].data for name in found if name.startswith("pairs-")}
    assert {name: found[f"advflyp-{name}"].data for name in full} == full and len(full) == 5
    assert all(plan.run(f"advflyp-{name}").most_seeds == plan.run(name).most_seeds for name in full)
    foreign = {name for name, recipe in found.items() if recipe.data.train == "mini/fashion-train"}
    assert foreign == {f"{m}-foreign-{n}" for m in ("tecoa", "pmg_aft", "fare", "same") for n in (660, 2200)}
    cifar = {name for name, recipe in found.items() if recipe.data.train == "mini/photos-train"}
    assert cifar == {name.replace("foreign", "cifar") for name in foreign}
    for run in [run for run in plan.runs if run.recipe and run.best_of is None and run.name not in longer]:
        assert plan.run(f"{run.name}-best") == replace(
            run, name=f"{run.name}-best", label=f"{run.label}, best", best_of=run.name
        )
    # A rate is searched once for a method.
    searched = {method: f"{method}-near-2200" for method in ("tecoa", "pmg_aft", "fare")}
    for run in [run for run in plan.runs if run.recipe]:
        expected = searched.get(run.name.split("-")[0], "pairs-2200")
        assert (run.rate_of or run.trained_as) == expected, run.name
    steps = steps_of(plan)
    assert {s.run.name for s in steps if s.seed} >= {"tecoa-foreign-2200", "pairs-2200", "same-near-660"}
    assert not any("few" in s.run.name or "vendor" in s.run.name for s in steps if s.seed)
    assert {s.run.name for s in steps if s.seed and "cifar" in s.run.name and s.run.best_of is None} == {
        f"{m}-cifar-2200" for m in ("tecoa", "pmg_aft", "fare", "same")
    }
