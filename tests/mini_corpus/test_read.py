import json
from pathlib import Path

import pytest

from tools.mini_corpus.clipart import read_clipart
from tools.mini_corpus.emoji import Emoji, EmojiTable
from tools.mini_corpus.read import Item, draw, finish, read_icons
from tools.mini_corpus.sources import BRANDS, ICON_CLASSES, SOURCES, TWINS, Source, source

TABLE = EmojiTable(
    [
        Emoji("dog face", ("dog", "pet"), "animal-mammal", "mammals", "1F436"),
        Emoji("police car light", (), "transport-ground", "ground", "1F6A8"),
        Emoji("waving hand", ("hello",), "hand", "hands", "1F44B"),
        Emoji("flag: Ghana", ("GH",), "country-flag", "country flags", "1F1EC-1F1ED"),
    ]
)
BODY = '<path d="M0 0h9v9z"/>'


def package(folder: Path, icons: list[str], **files: dict) -> Path:
    folder.mkdir()
    data = {"width": 24, "height": 24, "icons": {name: {"body": BODY} for name in icons}}
    (folder / "icons.json").write_text(json.dumps(data))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def names(source_name: str, folder: Path) -> dict[str, str]:
    row = source(source_name)
    return {item.key: item.name for item in finish(row, read_icons(row, folder, TABLE))}


def test_emoji_by_code_point_by_name_and_skin_tones_thinned(tmp_path: Path) -> None:
    tones = [f"waving-hand-{tone}-skin-tone" for tone in ("light", "medium-light", "medium", "dark")]
    many = [f"{tone}-{n}" for tone in tones for n in range(40)]
    folder = package(tmp_path / "noto", ["puppy", "police-car-light", *many], chars={"1f436": "puppy"})
    row = source("noto")
    items = finish(row, read_icons(row, folder, TABLE))
    assert {"dog face", "police car light"} <= {item.name for item in items}
    toned = [item for item in items if item.name == "waving hand"]
    assert 5 <= len(toned) <= 40
    assert all("skin tone" in item.tags for item in toned)
    dog = next(item for item in items if item.name == "dog face")
    assert (dog.concept, dog.subgroup, dog.group) == ("dog face", "animal-mammal", "mammals")
    assert (dog.weight, dog.role, dog.mirror) == (6.0, "train", True)


def test_a_light_is_no_skin_tone(tmp_path: Path) -> None:
    folder = package(tmp_path / "flat", ["police-car-light", "waving-hand-default", "waving-hand-light"])
    found = names("fluent-emoji-flat", folder)
    assert found["fluent-emoji-flat_police-car-light"] == "police car light"
    assert found["fluent-emoji-flat_waving-hand-default"] == "waving hand"


def test_test_emoji_without_a_standard_name_are_left_out(tmp_path: Path) -> None:
    folder = package(tmp_path / "emojione", ["dog-face", "no-such-thing"])
    assert list(names("emojione", folder).values()) == ["dog face"]


def test_flags_have_no_concept_and_no_mirror_image(tmp_path: Path) -> None:
    row = source("circle-flags")
    items = finish(row, read_icons(row, package(tmp_path / "flags", ["gh", "esperanto"]), TABLE))
    assert {item.name for item in items} == {"flag of Ghana", "esperanto flag"}
    assert not any(item.mirror or item.concept for item in items)


def test_icons_lose_marks_of_size_and_style_and_brands_are_left_out(tmp_path: Path) -> None:
    folder = package(
        tmp_path / "mdi",
        ["rocket-launch", "rocket-outline", "github", "account-check", "brand-x", "wolf-pack-battalion"],
        metadata={
            "categories": {"Brand / Logo": ["wolf-pack-battalion"], "NatureEcology": ["rocket-launch"]}
        },
    )
    assert list(names("mdi", folder).values()) == ["rocket launch"]
    row = source("mdi")
    (item,) = read_icons(row, folder, TABLE)
    assert item.mono and item.group == "nature ecology"
    colour = package(tmp_path / "streamline", ["apple-1-flat", "google-logo", "arrow-left-2"])
    assert set(names("streamline-color", colour).values()) == {"apple", "arrow left"}


