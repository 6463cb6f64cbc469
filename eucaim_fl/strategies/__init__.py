"""How the sites' updates become the next global model: weightings, rules, server optimizers, control (numpy only)."""

from eucaim_fl.strategies.aggregation import RULES, Rule, Source, aggregate, aggregate_weighed, check_rule
from eucaim_fl.strategies.control import control_after, guide
from eucaim_fl.strategies.outliers import outlying
from eucaim_fl.strategies.server_optimizer import OPTIMIZERS, Optimizer, apply, check_optimizer
from eucaim_fl.strategies.weighting import WEIGHTINGS, Settings, Told, Weighed, Weighting, check_weighting, weigh

__all__ = [
    "OPTIMIZERS",
    "RULES",
    "WEIGHTINGS",
    "Optimizer",
    "Rule",
    "Settings",
    "Source",
    "Told",
    "Weighed",
    "Weighting",
    "aggregate",
    "aggregate_weighed",
    "apply",
    "check_optimizer",
    "check_rule",
    "check_weighting",
    "control_after",
    "guide",
    "outlying",
    "weigh",
]
