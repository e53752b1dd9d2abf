"""Commands that list models, attacks and methods, and that export and publish a model."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from advflyp.cli.arguments import Arg, Model, OutFile, OutFolder
from advflyp.cli.heavy import heavy_imports
from advflyp.terminal import say

if TYPE_CHECKING:
    from advflyp.report.measure.tables import Table


def models(name: Model | None = None, /) -> None:
    """List published robust CLIPs that every command accepts by name, or show the card of one.

    Args:
        name: Show the card of this model.
    """
    from advflyp.model.zoo import find_entry
    from advflyp.report.pages.zoo import zoo_card, zoo_table

    if name is not None:
        say(*zoo_card(find_entry(name)))
        return
    from advflyp.console import SafeConsole
    from advflyp.report.console import as_rich

    SafeConsole().print(as_rich(zoo_table()))
    say("`advflyp models MODEL` shows its paper, files and published figures.")


def attacks(name: Annotated[str, Arg("ATTACK")] | None = None, /) -> None:
    """List the attacks, or show what one does, with every parameter.

    Args:
        name: Show this attack.
    """
    from advflyp.attack.names import read_attack_name

    if name is not None:
        read_attack_name(name)
    with heavy_imports():
        from advflyp.report.pages.lists import attack_card, attacks_table

    _list(attacks_table(), "attacks ATTACK") if name is None else say(*attack_card(name))


def methods(name: Annotated[str, Arg("METHOD")] | None = None, /) -> None:
    """List the methods, or show the equation, recipes and keys of one.

    Args:
        name: Show this method.
    """
    with heavy_imports():
        from advflyp.report.pages.lists import method_card, methods_table

    _list(methods_table(), "methods METHOD") if name is None else say(*method_card(name))


def _list(table: "Table", command: str) -> None:
    """Print whole rows, however long, so that no name is ever cut."""
    width = max(len(str(row[0])) for row in table.rows)
    say(*("  ".join([f"{row[0]:{width}}", *map(str, row[1:])]) for row in table.rows))
    say(f"`advflyp {command}` shows everything of one.")


def export(model: Model, /, *, format: str = "open_clip", out: OutFolder = Path("exported")) -> None:
    """Write a model in a format that other libraries load, and verify that it computes the same embeddings.

    Args:
        format: open_clip, hf (transformers, with the image tower alone in vision/), or onnx (the image tower).
        out: New folder for the exported model.
    """
    with heavy_imports():
        from advflyp.model.interop.export import export_model

    found = export_model(model, format, out)
    say(f"largest difference between image embeddings: {found.images:.1e}")
    if found.texts is not None:
        say(f"largest difference between text embeddings: {found.texts:.1e}")
    if found.pixels is not None:
        say(
            f"largest difference between preprocessed pixels: {found.pixels:.2f}/255 (lowest cosine between an image's "
            f"embeddings after either: {found.cosine:.4f})"
        )
    if found.shifted:
        say(
            "transformers crops some images one pixel beside torchvision's crop, as for every CLIP on the hub"
        )
    say(f"the model is {found.folder}" + "".join(f", its image tower {path}" for path in found.also))


def publish(
    folder: Annotated[Path, Arg("FOLDER", input="there is no folder")],
    /,
    *,
    repo: Annotated[str, Arg("USER/NAME")],
    results: Annotated[tuple[Path, ...], Arg("FILE", input="there are no results at")] = (),
    licence: str | None = None,
    card: OutFile | None = None,
    send: bool = False,
    public: bool = False,
) -> None:
    """Show what a repository on the Hugging Face hub would hold, with its model card; --send publishes it.

    Args:
        folder: A run folder, or a folder that `advflyp export` wrote.
        repo: Name of the repository on the hub.
        results: Files of `advflyp eval --out`, for the card's table.
        licence: Identifier of a licence in the hub's list, such as apache-2.0 or mit (default: as card.json
            says; --send needs it).
        card: Also write the card here.
        send: Publish, with the token of `hf auth login`.
        public: Make a new repository public (default: only its owners see it).
    """
    from advflyp.model.interop.licences import find_licence

    if licence is not None:
        find_licence(licence)  # a mistake is reported before torch is imported
    elif send:
        raise ValueError("--send needs a licence, for example --licence apache-2.0")
    with heavy_imports():
        from advflyp.files import write_text
        from advflyp.model.interop.publish import prepare
        from advflyp.model.interop.publish import send as send_publication
        from advflyp.report.pages.model_card import MARK
        from advflyp.written import check_written_by_us

    if card is not None:
        check_written_by_us(card, MARK.encode(), option="--card")
    publication = prepare(folder, repo, results=results, licence=licence)
    if card is not None:
        write_text(card, publication.written["README.md"])
    for name, size, sha256 in publication.listing():
        say(f"{size:>13,}  {sha256}  {name}")
    if not publication.cells:
        say("warning: without --results the card says nothing about robustness", to_stderr=True)
    if publication.licence is None:
        say("warning: no licence (--licence)", to_stderr=True)
    if send:
        say(f"published: {send_publication(publication, public=public)}")
        return
    if card is None:
        say("", *publication.written["README.md"].splitlines())
    say(f"Nothing was sent; --send publishes this as {repo}.")
