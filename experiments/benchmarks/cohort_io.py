"""How fast a cohort is scanned, read, cached and queried, side by side with what people use otherwise.

    pip install 'eucaim-fl[benchmarks]'
    python experiments/benchmarks/cohort_io.py [--only NAME]… [--quick] [--json FILE]

headers  headers a second of the whole index update (list, read, check for identifiers, write Parquet) with 1 and 2
         processes, against reading the same headers with pydicom; then an update in which nothing changed.
series   volumes a second of CT series (64 slices of 256 x 256, uint16) in the first epoch, against MONAI's `LoadImage`
         as it comes (ITK's reader), its PydicomReader, SimpleITK, and reading the bytes alone; 1 and 2 processes each.
cached   an epoch over prepared cases (1 x 64 x 64 x 32, float32), every voxel touched, against `numpy.load` with a
         memory map of the same files.
scale    cohort queries over the real series of the NCI Imaging Data Commons (`idc-index-data`, a million) brought into
         the index's form, and bringing a million scanned files into an index; peak memory of both (index_scale.py).

Every measurement repeats in turns (ours, theirs, ours, …) in one run and reports the median and the ratio of medians.
The files were just written, so they come from the disk cache: what is compared is the work, not the disk.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["MEASUREMENTS", "main"]

_SLICES, _SIDE = 64, 256
_REPEATS = 5


# --- writing what is read ---------------------------------------------------------------------------------------------


def _write_series(folder: Path, number: int, slices: int, side: int) -> None:
    """One CT series of noise on a ramp, as a scanner's archive has it: about 60 attributes a slice."""
    from eucaim_fl.cohorts.dicom_writer import SeriesStyle, Study, pseudonym, uid, write_series

    rng = np.random.default_rng(number)
    volume = rng.integers(-1000, 1000, (side, side, slices)).astype(np.float32)
    study = Study(pseudonym("benchmark", number), uid("benchmark", "study", number), 2020)
    affine = np.diag([-0.7, -0.7, 2.0, 1.0])  # axial as scanners store it: to the left, to posterior, upwards
    write_series(folder, volume, affine, study, SeriesStyle("Siemens"))


def _series_folders(root: Path, count: int) -> list[str]:
    for number in range(count):
        folder = root / f"series-{number:03d}"
        folder.mkdir(parents=True)
        _write_series(folder, number, _SLICES, _SIDE)
    return sorted(str(path) for path in root.iterdir())


# --- reading a series -------------------------------------------------------------------------------------------------


def _ours(folder: str) -> float:
    from eucaim_fl.cohorts.dicom import read_series

    return float(read_series(sorted(Path(folder).iterdir())).array[0, 0, 0])


def _monai(folder: str) -> float:
    return float(_loader("default")(folder)[0, 0, 0])


def _monai_pydicom(folder: str) -> float:
    return float(_loader("PydicomReader")(folder)[0, 0, 0])


_LOADERS: dict[str, Any] = {}


def _loader(reader: str) -> Any:
    if reader not in _LOADERS:
        from monai.transforms import LoadImage

        _LOADERS[reader] = LoadImage(image_only=True, **({} if reader == "default" else {"reader": reader}))
    return _LOADERS[reader]


def _simple_itk(folder: str) -> float:
    import SimpleITK as sitk  # noqa: N813 - its own short name

    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(folder))
    return float(sitk.GetArrayViewFromImage(reader.Execute())[0, 0, 0])


def _bytes(folder: str) -> float:
    return float(sum(len(path.read_bytes()) for path in Path(folder).iterdir()))


_READERS: dict[str, Callable[[str], float]] = {
    "eucaim_fl": _ours,
    "MONAI LoadImage": _monai,
    "MONAI PydicomReader": _monai_pydicom,
    "SimpleITK": _simple_itk,
    "bytes alone": _bytes,
}


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _read(task: tuple[str, str]) -> float:
    name, folder = task
    return _READERS[name](folder)


def _rate(pool: Any, name: str, folders: Sequence[str]) -> float:
    started = time.perf_counter()
    pool.map(_read, [(name, folder) for folder in folders], chunksize=1)
    return len(folders) / (time.perf_counter() - started)


def measure_series(root: Path, quick: bool) -> dict[str, Any]:
    """Volumes a second by reader and number of processes, and ours as a multiple of each."""
    folders = _series_folders(root / "series", 8 if quick else 24)
    found: dict[str, Any] = {}
    for workers in (1, 2):
        with multiprocessing.get_context("spawn").Pool(workers, _one_thread) as pool:
            rates: dict[str, list[float]] = {name: [] for name in _READERS}
            for name in _READERS:
                _rate(pool, name, folders[: 2 * workers])  # imports, first calls
            for _ in range(2 if quick else _REPEATS):
                for name in _READERS:
                    rates[name].append(_rate(pool, name, folders))
        medians = {name: statistics.median(values) for name, values in rates.items()}
        found[f"{workers} process{'es' * (workers > 1)}"] = {
            "series_per_second": {name: round(value, 1) for name, value in medians.items()},
            "ours_over": {n: round(medians["eucaim_fl"] / v, 2) for n, v in medians.items() if n != "eucaim_fl"},
        }
    return found


# --- scanning headers -------------------------------------------------------------------------------------------------


