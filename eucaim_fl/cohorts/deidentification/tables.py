"""Identifiers in tables: columns that are called like one, and cells that look like one."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import pairwise

from eucaim_fl.cohorts.deidentification import patterns
from eucaim_fl.cohorts.deidentification.names import looks_like_person
from eucaim_fl.cohorts.deidentification.words import tokens

__all__ = ["identifiers_in_table", "identifiers_in_values", "is_identifying_column"]

_LONGEST_CELL = 4096
_LONG_TEXT = 64
# English, Spanish, Italian, German, French, Portuguese, Dutch, Polish, Swedish, Czech, Greek (transliterated)
_NAMES_TEXT = """
name names surname firstname lastname forename fullname familyname givenname maidenname middlename initials
patientname nombre nombres apellido apellidos nome nomi cognome cognomi vorname nachname familienname geburtsname
nom prenom nomdefamille sobrenome apelido voornaam achternaam naam imie nazwisko fornamn efternamn namn jmeno
prijmeni onoma eponymo eponimo onomateponymo address adresse direccion domicilio indirizzo anschrift strasse street
calle rue endereco morada adres ulica adress adresa diefthynsi dieuthynsi postcode zipcode postalcode codigopostal
plz postleitzahl phone telephone tel telefon telefono telefone telefoon mobile movil cellulare handy gsm fax
tilefono email mail correo courriel epost mrn nhs nhsnumber ssn dni nie nif nuhsa cip curp rut codicefiscale taxcode
versichertennummer kvnr sozialversicherungsnummer svnr nir insee secu bsn pesel personnummer fodselsnummer amka
rodnecislo cnp oib jmbg egn passport pasaporte passaporto reisepass passeport iban nhc historia cartella krankenakte
fallnummer aktenzeichen numerosanitario cartaoutente dob birthdate birthday dateofbirth birth nacimiento nascita
geburtsdatum geburtstag geboren naissance nascimento geboortedatum geboorte urodzenia fodelsedatum fodelsedag
narozeni gennisi gennisis genniseos physician doctor medico arzt medecin lekarz lakare doktor iatros operator
radiologist insurance accession ddn fnac
"""
_NAMES = frozenset(_NAMES_TEXT.split())
_PAIRS_TEXT = """
serial_number station_name first_name last_name family_name given_name middle_name maiden_name full_name
patient_name subject_name primer_apellido segundo_apellido date_birth birth_date day_birth fecha_nacimiento
fecha_nac data_nascita data_nascimento date_naissance data_urodzenia place_birth codice_fiscale
numero_identificacion national_id id_card identity_number identity_card social_security medical_record record_number
hospital_number tessera_sanitaria tarjeta_sanitaria numero_historia telefon_nummer zip_code
postal_code codigo_postal referring_physician kontakt_daten contact_details next_kin securite_sociale
seguridad_social sicurezza_sociale nr_telefonu
"""
_PAIRS = frozenset(_PAIRS_TEXT.split())
_HARMLESS_TEXT = """
column variable field file feature series sequence study scan scanner manufacturer model drug treatment medication
gene marker protocol device site hospital dataset cohort class label lesion tumor tumour organ structure biomarker
trial project weight height order sex control number country year age status defect rate place mode type
"""
_HARMLESS = frozenset(_HARMLESS_TEXT.split())
"""Beside these words, `name`, `birth` and the like say something about no person."""
_IDENTIFIERS_ANYWAY = frozenset(
    {"dob", "mrn", "ssn", "dni", "email", "phone", "telephone", "address", "iban", "surname"}
)
_LAYOUT_COLUMNS = frozenset({"subjectname", "studyname", "foldername", "pagename"})
"""Keys of a layout's own files; what stands in them is judged by its shape."""
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_PATHS = re.compile(r"path|file|image|label|folder|series|study|mask|url", re.IGNORECASE)
_MEASURES = re.compile(r"size|byte|voxel|count|volume|dose|activity|code|snomed|concept|checksum", re.IGNORECASE)
_CODES = re.compile(
    r"(?<![A-Za-z])(?:COM|BP|IMG|CLIN|SPEC|SNOMEDCT|SCT|RID|RADLEX|ICDO3|NCIT|LNC|LOINC|OMOP)[:_ ]?C?\d{3,18}\b"
)


