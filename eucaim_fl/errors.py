"""Every error that eucaim_fl raises on purpose, in one tree.

EucaimError                     EFL000
├── ConfigError                 EFL100  what the researcher or the hospital wrote
│   ├── RecipeError             EFL101  unknown or contradictory recipe, group, key or value
│   ├── PlanError               EFL102  a plan that is malformed, altered or of another version
│   └── SiteFileError           EFL103  a site file that can't be used
├── DataError                   EFL200  what lies in the cohort
│   ├── CohortError             EFL201  folder missing, nothing usable in it, too few patients
│   ├── SeriesError             EFL202  slices that form no volume
│   ├── LabelError              EFL203  a label that is missing or doesn't fit its image
│   ├── UnreadableFileError     EFL204  a corrupt, truncated or foreign file
│   ├── IdentifierError         EFL205  a file that can still name a person
│   ├── ConsentError            EFL206  a patient who may not be used, or a consent table that can't be read
│   └── ImportFailedError       EFL207  images that could not be brought into the cohort
├── FederationError             EFL300  what goes wrong between coordinator and sites
│   ├── QuorumError             EFL301  too few sites answered a round
│   ├── ReplyError              EFL302  a reply that doesn't fit the plan
│   ├── WorkerError             EFL303  a site's process ended, or did not answer in time
│   └── GateError               EFL304  the site's gate stopped a reply
├── RunError                    EFL500  the run folder
│   ├── RunFolderBusyError      EFL501  another process works in it
│   ├── JournalError            EFL502  it can't be written, or what was written is damaged
│   ├── RunNotFoundError        EFL503  there is no such run
│   └── InterruptedRunError     EFL504  stopped by the user; resumable
└── TrainingError               EFL600  local training
    └── NotFiniteError          EFL601  loss or weights became NaN or infinite

``str(error)`` is safe outside the hospital: it never holds a path, a file name, or an identifier of a patient,
study or series. Those go into ``local_detail``, which only the local log and terminal show.
"""

from __future__ import annotations

__all__ = [
    "CohortError",
    "ConfigError",
    "ConsentError",
    "DataError",
    "EucaimError",
    "FederationError",
    "GateError",
    "IdentifierError",
    "ImportFailedError",
    "InterruptedRunError",
    "JournalError",
    "LabelError",
    "NotFiniteError",
    "PlanError",
    "QuorumError",
    "RecipeError",
    "ReplyError",
    "RunError",
    "RunFolderBusyError",
    "RunNotFoundError",
    "SeriesError",
    "SiteFileError",
    "TrainingError",
    "UnreadableFileError",
    "WorkerError",
]


class EucaimError(Exception):
    """Something the user can mend. `fix` says how; `local_detail` must not leave the machine it arose on."""

    code = "EFL000"

    def __init__(self, message: str, *, fix: str = "", local_detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.local_detail = local_detail

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    def for_terminal(self) -> str:
        """The whole story, with local details; for the machine's own terminal and log only."""
        lines = [f"{self.code}: {self.message}"]
        if self.local_detail:
            lines.append(f"  where: {self.local_detail}")
        if self.fix:
            lines.append(f"  do:    {self.fix}")
        return "\n".join(lines)


class ConfigError(EucaimError):
    """What the researcher or the hospital wrote can't be used."""

    code = "EFL100"


class RecipeError(ConfigError):
    """Unknown or contradictory recipe, group, key or value."""

    code = "EFL101"


class PlanError(ConfigError):
    """A plan that is malformed, altered or of another version."""

    code = "EFL102"


class SiteFileError(ConfigError):
    """A site file that can't be used."""

    code = "EFL103"


class DataError(EucaimError):
    """What lies in the cohort can't be used."""

    code = "EFL200"


class CohortError(DataError):
    """Folder missing, nothing usable in it, or too few patients."""

    code = "EFL201"


class SeriesError(DataError):
    """Slices that form no volume."""

    code = "EFL202"


class LabelError(DataError):
    """A label that is missing or doesn't fit its image."""

    code = "EFL203"


class UnreadableFileError(DataError):
    """A corrupt, truncated or foreign file."""

    code = "EFL204"


class IdentifierError(DataError):
    """A file that can still name a person."""

    code = "EFL205"


class ConsentError(DataError):
    """A patient who may not be used, or a consent table that can't be read."""

    code = "EFL206"


class ImportFailedError(DataError):
    """Images that could not be brought into the cohort."""

    code = "EFL207"


class FederationError(EucaimError):
    """Something went wrong between coordinator and sites."""

    code = "EFL300"


class QuorumError(FederationError):
    """Too few sites answered a round; the run can be resumed."""

    code = "EFL301"


class ReplyError(FederationError):
    """A reply that doesn't fit the plan."""

    code = "EFL302"


class WorkerError(FederationError):
    """A site's process ended, or did not answer in time."""

    code = "EFL303"


class GateError(FederationError):
    """The site's gate stopped a reply."""

    code = "EFL304"


class RunError(EucaimError):
    """The run folder can't be used."""

    code = "EFL500"


class RunFolderBusyError(RunError):
    """Another process works in the run folder."""

    code = "EFL501"


class JournalError(RunError):
    """The journal can't be written, or what was written is damaged."""

    code = "EFL502"


class RunNotFoundError(RunError):
    """There is no such run."""

    code = "EFL503"


class InterruptedRunError(RunError):
    """Stopped by the user; the run can be resumed."""

    code = "EFL504"


class TrainingError(EucaimError):
    """Local training can't go on."""

    code = "EFL600"


class NotFiniteError(TrainingError):
    """Loss or weights became NaN or infinite."""

    code = "EFL601"