def measure_headers(root: Path, quick: bool) -> dict[str, Any]:
    """Headers a second of an index update and of pydicom over the same files, and of an update without changes."""
    import pydicom

    from eucaim_fl.cohorts.index import update_index
    from eucaim_fl.sitefile import SiteFile

    cohort = root / "headers"
    for number in range(10 if quick else 100):
        folder = cohort / f"patient-{number:03d}"
        folder.mkdir(parents=True)
        _write_series(folder, number, 200, 32)
    files = sorted(path for path in cohort.rglob("*.dcm"))

    def site(workers: int, repeat: int) -> SiteFile:
        return SiteFile.model_validate(
            {
                "name": "a",
                "cohort": {"layout": "folder_csv", "folder": cohort},
                "cache": {"folder": root / f"cache-{workers}-{repeat}"},
                "compute": {"readers": workers},
            }
        )

    def timed(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return len(files) / (time.perf_counter() - started)

    rates: dict[str, list[float]] = {}
    for repeat in range(1 if quick else 3):
        for workers in (1, 2):
            here = site(workers, repeat)
            label = f"index, {workers} process{'es' * (workers > 1)}"
            rates.setdefault(label, []).append(timed(lambda here=here: update_index(here)))
            rates.setdefault("index, nothing changed", []).append(timed(lambda here=here: update_index(here)))
        rates.setdefault("pydicom dcmread, 1 process", []).append(
            timed(lambda: [pydicom.dcmread(path, stop_before_pixels=True).get("Modality") for path in files])
        )
    return {"files": len(files), "per_second": {n: round(statistics.median(v)) for n, v in rates.items()}}


# --- the cache --------------------------------------------------------------------------------------------------------


def measure_cached(root: Path, quick: bool) -> dict[str, Any]:
    """An epoch over prepared cases as a multiple of the speed of `numpy.load` with memory maps."""
    from eucaim_fl.cohorts.cohort import open_cohort
    from eucaim_fl.plan import FederationPlan
    from eucaim_fl.sitefile import SiteFile

    count = 40 if quick else 200
    site = SiteFile.model_validate(
        {
            "name": "a",
            "cohort": {"layout": "nifti_csv", "folder": root / "cached"},
            "cache": {"folder": root / "cached-cache"},
            "release": {"minimum_patients": 1},
        }
    )
    _write_nifti_cohort(root / "cached", count)
    cohort = open_cohort(site, FederationPlan.model_validate(_PLAN))
    cases = [case for split in ("train", "validation", "test") for case in cohort.cases(split)]  # type: ignore[arg-type]
    paths = [case.entry.image_path for case in cases]

    def ours() -> float:
        return sum(float(case.image().sum()) for case in cases)

    def theirs() -> float:
        return sum(float(np.load(path, mmap_mode="r").sum()) for path in paths)

    times: dict[str, list[float]] = {"eucaim_fl": [], "numpy.load": []}
    for _ in range(3 + (4 if quick else 12)):
        for name, epoch in (("eucaim_fl", ours), ("numpy.load", theirs)):
            started = time.perf_counter()
            epoch()
            times[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[3:]) for name, values in times.items()}
    return {
        "cases": len(cases),
        "cases_per_second": {name: round(len(cases) / value) for name, value in medians.items()},
        "ours_over_numpy": round(medians["numpy.load"] / medians["eucaim_fl"], 3),
    }


_PLAN: Mapping[str, Any] = {
    "software": "0.1",
    "name": "benchmark",
    "seed": 0,
    "rounds": 1,
    "sites": ("a",),
    "task": {"name": "segmentation", "labels": ("lesion",)},
    "model": {"name": "unet"},
    "data": {"size_voxels": (64, 64, 32)},
    "training": {"local_steps": 1},
    "method": {},
    "privacy": {},
    "participation": {"quorum": 1, "round_deadline_s": 1.0, "quorum_wait_s": 0.0},
}


def _write_nifti_cohort(folder: Path, count: int) -> None:
    import nibabel as nib

    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    lines = ["patient_id,image,label"]
    for number in range(count):
        image = rng.integers(-1000, 1000, (64, 64, 32)).astype(np.int16)
        for name, array in ((f"PAT{number}", image), (f"PAT{number}_label", (image > 0).astype(np.uint8))):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 2.0, 1.0])), folder / f"{name}.nii")
        lines.append(f"PAT{number},PAT{number}.nii,PAT{number}_label.nii")
    (folder / "clinical.csv").write_text("\n".join(lines) + "\n")


# --- a million series -------------------------------------------------------------------------------------------------


def measure_scale(root: Path, quick: bool) -> dict[str, Any]:
    """Time and peak memory of cohort queries over a million series, and of building an index of a million files."""
    found: dict[str, Any] = {}
    for step, place in (("idc", "idc"), ("queries", "idc"), *(() if quick else (("files", "files"),))):
        command = [sys.executable, str(Path(__file__).with_name("index_scale.py")), step, str(root / place)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[step] = json.loads(done.stdout.splitlines()[-1])
    del found["idc"]
    return found


MEASUREMENTS: dict[str, Callable[[Path, bool], dict[str, Any]]] = {
    "series": measure_series,
    "headers": measure_headers,
    "cached": measure_cached,
    "scale": measure_scale,
}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure, print JSON, and write it if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(MEASUREMENTS))
    parser.add_argument("--quick", action="store_true", help="few and small; to see that it works")
    parser.add_argument("--json", type=Path, help="write the result here too")
    options = parser.parse_args(arguments)
    result: dict[str, Any] = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "versions": {name: version(name) for name in ("eucaim-fl", "pydicom", "monai", "duckdb", "numpy")},
    }
    for name in options.only or sorted(MEASUREMENTS):
        with tempfile.TemporaryDirectory(prefix="eucaim_fl_") as folder:
            result[name] = MEASUREMENTS[name](Path(folder), options.quick)
        print(json.dumps({name: result[name]}, indent=2), flush=True)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return result


if __name__ == "__main__":
    main()
