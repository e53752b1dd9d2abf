import random

from advflyp.data.mini.captions import caption

DOG = {
    "name": "dog face",
    "tags": ["dog", "pet", "puppy", "animal"],
    "group": "mammals",
    "style": "flat emoji",
}


def draws(meta: dict, n: int = 400) -> list[str]:
    rng = random.Random(0)
    return [caption(meta, rng) for _ in range(n)]


def test_captions_vary_and_use_name_keywords_style_and_group() -> None:
    captions = draws(DOG)
    assert len(set(captions)) > 60
    for word in ("dog face", "puppy", "flat emoji", "mammals", "a picture of a dog face"):
        assert any(word in text for text in captions), word
    assert captions.count("dog face") > 20
    # Most name what is in the picture; some, like the web's, only give keywords or the group.
    assert 0.8 < sum("dog face" in text for text in captions) / len(captions) < 1


def test_the_same_generator_gives_the_same_captions() -> None:
    assert draws(DOG) == draws(DOG)
    rng = random.Random(1)
    assert [caption(DOG, rng) for _ in range(20)] != draws(DOG, 20)


def test_captions_are_never_empty() -> None:
    for meta in (
        {"name": "key"},
        {"name": " ", "tags": [], "group": None, "style": None},
        {"name": "key", "tags": ["KEY", " "], "group": "", "style": ""},
    ):
        assert all(text.strip() for text in draws(meta))


def test_articles() -> None:
    assert any("an apple" in text for text in draws({"name": "apple"}))
    assert not any("a apple" in text or "a the" in text for text in draws({"name": "apple"}))
    assert not any("a 2nd" in text for text in draws({"name": "2nd place medal"}))
