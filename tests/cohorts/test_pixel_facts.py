"""What one pass over a stack's pixels says, and how it is kept as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from eucaim_fl.cohorts import pixel_facts
from eucaim_fl.cohorts.manifest import Case
from eucaim_fl.cohorts.pixel_facts import PixelFacts, examine, from_json, read_pixel_facts, to_json, volume_sha256
from eucaim_fl.cohorts.preparation import case_to_json
from eucaim_fl.errors import SeriesError, UnreadableFileError


@pytest.fixture
def nifti_case(tmp_path, tiny):
    def make(image: np.ndarray, label: np.ndarray | None = None, name: str = "a") -> Case:
        files = (tiny.nifti(tmp_path / f"{name}.nii.gz", image),)
        labels = () if label is None else (tiny.nifti(tmp_path / f"{name}_label.nii.gz", label),)
        return Case(name, "1", "1", files, "nifti", labels, "nifti" if labels else None)

    return make


def ramp() -> np.ndarray:
    image = np.zeros((4, 5, 6), np.int16)
    image[1:3, 1:4, :] = 10
    image[1, 1, 0] = 40
    return image


class TestReadPixelFacts:
    def test_values_of_a_small_image(self, nifti_case):
        facts = read_pixel_facts(nifti_case(ramp()))
        assert (facts.minimum, facts.maximum) == (0.0, 40.0)
        assert facts.mean == pytest.approx((35 * 10 + 40) / 120)
        assert facts.deviation == pytest.approx(ramp().std())
        assert facts.at_minimum == pytest.approx(84 / 120)
        assert facts.at_maximum == pytest.approx(1 / 120)
        assert facts.border == 0.0
        assert facts.shape == (4, 5, 6)
        assert facts.spacing_mm == (2.0, 2.0, 3.0)
        assert facts.thumbnail
        assert (facts.code, facts.labels, facts.label_sha256) == ("", (), "")

    def test_large_values_lose_no_precision(self, nifti_case):
        image = ramp().astype(np.float32) + 1e6
        facts = read_pixel_facts(nifti_case(image))
        assert facts.deviation == pytest.approx(image.astype(np.float64).std(), rel=1e-9)

    def test_a_label_is_measured_by_its_values(self, nifti_case):
        label = np.zeros((4, 5, 6), np.uint8)
        label[1, 1:3, 2] = 1
        label[2, 2, 2:5] = 2
        facts = read_pixel_facts(nifti_case(ramp(), label))
        assert [(one.name, one.voxels, one.volume_mm3) for one in facts.labels] == [
            ("segment 1", 2, 24.0),
            ("segment 2", 3, 36.0),
        ]
        assert facts.label_sha256 == volume_sha256(label)

    def test_a_label_that_does_not_fit_leaves_the_image_usable(self, nifti_case):
        facts = read_pixel_facts(nifti_case(ramp(), np.ones((3, 3, 3), np.uint8)))
        assert facts.sha256
        assert facts.label_code == "EFL203"
        assert "grid" in facts.label_reason

    def test_names_of_segments_keep_known_words_only(self, tmp_path, tiny):
        files = tiny.series(tmp_path / "ct", np.arange(96, dtype=np.int16).reshape(4, 4, 6))
        masks = {"Liver Dr Rossi": np.ones((4, 4, 6), bool)}
        seg = tiny.seg(tmp_path / "seg.dcm", files, masks)
        facts = read_pixel_facts(Case("P", "1", "1", tuple(files), "dicom", (seg,), "dicom_seg", {}, "CT"))
        (label,) = facts.labels
        assert "rossi" not in label.name
        assert label.voxels == 96

    def test_text_is_looked_for_in_first_middle_and_last_slice(self, nifti_case, monkeypatch):
        from eucaim_fl.cohorts.deidentification import burned_in

        seen = []
        monkeypatch.setattr(burned_in, "text_in_pixels", lambda plane: bool(seen.append(plane)))
        image = np.arange(4 * 5 * 7, dtype=np.float32).reshape(4, 5, 7)
        assert read_pixel_facts(nifti_case(image)).text is False
        assert [plane.tolist() for plane in seen] == [image[:, :, k].T.tolist() for k in (0, 3, 6)]
        monkeypatch.setattr(burned_in, "text_in_pixels", lambda plane: True)
        assert read_pixel_facts(nifti_case(image)).text is True

    def test_values_that_are_no_numbers_are_an_error(self, nifti_case):
        image = ramp().astype(np.float32)
        image[0, 0, 0] = np.nan
        with pytest.raises(SeriesError, match="NaN"):
            read_pixel_facts(nifti_case(image))

    def test_a_broken_file_is_an_error(self, nifti_case, tmp_path):
        case = nifti_case(ramp())
        case.image[0].write_bytes(b"nothing")
        with pytest.raises(UnreadableFileError, match="corrupt"):
            read_pixel_facts(case)


class TestExamine:
    def test_it_gives_json_that_leads_back_to_the_facts(self, nifti_case):
        case = nifti_case(ramp(), np.eye(4, 5, dtype=np.uint8)[:, :, None].repeat(6, axis=2))
        value = json.loads(json.dumps(examine(case_to_json(case)), allow_nan=False))
        assert from_json(value) == read_pixel_facts(case)

    def test_an_image_that_cannot_be_read_leaves_code_and_reason_and_no_path(self, tmp_path):
        value = examine(case_to_json(Case("Rossi", "1", "1", (tmp_path / "Rossi.nii",), "nifti")))
        facts = from_json(value)
        assert facts.code == "EFL204"
        assert "Rossi" not in json.dumps(value)


class TestVolumeSha256:
    def test_the_order_in_memory_makes_no_difference(self):
        array = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
        assert volume_sha256(array) == volume_sha256(np.asfortranarray(array))

    def test_shape_values_and_type_make_one(self):
        array = np.zeros((2, 3, 4), np.float32)
        other = array.copy()
        other[0, 0, 0] = 1
        digests = {volume_sha256(a) for a in (array, other, array.reshape(2, 4, 3), array.astype(np.uint8))}
        assert len(digests) == 4

    def test_minus_zero_is_zero(self):
        assert volume_sha256(np.full((1, 1, 1), -0.0, np.float32)) == volume_sha256(np.zeros((1, 1, 1), np.float32))


class TestFromJson:
    @pytest.mark.parametrize(
        "change",
        [
            {"mean": "much"},
            {"shape": [1, 2]},
            {"shape": [1, 2, 3.5]},
            {"text": 1},
            {"labels": [{"name": "a"}]},
            {"labels": [{"name": "a", "voxels": True, "volume_mm3": 1.0}]},
            {"label_problems": "tiny"},
            {"unknown": 1},
        ],
    )
    def test_what_is_of_another_type_is_refused(self, change):
        with pytest.raises(ValueError, match=r"value|facts"):
            from_json({**to_json(PixelFacts()), **change})

    def test_nothing_may_be_missing(self):
        value = to_json(PixelFacts())
        del value["border"]
        with pytest.raises(ValueError, match="other facts"):
            from_json(value)

    def test_whole_numbers_may_stand_for_measures(self):
        assert from_json({**to_json(PixelFacts()), "mean": 3}).mean == 3.0


def test_nothing_here_needs_torch():
    import subprocess
    import sys

    code = f"import sys, {pixel_facts.__name__}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    assert Path(pixel_facts.__file__).is_file()
