"""The rules that make words of the authors' names: what they make of real ones."""

import pytest

from advflyp.data.sets.catalogue import TABLE
from advflyp.data.sets.classnames import ADVFLYP_CODE, OURS, TECOA, wordnet_imagenet

# (set, the authors' name, ours, the release's, TeCoA's)
NAMES = [
    ("cifar10", "airplane", "airplane", "airplane", "airplane"),
    ("cifar100", "aquarium_fish", "aquarium fish", "aquarium_fish", "aquarium fish"),
    ("stl10", "monkey", "monkey", "monkey", "monkey"),
    ("caltech101", "Faces", "off-center face", "person", "person"),
    ("caltech101", "Faces_easy", "centered face", "person", "person"),
    ("caltech101", "Leopards", "leopard", "Leopards", "leopards"),
    ("caltech101", "water_lilly", "water lily", "water_lilly", "water lilly"),
    ("caltech101", "yin_yang", "yin yang", "yin_yang", "yin yang"),
    ("caltech256", "006.basketball-hoop", "basketball hoop", "basketball hoop", "basketball hoop"),
    ("caltech256", "251.airplanes-101", "airplanes", "airplanes", "airplanes"),
    ("oxford_pets", "american_bulldog", "American Bulldog", "american bulldog", "american bulldog"),
    ("flowers102", "pink-yellow dahlia?", "pink-yellow dahlia", "pink yellow dahlia?", "pink yellow dahlia?"),
    ("flowers102", "desert-rose", "desert-rose", "desert rose", "desert rose"),
    ("food101", "hot_and_sour_soup", "hot and sour soup", "hot and sour soup", "hot and sour soup"),
    ("stanford_cars", "Audi S4 Sedan 2012", "Audi S4 Sedan 2012", "audi s4 sedan", "audi s4 sedan"),
    ("stanford_cars", "Mercedes-Benz E-Class Sedan 2012", "Mercedes-Benz E-Class Sedan 2012",
     "mercedes benz e class sedan", "mercedes benz e class sedan"),
    ("sun397", "apartment_building/outdoor", "apartment building outdoor", "apartment_building/outdoor",
     "apartment building/outdoor"),
    ("country211", "BO", "Bolivia", "Bolivia, Plurinational State of", "Bolivia, Plurinational State of"),
    ("country211", "TL", "Timor-Leste", "Timor Leste", "Timor Leste"),
    ("country211", "XK", "Kosovo", "Kosovo", "Kosovo"),
    ("country211", "FR", "France", "France", "France"),
    ("fgvc_aircraft", "707-320", "707-320", "boeing 707-320", "boeing 707-320"),
    ("fgvc_aircraft", "F-16A/B", "F-16A/B", "f-16a/b", "f-16a/b"),
    ("eurosat", "Forest", "forest", "a forest", "a forest"),
    ("eurosat", "AnnualCrop", "annual crop land", "annual crop land", "annual crop land"),
    ("dtd", "polka-dotted", "polka-dotted", "polka dotted", "polka dotted"),
    ("imagenet", "n01440764", "tench", "tench", "tench"),
    ("imagenet-r", "n02106662", "German Shepherd Dog", "German shepherd", "german shepherd"),
    ("imagenet-a", "n01498041", "stingray", "stingray", "stingray"),
    ("tiny-imagenet", "spider web, spider's web", "spider web", "spider web", "spider web"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "own", "ours", "release", "tecoa"), NAMES)
def test_names(name: str, own: str, ours: str, release: str, tecoa: str) -> None:
    assert (OURS[name](own), ADVFLYP_CODE[name](own), TECOA[name](own)) == (ours, release, tecoa)


def test_every_set_has_a_rule() -> None:
    assert OURS.keys() == TABLE.keys()
    assert TECOA.keys() == TABLE.keys() - {"objectnet"}
    assert ADVFLYP_CODE.keys() == TECOA.keys() - {"pcam"}


def test_imagenet_by_wordnet() -> None:
    names = wordnet_imagenet()
    assert len(names) == 1000
    # Of the two maillots and two cranes, neither of which the first word tells apart.
    assert len(set(names.values())) == 998
