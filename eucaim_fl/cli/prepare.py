"""`eucaim-fl prepare`: write cohorts that recipes of this project use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.progress import Progress

from eucaim_fl.config import ExperimentConfig
from eucaim_fl.sitefile import data_root

__all__ = ["command", "ensure_prepared"]


@click.group("prepare", short_help="Write cohorts: the demo hospitals, or real data sets.")
def command() -> None:
    """Write cohorts into the data folder (`EUCAIM_FL_DATA`, default ./data)."""


def _with_bar(console: Console, title: str, work: Callable[[Callable[[int, int], None]], None]) -> None:
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=None)
        work(lambda done, total: progress.update(bar, completed=done, total=total))


@command.command("demo")
@click.option("--to", "target", type=click.Path(path_type=Path), help="Folder; default: demo in the data folder.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--patients", type=click.IntRange(10, 500), default=24, show_default=True, help="Patients a hospital.")
def demo(target: Path | None, seed: int, patients: int) -> None:
    """Write four synthetic hospitals with DICOM, DICOM SEG and NIfTI files.

    \b
    Example:
      eucaim-fl prepare demo
    """
    from eucaim_fl.cohorts.synthetic import write_demo

    folder = target or data_root() / "demo"
    _with_bar(
        Console(stderr=True),
        "demo hospitals",
        lambda tell: write_demo(folder, seed=seed, patients=patients, progress=tell),
    )
    click.echo(str(folder))


@command.command("lidc_nodules")
@click.option("--from", "source", type=click.Path(path_type=Path), required=True, help="Folder with the data set.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="Folder to write into; default: the data folder.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--split",
    type=click.Choice(["equal", "skewed"]),
    default="equal",
    show_default=True,
    help="Scans at random, or from small solid nodules to large ones of ground glass (sites lidc_skewed_a to _d).",
)
def lidc_nodules(source: Path, target: Path | None, seed: int, split: Literal["equal", "skewed"]) -> None:
    """Write 134 real CT lung nodules (LIDC-IDRI) as four hospitals' cohorts.

    \b
    Examples:
      eucaim-fl prepare lidc_nodules --from downloads/lidc_nodules
      eucaim-fl prepare lidc_nodules --from downloads/lidc_nodules --split skewed
    """
    from eucaim_fl.cohorts.lidc import write_lidc

    folder = target or data_root()
    _with_bar(
        Console(stderr=True),
        "LIDC nodules",
        lambda tell: write_lidc(source, folder, seed=seed, split=split, progress=tell),
    )
    click.echo(str(folder))


@command.command("ham10000")
@click.option("--from", "source", type=click.Path(path_type=Path), required=True, help="Folder with the data set.")
@click.option("--to", "target", type=click.Path(path_type=Path), help="Folder to write into; default: the data folder.")
@click.option("--seed", type=int, default=0, show_default=True, help="Deals the lesions with --split chance.")
@click.option(
    "--split",
    type=click.Choice(["sources", "chance"]),
    default="sources",
    show_default=True,
    help="Lesions where they were taken, or by chance to sites of the same sizes (ham_chance_a to _d).",
)
def ham10000(source: Path, target: Path | None, seed: int, split: Literal["sources", "chance"]) -> None:
    """Write 5,984 real dermatoscopy images (HAM10000) as four hospitals' cohorts, by their true sources.

    \b
    Examples:
      eucaim-fl prepare ham10000 --from downloads/ham10000
      eucaim-fl prepare ham10000 --from downloads/ham10000 --split chance
    """
    from eucaim_fl.cohorts.ham10000 import write_ham10000

    folder = target or data_root()
    _with_bar(
        Console(stderr=True),
        "HAM10000",
        lambda tell: write_ham10000(source, folder, seed=seed, split=split, progress=tell),
    )
    click.echo(str(folder))


def ensure_prepared(config: ExperimentConfig, console: Console) -> None:
    """Build the demo hospitals if the recipe asks for them and none are there yet.

    Raises CohortError if the folder holds something else.
    """
    if config.prepare != "demo":
        return
    from eucaim_fl.cohorts.synthetic import demo_is_there, write_demo

    folder = data_root() / "demo"
    if demo_is_there(folder):
        return
    console.print("Building four demo hospitals …", highlight=False)
    _with_bar(console, "demo hospitals", lambda tell: write_demo(folder, progress=tell))
