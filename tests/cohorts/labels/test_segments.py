from __future__ import annotations

import numpy as np

from eucaim_fl.cohorts.labels.segments import read_segmentation


class TestReadSegmentation:
    def test_it_tells_segments_and_where_each_frame_lies(self, tiny, tmp_path):
        images = tiny.series(tmp_path / "image", np.zeros((3, 6, 7), np.int16))
        masks = {name: np.zeros((3, 6, 7), bool) for name in ("Organ", "Lesion 1")}
        masks["Organ"][1:, 2, 3] = True
        masks["Lesion 1"][1, 4, 5] = True
        found = read_segmentation(tiny.seg(tmp_path / "seg.dcm", images, masks))
        assert (found.kind, found.rows, found.columns, found.frame_of_reference) == ("BINARY", 6, 7, "1.2.3.9")
        assert [tuple(s) for s in found.segments] == [(1, "organ", "tissue"), (2, "lesion_1", "tissue")]
        assert sorted((p.segment, p.position[2], p.step) for p in found.planes) == [
            (1, 33.0, 3.0), (1, 36.0, 3.0), (2, 33.0, 3.0)
        ]  # fmt: skip

    def test_frames_that_start_inside_a_byte_are_whole(self, tiny, tmp_path):
        images = tiny.series(tmp_path / "image", np.zeros((5, 5, 3), np.int16))
        mask = np.random.default_rng(0).random((5, 5, 3)) < 0.5
        found = read_segmentation(tiny.seg(tmp_path / "seg.dcm", images, {"a": mask}))
        frames = found.frames()
        stored = {plane.position[2]: frames[index] for index, plane in enumerate(found.planes)}
        assert all(np.array_equal(stored[30.0 + 3 * index], mask[index]) for index in range(5))

    def test_a_plane_s_affine_leads_from_column_and_row_to_the_patient(self, tiny, tmp_path):
        images = tiny.series(tmp_path / "image", np.zeros((1, 6, 7), np.int16), spacing=(2.0, 3.0))
        found = read_segmentation(tiny.seg(tmp_path / "seg.dcm", images, {"a": np.ones((1, 6, 7), bool)}))
        place = found.planes[0].affine() @ (2, 1, 0, 1)
        assert place[:3].tolist() == [-(10 + 2 * 3), -(-20 + 1 * 2), 30]
