"""How the sites' work becomes one model, and what stays a site's own: a method, as recipes and plans have it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from eucaim_fl.parsing import Config

__all__ = [
    "MethodConfig",
    "ObjectiveConfig",
    "PersonalConfig",
    "RuleConfig",
    "ServerOptimizerConfig",
    "WeightingConfig",
]

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class RuleConfig(Config):
    """How the sites' updates become one.

    trim: share cut at each end (trimmed_mean). suspects: how many sites may be wrong (krum, multi_krum).
    keep: how many sites multi_krum averages; None keeps all but the suspects.
    iterations: at most so many steps towards the geometric median.
    """

    name: Name = "weighted_mean"
    trim: Annotated[float, Field(ge=0, lt=0.5)] = 0.2
    suspects: NonNegativeInt = 1
    keep: PositiveInt | None = None
    iterations: Annotated[int, Field(ge=1, le=1000)] = 100


class WeightingConfig(Config):
    """How much each site counts where the rule takes a mean; see `eucaim_fl.strategies.weighting`.

    name: `patients` (FedAvg), `equal`, `normalised` (FedNova: by patients, and no site counts more because it made more
    local steps), `fair` (q-FedAvg: more where the loss is larger, by `q`), `agnostic` (towards the worst site, by
    `step` a round).
    """

    name: Name = "patients"
    q: Annotated[float, Field(ge=0, le=10)] = 1.0
    step: Annotated[float, Field(gt=0, le=10)] = 0.1


class ServerOptimizerConfig(Config):
    """What the server does with the common update. `lr` 1 and `plain` is federated averaging."""

    name: Name = "plain"
    lr: PositiveFloat = 1.0
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: PositiveFloat = 1e-3


class ObjectiveConfig(Config):
    """What is added to the gradient of the local loss; see `eucaim_fl.training.objective`.

    proximal: mu · (w − w_global) (FedProx). scaffold: the common control variate minus the site's own (SCAFFOLD).
    dynamic: mu · (w − w_global) minus what the site has gathered of such differences (FedDyn).
    """

    name: Literal["none", "proximal", "scaffold", "dynamic"] = "none"
    mu: NonNegativeFloat = 0.01

    def has_state(self) -> bool:
        """Whether server and sites each keep a state that follows from the updates that counted."""
        return self.name in ("scaffold", "dynamic")


class PersonalConfig(Config):
    """What is a site's own, beside the common model; it never leaves the site.

    arrays: which of the network's arrays the site keeps to itself: none; `normalization`, all of normalisation layers
    with their statistics (FedBN); `head`, the last layer with weights (local heads).
    ditto: λ of a second model that the site trains for itself beside, drawn towards the common one by
    λ/2 · ‖w − w_common‖² (Ditto); None trains none.
    fine_tune_steps: optimizer steps that the site makes for itself from the final model, before the last evaluation.
    local: the site also trains a model that sees nothing of the federation, with as many steps.
    blend: the site also measures the mean of what its local model says (the logits) and what its personal one says, or
    the common one where it has no personal one.
    choose: at the end, each site names the one of these models that is best by its own validation patients.
    """

    arrays: Literal["none", "normalization", "head"] = "none"
    ditto: PositiveFloat | None = None
    fine_tune_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    local: bool = False
    blend: bool = False
    choose: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        ways = [self.arrays != "none", self.ditto is not None, self.fine_tune_steps > 0]
        if self.ditto is not None and sum(ways) > 1:
            raise ValueError("ditto trains a whole second model: leave out arrays and fine_tune_steps")
        if self.blend and not self.local:
            raise ValueError("blend: the mean is with the site's local model; set local")
        if self.choose and not (any(ways) or self.local):
            raise ValueError("choose: there is nothing to choose from; set arrays, ditto, fine_tune_steps or local")
        return self

    def has_own(self) -> bool:
        """Whether a site has a personal model beside, or instead of, the common one."""
        return self.arrays != "none" or self.ditto is not None or self.fine_tune_steps > 0

    def candidates(self) -> tuple[Literal["common", "personal", "local", "blended"], ...]:
        """The models that a site has in the end. Where arrays stay at the sites there is no common model."""
        common: tuple[Literal["common"], ...] = () if self.arrays != "none" else ("common",)
        personal: tuple[Literal["personal"], ...] = ("personal",) if self.has_own() else ()
        local: tuple[Literal["local"], ...] = ("local",) if self.local else ()
        return (*common, *personal, *local, *(("blended",) if self.blend else ()))

    def blended(self) -> Literal["common", "personal"]:
        """The model that is blended with the local one."""
        return "personal" if self.has_own() else "common"


class MethodConfig(Config):
    """A method is independent choices: weighting × rule × server optimizer × local objective × what stays personal."""

    weighting: WeightingConfig = WeightingConfig()
    rule: RuleConfig = RuleConfig()
    server_optimizer: ServerOptimizerConfig = ServerOptimizerConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    personal: PersonalConfig = PersonalConfig()
