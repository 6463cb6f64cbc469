"""How the sites' updates become the next global model: aggregation rules and server optimizers (numpy only)."""

from eucaim_fl.strategies.aggregation import RULES, Rule, Source, aggregate, check_rule
from eucaim_fl.strategies.outliers import outlying
from eucaim_fl.strategies.server_optimizer import OPTIMIZERS, Optimizer, apply, check_optimizer

__all__ = [
    "OPTIMIZERS",
    "RULES",
    "Optimizer",
    "Rule",
    "Source",
    "aggregate",
    "apply",
    "check_optimizer",
    "check_rule",
    "outlying",
]
