"""advflyp: adversarially robust CLIP-like models."""
