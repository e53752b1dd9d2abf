"""The licences that a card on the Hugging Face hub may name."""

import difflib

# https://huggingface.co/docs/hub/repositories-licenses, October 2026. Not SPDX's list: the hub refuses any other.
LICENCES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0",
    "etalab-2.0", "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0",
    "gpl-3.0", "grok2-community", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr",
    "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa",
    "odbl", "odc-by", "ofl-1.1", "openmdw-1.0", "openmdw-1.1", "openrail", "openrail++", "osl-3.0", "other", "pddl",
    "postgresql", "unknown", "unlicense", "wtfpl", "zlib",
}  # fmt: skip


def find_licence(name: str) -> str:
    """The identifier of a licence as the hub writes it, whatever the case: "Apache 2.0" → "apache-2.0".

    Raises:
        ValueError: The hub's list has none of that name; the message suggests similar ones.
    """
    wanted = "-".join(name.lower().replace("_", " ").split())
    if wanted in LICENCES:
        return wanted
    alike = [one for one in sorted(LICENCES) if one.startswith(f"{wanted}-")]
    alike = alike or difflib.get_close_matches(wanted, sorted(LICENCES), n=3)
    hint = f"did you mean {' or '.join(alike)}?" if alike else "for example apache-2.0 or mit."
    raise ValueError(
        f"--licence: the hub's list has no '{name}'; {hint} Any other licence is called other; the list is at "
        "https://huggingface.co/docs/hub/repositories-licenses"
    )
