"""`advflyp models`: published models by name; `advflyp export` and `advflyp publish`: models that leave."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from advflyp.cli.parse import Arg
from advflyp.terminal import say


@dataclass
class Models:
    """List published robust CLIPs that every command takes by name, or show what is known of one."""

    name: Annotated[str | None, Arg("MODEL", positional=True)] = None
    """Show this one's card."""

    def run(self) -> None:
        from advflyp.model.zoo import find_entry
        from advflyp.report.pages.zoo import zoo_card, zoo_table

        if self.name is not None:
            say(*zoo_card(find_entry(self.name)))
            return
        from advflyp.console import SafeConsole
        from advflyp.report.console import as_rich

        SafeConsole().print(as_rich(zoo_table()))
        say("`advflyp models MODEL` shows its paper, files and published figures.")


@dataclass
class Export:
    """Write a model in a format that others load, and verify that it computes the same."""

    model: Annotated[str, Arg("MODEL", positional=True)]
    """As in `advflyp eval`: mini, a run folder, ViT-B-32/openai, fare4-vit-l-14, …"""
    format: str = "open_clip"
    """open_clip, hf (transformers, with the image tower alone in vision/), onnx (the image tower)."""
    out: Annotated[Path, Arg("FOLDER", output="folder")] = Path("exported")
    """A new folder."""

    def run(self) -> None:
        from advflyp.model.interop.export import export_model

        found = export_model(self.model, self.format, self.out)
        say(f"largest difference between embeddings of pictures: {found.images:.1e}")
        if found.texts is not None:
            say(f"largest difference between embeddings of texts: {found.texts:.1e}")
        if found.pixels is not None:
            say(f"largest difference between preprocessed pixels: {found.pixels:.2f}/255")
        say(f"the model is {found.folder}" + "".join(f", its image tower {path}" for path in found.also))


@dataclass
class Publish:
    """Show what a repository on the Hugging Face hub would hold, with a complete model card; --send publishes it."""

    folder: Annotated[Path, Arg("FOLDER", positional=True, input="there is no folder")]
    """A run folder, or a folder that `advflyp export` wrote."""
    repo: Annotated[str, Arg("USER/NAME")]
    """The repository's name on the hub."""
    results: Annotated[tuple[Path, ...], Arg("FILE", input="there are no results at")] = ()
    """Files of `advflyp eval --out`, for the card's table."""
    licence: str | None = None
    """Identifier of the hub's list, such as apache-2.0 or mit."""
    card: Annotated[Path | None, Arg("FILE", output="file")] = None
    """Also write the card here."""
    send: bool = False
    """Publish, with the token of `hf auth login`."""
    public: bool = False
    """Of a new repository: everybody can see it. Otherwise only its owners can."""

    def run(self) -> None:
        from advflyp.model.interop.licences import find_licence

        if self.licence is not None:
            find_licence(self.licence)  # a mistake shows before torch is imported
        elif self.send:
            raise ValueError("say under which licence: --licence apache-2.0, for example")
        from advflyp.files import check_written_by_us, write_text
        from advflyp.model.interop.publish import prepare, send
        from advflyp.report.pages.model_card import MARK

        if self.card is not None:
            check_written_by_us(self.card, MARK.encode(), option="--card")
        publication = prepare(self.folder, self.repo, results=self.results, licence=self.licence)
        if self.card is not None:
            write_text(self.card, publication.written["README.md"])
        for name, size, sha256 in publication.listing():
            say(f"{size:>13,}  {sha256}  {name}")
        if not publication.cells:
            say(
                "warning: no results, so that the card says nothing of robustness (--results)",
                to_stderr=True,
            )
        if self.licence is None:
            say("warning: no licence (--licence)", to_stderr=True)
        if self.send:
            say(f"published: {send(publication, public=self.public)}")
        else:
            if self.card is None:
                say("", *publication.written["README.md"].splitlines())
            say(f"Nothing was sent; --send publishes this as {self.repo}.")
