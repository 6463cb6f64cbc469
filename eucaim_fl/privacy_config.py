"""What a recipe and a plan say of differential privacy; `config` has it as the part `privacy`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from eucaim_fl.parsing import Config

__all__ = ["PrivacyConfig"]


class PrivacyConfig(Config):
    """Which noise hides people, and how much: for the whole run at each site, not for a round.

    mechanism: `none`; `patient_dp`: each site trains by DP-SGD, and every patient's gradient is clipped and noised;
    `update_dp`: each site clips its whole update and adds noise before it leaves; `central_dp`: the server clips every
    site's update and adds noise to their mean, which hides a site from whoever sees the models, not from the server.
    target_epsilon: the noise is computed from it when the plan is made; noise_multiplier: standard deviation of the
    noise over clipping_norm. A recipe gives one of them, a plan always the second. delta: of the promise; it must be
    below 1/patients of every site.
    clipping_norm: largest L2 norm of one patient's gradient, or of one update.
    secure: randomness from the operating system's secure source; false takes it from the run's seed, for simulations
    that can be repeated to the bit and protect from nobody who has the plan.
    metrics_noise: with patient_dp and update_dp, standard deviation over sensitivity of the noise on a site's figures,
    which are charged for; None sends figures only of patients whom the site declares as test data.
    The rest is for patient_dp alone. sampling_rate: probability with which each training patient takes part in a step,
    the same at all sites. multiplicity: examples of a patient (images, slices, augmentations) over which its gradient
    is averaged. gradients: how they are computed (see `training.gradients`); `auto` takes what suits the network.
    physical_batch: patients in memory at a time, which changes no result.
    """

    mechanism: Literal["none", "patient_dp", "update_dp", "central_dp"] = "none"
    target_epsilon: Annotated[float, Field(gt=0, le=1000)] | None = None
    noise_multiplier: Annotated[float, Field(ge=0.05, le=1e6)] | None = None
    delta: Annotated[float, Field(ge=1e-15, lt=1)] | None = None
    clipping_norm: Annotated[float, Field(gt=0, le=1e9)] | None = None
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    multiplicity: Annotated[int, Field(ge=1, le=256)] = 1
    gradients: Literal["auto", "loop", "functorch", "hooks", "ghost"] = "auto"
    physical_batch: Annotated[int, Field(ge=1, le=4096)] = 16
    secure: bool = True
    metrics_noise: Annotated[float, Field(ge=0.05, le=1e6)] | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        given = [n for n in ("target_epsilon", "noise_multiplier", "delta", "clipping_norm") if getattr(self, n)]
        if self.mechanism == "none":
            if given or self.sampling_rate or self.metrics_noise:
                raise ValueError("privacy: mechanism none takes no epsilon, noise, delta, clipping or sampling rate")
            return self
        if (self.target_epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set exactly one of privacy.target_epsilon and privacy.noise_multiplier")
        if self.delta is None or self.clipping_norm is None:
            raise ValueError(f"privacy: {self.mechanism} needs delta and clipping_norm")
        if (self.mechanism == "patient_dp") != (self.sampling_rate is not None):
            raise ValueError("privacy: sampling_rate belongs to patient_dp, which needs it")
        if self.mechanism != "patient_dp" and self.multiplicity != 1:
            raise ValueError("privacy: multiplicity belongs to patient_dp")
        if self.mechanism == "central_dp" and self.metrics_noise is not None:
            raise ValueError("privacy: metrics_noise belongs to patient_dp and update_dp, where sites add noise")
        return self
