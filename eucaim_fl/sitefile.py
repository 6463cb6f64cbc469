"""The site file: all that a hospital says about itself to its own client. It never leaves the hospital."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, Field, PositiveInt

from eucaim_fl.config import SITE_NAME, Config, parse
from eucaim_fl.errors import SiteFileError

__all__ = [
    "DATA_VARIABLE",
    "CacheConfig",
    "CohortConfig",
    "ComputeConfig",
    "ConsentConfig",
    "DeidentificationConfig",
    "RecordsConfig",
    "ReleaseConfig",
    "SiteFile",
    "data_root",
    "load_site_file",
]


DATA_VARIABLE = "EUCAIM_FL_DATA"
_LONGEST_PATH, _LONGEST_STEP = 2048, 255
Layout = Literal["eucaim_tier3", "upv_index", "nifti_csv", "xnat", "bids", "folder_csv"]


def _possible(path: Path) -> Path:
    """The path, if a file system could have it."""
    raw = os.fsencode(path)
    if b"\0" in raw or len(raw) > _LONGEST_PATH or any(len(step) > _LONGEST_STEP for step in raw.split(b"/")):
        raise ValueError("no file can be called so: it is too long, or holds a zero byte")
    return path


_Place = Annotated[Path, AfterValidator(_possible)]


class CohortConfig(Config):
    """Where the cohort lies and how it is laid out.

    folder: absolute, or relative to the data root (`EUCAIM_FL_DATA`, default `./data`).
    columns: names of clinical columns at this site → names that plans use.
    links: folders outside the cohort that links inside it may lead to (a data lake); all other links are refused.
    body_parts: what the images should show (DICOM terms such as PROSTATE); empty does not check.
    words: words of this site's series descriptions that rules may ask for, beyond the built-in imaging words; all
    other words of descriptions stay out of the index, since they may name a person.
    """

    layout: Layout
    folder: _Place
    columns: dict[str, str] = Field(default_factory=dict)
    links: tuple[_Place, ...] = ()
    body_parts: tuple[Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9 ]{1,15}$")], ...] = ()
    words: tuple[Annotated[str, Field(pattern=r"^[a-z0-9]{1,32}$")], ...] = ()


class DeidentificationConfig(Config):
    """What identifiers in the cohort's files lead to.

    profile: `eucaim` is the basic profile of DICOM PS3.15 Annex E plus EUCAIM's own rules; `basic` the former alone.
    block: `identifiers` sets patients aside whose files hold what can name a person (names, numbers, dates of birth,
    private elements, free text, burned-in text); `everything` does so for every finding; `nothing` only reports.
    """

    profile: Literal["eucaim", "basic"] = "eucaim"
    block: Literal["identifiers", "everything", "nothing"] = "identifiers"


class ConsentConfig(Config):
    """The consent table, if the site keeps one.

    table: CSV with the columns patient_id, status (given or withdrawn), date (YYYY-MM-DD) and purposes (separated by
    semicolons); absolute, or relative to the cohort's folder. None: every patient of the cohort may be used.
    purposes: a patient takes part if one of these was consented to; empty takes any.
    """

    table: _Place | None = None
    purposes: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = ()


class CacheConfig(Config):
    """Where preprocessed tensors are kept.

    folder: None is `.eucaim_fl_cache/<site>` under the data root. limit_gb: beyond it, what was not used for longest
    is removed (10⁹ bytes); None sets no limit.
    """

    folder: _Place | None = None
    limit_gb: Annotated[float, Field(gt=0)] | None = None


class RecordsConfig(Config):
    """What is kept in the records folder beside the cache, `<cache>.records`.

    models_gb: so much (10⁹ bytes) the site's own models and states may take, those of all plans together; a plan that
    needs more is refused, and nothing is removed for it. None sets no limit.
    """

    models_gb: Annotated[float, Field(gt=0)] | None = 50.0

    def models_bytes(self) -> int | None:
        """The limit in bytes."""
        return None if self.models_gb is None else int(self.models_gb * 1e9)


class ComputeConfig(Config):
    """What local work runs on.

    threads: one keeps results the same bits on every number of worker processes. readers: processes that scan and
    prepare files; None takes one a core.
    """

    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1, le=256)] = 1
    readers: Annotated[int, Field(ge=1, le=256)] | None = None


class ReleaseConfig(Config):
    """What may leave the site, beyond the plan's own limits. Everything is off or strict by default.

    data_is: only `synthetic` or `public` data may appear in pictures of a report or be pooled with other sites'.
    minimum_patients: fewer training patients than this, and the site takes part in no run that trains.
    minimum_metric_patients: a metric over fewer patients is withheld; with fewer, no frozen model is judged.
    score_histograms: lets histograms of predicted scores leave, from which a pooled AUC is computed.
    count_base: counts of patients leave as multiples of it.
    For confidential data the code has floors under the three numbers (10, 5 and 5), which can only be raised; public
    and synthetic data have none, and their counts leave as they are.
    """

    data_is: Literal["confidential", "public", "synthetic"] = "confidential"
    minimum_patients: PositiveInt = 10
    minimum_metric_patients: PositiveInt = 5
    score_histograms: bool = False
    count_base: PositiveInt = 5


class SiteFile(Config):
    """One hospital. See `sites/README.md` for every key in plain words.

    policy: the hospital's contract, beside this file unless it is absolute; without one, only `release` limits what
    leaves, which is enough on a researcher's own machine and not in a federation.
    """

    name: Annotated[str, Field(pattern=SITE_NAME)]
    title: str = Field(default="", max_length=120)
    cohort: CohortConfig
    deidentification: DeidentificationConfig = DeidentificationConfig()
    consent: ConsentConfig = ConsentConfig()
    cache: CacheConfig = CacheConfig()
    records: RecordsConfig = RecordsConfig()
    compute: ComputeConfig = ComputeConfig()
    release: ReleaseConfig = ReleaseConfig()
    policy: _Place | None = None

    def policy_path(self, site_file: Path) -> Path | None:
        """Where the policy lies, given the site file's own place; None without one."""
        return None if self.policy is None else (site_file.parent / self.policy).absolute()

    def cohort_folder(self) -> Path:
        """The cohort's folder as an absolute path."""
        return (data_root() / self.cohort.folder).absolute()

    def cache_folder(self) -> Path:
        """The cache's folder as an absolute path."""
        folder = self.cache.folder or Path(".eucaim_fl_cache") / self.name
        return (data_root() / folder).absolute()

    def index_folder(self) -> Path:
        """Where the index of the cohort's files is kept: `index` in the cache's folder."""
        return self.cache_folder() / "index"

    def records_folder(self) -> Path:
        """Where the site keeps what must outlive the cache (lineage): beside it, `<cache>.records`."""
        cache = self.cache_folder()
        return cache.with_name(f"{cache.name}.records")

    def link_folders(self) -> tuple[Path, ...]:
        """Where links inside the cohort may lead, as resolved absolute paths."""
        return tuple((data_root() / folder).resolve() for folder in self.cohort.links)


