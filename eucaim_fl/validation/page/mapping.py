"""Where the page answers what guidelines and the AI Act ask to be told. Topics in own words; it claims no compliance.

Sources: FUTURE-AI (Lekadir et al. 2025, six principles); TRIPOD+AI (Collins et al. 2024, BMJ 385:e078378) by the
numbers of its 27 items; CLAIM (2024 update) by topic, without numbers; Annex IV of Regulation (EU) 2024/1689 by its
points 1 to 9.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

__all__ = ["FRAMEWORKS", "MappedRow", "mapped"]

_BY_PROVIDER = "Not answered here, by the provider"
_BY_HOSPITAL = "Not answered here, by the hospitals"
_NOT_ASKED = "Not in this report: the plan or the data gave no cause"

FRAMEWORKS: Mapping[str, tuple[tuple[str, tuple[str, ...] | None, str], ...]] = {
    "FUTURE-AI, principles": (
        ("Fairness", ("groups",), "groups that the plan names only"),
        ("Universality", ("between", "data"), "several hospitals, and what a further one may expect"),
        ("Traceability", ("asked", "signatures", "provenance"), "hashes, signatures, versions; not of the making"),
        ("Usability", (), ""),
        ("Robustness", ("between", "groups"), "over hospitals and scanners; not against attacks or artefacts"),
        ("Explainability", (), ""),
    ),
    "TRIPOD+AI, items": (
        ("1, 2. Title and summary", ("top",), ""),
        ("3a, 3b. Healthcare context, intended population and users", ("top",), "by the maker's words only"),
        ("3c. Known inequalities between groups", (), ""),
        ("4. Objectives", ("asked",), "an evaluation; nothing is developed"),
        ("5a, 5b. Sources and dates of the data", ("data",), "sources; dates are the hospitals' to say"),
        ("6a to 6c. Setting, eligibility, treatments", ("data",), "hospitals by name; the rest is theirs to say"),
        ("7. Preparation of the data", ("asked",), "the model's contract of input"),
        ("8a to 8c. Outcome, and how it was assessed", ("asked",),
         "what is predicted; its assessment is the hospitals' to say"),
        ("9a to 9c. Predictors", ("asked",), "images, as the contract has them"),
        ("10. Sample size", ("sample",), ""),
        ("11. Missing data", ("data", "suppressed"), ""),
        ("12a to 12g. Methods of analysis, measures of performance", ("asked", "results", "between"), ""),
        ("13. Class imbalance", ("data",), "nothing was done about it; shares are told"),
        ("14. Fairness: how it was looked at", ("groups",), ""),
        ("15. Output of the model, thresholds", ("asked",), ""),
        ("16. Differences from the data of development", (), ""),
        ("17. Ethical approval", (), ""),
        ("18a, 18b. Funding and conflicts of interest", (), ""),
        ("18c, 18d. Protocol and registration", ("asked",), "the plan's hash; it is no entry in a public registry"),
        ("18e, 18f. Sharing of data and code", ("suppressed", "provenance"),
         "no data of patients; the software's version"),
        ("19. Involvement of patients and the public", (), ""),
        ("20a to 20c. Flow and characteristics of participants", ("data",), ""),
        ("21. Development of the model", (), ""),
        ("22. Specification of the model", (), ""),
        ("23a. Performance with intervals, and in key groups", ("results", "groups"), ""),
        ("23b. Heterogeneity between clusters", ("between",), ""),
        ("24. Updating of the model", ("limits",), "none: the model is frozen"),
        ("25. Interpretation", (), ""),
        ("26. Limitations", ("limits",), ""),
        ("27a to 27c. Usability in current care", (), ""),
    ),
    "CLAIM, topics": (
        ("Title, abstract, objectives", ("top", "asked"), ""),
        ("Clinical role of the model", ("top",), "by the maker's words only"),
        ("Data sources, inclusion and exclusion", ("data",), "sources; rules of inclusion are the hospitals' to say"),
        ("Pre-processing", ("asked",), ""),
        ("De-identification", ("suppressed",), "no patient's data leaves a hospital"),
        ("Missing data", ("data", "suppressed"), ""),
        ("Image acquisition", ("data",), "as far as groups tell of scanners; protocols are the hospitals' to say"),
        ("Reference standard, annotators, variability", None, ""),
        ("Partitions, and that they do not overlap", (), ""),
        ("Intended sample size", ("sample",), ""),
        ("Model, training, choice of the final model", (), ""),
        ("Metrics of performance", ("results",), ""),
        ("Measures of significance and uncertainty", ("results", "comparison"), ""),
        ("Robustness or sensitivity", ("between", "groups"), ""),
        ("Explainability", (), ""),
        ("Testing on external data", ("results", "between"), "external if the maker says what it trained on"),
        ("Flow and characteristics of patients by hospital", ("data",), ""),
        ("Estimates of performance, calibration", ("results", "calibration"), ""),
        ("Analysis of failures", ("data",), "images without an answer only; single patients are not seen"),
        ("Limitations, implications for practice", ("limits",), "limitations"),
        ("Protocol; availability of software, model, data", ("asked", "provenance"), ""),
        ("Funding", (), ""),
    ),
    "AI Act, Annex IV": (
        ("1. General description of the system", ("top",), "intended purpose and hash of the model only"),
        ("2. Elements of the system and its development", ("asked", "results", "signatures"),
         "validation procedure, data, metrics and signed results; not the development"),
        ("3. Monitoring, functioning, control; accuracy for groups", ("results", "groups", "limits"),
         "accuracy overall and for groups; not oversight"),
        ("4. Appropriateness of the metrics", ("asked",), "which were chosen; why is the provider's to say"),
        ("5. Risk management", (), ""),
        ("6. Changes through the lifecycle", (), ""),
        ("7. Harmonised standards applied", (), ""),
        ("8. EU declaration of conformity", (), ""),
        ("9. Monitoring after placing on the market", (), ""),
    ),
}  # fmt: skip
"""Framework → topic, sections of the page where it is answered, and how far. None: the hospitals would have to."""


class MappedRow(NamedTuple):
    """A topic; anchors and titles of where it is answered, empty if nowhere; and words on how far, or who could."""

    topic: str
    where: tuple[tuple[str, str], ...]
    words: str


def mapped(titles: Mapping[str, str], answered: Collection[str]) -> list[tuple[str, list[MappedRow]]]:
    """Frameworks with their topics.

    titles: anchor → title of the page's sections. answered: those that have what their title says.
    """
    found = []
    for framework, topics in FRAMEWORKS.items():
        rows = []
        for topic, anchors, words in topics:
            where = tuple((anchor, titles[anchor]) for anchor in anchors or () if anchor in answered)
            if anchors and not where:
                words = _NOT_ASKED
            elif not where:
                words = _BY_HOSPITAL if anchors is None else _BY_PROVIDER
            rows.append(MappedRow(topic, where, words))
        found.append((framework, rows))
    return found
