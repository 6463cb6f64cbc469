"""A plan that judges frozen models, in plain words: what each site is asked to do and to send."""

from __future__ import annotations

from collections.abc import Sequence

from eucaim_fl.plan import FederationPlan
from eucaim_fl.validation_config import NATIVE_FORMATS, ModelContract, SubgroupConfig, ValidationConfig

__all__ = ["explain_validation"]

_LONGEST = 300
_FORMATS = {
    "onnx": "ONNX, standard operators only",
    "torchscript": "TorchScript, a program of its maker's",
    "exported": "an exported PyTorch program of its maker's",
}
_RULES = {
    "sex": "sex",
    "age": "age in years",
    "manufacturer": "manufacturer of the scanner",
    "field_strength_t": "field strength in T",
    "slice_thickness_mm": "slice thickness in mm",
    "lesion_volume_ml": "volume of the lesions in ml",
}
_UNIT = {"hd95_mm": " mm", "volume_difference_ml": " ml"}


def explain_validation(plan: FederationPlan, goal: str, channels: Sequence[str]) -> list[str]:
    """What each site is asked, and what it is asked to send; nothing of a plan that trains.

    goal: what the task is, in words. channels: sentences on which series are taken. What comes from elsewhere is quoted
    as `repr` does.
    """
    asked = plan.validation
    if asked is None:
        return []
    several = "models" if len(asked.models) > 1 else "model"
    return [
        f"Purpose: frozen {several} for {goal}, judged at {len(plan.sites)} sites ({', '.join(plan.sites)}). Nothing "
        "is trained, and no model changes.",
        f"By what right: asked for {plan.purpose.replace('_', ' ')} (Art. 53 EHDS), "
        f"{'without' if plan.permit is None else 'with'} a data permit.",
        *(_model(one) for one in asked.models),
        _patients(plan, asked),
        *channels,
        _inference(asked),
        "Sent at the start: the site's short name, the number of these patients, of cases set aside, and a SHA-256 "
        "over its cohort's content.",
        f"Sent once, after the models have answered: {_figures(plan, asked)}.",
        *_beside(asked),
        "And: how many images a model gave no answer to, by reason; how many other plans have had figures of the same "
        "file from this site; whether its data are confidential, public or synthetic; and the site's signature.",
        "Withheld: every figure over fewer patients than the site's minimum, and of groups those that together would "
        "tell of fewer. Counts of confidential data leave as multiples of a base.",
        "Never sent: images, predictions, what a single patient got (the site keeps it for itself), clinical values, "
        "identifiers, file names or paths.",
        f"Needed: {plan.participation.quorum} of {len(plan.sites)} sites, within "
        f"{plan.participation.round_deadline_s:g} s.",
        "Privacy: no noise is added; what leaves are sums over enough patients.",
    ]


def _model(one: ModelContract) -> str:
    network = f"one of this software's networks, {one.network.name}" if one.network else _FORMATS[one.format]
    use = one.intended_use if len(one.intended_use) <= _LONGEST else f"{one.intended_use[:_LONGEST]}…"
    return (
        f"Model {one.name}: {network}, {one.size_bytes:,} bytes, SHA-256 {one.sha256}. "
        f"Intended use, by its maker: {use!r}."
    )


def _patients(plan: FederationPlan, asked: ValidationConfig) -> str:
    """Whose images the models see."""
    modality = f" of {plan.data.modality} series" if plan.data.modality else ""
    share = plan.data.split.test
    whom = (
        "the models see all of them"
        if asked.patients == "all"
        else f"the models see only the {share:.0%} that a training with this split (seed {plan.split_seed()}) holds out"
    )
    return (
        f"Data: the site reads its own cohort{modality}, takes only patients whom its consent table and its rules on "
        f"identifiers allow; {whom}."
    )


def _inference(asked: ValidationConfig) -> str:
    """What a model may do at a site."""
    limits = asked.limits
    programs = [one.name for one in asked.models if one.format in NATIVE_FORMATS]
    native = (
        f" {' and '.join(programs)} {'are programs' if len(programs) > 1 else 'is a program'}: only sites run it whose "
        "policy lists its format."
        if programs
        else ""
    )
    return (
        "Inference: each model in a process of its own without network and files, for at most "
        f"{limits.image_seconds:g} s an image, with {limits.memory_gb:g} GB and {limits.threads} "
        f"thread{'s' if limits.threads > 1 else ''}.{native}"
    )


def _figures(plan: FederationPlan, asked: ValidationConfig) -> str:
    """What leaves of each model, in words."""
    at = ", ".join(f"{one:g}" for one in asked.thresholds)
    scores = (
        f"how many patients with and without it score in each of about {asked.bins} equal intervals of the probability "
        f"(cut also at {at}), and sums of the Brier score"
    )
    return {
        "segmentation": "sums and sums of squares over patients of Dice, HD95, surface Dice (within "
        f"{asked.tolerance_mm:g} mm) and volume difference, and numbers of lesions, of those found and of false ones "
        f"(overlap from {asked.lesion_overlap:g})",
        "classification": f"counts of true against predicted class, {scores}",
        "multilabel": f"of each label {scores}",
        "survival": "numbers of patients with and without the event, and of pairs whose order is known and predicted "
        "right",
    }[plan.task.name]


def _beside(asked: ValidationConfig) -> list[str]:
    """Groups and comparisons; nothing where there are none."""
    lines = []
    if asked.subgroups:
        rules = "; ".join(map(_rule, asked.subgroups))
        lines.append(f"Groups: the same figures of groups of patients by {rules}, where enough are in each.")
    if len(asked.models) > 1:
        lines.append(
            f"Comparison: of {asked.models[0].name} and {asked.models[1].name} on the same patients how often each was "
            "right, and sums of their differences."
        )
    for one in asked.comparisons:
        margin = "" if one.margin is None else f", not inferior within {one.margin:g}{_UNIT.get(one.metric, '')}"
        lines.append(f"Question fixed beforehand: {one.metric}{margin}.")
    for metric, width in asked.half_widths.items():
        lines.append(f"Precision fixed beforehand: {metric} to within ±{width:g}{_UNIT.get(metric, '')}.")
    return lines


def _rule(rule: SubgroupConfig) -> str:
    cut = f" ({', '.join(f'{edge:g}' for edge in rule.edges)})" if rule.edges else ""
    return f"{_RULES[rule.by]}{cut}"