def data_root() -> Path:
    """Folder that relative cohort paths start from: `EUCAIM_FL_DATA`, default `./data`."""
    return Path(os.environ.get(DATA_VARIABLE) or "data")


def load_site_file(path: Path) -> SiteFile:
    """Read and check one site file.

    Raises SiteFileError if it is missing, can't be read, no plain YAML mapping, has unknown or wrong keys, or puts the
    cache or the records into the cohort's folder, which is only read.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SiteFileError("The site file is missing.", fix="Check its name.", local_detail=str(path)) from None
    except OSError as problem:
        raise SiteFileError(
            "The site file can't be read.",
            fix="Name a YAML file that you may read, such as sites/a.yaml.",
            local_detail=f"{path}: {problem.strerror}",
        ) from None
    except (UnicodeDecodeError, RecursionError, ValueError, yaml.YAMLError) as problem:
        raise SiteFileError(
            "The site file can't be read as YAML.",
            fix="It must be plain YAML without tags.",
            local_detail=f"{path}: {problem}",
        ) from None
    if not isinstance(values, dict):
        raise SiteFileError("The site file holds no mapping of keys to values.", local_detail=str(path))
    try:
        site = parse(SiteFile, values, "The site file", SiteFileError)
    except SiteFileError as problem:  # what it says may leave the site as a refusal: keys and values stay here
        raise SiteFileError(
            "The site file has unknown or wrong keys.",
            fix=problem.fix,
            local_detail=" ".join(filter(None, (f"{path}:", problem.message, problem.local_detail))),
        ) from None
    cohort = site.cohort_folder().resolve()
    for folder in (site.cache_folder(), site.records_folder()):
        if folder.resolve().is_relative_to(cohort):
            raise SiteFileError(
                "The site's cache, or its records beside it, would lie inside the cohort's folder.",
                fix="Set cache.folder to a place outside the cohort; the cohort is only read.",
                local_detail=f"{path}: {folder}",
            )
    return site
