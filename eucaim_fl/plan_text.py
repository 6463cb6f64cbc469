"""A plan in plain words: what each site is asked to do, to send, and how people are hidden."""

from __future__ import annotations

from eucaim_fl.config import SeriesRule, TaskConfig
from eucaim_fl.plan import FederationPlan
from eucaim_fl.privacy.promise import epsilon_words, promise, round_mechanism, steps_of_round
from eucaim_fl.validation_text import explain_validation

__all__ = ["explain"]


def _range(limits: tuple[float, float], unit: str) -> str:
    low, high = limits
    return f"{low:g} {unit}" if low == high else f"{low:g} to {high:g} {unit}"


def _explain_rule(rule: SeriesRule) -> str:
    """What a series must be like to become a channel. Words are quoted as `repr` does: they came from elsewhere."""
    words, unwanted, kinds = (
        joint.join(map(repr, chosen))
        for joint, chosen in ((" and ", rule.words), (" or ", rule.without), (" and ", rule.image_type))
    )
    parts = (
        f"modality {rule.modality}" if rule.modality else "",
        f"described with {words}" if words else "",
        f"not described with {unwanted}" if unwanted else "",
        f"image type {kinds}" if kinds else "",
        f"body part {rule.body_part!r}" if rule.body_part else "",
        f"{rule.plane} slices" if rule.plane else "",
        f"slice thickness {_range(rule.thickness_mm, 'mm')}" if rule.thickness_mm else "",
        f"b-value {_range(rule.b_value, 's/mm²')}" if rule.b_value else "",
        f"echo time {_range(rule.echo_time_ms, 'ms')}" if rule.echo_time_ms else "",
        "" if rule.contrast is None else "with contrast agent" if rule.contrast else "without contrast agent",
    )
    several = {
        "most_slices": "the one with most slices",
        "thinnest": "the one with the thinnest slices",
        "first": "the first by its UID",
    }
    return f"{rule.name} = {', '.join(filter(None, parts)) or 'any series'}; of several {several[rule.prefer]}"


def _explain_channels(plan: FederationPlan) -> list[str]:
    """Which series are taken, and what happens to labels on other voxels; nothing where the default holds."""
    lines = []
    rules = plan.data.channels
    if plan.data.colour:
        lines.append("Channels: red, green and blue of each image. An image without colours is set aside.")
    if rules:
        several = (
            " The first gives the grid; the others are interpolated onto it by their stated position, and a patient is "
            "set aside where one states another frame of reference or covers less than half of it."
            if len(rules) > 1
            else ""
        )
        lines.append(
            f"Channels: of each patient one study that has {'all of these' if len(rules) > 1 else 'this'}, and one "
            f"series for each: {'. '.join(_explain_rule(rule) for rule in rules)}. A patient without is set aside with "
            f"the reason.{several}"
        )
    if plan.task.name == "segmentation" and plan.data.labels_on_other_grid == "resample":
        lines.append(
            "Labels: one that lies on other voxels than its image is brought onto the image's by its stated position; "
            "each voxel takes the label that lies at its centre, and what lies outside the image is cut off."
        )
    return lines


def _one_batch(plan: FederationPlan) -> str:
    """What a coordinator can do to an update that it sees without noise: how few people can be left behind it."""
    few = plan.training.batch_size
    people = "one person, whose image can then be read from it" if few == 1 else f"{few} people"
    return f"A coordinator that crafts the arriving weights can bring it down to {people}, whatever the steps."


