"""`eucaim-fl site`: what hospital IT does with a cohort and its line to a federation. One file a command."""

from __future__ import annotations

import click

from eucaim_fl.cli.lazy import LazyGroup

__all__ = ["command"]

_CLI = "eucaim_fl.cli"
_COMMANDS = {
    "init": (f"{_CLI}.site_init", "Make this site's home and keys from an invitation."),
    "check": (f"{_CLI}.site_check", "Say which patients can be used, and what is amiss with the line."),
    "start": (f"{_CLI}.site_start", "Connect, and do what the policy allows, until stopped."),
    "status": (f"{_CLI}.site_status", "Connected? Contributing? What waits for approval?"),
    "stop": (f"{_CLI}.site_stop", "End the running client."),
    "policy": (f"{_CLI}.site_policy", "Say what the policy allows of a plan, line by line."),
    "approve": (f"{_CLI}.site_approve:approve", "Let a plan run that waits for a decision."),
    "refuse": (f"{_CLI}.site_approve:refuse", "Refuse a plan."),
    "audit": (f"{_CLI}.site_audit", "Show, verify and export what left this site."),
    "ledger": (f"{_CLI}.site_ledger", "Show what privacy was spent here, and what is left."),
    "import": (f"{_CLI}.site_import", "Bring images into the cohort: folder, ZIP, archive."),
    "index": (f"{_CLI}.site_index", "Read the headers of new and changed files."),
    "locate": (f"{_CLI}.site_locate", "Name the patients or files that break a rule."),
    "lineage": (f"{_CLI}.site_lineage", "Say which runs patients were used in."),
    "models": (f"{_CLI}.site_models", "Show, export and delete the models that stay here."),
}


@click.group(
    "site", cls=LazyGroup, table=_COMMANDS, short_help="For hospital IT: check, connect, approve, see what left."
)
def command() -> None:
    """For hospital IT: what a site's cohort is good for, what the site may do, and what left it.

    Only three commands talk to anybody: `start` connects to the coordinator, `check --home` makes one handshake with
    it, and `import --from dicomweb` asks the archive that you name.

    Start with: eucaim-fl site check sites/a.yaml
    """
