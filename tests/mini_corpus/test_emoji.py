import pytest

from tools.mini_corpus.emoji import Emoji, EmojiTable, glue, slug, split_glued, without_tone

TABLE = EmojiTable(
    [
        Emoji("alarm clock", ("time", "wake"), "time", "time", "23F0"),
        Emoji("dog face", ("pet", "puppy"), "animal-mammal", "mammals", "1F436"),
        Emoji("Santa Claus", ("christmas",), "person-fantasy", "fantasy", "1F385"),
        Emoji("fox", ("weary",), "animal-mammal", "mammals", "1F98A"),
        Emoji("flag: Côte d’Ivoire", (), "country-flag", "country flags", "1F1E8-1F1EE"),
        Emoji("police car", (), "transport-ground", "ground", "1F693"),
        Emoji("heart suit", (), "game", "games", "2665"),
    ]
)


def named(icon: str) -> str | None:
    found = TABLE.by_name(icon)
    return found.name if found else None


@pytest.mark.parametrize(
    ("icon", "name"),
    [
        ("dog-face", "dog face"),
        ("dog-face-2", "dog face"),
        ("alarmclock", "alarm clock"),
        ("fatherchristmas", "Santa Claus"),  # the character's name in Unicode, glued
        ("blackheartsuit", "heart suit"),
        ("nothing-like-it", None),
    ],
)
def test_icon_names_are_matched_to_the_standard_names(icon: str, name: str | None) -> None:
    assert named(icon) == name


def test_lookup_by_code_point_ignores_variation_selectors_and_case() -> None:
    for hexcode in ("2665", "2665-fe0f", "2665-FE0E"):
        found = TABLE.by_hexcode(hexcode)
        assert found is not None and found.name == "heart suit"
    assert TABLE.by_hexcode("1F600") is None


def test_flags_by_country_code() -> None:
    found = TABLE.by_country("ci")
    assert found is not None and found.is_flag
    assert TABLE.by_country("de") is None
    assert TABLE.by_country("gb-eng") is None


def test_slug_and_glue_drop_accents_and_separators() -> None:
    assert slug("Côte d'Ivoire") == "cote-divoire"
    assert slug("“okay” button!") == "okay-button"
    assert glue("dog face") == "dogface"


@pytest.mark.parametrize(
    ("icon", "short", "expected"),
    [
        ("waving-hand-medium-dark-skin-tone", False, ("waving-hand", True)),
        ("couple-dark-skin-tone-light-skin-tone", False, ("couple", True)),
        ("breast-feeding-tone5", False, ("breast-feeding", True)),
        ("light-bulb", False, ("light-bulb", False)),
        ("astronaut-medium-light", True, ("astronaut", True)),
        ("astronaut", True, ("astronaut", False)),
    ],
)
def test_skin_tones_are_taken_off(icon: str, short: bool, expected: tuple[str, bool]) -> None:
    assert without_tone(icon, short=short) == expected


def test_glued_names_are_split_into_known_words() -> None:
    assert split_glued("foxweary", TABLE.vocabulary) == "fox weary"
    assert split_glued("clock4time", TABLE.vocabulary) == "clock 4 time"
    assert split_glued("foxzzz", TABLE.vocabulary) is None
    # As few words as possible.
    assert split_glued("alarmclock", frozenset({"a", "larm", "alarm", "clock"})) == "alarm clock"
