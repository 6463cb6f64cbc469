"""Identifiers planted all over two cohorts: the check finds them, and nothing that it or a run writes repeats one."""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage

from eucaim_fl.cli import cli
from eucaim_fl.cohorts import isolation, pixel_pass, preparation
from eucaim_fl.cohorts.index import open_index, scan
from eucaim_fl.cohorts.table_check import column_breaches
from eucaim_fl.config import ExperimentConfig
from eucaim_fl.plan import make_plan
from eucaim_fl.site import locate
from eucaim_fl.site.node import SiteNode, initial_arrays
from eucaim_fl.sitefile import load_site_file

pytestmark = pytest.mark.integration

FIRST = ("Maria", "Hans", "Jurgen", "Ana", "Zoe", "Piotr", "Nikos", "Ingrid", "Luca", "Chloe")
SURNAMES = tuple(
    begin + end
    for end in (
        "valle",
        "mueller",
        "ewski",
        "dakis",
        "dezoa",
        "qvista",
        "berghe",
        "croixa",
        "ovich",
        "nzella",
        "tsukov",
    )
    for begin in ("Quinta", "Ober", "Wisni", "Papa", "Fernan", "Lind", "Vander", "Dela", "Bront", "Kosta", "Mikha")
)
PEOPLE = [
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ResponsiblePerson",
    "OperatorsName",
    "ReferringPhysicianName",
    "PerformingPhysicianName",
    "PhysiciansOfRecord",
    "RequestingPhysician",
    "ContentCreatorName",
]
TEXTS = [
    "PatientComments",
    "AdditionalPatientHistory",
    "ImageComments",
    "StudyDescription",
    "SeriesDescription",
    "ProtocolName",
    "RequestedProcedureComments",
    "PerformedProcedureStepDescription",
    "AdmittingDiagnosesDescription",
    "VisitComments",
]
PLACES = ["InstitutionName", "InstitutionAddress", "InstitutionalDepartmentName", "PatientAddress", "StationName"]
NUMBERS = [
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "AdmissionID",
    "DeviceSerialNumber",
    "RequestedProcedureID",
]
DAYS = ["PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"]
CLEAN = 14


@dataclass
class Plants:
    """What was planted: (kind, text that must not stand anywhere). where: how the check should find it, by kind."""

    texts: list[tuple[str, str]] = field(default_factory=list)
    files: list[tuple[str, str]] = field(default_factory=list)
    columns: list[tuple[str, str]] = field(default_factory=list)
    patients: list[tuple[str, str]] = field(default_factory=list)
    surnames: Iterator[str] = field(default_factory=lambda: iter(SURNAMES))
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def person(self, kind: str, shape: str = "{last}^{first}") -> str:
        last = next(self.surnames)
        self.texts.append((kind, last))
        return shape.format(last=last, first=FIRST[len(last) % 10])

    def text(self, kind: str, shape: str) -> str:
        """A shape with its number in the place of `#`."""
        made = shape.replace("#", f"{next(self.numbers):03d}")
        self.texts.append((kind, made))
        return made

    def day(self, kind: str) -> str:
        n = next(self.numbers)
        made = f"{1930 + n % 60}{2 + n % 11:02d}{2 + n % 26:02d}"
        self.texts.append((kind, made))
        return made