def test_what_reads_in_one_direction_is_not_mirrored(tmp_path: Path) -> None:
    row = source("icon-park")
    items = finish(row, read_icons(row, package(tmp_path / "p", ["arrow-left", "fish"]), TABLE))
    assert {item.name: item.mirror for item in items} == {"arrow left": False, "fish": True}


def test_line_icons_keep_to_the_classes(tmp_path: Path) -> None:
    folder = package(tmp_path / "ph", ["airplane-bold", "cog-line", "bulb", "align-left"])
    assert sorted(names("ph", folder).values()) == ["airplane", "gear", "light bulb"]


def test_equal_keys_are_told_apart() -> None:
    row = source("noto")
    twice = [Item("noto_dog", "noto", "dog"), Item("noto_dog", "noto", "dog")]
    assert [item.key for item in finish(row, iter(twice))] == ["noto_dog", "noto_dog_2"]


SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg"><metadata><dc:title>{title}</dc:title><dc:subject><rdf:li>hash</rdf:li>'
    '<rdf:li>Animal</rdf:li></dc:subject><cc:license rdf:resource="{licence}"/></metadata></svg>'
)
PUBLIC_DOMAIN = "http://web.resource.org/cc/PublicDomain"


def test_clip_art_takes_the_public_domain_only_and_names_what_is_drawn(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/openclipart/svg"
    drawings = {
        "animals/mammals/pig_jane_01.svg": ("A simple pig", PUBLIC_DOMAIN),
        "animals/mammals/cow_jane_01.svg": ("A cow", "http://creativecommons.org/licenses/GPL/2.0/"),
        "computer/burning_house_01.svg": ("Part of the Flat Icon Collection", PUBLIC_DOMAIN),
        "food/soup.svg": ("clip art by Jane Doe - hot_soup_02", PUBLIC_DOMAIN),
        "tools/firefox_jane.svg": ("browser", PUBLIC_DOMAIN),
        "special/gradient.svg": ("a gradient", PUBLIC_DOMAIN),
    }
    for place, (title, licence) in drawings.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SVG.format(title=title, licence=licence))
    items = list(read_clipart(source("openclipart"), tmp_path))
    assert {item.name for item in items} == {"a simple pig", "burning house", "hot soup"}
    assert all(item.tags == ["animal"] for item in items)


def test_the_variants_of_a_drawing_stay_together(tmp_path: Path) -> None:
    root = tmp_path / "usr/share/openclipart/svg/animals/mammals"
    root.mkdir(parents=True)
    for animal in "abcdefghijklmnop":
        for variant in (1, 2, 3):
            path = root / f"{animal * 4}_jane_0{variant}.svg"
            path.write_text(SVG.format(title=animal * 4, licence=PUBLIC_DOMAIN))
    roles: dict[str, set[str]] = {}
    for item in read_clipart(source("openclipart"), tmp_path):
        roles.setdefault(item.name, set()).add(item.role)
    assert all(len(found) == 1 for found in roles.values())
    assert {"train", "test"} == set().union(*roles.values())


def test_draws_depend_on_the_key_alone() -> None:
    assert [draw("a"), draw("b"), draw("a")] == [draw("a"), draw("b"), draw("a")]
    assert 40 < sum(draw(str(n)) < 50 for n in range(100)) < 60


PERMISSIVE = {"Apache-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC0-1.0", "ISC", "MIT", "public domain"}


@pytest.mark.parametrize("row", SOURCES, ids=lambda row: row.name)
def test_every_source_is_permissive_or_on_demand_and_says_whose_it_is(row: Source) -> None:
    assert (row.licence in PERMISSIVE) == (row.role != "demand")
    assert row.version and row.attribution and row.url.startswith("https://")
    assert 0 < row.embedded <= 1 and row.weight > 0
    assert source(row.name) is row


def test_the_table_is_consistent() -> None:
    assert len({row.name for row in SOURCES}) == len(SOURCES)
    assert all({source(a).role, source(b).role} == {"test", "train"} for a, b in TWINS.items())
    assert len(set(ICON_CLASSES.values())) == 90
    assert BRANDS.search("github") and BRANDS.search("google logo")
    assert not any(BRANDS.search(word) for word in ("log out", "apple", "steam", "edge", "digital"))
