"""Prompt templates, and class names as words that a prompt can hold."""

from collections.abc import Iterable, Sequence

PHOTO = "This is a photo of a {}."
RENDERING = "This is an artistic rendering of a {}."
SKETCH = "This is a sketch of a {}."

# Folder names that are no words, or not the words a caption would use.
CALTECH101 = {
    "Faces": "off-center face",
    "Faces_easy": "centered face",
    "Leopards": "leopard",
    "Motorbikes": "motorbike",
    "airplanes": "airplane",
    "car_side": "side of a car",
    "cougar_body": "body of a cougar",
    "cougar_face": "face of a cougar",
    "crocodile_head": "head of a crocodile",
    "flamingo_head": "head of a flamingo",
    "water_lilly": "water lily",
}
EUROSAT = {
    "AnnualCrop": "annual crop land",
    "Forest": "forest",
    "HerbaceousVegetation": "brushland or shrubland",
    "Highway": "highway or road",
    "Industrial": "industrial buildings",
    "Pasture": "pasture land",
    "PermanentCrop": "permanent crop land",
    "Residential": "residential buildings",
    "River": "river",
    "SeaLake": "sea or lake",
}


def words(name: str) -> str:
    """A folder name as words: "hot_dog" → "hot dog"."""
    return " ".join(name.replace("_", " ").replace("/", " ").split())


def openai_templates() -> list[str]:
    """OpenAI's 80 templates for ImageNet."""
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

    return [template("{}") for template in OPENAI_IMAGENET_TEMPLATES]


def choose_templates(chosen: str | Sequence[str]) -> list[str]:
    """ "openai" (80 templates), one template or several; ValueError for one without exactly one {}."""
    templates = texts_of(chosen, "prompt templates")
    if templates == ["openai"]:
        return openai_templates()
    if not templates:
        raise ValueError(f'name at least one prompt template, for example "{PHOTO}"')
    for template in templates:
        before, slot, after = template.partition("{}")
        if not slot or set("{}") & set(before + after):
            raise ValueError(
                f"the prompt '{template}' must contain {{}} exactly once and no other braces: {{}} is where the class "
                f'name goes, for example "{PHOTO}"'
            )
    return templates


def texts_of(given: str | Iterable[str], what: str) -> list[str]:
    """One text or several, as a list; ValueError for anything else."""
    texts = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"{what} must be text, not {str(odd[0])[:40]} ({type(odd[0]).__name__})")
    return texts


def several_texts(given: Iterable[str], what: str) -> list[str]:
    """As `texts_of`; ValueError for a single text, too, where several are expected."""
    if isinstance(given, str):
        raise ValueError(f"{what} must be a list, not the text {given!r}; write [{given!r}]")
    return texts_of(given, what)


def fill(template: str, name: str) -> str:
    """The prompt for a class name; `str.format` would also interpret other braces in the template."""
    return template.replace("{}", name)


def describe(templates: Sequence[str]) -> str:
    """The templates as results record them."""
    if len(templates) == 80 and list(templates) == openai_templates():
        return "OpenAI's 80 ImageNet templates"
    return " | ".join(templates)