def dicom(number: int, edit: Callable[[Dataset], object] | None = None, pixels: np.ndarray | None = None) -> bytes:
    """One MR image as EUCAIM's de-identification leaves it, and what `edit` does to it."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = MRImageStorage, f"2.25.11{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID = f"2.25.12{number}", f"2.25.13{number}"
    ds.FrameOfReferenceUID, ds.SpecificCharacterSet = f"2.25.14{number}", "ISO_IR 192"
    ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.PatientSex = pseudonym(number), "", "", "F"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20180101", "", "", ""
    ds.ReferringPhysicianName, ds.PatientIdentityRemoved, ds.PatientAge = "", "YES", "063Y"
    ds.Modality, ds.Manufacturer, ds.SeriesDescription = "MR", "SIEMENS", "t2_tse_tra"
    if pixels is None:
        pixels = np.random.default_rng(number).integers(0, 500, (16, 16)).astype(np.uint16)
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 0]
    ds.PixelSpacing, ds.SliceThickness, ds.InstanceNumber = [2, 2], 3, 1
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW"
    if edit is not None:
        edit(ds)
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    ds.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def pseudonym(number: int) -> str:
    return f"EUCAIM-{number:016x}"


def in_headers(plants: Plants, kind: str) -> Iterator[tuple[str, str]]:
    """Keyword and value."""
    for keyword in PEOPLE:
        yield keyword, plants.person(kind)
    for keyword in TEXTS:
        yield keyword, plants.person(kind, "t2 {last}, {first}")
    for keyword in PLACES:
        yield keyword, plants.text(kind, "Spital Xanten#")
    for keyword in NUMBERS:
        yield keyword, plants.text(kind, "47#0815")
    for keyword in DAYS:
        yield keyword, plants.day(kind)


def nest(keyword: str, value: str) -> Callable[[Dataset], object]:
    def edit(ds: Dataset) -> None:
        inner, item = Dataset(), Dataset()
        setattr(inner, keyword, value)
        item.ReferencedSeriesSequence = Sequence([inner])
        ds.ReferencedStudySequence = Sequence([item])

    return edit


def hide(number: int, value: str) -> Callable[[Dataset], object]:
    def edit(ds: Dataset) -> None:
        block = ds.private_block((0x0009, 0x0019, 0x0029, 0x0033, 0x7FE1)[number % 5], "ACME", create=True)
        block.add_new(0x0C, ("LO", "UN", "PN", "LT")[number % 4], value.encode() if number % 4 == 1 else value)

    return edit


def drawn(text: str, number: int) -> np.ndarray:
    """A picture of shades with a text in a corner."""
    rows, columns = np.mgrid[:256, :256] / 256
    ground = np.clip(0.5 * np.exp(-8 * ((rows - 0.5) ** 2 + (columns - 0.5) ** 2)), 0, 0.9)
    ground += np.random.default_rng(number).normal(0, 0.02, ground.shape)
    mask = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(mask).text((4, 4), text, fill=255, font=ImageFont.load_default(size=12 + 2 * number))
    weight = np.asarray(mask) / 255
    return (np.clip(ground * (1 - weight) + weight, 0, 1) * 1000).astype(np.uint16)


def cells(plants: Plants, rows: list[dict[str, str]]) -> None:
    """Plant into the clinical table: one column a plant, and class columns that hold names."""
    planted = [
        ("note", plants.person("cell", "{last}, {first}")),
        ("remark", plants.person("cell", "Dr. {first} {last}")),
        ("finding", plants.person("cell", "{first} {last}")),
        ("contact", plants.text("cell", "xq#zz@post.example")),
        ("surname", plants.person("cell", "{last}")),
        ("Vorname", plants.person("cell", "{last}")),
        ("cognome", plants.person("cell", "{last}")),
        ("apellidos", plants.person("cell", "{last}")),
        ("nazwisko", plants.person("cell", "{last}")),
        ("geburtsdatum", plants.day("cell")),
        ("seen_on", plants.day("cell")),
        ("mrn", plants.text("cell", "47#0815")),
        ("reference", plants.text("cell", "47#0815")),
        ("account", plants.text("cell", "DE89 3704 0044 0532 0#0 00")),
        ("telefono", plants.text("cell", "+49 170 1234#")),
        ("call", plants.text("cell", "+49 170 1234#")),
        ("adresse", plants.text("cell", "Xantener Gasse #")),
    ]
    plants.columns += [("cell", name) for name, _ in planted]
    one_word, class_name = plants.person("unseen", "{last}"), plants.person("unseen", "{first} {last}")
    header = plants.person("unseen", "{first} {last}")
    for number, row in enumerate(rows):
        row |= {"malignant": str(number % 2), "histology": ("adenoma", "sarcoma")[number % 2]}
        row |= {"reviewed_by": one_word if number % 3 else "none", "reader": class_name if number % 2 else "none"}
        row[header] = str(number % 2)
    for number, (name, value) in enumerate(planted):
        rows[number % len(rows)][name] = value


def write_table(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys(name for row in rows for name in row)), restval="")
        writer.writeheader()
        writer.writerows(rows)


def folder_csv(folder: Path, plants: Plants) -> None:
    """DICOM in folders of patients."""
    numbers, rows = itertools.count(1), []

    def add(kind: str, content: bytes | None = None, place: str = "", patient: str = "", **make: Any) -> None:
        number = next(numbers)
        patient = patient or pseudonym(number)
        path = place or f"{patient}/2.25.12{number}/IM00001.dcm"
        if not path.startswith(".."):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(dicom(number, **make) if content is None else content)
        rows.append({"patient_id": patient, "folder": path.rpartition("/")[0]})
        plants.files.append((kind, path))

    for _ in range(CLEAN):
        add("")
    for keyword, value in in_headers(plants, "header"):
        add("header", edit=lambda ds, k=keyword, v=value: setattr(ds, k, v))
    for keyword, value in in_headers(plants, "nested"):
        add("nested", edit=nest(keyword, value))
    for number in range(20):
        add("private", edit=hide(number, plants.person("private")))
    for _ in range(4):
        text = plants.person("trailing")
        add("trailing", edit=lambda ds, v=text: ds.add_new(0xFFFCFFFC, "OB", (v + " " * (len(v) % 2)).encode()))
    for number in range(10):
        person, day = plants.person("name", "{last}_{first}"), plants.day("name")
        add("name", place=f"x{number}/{person}.dcm")
        add("name", place=f"y{number}/{day}/1.dcm")
        add("name", place=f"MRN{plants.text('name', '47#0815')}/1.dcm")
    for number in range(8):
        patient = plants.person("patient_id", "{last}_{first}") if number % 2 else plants.text("patient_id", "47#0815")
        add("patient_id", patient=patient)
    for number in range(6):
        text = plants.person("pixels", "{last}").upper()
        plants.patients.append(("pixels", pseudonym(len(rows) + 1)))
        add("", pixels=drawn(f"{text} {1950 + number}", number))
    add("", content=b"nothing", place=f"{plants.person('unseen', '{last}_{first}')}/a/1.dcm")
    add("", place=f"../{plants.person('unseen', '{last}_{first}')}/1.dcm")
    add("", edit=lambda ds: setattr(ds, "Modality", plants.person("unseen", "{last}").upper()))
    cells(plants, rows)
    write_table(folder / "clinical.csv", rows)


def nifti_csv(folder: Path, plants: Plants) -> None:
    """NIfTI and a table."""
    rows: list[dict[str, str]] = []

    def add(kind: str, name: str = "", patient: str = "", there: bool = True, extra: str = "", **header: str) -> None:
        number = len(rows) + 1
        path = name or f"images/P{number:03d}.nii.gz"
        if there:
            values = np.random.default_rng(number).integers(0, 500, (16, 16, 4)).astype(np.int16)
            image = nib.Nifti1Image(values, np.diag([2.0, 2.0, 4.0, 1.0]))
            for key, value in header.items():
                image.header[key] = value.encode()
            if extra:
                image.header.extensions.append(nib.nifti1.Nifti1Extension(6, extra.encode()))
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            nib.save(image, folder / path)
            plants.files.append((kind, path))
        rows.append({"patient_id": patient or pseudonym(number), "image": path})

    for _ in range(CLEAN):
        add("")
    for _ in range(4):
        add("NIfTI", descrip=plants.person("NIfTI", "{first} {last}"))
        add("NIfTI", aux_file=plants.person("NIfTI", "{last} {first}"))
        add("NIfTI", db_name=plants.day("NIfTI"))
        add("NIfTI", extra=plants.person("NIfTI"))
        add("name", name=f"images/{plants.person('name', '{last}_{first}')}.nii.gz")
        add("name", name=f"{plants.day('name')}/a.nii.gz")
    add("", patient=plants.person("unseen", "{last}_{first}"))
    add("", name=f"images/{plants.person('unseen', '{last}_{first}')}.nii.gz", there=False)
    add("", name=f"../{plants.person('unseen', '{last}_{first}')}.nii.gz", there=False)
    cells(plants, rows)
    rows.append({**rows[-1], "patient_id": "", "image": plants.person("unseen", "{last}_{first}")})
    write_table(folder / "clinical.csv", rows)
    form = {"patient_id": pseudonym(1), "reported_by": plants.person("form", "{first} {last}")}
    (folder / "form.json").write_text(json.dumps([form]))
    plants.columns.append(("form", "reported_by"))


@dataclass
class Said:
    """All that a hospital's commands and a run said or wrote, as name → bytes."""

    site_file: Path
    plants: Plants
    exits: dict[str, int] = field(default_factory=dict)
    reports: dict[str, bytes] = field(default_factory=dict)
    log: bytes = b""
    kept: dict[str, bytes] = field(default_factory=dict)
    trained: int = 0