def _explain_privacy(plan: FederationPlan) -> list[str]:
    privacy, found, once = plan.privacy, promise(plan), round_mechanism(plan.privacy, plan.training)
    if found is None or once is None or privacy.noise_multiplier is None or privacy.clipping_norm is None:
        return [
            "Privacy: no noise is added; the update itself may reveal information about training patients. "
            f"{_one_batch(plan)}"
        ]
    deviation = f"{privacy.noise_multiplier * privacy.clipping_norm:g}"
    spent = f"epsilon {epsilon_words(found.epsilon)} at delta {found.delta:g} over all {plan.rounds} rounds"
    if privacy.mechanism == "patient_dp":
        what = (
            f"Privacy: DP-SGD by patient. In each of {once.steps * plan.rounds} steps every training patient takes "
            f"part with probability {once.rate:g}; a patient's gradient, averaged over {privacy.multiplicity} of its "
            f"examples, is clipped to L2 norm {privacy.clipping_norm:g}; Gaussian noise of standard deviation "
            f"{deviation} (noise multiplier {privacy.noise_multiplier:g}) is added to their sum. Each site spends "
            f"{spent} for each of its training patients."
        )
    elif privacy.mechanism == "update_dp":
        what = (
            f"Privacy: the site clips its whole update to L2 norm {privacy.clipping_norm:g} and adds Gaussian noise of "
            f"standard deviation {deviation} before it leaves. Each site spends {spent}, for all its patients alike."
        )
    else:
        what = (
            f"Privacy: the server clips every site's update to L2 norm {privacy.clipping_norm:g} and adds Gaussian "
            f"noise of standard deviation {deviation} to their sum, which is divided by the number of all sites of the "
            f"plan. This hides a site from those who see the models ({spent}); the server itself sees the updates as "
            f"they are. {_one_batch(plan)}"
        )
    lines = [what]
    if not privacy.secure:
        lines.append("Attention: the noise follows from the plan's seed. Whoever has the plan can take it off again.")
    figures = (
        f"with Gaussian noise of {privacy.metrics_noise:g} times what one patient can change, which is charged for"
        if privacy.metrics_noise is not None
        else "not at all"
    )
    return [
        *lines,
        "Figures: no training loss leaves. Metrics of patients whom the site's policy declares as test data leave "
        "without noise, and so do all of a site that has no policy and whose site file calls its data synthetic or "
        f"public; of other patients {figures}.",
    ]


def _explain_data(plan: FederationPlan) -> str:
    """Who trains and who is measured. With noise each patient is drawn alone, and a site's own test data come first."""
    share, noise = plan.data.split, plan.privacy.mechanism != "none"
    about = "about " if noise else ""
    drawn = (
        " Where the policy of a site with confidential data declares test data, the site draws them with a key of its "
        "own, and these shares do not move them."
        if noise
        else ""
    )
    return (
        f"Data: the site reads its own cohort{f' of {plan.data.modality} series' if plan.data.modality else ''}, "
        "takes only patients whom its consent table and its rules on identifiers allow, "
        f"keeps {about}{share.validation:.0%} of its patients for validation and {about}{share.test:.0%} for the final "
        f"test, and trains on the rest. A patient is in one of these only.{drawn}"
    )


_WEIGHTING = {
    "patients": "weights by patients",
    "equal": "every site alike",
    "normalised": "weights by patients, each update divided by its site's local steps",
    "fair": "more weight where the training loss is larger (q = {q:g})",
    "agnostic": "weights that move towards the sites with the largest training loss (step {step:g})",
}
_OBJECTIVE = {
    "proximal": " The loss has a proximal term with mu = {mu:g}.",
    "scaffold": " Each step's gradient is corrected by a control variate of the site's own, which it keeps to itself, "
    "and one of all sites, which arrives with the model.",
    "dynamic": " The loss has a proximal term with mu = {mu:g} and a linear one, which the site gathers over the "
    "rounds and keeps to itself.",
}


def _explain_local(plan: FederationPlan) -> str:
    """What the rate, the classes' shares and the objective make of a step."""
    training, objective = plan.training, plan.method.objective
    schedule, balance = training.schedule, training.balance
    lines = []
    if schedule.kind != "constant" or schedule.warmup_rounds:
        warm = f"rises over {schedule.warmup_rounds} rounds" if schedule.warmup_rounds else ""
        falls = "" if schedule.kind == "constant" else f"falls ({schedule.kind}) to {schedule.floor:g} of itself"
        lines.append(f" The learning rate {', then '.join(filter(None, (warm, falls)))}.")
    if balance.loss != "none":
        whose = "the site's own training patients" if balance.shares == "site" else "all sites' training patients"
        how = "weighs classes" if balance.loss == "weights" else "shifts the logits"
        lines.append(f" The loss {how} by their shares among {whose} (strength {balance.strength:g}).")
    if balance.sampling == "classes":
        lines.append(" Each class is drawn equally often.")
    return "".join(lines) + _OBJECTIVE.get(objective.name, "").format(mu=objective.mu)


