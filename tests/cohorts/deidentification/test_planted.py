"""Two hundred identifiers planted where hospitals forget them: how many are found, and that none is ever repeated."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from eucaim_fl.cohorts.deidentification.burned_in import text_in_pixels
from eucaim_fl.cohorts.deidentification.clean import deidentify_file
from eucaim_fl.cohorts.deidentification.names import identifiers_in_name, masked
from eucaim_fl.cohorts.deidentification.nifti_headers import identifiers_in_nifti
from eucaim_fl.cohorts.deidentification.policy import to_findings
from eucaim_fl.cohorts.deidentification.tables import identifiers_in_table
from eucaim_fl.cohorts.deidentification.trailing import identifiers_after_pixels
from eucaim_fl.cohorts.elements import read_elements
from eucaim_fl.errors import EucaimError
from eucaim_fl.seeding import generator
from eucaim_fl.sitefile import DeidentificationConfig

FIRST = ("Maria", "Hans", "Jürgen", "Ana", "Zoë", "Piotr", "Nikos", "Ingrid", "Luca", "Chloé")
LAST = ("Quintavalle", "Obermüller", "Wiśniewski", "Papadakis", "Fernández", "Lindqvist", "Vandenberghe", "Delacroix")
TEXTS = (
    "PatientComments",
    "AdditionalPatientHistory",
    "ImageComments",
    "StudyDescription",
    "RequestedProcedureComments",
    "SeriesDescription",
    "ProtocolName",
    "PerformedProcedureStepDescription",
    "AdmittingDiagnosesDescription",
    "VisitComments",
    "ReasonForStudy",
    "MedicalAlerts",
)
PEOPLE = (
    "PatientName",
    "OtherPatientNames",
    "PatientBirthName",
    "PatientMotherBirthName",
    "ResponsiblePerson",
    "ReferringPhysicianName",
    "OperatorsName",
    "PerformingPhysicianName",
    "PhysiciansOfRecord",
    "NameOfPhysiciansReadingStudy",
    "RequestingPhysician",
    "ContentCreatorName",
)
PLACES = (
    "InstitutionName",
    "InstitutionAddress",
    "InstitutionalDepartmentName",
    "PatientAddress",
    "StationName",
    "CurrentPatientLocation",
    "IssuerOfPatientID",
    "PatientTelecomInformation",
)
NUMBERS = (
    "PatientID",
    "OtherPatientIDs",
    "AccessionNumber",
    "AdmissionID",
    "RequestedProcedureID",
    "DeviceSerialNumber",
    "PlacerOrderNumberImagingServiceRequest",
    "ServiceEpisodeID",
    "PatientTelephoneNumbers",
)
DAYS = ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate", "InstanceCreationDate")


def people(number: int) -> tuple[str, str]:
    return FIRST[number % len(FIRST)], LAST[number % len(LAST)]


def day(number: int) -> str:
    return f"{1930 + number}{2 + number % 11:02d}{2 + number % 26:02d}"


def in_headers() -> Iterator[tuple[str, dict[str, str]]]:
    for number, keyword in enumerate(PEOPLE):
        first, last = people(number)
        yield last, {keyword: f"{last}^{first}"}
    for number, keyword in enumerate(TEXTS):
        first, last = people(number + 3)
        yield last, {keyword: f"t2 {last}, {first}"}
    for number, keyword in enumerate(PLACES):
        yield f"Spital Xanten{'abcdefgh'[number]}", {keyword: f"Spital Xanten{'abcdefgh'[number]}"}
    for number, keyword in enumerate(NUMBERS):
        yield f"47110{number}815", {keyword: f"47110{number}815"}
    for number, keyword in enumerate(DAYS):
        yield day(number), {keyword: day(number)}
    yield "anna@post.example", {"Manufacturer": "anna@post.example"}


def dataset_with(header: SimpleNamespace, attributes: dict[str, str]) -> Dataset:
    ds = header.clean(SpecificCharacterSet="ISO_IR 192", **attributes)
    assert isinstance(ds, Dataset)
    return ds


def nested(header: SimpleNamespace, attributes: dict[str, str]) -> Dataset:
    inner = Dataset()
    for name, value in attributes.items():
        setattr(inner, name, value)
    item = Dataset()
    item.ReferencedSeriesSequence = Sequence([inner])
    return dataset_with(header, {"ReferencedStudySequence": Sequence([item])})  # type: ignore[dict-item]


def private(header: SimpleNamespace, number: int, value: str) -> Dataset:
    ds = dataset_with(header, {})
    group = (0x0009, 0x0019, 0x0029, 0x0033, 0x7FE1)[number % 5]
    ds.private_block(group, "ACME", create=True).add_new(
        0x0C, ("LO", "UN", "PN", "LT")[number % 4], value.encode() if number % 4 == 1 else value
    )
    return ds


def drawn(text: str, number: int) -> np.ndarray:
    rng = generator(number, "planted")
    rows, columns = np.mgrid[:256, :256] / 256
    ground = sum(
        rng.uniform(0.1, 0.4) * (np.hypot(rows - y, columns - x) < 0.15) for y, x in rng.uniform(0.2, 0.8, (8, 2))
    )
    ground = np.clip(ground + rng.normal(0, 0.02, (256, 256)), 0, 0.9)
    mask = Image.new("L", (256, 256), 0)
    ImageDraw.Draw(mask).text(
        (4, 4 + 220 * (number % 2)), text, fill=255, font=ImageFont.load_default(size=10 + number)
    )
    weight = np.asarray(mask) / 255
    return ground * (1 - weight) + weight if number % 3 else (1 - ground) * (1 - weight)


def names_of_files() -> Iterator[str]:
    for number in range(10):
        first, last = people(number)
        yield f"{last}_{first}/IM{number:04d}.dcm"
        yield f"scan/{last.upper()}^{first.upper()}.dcm"
    for number in range(5):
        yield f"MRN47110{number}815/1.dcm"
        yield f"mr/{day(number)}_{number}.dcm"
        yield f"{day(number)[6:]}.{day(number)[4:6]}.{day(number)[:4]}/1.dcm"


CELLS = (
    "anna@post.example",
    "+49 170 1234567",
    "Quintavalle, Maria",
    "Dr. Nikos Papadakis",
    "471108155",
    "12345678Z",
    "RSSMRA80A01H501U",
    "DE89 3704 0044 0532 0130 00",
    "1953-03-12",
    "12.03.1953",
    "12 Mar 1953",
    "03/14/1953",
    "Ana Fernández",
    "WIŚNIEWSKI PIOTR",
    "(0650) 123-4567",
    "850312-1234",
)
COLUMNS = (
    "surname",
    "Vorname",
    "cognome",
    "apellidos",
    "nom_de_famille",
    "naam",
    "nazwisko",
    "efternamn",
    "eponymo",
    "geburtsdatum",
    "fecha de nacimiento",
    "telefono",
    "adresse",
    "MRN",
    "codice_fiscale",
    "NHS number",
)


def planted(header: SimpleNamespace, folder: Path) -> Iterator[tuple[str, str, Callable[[], dict[str, int]]]]:
    """Kind, planted text, and the check that should find it."""

    def of_file(ds: Dataset) -> dict[str, int]:
        path = folder / "a.dcm"
        path.write_bytes(header.content(ds))
        elements = read_elements(path)
        with path.open("rb") as stream:
            return {**header.found(ds), **identifiers_after_pixels(stream, elements)}

    def of_nifti(field: str, value: str) -> dict[str, int]:
        image = nib.Nifti1Image(np.zeros((2, 2, 2), np.uint8), np.eye(4))
        if field == "extension":
            image.header.extensions.append(nib.nifti1.Nifti1Extension(6, value.encode()))
        else:
            image.header[field] = value.encode()
        nib.save(image, folder / "a.nii")
        return identifiers_in_nifti(folder / "a.nii")

    for text, attributes in in_headers():
        yield "header", text, lambda a=attributes: of_file(dataset_with(header, a))
    for text, attributes in in_headers():
        if "Manufacturer" not in attributes:
            yield "nested", text, lambda a=attributes: of_file(nested(header, a))
    for number in range(15):
        text = "^".join(people(number))
        yield "private", text, lambda n=number, t=text: of_file(private(header, n, t))
    for name in names_of_files():
        yield "file name", name, lambda n=name: identifiers_in_name(n)
    for cell in CELLS:
        yield "cell", cell, lambda c=cell: identifiers_in_table(["value"], [[c]])
    for column in COLUMNS:
        yield "column", "Xantippe", lambda c=column: identifiers_in_table(["patient_id", c], [["P1", "Xantippe"]])
    for number, field in enumerate(("descrip", "aux_file", "intent_name", "db_name", "extension") * 2):
        text = ("Lindqvist Ana", "19530312")[number // 5]
        yield "NIfTI", text, lambda f=field, t=text: of_nifti(f, t)
    for number in range(18):
        text = f"{people(number)[1].upper()} {day(number)[:4]}"
        yield "pixels", text, lambda n=number, t=text: {"deid.burned_in_seen": int(text_in_pixels(drawn(t, n)))}


class TestPlantedIdentifiers:
    def test_at_least_nineteen_in_twenty_are_found_and_none_is_repeated(
        self, header: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        all_of, hits, missed = Counter[str](), Counter[str](), []
        for kind, text, check in planted(header, tmp_path):
            found = {rule: count for rule, count in check().items() if count}
            all_of[kind] += 1
            hits[kind] += bool(found)
            if not found:
                missed.append(f"{kind}: {text}")
            said = repr(found) + repr(to_findings([("P1", found)], DeidentificationConfig()))
            assert text.lower() not in said.lower()
        print("\n".join(f"{kind:10} {hits[kind]:3} of {all_of[kind]:3}" for kind in all_of), *missed, sep="\n")
        assert all_of.total() >= 200
        assert hits.total() >= 0.95 * all_of.total(), missed
        assert all(hits[kind] >= 0.85 * all_of[kind] for kind in all_of), missed

    def test_what_is_refused_is_refused_without_the_planted_text(self, header: SimpleNamespace, tmp_path: Path) -> None:
        for number, (text, attributes) in enumerate(in_headers()):
            ds = dataset_with(header, {**attributes, "BurnedInAnnotation": "YES"})
            source = tmp_path / f"{text.replace('/', '')}.dcm"
            stream = io.BytesIO()
            ds.save_as(stream, enforce_file_format=True)
            source.write_bytes(stream.getvalue())
            with pytest.raises(EucaimError, match="burned into") as caught:
                deidentify_file(source, tmp_path / f"{number}.copy", b"s" * 32)
            assert text.lower() not in str(caught.value).lower()

    def test_names_in_reports_are_masked(self) -> None:
        for name in names_of_files():
            assert masked(name).startswith("#")
