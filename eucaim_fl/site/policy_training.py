"""What a site's policy says to the training that a plan asks for: how many patients are behind it, how long it is."""

from __future__ import annotations

from eucaim_fl.plan import FederationPlan
from eucaim_fl.site.concentration import Behind, most_patients, one_batch

__all__ = ["batch_answer", "training_answer", "work_asked"]

_NAMES: dict[Behind, str] = {
    "update": "an update",
    "personal": "the site's personal model",
    "local": "the site's local model",
}
_GUIDED = "what SCAFFOLD tells the sites moves the weights at each step, and can leave one step alone to show"
_DRAWN = (
    "its pull (mu, lambda or weight decay) times learning rate and steps is above 1, and so strong a pull forgets "
    "earlier steps"
)


def training_answer(
    plan: FederationPlan, least: int | None, *, confidential: bool | None
) -> tuple[bool, str, tuple[str, ...]]:
    """Whether enough patients can be behind an update, and behind each model of the site's own whose figures are asked
    for; what the plan asks in plain words; and what the asker may be told.

    least: of the policy; None allows nothing. confidential: None where nobody knows what the data are; they are taken
    to be. A model of the site's own is named where its number is another than the update's. See `concentration`.
    """
    if plan.privacy.mechanism == "patient_dp":
        return least is not None, "an update of patients who are drawn at random and hidden by noise", ()
    strict = confidential is not False
    found: dict[Behind, int | None] = {"update": most_patients(plan, "update", confidential=strict)}
    for model in plan.method.personal.candidates():
        number = most_patients(plan, model, confidential=strict)
        if model in _NAMES and (number != found["update"] or (strict and one_batch(plan, model))):
            found[model] = number
    told = {what: _told(plan, what, number, strict) for what, number in found.items()}
    few = [what for what, number in found.items() if least is not None and number is not None and number < least]
    reasons = tuple(f"{told[what][0].upper()}{told[what][1:]}." for what in few)
    return least is not None and not few, "; ".join(told.values()), reasons


def batch_answer(plan: FederationPlan, least: int | None) -> tuple[bool, str]:
    """Whether a training batch is large enough where the coordinator sees an update without noise; and what is asked.

    least: of the policy; None asks for nothing. Noise that follows from the plan's seed hides nothing from whoever has
    the plan. See `concentration` for why it is the batch that counts.
    """
    privacy, size = plan.privacy, plan.training.batch_size
    if privacy.mechanism in ("patient_dp", "update_dp") and privacy.secure:
        return True, "an update that noise hides, whatever its batches"
    asks = f"batches of {_counted(size, 'image')}, and an update that the coordinator sees without noise"
    return least is None or size >= least, asks


def _told(plan: FederationPlan, what: Behind, number: int | None, strict: bool) -> str:
    if number is None:
        return f"all of this site's training patients can be behind {_NAMES[what]}"
    if not (strict and one_batch(plan, what)):
        return f"at most {_counted(number, 'patient')} can be behind {_NAMES[what]}"
    shared = what == "update" or (what == "personal" and plan.method.personal.arrays != "none")
    why = _GUIDED if shared and plan.method.objective.name == "scaffold" else _DRAWN
    batch = f"of confidential data one batch, at most {_counted(number, 'patient')}"
    return f"{batch}, counts as behind {_NAMES[what]}, since {why}"


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def work_asked(plan: FederationPlan) -> str:
    """What a plan asks a site's machines for: an answer to each instruction in time, and the training of own models."""
    personal, more = plan.method.personal, []
    again = [name for name, trained in (("personal", personal.ditto is not None), ("local", personal.local)) if trained]
    if again:
        times = "as many steps again" if len(again) == 1 else "twice as many steps again"
        more.append(f"each round has {times}, for the site's {' and its '.join(again)} model")
    if personal.fine_tune_steps:
        more.append(f"the last exchange has {_counted(personal.fine_tune_steps, 'step')} of fine-tuning")
    deadline = f"a round counts answers that come within {plan.participation.round_deadline_s:g} s"
    return "; ".join([f"instructions; {deadline}", *more])
