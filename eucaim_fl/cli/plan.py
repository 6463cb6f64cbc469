"""`eucaim-fl plan`: what sites will be asked."""

from __future__ import annotations

import json
import math

import click

__all__ = ["command"]

_LARGE_DELTA = 0.01


@click.group("plan", short_help="Show what sites will be asked to do and to send.")
def command() -> None:
    """Plans: the one contract between researcher, coordinator and site."""


@command.command("show", context_settings={"ignore_unknown_options": True, "help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print only the canonical JSON that is hashed and sent.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def show(overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe's plan, its SHA-256, and in plain words what each site is asked. Nothing runs.

    \b
    Example:
      eucaim-fl plan show experiment=demo
    """
    from eucaim_fl.compose import compose, resolve, resolve_validation
    from eucaim_fl.plan_text import explain

    config = compose(overrides)
    plan = (resolve if config.validation.model is None else resolve_validation)(config).plan
    if as_json:
        click.echo(plan.canonical_json())
        return
    click.echo(json.dumps(plan.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False))
    click.echo(f"\nSHA-256: {plan.sha256()}\n")
    for sentence in explain(plan):
        click.echo(f"- {sentence}")
    delta = plan.privacy.delta
    if delta is not None and delta >= _LARGE_DELTA and plan.privacy.mechanism != "central_dp":
        click.echo(
            f"\nWarning: delta {delta:g} protects only sites of fewer than {math.ceil(1 / delta)} training patients; "
            "the others refuse the plan. Choose a smaller privacy.delta."
        )
