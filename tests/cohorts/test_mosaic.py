from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from eucaim_fl.cohorts.dicom import read_series
from eucaim_fl.cohorts.mosaic import unpack_mosaic
from eucaim_fl.errors import SeriesError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EUCAIM_FL_SHARED_DATA") or ROOT.parent / "shared" / "data")
SIEMENS = DATA / "dicom_conformance" / "dcm_qa_nih" / "In" / "20180918Si"


class TestUnpackMosaic:
    @pytest.mark.skipif(not SIEMENS.is_dir(), reason=f"no real data at {DATA}; set EUCAIM_FL_SHARED_DATA")
    @pytest.mark.parametrize("name", ["mr_0003", "mr_0004", "mr_0005", "mr_0006"])
    def test_slices_lie_where_the_scanners_protocol_planned_them(self, name):
        path = sorted((SIEMENS / name).glob("*.dcm"))[0]
        header = pydicom.dcmread(path)
        protocol = header[0x0029, 0x1020].value.decode("latin-1")
        planned = np.zeros((5, 3))
        for slice_, axis, mm in re.findall(r"asSlice\[(\d+)\]\.sPosition\.d(Sag|Cor|Tra)\s*=\s*([-\d.]+)", protocol):
            planned[int(slice_), ("Sag", "Cor", "Tra").index(axis)] = float(mm)
        volume = read_series([path])
        assert volume.shape == (72, 72, 5)
        centres = (volume.affine @ [[36] * 5, [36] * 5, range(5), [1] * 5])[:3].T * [-1, -1, 1]
        assert np.allclose(centres, planned, atol=1e-6)  # Siemens' centre is the corner of the middle voxel
        assert len(np.unique(planned[:, 2])) == 5
        tile = header.pixel_array[72:144, :72]  # the fourth of three by three
        assert np.array_equal(volume.array[:, :, 3], tile.T)

    def test_without_the_private_header_nothing_is_guessed(self):
        header = Dataset()
        header.Rows = header.Columns = 6
        with pytest.raises(SeriesError, match="mosaic"):
            unpack_mosaic(header, np.zeros((6, 6)))

    def test_tiles_that_do_not_fit_the_plane_are_refused(self, monkeypatch):
        from nibabel.nicom import dicomwrappers

        class Nine:
            n_mosaic, affine = 9, np.eye(4)

        monkeypatch.setattr(dicomwrappers, "MosaicWrapper", lambda header: Nine())
        with pytest.raises(SeriesError, match="mosaic"):
            unpack_mosaic(Dataset(), np.zeros((6, 7)))
        slices, affine = unpack_mosaic(Dataset(), np.arange(36).reshape(6, 6))
        assert slices[4].tolist() == [[14, 15], [20, 21]]
        assert affine.tolist() == [[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
