"""A process that works on images has what it needs of MONAI, and not what costs seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.integration  # it loads PyTorch and MONAI in a process of its own

CODE = """
import pkgutil, sys
walk = pkgutil.walk_packages
from eucaim_fl.cohorts.monai_parts import load
load("monai.networks.nets", "monai.transforms")
import monai
print(*sorted({"mlflow", "matplotlib", "pandas", "sklearn", "monai.networks.nets"} & set(sys.modules)))
print(pkgutil.walk_packages is walk, monai.networks.nets.UNet.__name__, monai.transforms.Spacing.__name__)
import pandas
print(pandas.DataFrame({"a": [1]}).shape)
load("monai.losses")
print(sys.modules["pandas"] is pandas, sys.modules["monai.losses"].DiceLoss.__name__)
"""


class TestLoad:
    def test_what_is_named_is_there_what_is_large_is_not_and_comes_when_it_is_wanted(self) -> None:
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines() == [
            "monai.networks.nets",
            "True UNet Spacing",
            "(1, 1)",
            "True DiceLoss",
        ]
