"""The command `eucaim-fl` with two watches on it: a listener that stamps each round's start, and `first_step`.

Arguments are those of `eucaim-fl`. What is imported here the command imports as well, after the same first act.
"""

from __future__ import annotations

if __name__ == "__main__":
    from eucaim_fl.federation import processes

    processes._PRELOAD.append("first_step")
    processes.warm_up()

    from stamps import stamp

    from eucaim_fl.cli import main
    from eucaim_fl.federation.progress import Listener, listening

    class _Watch(Listener):
        def round_started(self, number: int, sites: int) -> None:
            stamp(f"round-{number}")

    with listening(_Watch()):
        main()
