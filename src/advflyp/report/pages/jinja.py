"""The templates of every page: they escape whatever they show, and can read only the data they are given."""

import base64
import io
from functools import cache
from typing import Any

from jinja2 import PackageLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from advflyp.escape import for_terminal
from advflyp.report.figures.examples import amplification, perturbation


def render(template: str, **data: Any) -> str:
    """A page from a file of templates/, with no line break between a number and its sign."""
    page = _environment().get_template(template).render(**data)
    return page.replace(" %", "\u00a0%").replace("ε = ", "ε\u00a0=\u00a0")


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    found = ImmutableSandboxedEnvironment(
        loader=PackageLoader("advflyp.report.pages"),
        autoescape=lambda name: str(name).endswith(".html"),
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        cache_size=-1,
    )
    found.filters |= {"data_uri": data_uri, "jpeg": jpeg}
    found.globals |= {"amplification": amplification, "perturbation": perturbation}
    return found


def _printable(value: Any) -> Any:
    """Markup unchanged; other text with control characters and lone surrogates as Python escapes them."""
    return value if hasattr(value, "__html__") else for_terminal(str(value), keep="\n\t")


def data_uri(pixels: Tensor) -> str:
    """(3, H, W) pixels in [0, 1] as the address of an inline image: lossless if small, else a light JPEG."""
    image = to_pil_image((pixels.detach().cpu() * 255).round().byte())
    is_small = max(image.size) <= 96
    return _address(image, "png", optimize=True) if is_small else _address(image, "jpeg", quality=88)


def jpeg(image: Image.Image) -> str:
    """The image as the address of an inline JPEG."""
    return _address(image, "jpeg", quality=85)


def _address(image: Image.Image, kind: str, **options: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