@contextmanager
def in_this_process() -> Iterator[None]:
    """Foreign files are read without starting others."""
    alone = functools.partial(lambda real, work, items, **o: real(work, items, **{**o, "workers": 0}))
    with pytest.MonkeyPatch.context() as patch:
        one = functools.partial(alone, isolation.map_isolated)
        for module in (scan, pixel_pass, locate, preparation):
            patch.setattr(module, "map_isolated", one)
        yield


def all_bytes(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents below a folder; tables of Parquet and SQLite also as text, since they may be packed."""
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        yield f"name of {name}", os.fsencode(name)
        if path.is_file():
            yield name, path.read_bytes()
        if path.suffix == ".parquet":
            yield f"rows of {name}", repr(pq.read_table(path).to_pylist()).encode()
        if path.suffix == ".sqlite":
            yield f"dump of {name}", "\n".join(sqlite3.connect(path).iterdump()).encode()


def spoken(root: Path, layout: str, block: str) -> Said:
    """Plant a cohort, check it in every way, and train with it."""
    plants = Plants()
    (root / "cohort").mkdir(parents=True)
    {"folder_csv": folder_csv, "nifti_csv": nifti_csv}[layout](root / "cohort", plants)
    said = Said(root / "site.yaml", plants)
    settings = {
        "name": "a",
        "cohort": {"layout": layout, "folder": str(root / "cohort")},
        "cache": {"folder": str(root / "cache")},
        "deidentification": {"block": block},
        "release": {"data_is": "synthetic", "minimum_patients": 2, "minimum_metric_patients": 1},
    }
    said.site_file.write_text(yaml.safe_dump(settings))
    stream = io.StringIO()
    handler, logger = logging.StreamHandler(stream), logging.getLogger()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        commands = {"page": ["check", "--html", str(root / "p.html")], "json": ["check", "--json", "--no-pixels"]}
        if block == "identifiers":
            commands = {"index": ["index"], **commands, "verify": ["index", "--verify", "--json"]}
        for name, words in commands.items():
            run_command(said, name, words)
        if (layout, block) != ("folder_csv", "nothing"):  # to prepare all of them takes long
            train(said, root)
        run_command(said, "lineage", ["lineage", "--json"])
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
    said.reports["page itself"] = (root / "p.html").read_bytes()
    said.log = stream.getvalue().encode()
    said.kept = {**dict(all_bytes(root / "cache")), **dict(all_bytes(root / "cache.records"))}
    return said


def run_command(said: Said, name: str, words: list[str]) -> None:
    result = CliRunner().invoke(cli, ["site", words[0], str(said.site_file), *words[1:]])
    said.exits[name] = result.exit_code
    said.reports[name] = (result.output + repr(result.exception)).encode()


def train(said: Said, root: Path) -> None:
    """One round of a small model."""
    recipe = ExperimentConfig.model_validate(
        {
            "name": "tiny",
            "sites": [str(said.site_file)],
            "rounds": 1,
            "seed": 0,
            "task": {"name": "classification", "spatial_dims": 2, "target": "malignant", "classes": ["0", "1"]},
            "model": {"name": "small_cnn", "args": {"channels": [8, 16], "strides": [2, 2]}},
            "data": {"size_voxels": [16, 16, None]},
            "training": {"batch_size": 4, "local_steps": 1},
            "federation": {"quorum": 1},
            "tracking": {"enabled": False},
            "runs_dir": str(root / "runs"),
        }
    )
    node = SiteNode(said.site_file, make_plan(recipe, ("a",)))
    weights = initial_arrays(node.plan)[1]
    answers = [node.round(1, weights), node.final(2, weights)]
    said.reports["answers"] = repr([answer.report for answer in answers]).encode()
    said.trained = answers[0].report.patients


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Said]:
    with in_this_process():
        return {
            (layout, block): spoken(tmp_path_factory.mktemp(layout), layout, block)
            for layout in ("folder_csv", "nifti_csv")
            for block in ("identifiers", "nothing")
        }


def quoted(one: Said, where: dict[str, bytes]) -> set[str]:
    """Kind of plant and place, for each planted text that stands somewhere."""
    low = {name: content.lower() for name, content in where.items()}
    return {
        f"{kind} {text} in {name}"
        for kind, text in one.plants.texts
        for name, content in low.items()
        if text.lower().encode() in content
    }


class TestPlantedCohorts:
    def test_the_commands_and_the_run_work_all_the_same(self, said: dict[tuple[str, str], Said]) -> None:
        for (_, block), one in said.items():
            assert set(one.exits.values()) == {0}, one.reports
            assert one.trained >= CLEAN // 2 or not one.log.count(b"Quarantined")
            assert (b"EFL205" in one.reports["json"]) == (block == "identifiers")

    def test_no_report_quotes_an_identifier(self, said: dict[tuple[str, str], Said]) -> None:
        for one in said.values():
            assert quoted(one, one.reports) == set()

    def test_neither_index_nor_cache_nor_records_hold_one(self, said: dict[tuple[str, str], Said]) -> None:
        for (_, block), one in said.items():
            found = quoted(one, one.kept)
            if block == "nothing":  # then paths stand as they are, and only they
                found = {text for text in found if not text.startswith(("name ", "patient_id ", "unseen "))}
            assert found == set()
            assert one.trained == 0 or "dump of lineage.sqlite" in one.kept
            assert any(name.startswith("rows of index/v-") for name in one.kept)

    def test_the_local_log_masks_them(self, said: dict[tuple[str, str], Said]) -> None:
        for one in said.values():
            assert one.trained == 0 or b"Quarantined: EFL" in one.log
            assert quoted(one, {"log": one.log}) == set()

    def test_at_least_nineteen_in_twenty_are_found(self, said: dict[tuple[str, str], Said]) -> None:
        all_of, hits = Counter[str](), Counter[str]()
        for (_, block), one in said.items():
            if block == "nothing":
                for kind, found in judged(one):
                    all_of[kind] += 1
                    hits[kind] += found
        table = "\n".join(f"{kind:12}{hits[kind]:4} of {all_of[kind]:4}" for kind in sorted(all_of))
        assert all_of.total() >= 200, table
        assert hits.total() >= 0.95 * all_of.total(), table

    def test_what_is_clean_stays_clean(self, said: dict[tuple[str, str], Said]) -> None:
        for (_, block), one in said.items():
            if block == "nothing":
                catalogue = open_index(load_site_file(one.site_file))
                clean = [catalogue.file(path) for kind, path in one.plants.files[:CLEAN]]
                assert all(facts is not None and not facts.identifiers for facts in clean)


def judged(one: Said) -> Iterator[tuple[str, bool]]:
    """Kind of each plant, and whether the check found it."""
    site = load_site_file(one.site_file)
    catalogue = open_index(site)
    for kind, path in one.plants.files:
        if kind:
            facts = catalogue.file(path)
            yield kind, facts is not None and bool(facts.identifiers)
    folder = site.cohort_folder()
    breached = {b.column for name in ("clinical.csv", "form.json") for b in column_breaches(folder / name)}
    for kind, column in one.plants.columns:
        yield kind, column in breached
    if one.plants.patients:
        with in_this_process():
            lines = list(locate.locate(site, "deid.burned_in_seen"))
        for kind, patient in one.plants.patients:
            yield kind, any(line.startswith(patient) for line in lines)
