"""What a site has beside the common model: arrays of its own in it, a personal model, a local one, and a state.

All of it stays here. The state of a round begins where the newest one before it ended, so a round that is asked for
twice has the same answer twice. Only what an objective remembers begins where the last round ended that counted: the
server's own state follows from the updates that moved it, and the two must not part.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from eucaim_fl.arrays import GUIDE, Array, Arrays, without_guide
from eucaim_fl.cohorts.cohort import PreparedCase
from eucaim_fl.errors import NotFiniteError, PlanError
from eucaim_fl.models.networks import get_arrays, set_arrays
from eucaim_fl.models.parts import personal_names
from eucaim_fl.models.planned import first_arrays
from eucaim_fl.plan import FederationPlan
from eucaim_fl.records import ModelName, Past
from eucaim_fl.seeding import derive_seed
from eucaim_fl.site.state_store import StateStore, joined, part
from eucaim_fl.sitefile import SiteFile
from eucaim_fl.training.loop import TrainingOutcome, train_round
from eucaim_fl.training.objective import Pull, pull_for, state_after
from eucaim_fl.training.statistics import conditioning, own_input, sums_over

__all__ = ["OwnModels", "Start"]

_LOG = logging.getLogger("eucaim_fl.site")
_CONTROL, _OWN, _MOMENTS, _DIVERGED = "control", "own", "moments", "diverged"
"""What a state holds beside whole models: what the objective remembers, arrays that stay at the site, and what the
optimizer of the common model's training remembers; `moments_NAME` is that of a whole model, and `diverged_NAME` the
last round in which its training diverged."""
_UNTOLD = Past()
_SLOTS, _ROUNDS_AT_ONCE = 2, 4
"""How many arrays an optimizer keeps for one of the network's, at most; of how many rounds there are files at a time,
while every answer counts."""

Cases = Sequence[PreparedCase]


@dataclass(frozen=True, eq=False)
class Start:
    """Where a round begins. arriving: what travelled of the model. whole: all arrays of the network, with the site's
    own. guide: what the method tells all sites. state: what the site kept of earlier rounds."""

    arriving: Arrays
    whole: Arrays
    guide: Arrays = field(default_factory=dict)
    state: Arrays = field(default_factory=dict)


class OwnModels:
    """One plan's own models and state at one site. A plan that has none of these touches no disk."""

    def __init__(self, site: SiteFile, plan: FederationPlan) -> None:
        self._site, self._plan, self._personal = site.name, plan, plan.method.personal
        self._store = StateStore(site.records_folder(), plan.sha256(), site.records.models_bytes())
        self._input: tuple[Cases, Arrays] | None = None

    @property
    def first(self) -> ModelName:
        """The model that is measured in rounds: the common one, or the site's own where there is none."""
        return self._personal.candidates()[0]

    def start(
        self, network: nn.Module, arrived: Mapping[str, Array], cases: Cases, number: int, past: Past = _UNTOLD
    ) -> Start:
        """What a round, or the last exchange, begins with. arrived: the arrays of the instruction. cases: of training.

        past: nothing that was kept in another run is used; what the objective remembers is that of the last round that
        counted, all else the newest, which concerns this site alone.
        Raises PlanError if what arrived is not what travels of the network; JournalError if the state can't be read.
        """
        arriving, personal = without_guide(arrived), personal_names(network, self._plan)
        if not personal.isdisjoint(arriving):
            raise PlanError("Arrays arrived that stay at the site.")
        state = self._store.start(number, past, (_CONTROL,)) if self._plan.keeps_state() else {}
        own = part(state, _OWN)
        if personal and not own:
            own = {name: array for name, array in first_arrays(self._plan).items() if name in personal}
        guide = {name.removeprefix(GUIDE): array for name, array in arrived.items() if name.startswith(GUIDE)}
        return Start(arriving, {**arriving, **own, **self._own_input(cases)}, guide, state)

    def check_space(self, network: nn.Module, past: Past = _UNTOLD) -> None:
        """Whether there is room for all that the run will keep here, before anything is trained for it.

        Raises StorageLimitError if there is not, JournalError if it can't be known.
        """
        if not self._plan.keeps_records():
            return
        personal, objective, kept = self._personal, self._plan.method.objective, self._plan.training.optimizer.kept
        wholes = (personal.ditto is not None) + personal.local
        parts = objective.has_state() + (personal.arrays != "none") + wholes + _SLOTS * kept * (1 + wholes)
        final = len(set(personal.candidates()) - {"blended"}) if self._plan.keeps_models() else 0
        whole = sum(array.nbytes for array in get_arrays(network).values())
        self._store.check_space(whole * (parts * _ROUNDS_AT_ONCE + final), past.run)

    def pull(self, start: Start) -> Pull | None:
        """What draws the steps of the common model's training; see `training.objective`."""
        control = part(start.state, _CONTROL)
        return pull_for(self._plan.method.objective, start.arriving, control, start.guide)

    def moments(self, start: Start) -> Arrays:
        """What the optimizer of the common model's training remembers of earlier rounds; {} if nothing is kept."""
        return part(start.state, _MOMENTS)

    def after(
        self, network: nn.Module, start: Start, update: Mapping[str, Array], outcome: TrainingOutcome
    ) -> dict[str, Arrays]:
        """What is kept of the common model's training: what the objective remembers, and the site's own arrays.

        network: as it was trained. update: what leaves of it.
        """
        kept: dict[str, Arrays] = {_MOMENTS: outcome.moments} if outcome.moments else {}
        if self._plan.method.objective.has_state():
            trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
            learnt = {name: array for name, array in update.items() if name in trainable}
            control = part(start.state, _CONTROL)
            kept[_CONTROL] = state_after(self._plan.method.objective, control, start.guide, learnt, outcome.lr_sum)
        if self._personal.arrays != "none":
            kept[_OWN] = {name: array for name, array in get_arrays(network).items() if name not in update}
        return kept

    def train(self, network: nn.Module, start: Start, cases: Cases, number: int) -> dict[str, Arrays]:
        """Train the models that are the site's alone for one round, each from where it stood: name → arrays.

        personal: towards the arriving weights, with the gradient λ · (w − w_common). Source: Li et al. 2021, Ditto,
        algorithm 1. It begins with the weights that arrive, in the first round or when it is lost. local: as if there
        were no federation, with statistics of this site alone, and from the weights that follow from the plan's seed,
        also where the first round begins with others. One whose training diverges stays as it was, which the local log
        says: it is no reason to lose the common model's update.
        """
        kept: dict[str, Arrays] = {}
        if self._personal.ditto is not None:
            own = part(start.state, "personal") or start.whole
            pull = Pull(self._personal.ditto, start.arriving, {})
            set_arrays(network, {**own, **self._own_input(cases)})
            kept |= self._trained(network, start, cases, number, pull)
        if self._personal.local:
            set_arrays(network, self._local(start, cases))
            kept |= self._trained(network, start, cases, number, None)
        return kept

    def keep(self, number: int, kept: Mapping[str, Mapping[str, Array]], past: Past = _UNTOLD) -> None:
        """Keep the state of a round, before its answer leaves.

        Raises JournalError if it can't be written, StorageLimitError if it would take more than the site file allows.
        """
        if self._plan.keeps_state():
            self._store.keep(number, joined(kept), self._plan.canonical_json(), past)

    def finished(
        self, network: nn.Module, start: Start, cases: Cases
    ) -> Iterator[tuple[ModelName, Arrays, int | None]]:
        """The models that the site has in the end, one after the other, each complete; but for the blended one, which
        is two of these. With each the number of distinct patients whom its fine-tuning saw; None without. It is 0 of a
        model whose training diverged in any round, since nothing is to be told of it.

        personal: fine-tuned from the final weights on the site's training patients, where the plan says so; where that
        diverges, which the local log says, it is these weights.
        """
        for name in self._personal.candidates():
            if name == "blended":
                continue
            if name == "local":
                yield name, self._local(start, cases), self._none_of(start, name)
            elif name == "personal" and self._personal.ditto is not None:
                own = part(start.state, name) or start.whole
                yield name, {**own, **self._own_input(cases)}, self._none_of(start, name)
            elif name == "personal" and self._personal.fine_tune_steps:
                yield name, *self._fine_tuned(network, start, cases)
            else:
                yield name, start.whole, None

    def keep_final(
        self, models: Mapping[ModelName, Mapping[str, Array]], chosen: ModelName | None, past: Past = _UNTOLD
    ) -> None:
        """Keep the models that the site has in the end, if any is its own. Raises what `keep` raises."""
        if self._plan.keeps_models():
            complete = {str(name): arrays for name, arrays in models.items()}
            self._store.keep_final(complete, chosen or "", self._plan.canonical_json(), past.run)

    def _own_input(self, cases: Cases) -> Arrays:
        """The statistics of the site's own input, where the plan has it standardise by these; made once a cohort."""
        if self._input is None or self._input[0] is not cases:
            self._input = (cases, own_input(cases, self._plan))
        return self._input[1]

    def _none_of(self, start: Start, name: str) -> int | None:
        """0 where the model's training diverged in any round, so that nothing may be told of it; else None."""
        return 0 if part(start.state, f"{_DIVERGED}_{name}") else None

    def _local(self, start: Start, cases: Cases) -> Arrays:
        """The local model as it stands. It has nothing of the federation: what arrives, in the first round too, may be
        the weights of an earlier run."""
        found = part(start.state, "local")
        if found:
            return {**found, **self._own_input(cases)}
        arrays = first_arrays(self._plan)
        statistics = conditioning([sums_over(cases, self._plan)], self._plan)
        return {**arrays, **{name: array for name, array in statistics.items() if name in arrays}}

    def _trained(
        self, network: nn.Module, start: Start, cases: Cases, number: int, pull: Pull | None
    ) -> dict[str, Arrays]:
        """One round of a model of the site's own, from the weights that the network has; without a pull, the local."""
        name, before = "local" if pull is None else "personal", get_arrays(network)
        seed = derive_seed(self._plan.seed, f"{name} training", self._site, number)
        moments, diverged = (part(start.state, f"{kind}_{name}") for kind in (_MOMENTS, _DIVERGED))
        try:
            outcome = train_round(network, cases, self._plan, seed, rounds=(number,), pull=pull, moments=moments)
            after, moments = _finite(get_arrays(network)), outcome.moments
        except NotFiniteError as problem:
            _LOG.warning(
                "Round %d: training of this site's %s model diverged; it stays as it was, and none of its figures will "
                "be told: %s",
                number,
                name,
                problem,
            )
            after, diverged = before, {"round": np.array(number, np.int64)}
        return {name: after, f"{_MOMENTS}_{name}": moments, f"{_DIVERGED}_{name}": diverged}

    def _fine_tuned(self, network: nn.Module, start: Start, cases: Cases) -> tuple[Arrays, int]:
        """The final model after more steps here, at the learning rate of the plan's last round; and how many distinct
        patients these saw. Where they diverge, the final model as it is, and 0."""
        steps = {"local_steps": self._personal.fine_tune_steps, "local_epochs": None}
        plan = self._plan.model_copy(update={"training": self._plan.training.model_copy(update=steps)})
        set_arrays(network, start.whole)
        seed = derive_seed(self._plan.seed, "fine-tuning", self._site)
        try:
            outcome = train_round(network, cases, plan, seed, rounds=(self._plan.rounds,))
            return _finite(get_arrays(network)), outcome.patients
        except NotFiniteError as problem:
            _LOG.warning("Fine-tuning diverged, so none of that model's figures are told: %s", problem)
            return start.whole, 0


def _finite(arrays: Arrays) -> Arrays:
    for array in arrays.values():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise NotFiniteError(
                "A weight of a model that stays at the site is not finite after training.",
                fix="Lower training.optimizer.lr or method.personal.ditto.",
            )
    return arrays