def _explain_rounds(plan: FederationPlan) -> str:
    """What the rounds begin with, where that is an earlier run's model; how often the arriving model is measured."""
    stopping, start = plan.stopping, plan.start_sha256
    warm = "" if start is None else f" (the first begins with weights of an earlier run, SHA-256 {start})"
    when = "" if stopping.validate_every == 1 else f" (in the first and then every {stopping.validate_every} rounds)"
    return f"Each of {plan.rounds} rounds{warm}: evaluate the arriving model on the validation patients{when}"


def _explain_conditioning(plan: FederationPlan) -> list[str]:
    """What the model is told of patients beforehand, and what is sent for it; nothing where the plan needs none."""
    lines, asked = [], []
    if plan.data.standardise != "none":
        own = plan.data.standardise == "site"
        whose = "the site's own, which stay there" if own else "those of all sites, which are a part of the model"
        lines.append(
            "Inputs: each channel has its mean taken off and is divided by its standard deviation, over training "
            f"patients: {whose}."
        )
    if plan.training.balance.expect == "federation":
        lines.append("Predictions: brought to the shares of classes in all sites together, a part of the model.")
    if plan.asked_channels():
        asked.append("the sums of each channel's mean and mean square over its training patients")
    if plan.asked_classes():
        asked.append("the number of its training patients of each class")
    if asked:
        lines.append(
            f"Sent once before the first round: {', and '.join(asked)}; of confidential data as coarsely as other "
            "figures, without classes of too few. A site whose policy lists no intensity_sums or class_counts refuses "
            "a plan that asks for them."
        )
    return lines


def _explain_personal(plan: FederationPlan) -> list[str]:
    """What is the site's own beside the common model, and what it says of it; nothing where the plan has none."""
    personal, what = plan.method.personal, []
    if personal.arrays != "none":
        kind = "all of the normalisation layers" if personal.arrays == "normalization" else "the last layer"
        what.append(f"{kind} of the network stays at the site and is in neither direction's message")
    if personal.ditto is not None:
        what.append(
            "the site trains a second model for itself, with as many steps, drawn towards the common one "
            f"(lambda = {personal.ditto:g})"
        )
    if personal.fine_tune_steps:
        what.append(f"in the end the site makes {personal.fine_tune_steps} more steps from the final model, for itself")
    if personal.local:
        what.append("the site trains a model that sees nothing of the federation, with as many steps")
    if personal.blend:
        what.append(f"the mean of what that one and the {personal.blended()} model say counts as a further model")
    if plan.training.optimizer.kept:
        what.append("the optimizer's state is kept from round to round")
    if not what:
        return []
    choice = (
        " Of its models the site names the one that is best by the figures on its validation patients that it tells."
        if personal.choose
        else ""
    )
    told = " In the end it tells the metrics of each of its models." if len(personal.candidates()) > 1 else ""
    return [
        f"The site's own: {'; '.join(what)}. These are kept in the site's records (`eucaim-fl site models`) and never "
        f"sent.{told}{choice} A patient who withdraws is not trained on from the next round on; but models that are "
        "kept have seen the patient, and so has the common one."
    ]


_FIGURES = {
    "segmentation": ("Dice and HD95 in mm", "count, sum and sum of squares over patients"),
    "classification": (
        "AUC, balanced accuracy and Brier score",
        "counts of true against predicted class, sums of the Brier score, and where the site file permits it a "
        "histogram of scores by class",
    ),
    "multilabel": (
        "AUC, balanced accuracy and Brier score of each column and their means",
        "of each column counts of true against predicted answer, sums of the Brier score, and where the site file "
        "permits it a histogram of scores by answer; nothing of a column with too few patients of either answer",
    ),
    "survival": (
        "the concordance index",
        "numbers of patients with and without the event, and of pairs of patients whose order is known, is predicted "
        "right, and is predicted as equal; nothing where too few have, or too few have not, had the event",
    ),
}
"""What leaves of each task: figures, and the sums they are pooled by."""