@lru_cache(maxsize=4096)
def is_identifying_column(name: str) -> bool:
    """Whether a column is called like something that names a person, in one of eleven European languages.

    Words are told apart by `_`, spaces, dots and capital letters; accents and case don't matter.

    >>> is_identifying_column("Fecha de nacimiento"), is_identifying_column("series_manufacturer_name")
    (True, False)
    """
    words = tokens(" ".join(_CAMEL.split(name[:256])).replace("_", " "))
    plain = [word for word in words if word not in ("of", "the", "de", "di", "da", "del", "della", "do", "et", "du")]
    joined = "".join(plain)
    if joined in _LAYOUT_COLUMNS:
        return False
    if joined in _NAMES or any(f"{a}_{b}" in _PAIRS for a, b in pairwise(plain)):
        return True
    if any(word in _IDENTIFIERS_ANYWAY for word in plain):
        return True
    return any(word in _NAMES for word in plain) and not any(word in _HARMLESS for word in plain)


@lru_cache(maxsize=65536)
def _in_cell(cell: str, holds_paths: bool, holds_measures: bool) -> tuple[str, ...]:
    """Rules that one cell breaks."""
    text = patterns.without_opaque(_CODES.sub(" ", cell))
    found = []
    if patterns.emails(text):
        found.append("deid.table_email")
    if patterns.days(text):
        found.append("deid.table_date")
    rest = patterns.without_days(text)
    if patterns.ibans(rest):
        found.append("deid.table_number")
    elif patterns.phones(rest):
        found.append("deid.table_phone")
    elif patterns.long_numbers(rest) and not holds_measures and not _is_decimal(rest):
        found.append("deid.table_number")
    if not holds_paths and looks_like_person(rest):
        found.append("deid.table_person")
    if len(cell) > _LONG_TEXT and " " in cell.strip():
        found.append("deid.table_text")
    return tuple(found)


def _is_decimal(text: str) -> bool:
    """A measured value with a decimal point, however many digits it was written with."""
    whole, point, rest = text.strip().lstrip("+-").partition(".")
    return bool(point) and whole.isdecimal() and len(whole) < 7 and rest.partition("e")[0].isdecimal()


def identifiers_in_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> dict[str, int]:
    """Rule → how many columns (`deid.table_column`) or cells of a table break it.

    A column counts if it is called like an identifier and has a value in any row. Cells count by their shape: e-mail
    addresses, telephone numbers, days other than 1 January, numbers of 7 digits or more, bank accounts, two
    neighbouring words of a name's shape; and text of more than 64 characters. UIDs, hashes, EUCAIM pseudonyms, codes of
    EUCAIM, SNOMED CT and RadLex, measured values with a decimal point, and words of medicine don't. Rows may be of any
    length; cells are read to 4,096 characters.
    """
    found: Counter[str] = Counter()
    suspects = {at for at, name in enumerate(header) if is_identifying_column(name)}
    paths = {at for at, name in enumerate(header) if _PATHS.search(name[:256])}
    measures = {at for at, name in enumerate(header) if _MEASURES.search(name[:256])}
    filled: set[int] = set()
    for row in rows:
        for at, cell in enumerate(row):
            value = cell[:_LONGEST_CELL].strip()
            if not value:
                continue
            if at in suspects:
                filled.add(at)
            found.update(_in_cell(value, at in paths, at in measures))
    found["deid.table_column"] += len(filled)
    return {rule: count for rule, count in found.items() if count}


def identifiers_in_values(values: Iterable[tuple[str, str]]) -> dict[str, int]:
    """As `identifiers_in_table`, for forms given as (name, value) pairs, such as eForms and JSON sidecars."""
    columns: dict[str, list[str]] = {}
    for name, value in values:
        columns.setdefault(name, []).append(value)
    return _merged(identifiers_in_table([name], ([cell] for cell in cells)) for name, cells in columns.items())


def _merged(parts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)
