"""Every error that eucaim_fl raises on purpose, in one tree.

EucaimError                     EFL000
├── ConfigError                 EFL100  what the researcher or the hospital wrote
│   ├── RecipeError             EFL101  unknown or contradictory recipe, group, key or value
│   ├── PlanError               EFL102  a plan that is malformed, altered or of another version
│   ├── SiteFileError           EFL103  a site file that can't be used
│   ├── PolicyError             EFL104  a policy that can't be used
│   ├── PermitError             EFL105  a data permit that is malformed, altered, expired or another's
│   ├── EnrolmentError          EFL106  an invitation or request that is malformed, altered or used up
│   ├── KeyFileError            EFL107  a key file that is missing, foreign, or readable by others
│   └── ReportError             EFL108  a validation's report that is malformed or altered
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
│   ├── GateError               EFL304  the site's gate stopped a reply
│   ├── LinkError               EFL305  no connection between coordinator and site
│   ├── SealError               EFL306  a message that is not signed by whom it claims to come from
│   ├── NotAdmittedError        EFL307  the coordinator does not know, or no longer accepts, this site's key
│   ├── PolicyRefusalError      EFL310  the site's policy refuses the plan
│   ├── ApprovalPendingError    EFL311  a person at the site has to decide first
│   └── OutsideHoursError       EFL312  the site's policy allows the plan at other hours
├── PrivacyError                EFL400  what differential privacy forbids
│   ├── PrivacyBudgetError      EFL401  a site's privacy budget does not hold what is asked
│   ├── LedgerError             EFL402  the privacy ledger can't be written, or was altered
│   └── PrivateTrainingError    EFL403  training that can't be made private as the plan asks
├── RunError                    EFL500  the run folder
│   ├── RunFolderBusyError      EFL501  another process works in it
│   ├── JournalError            EFL502  it can't be written, or what was written is damaged
│   ├── RunNotFoundError        EFL503  there is no such run
│   └── InterruptedRunError     EFL504  stopped by the user; resumable
├── TrainingError               EFL600  local training
│   └── NotFiniteError          EFL601  loss or weights became NaN or infinite
├── ServiceError                EFL700  a process that runs for long: a site's client, a federation's servers
│   ├── AuditError              EFL701  the audit log can't be written, or was altered
│   ├── ServiceStateError       EFL702  already running, not running, or not set up
│   └── StorageLimitError       EFL703  a site keeps as much of its own models as its site file lets it
└── InferenceError              EFL800  a frozen model
    ├── ModelRefusedError       EFL801  altered, of a foreign kind, or not what its contract says
    ├── ModelTimeError          EFL802  it took longer than it may
    ├── ModelMemoryError        EFL803  it asked for more memory than it may
    ├── ModelEndedError         EFL804  its process ended
    ├── ModelAnswerError        EFL805  what it answered are no probabilities
    └── LockError               EFL806  this machine can't lock in the process that runs it

``str(error)`` is safe outside the hospital: it never holds a path, a file name, or an identifier of a patient,
study or series. Those go into ``local_detail``, which only the local log and terminal show.
"""

from __future__ import annotations

__all__ = [
    "ApprovalPendingError", "AuditError", "CohortError", "ConfigError", "ConsentError", "DataError", "EnrolmentError",
    "EucaimError", "FederationError", "GateError", "IdentifierError", "ImportFailedError", "InferenceError",
    "InterruptedRunError", "JournalError", "KeyFileError", "LabelError", "LedgerError", "LinkError", "LockError",
    "ModelAnswerError", "ModelEndedError", "ModelMemoryError", "ModelRefusedError", "ModelTimeError",
    "NotAdmittedError", "NotFiniteError", "OutsideHoursError", "PermitError", "PlanError", "PolicyError",
    "PolicyRefusalError", "PrivacyBudgetError", "PrivacyError", "PrivateTrainingError", "QuorumError", "RecipeError",
    "ReplyError", "ReportError", "RunError", "RunFolderBusyError", "RunNotFoundError", "SealError", "SeriesError",
    "ServiceError", "ServiceStateError", "SiteFileError", "StorageLimitError", "TrainingError", "UnreadableFileError",
    "WorkerError",
]  # fmt: skip


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


class PolicyError(ConfigError):
    """A policy that can't be used."""

    code = "EFL104"


class PermitError(ConfigError):
    """A data permit that is malformed, altered, expired or another's."""

    code = "EFL105"


class EnrolmentError(ConfigError):
    """An invitation or a request that is malformed, altered or used up."""

    code = "EFL106"


class KeyFileError(ConfigError):
    """A key file that is missing, foreign, or readable by others."""

    code = "EFL107"


class ReportError(ConfigError):
    """A validation's report that is malformed or altered."""

    code = "EFL108"


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


class LinkError(FederationError):
    """There is no connection between coordinator and site."""

    code = "EFL305"


class SealError(FederationError):
    """A message that is not signed by whom it claims to come from."""

    code = "EFL306"


class NotAdmittedError(FederationError):
    """The coordinator does not know, or no longer accepts, this site's key."""

    code = "EFL307"


class PolicyRefusalError(FederationError):
    """The site's policy refuses the plan."""

    code = "EFL310"


class ApprovalPendingError(FederationError):
    """A person at the site has to decide first; ask again later."""

    code = "EFL311"


class OutsideHoursError(FederationError):
    """The site's policy allows the plan at other hours; ask again later."""

    code = "EFL312"


class PrivacyError(EucaimError):
    """Differential privacy forbids it."""

    code = "EFL400"


class PrivacyBudgetError(PrivacyError):
    """A site's privacy budget does not hold what is asked; how much is left is told at the site only."""

    code = "EFL401"


class LedgerError(PrivacyError):
    """The privacy ledger can't be written, or was altered; then nothing may be trained."""

    code = "EFL402"


class PrivateTrainingError(PrivacyError):
    """Training that can't be made private as the plan asks: its network, its delta, its noise, or too few patients."""

    code = "EFL403"


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


class ServiceError(EucaimError):
    """A process that runs for long can't go on."""

    code = "EFL700"


class AuditError(ServiceError):
    """The audit log can't be written, or was altered."""

    code = "EFL701"


class ServiceStateError(ServiceError):
    """A service already runs, does not run, or is not set up."""

    code = "EFL702"


class StorageLimitError(ServiceError):
    """A site keeps as much of its own models as its site file lets it."""

    code = "EFL703"


class InferenceError(EucaimError):
    """A frozen model can't be used."""

    code = "EFL800"


class ModelRefusedError(InferenceError):
    """A frozen model is altered, of a foreign kind, or not what its contract says."""

    code = "EFL801"


class ModelTimeError(InferenceError):
    """A frozen model took longer than it may."""

    code = "EFL802"


class ModelMemoryError(InferenceError):
    """A frozen model asked for more memory than it may."""

    code = "EFL803"


class ModelEndedError(InferenceError):
    """A frozen model's process ended."""

    code = "EFL804"


class ModelAnswerError(InferenceError):
    """What a frozen model answered are no probabilities."""

    code = "EFL805"


class LockError(InferenceError):
    """This machine can't lock in the process that runs a frozen model."""

    code = "EFL806"