def _goal(task: TaskConfig) -> str:
    if task.name == "segmentation":
        return f"segmentation of {', '.join(task.labels)}"
    if task.name == "multilabel":
        return f"a yes or no for each of {', '.join(repr(target) for target in task.targets)}"
    if task.name == "survival":
        return f"a risk that orders patients by '{task.time}' until '{task.event}' (Cox)"
    return f"classification of '{task.target}' into {', '.join(task.classes)}"


def _explain_sent(plan: FederationPlan) -> list[str]:
    """What leaves, and when. With noise no loss leaves, no count of who was seen or set aside, and few figures."""
    noise = plan.privacy.mechanism != "none"
    metrics, sums = _FIGURES[plan.task.name]
    only = ", but only those that the line Figures lets leave" if noise else ""
    stays = " that does not stay at the site" if plan.leaves_arrays() else ""
    trained = "" if noise else " and of patients whom they saw, the mean training loss"
    when = "" if plan.stopping.validate_every == 1 else "in rounds that evaluate, "
    several = len(plan.method.personal.candidates()) > 1
    return [
        "Sent at the start: the site's short name, the number of its training patients"
        f"{'' if noise else ' and of cases set aside'}, and a SHA-256 over its cohort's content.",
        f"Sent after each round: the change of every model weight{stays}, the number of steps{trained}, seconds, and "
        f"{when}{metrics} over the validation patients with the sums they are pooled by ({sums}){only}.",
        f"Sent once at the end: the same metrics of {'each of its models' if several else 'the final model'} over "
        f"validation and test patients{', under the same condition' if noise else ''}; and, only by sites whose site "
        "file calls their data synthetic or public, three small pictures of predictions.",
    ]


def explain(plan: FederationPlan) -> list[str]:
    """In plain words: what each site is asked to do, and what it is asked to send."""
    if plan.validation is not None:
        return explain_validation(plan, _goal(plan.task), _explain_channels(plan))
    task, training, method, by_patient = plan.task, plan.training, plan.method, plan.privacy.mechanism == "patient_dp"
    length = (
        f"{steps_of_round(training, plan.privacy)} optimizer steps"
        if by_patient or training.local_steps is not None
        else f"{training.local_epochs} epochs over its training patients"
    )
    batch = "patients drawn at random" if by_patient else f"batch {training.batch_size}"
    alike = plan.privacy.mechanism == "central_dp"
    weights = _WEIGHTING["equal" if alike else method.weighting.name].format(**method.weighting.model_dump())
    stopping = plan.stopping
    early = (
        f" The rounds end early when the pooled validation metric was not bettered in {stopping.patience} measurements."
        if stopping.patience is not None
        else ""
    )
    kept = " The best model by the pooled validation metric is the result." if stopping.keep == "best" else ""
    own = method.personal.candidates() != ("common",)
    few = (
        ", and every figure of a model of its own that was trained on fewer than may be behind an update" if own else ""
    )
    return [
        f"Purpose: {_goal(task)} with a {task.spatial_dims}-D {plan.model.name}, over {len(plan.sites)} sites "
        f"({', '.join(plan.sites)}).",
        f"By what right: asked for {plan.purpose.replace('_', ' ')} (Art. 53 EHDS), "
        f"{'without' if plan.permit is None else 'with'} a data permit.",
        _explain_data(plan),
        *_explain_channels(plan),
        *_explain_conditioning(plan),
        f"{_explain_rounds(plan)}, then train for "
        f"{length} ({batch}, {training.optimizer.name}, learning rate {training.optimizer.lr:g}).{_explain_local(plan)}"
        f"{early}{kept}",
        *_explain_personal(plan),
        *_explain_sent(plan),
        f"Withheld: every figure over fewer patients than the site's minimum{few}.",
        "Never sent: images, labels, clinical values, identifiers, file names or paths (but for the pictures above).",
        f"Combined by: {method.rule.name}, server optimizer {method.server_optimizer.name}; {weights}. "
        f"A round needs {plan.participation.quorum} of {len(plan.sites)} sites within "
        f"{plan.participation.round_deadline_s:g} s.",
        *_explain_privacy(plan),
    ]
