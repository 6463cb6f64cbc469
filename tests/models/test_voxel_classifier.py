"""Fixed features of each voxel and one linear layer: what is fixed, what is bounded, what is learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from eucaim_fl.models import voxel_classifier
from eucaim_fl.models.voxel_classifier import VoxelClassifier

SMALL: dict[str, Any] = {"scales": (1, 2), "levels": (0.5,), "reaches": (2, 4)}


pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def seen_by_the_last_layer(network: VoxelClassifier, images: Tensor) -> Tensor:
    seen: list[Tensor] = []
    hook = network.final.register_forward_pre_hook(lambda _module, given: seen.append(given[0]))
    network(images)
    hook.remove()
    return seen[0]


def enclosed(image: Tensor) -> tuple[Tensor, Tensor]:
    """Along the axis where a body ends least within 4 voxels, and where it ends most; from 0 to 1."""
    bodies = voxel_classifier._bodies(image[None, None], 0.5, (4,), bright=True)
    return bodies[1][0, 0], bodies[2][0, 0]


class TestVoxelClassifier:
    def test_only_the_last_layer_is_learned_and_travels(self) -> None:
        network = VoxelClassifier(3, 1, 2)
        assert [name for name, p in network.named_parameters() if p.requires_grad] == ["final.weight", "final.bias"]
        assert sorted(network.state_dict()) == ["final.bias", "final.weight"]
        assert sum(p.numel() for p in network.parameters()) == 2 * (6 + 13 + 1)

    @pytest.mark.parametrize("size", [(16, 12), (9, 1), (8, 6, 5)])
    def test_features_are_within_five_and_logits_have_the_images_size_whatever_it_shows(
        self, size: tuple[int, ...]
    ) -> None:
        network = VoxelClassifier(len(size), 2, 3, **SMALL)
        for images in (drawn(2, 2, *size), torch.zeros(2, 2, *size), 1e4 * drawn(2, 2, *size)):
            assert seen_by_the_last_layer(network, images).abs().max() <= 5
            assert network(images).shape == (2, 3, *size)

    @pytest.mark.parametrize("dims", [2, 3])
    def test_what_moves_in_the_image_moves_in_the_logits(self, dims: int) -> None:
        network = VoxelClassifier(dims, 1, 2, **SMALL)
        images = torch.full((1, 1, *[24] * dims), 0.1)
        images[(..., *[slice(8, 13)] * dims)] = 0.5 + 0.5 * drawn(1, 1, *[5] * dims)
        moved = torch.roll(images, (2,) * dims, tuple(range(2, 2 + dims)))
        assert not torch.allclose(network(moved), network(images), atol=1e-2)
        assert torch.allclose(
            network(moved), torch.roll(network(images), (2,) * dims, tuple(range(2, 2 + dims))), atol=1e-5
        )

    def test_edges_are_continued(self) -> None:
        network = VoxelClassifier(2, 1, 2, **SMALL)
        logits = network(torch.full((1, 1, 12, 10), 0.7))
        assert torch.allclose(logits, logits[:, :, :1, :1].expand_as(logits), atol=1e-5)

    def test_two_networks_have_the_same_fixed_part(self) -> None:
        one, other = (VoxelClassifier(2, 3, 2, **SMALL) for _ in range(2))
        other.final.load_state_dict(one.final.state_dict())
        assert torch.equal(one(drawn(2, 3, 9, 7)), other(drawn(2, 3, 9, 7)))

    def test_dark_bodies_are_to_it_what_bright_ones_are_in_the_negative(self) -> None:
        image = drawn(1, 1, 12, 12)
        bright = voxel_classifier._bodies(image, 0.4, (2, 4), bright=True)
        dark = voxel_classifier._bodies(1 - image, 0.6, (2, 4), bright=False)
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(bright, dark, strict=True))

    def test_a_lump_ends_along_all_axes_a_rod_along_some_and_a_wall_of_great_thickness_along_none(self) -> None:
        image = torch.zeros(16, 30)
        image[5:9, 3:7] = 1  # a lump
        image[12:14, :] = 1  # a rod, which goes on beyond the image
        image[:, 18:] = 1  # a wall
        least, most = enclosed(image)
        assert least[6, 4] > 0.95
        assert least[13, 8] < 0.05
        assert most[13, 8] > 0.95
        assert most[5, 27] < 0.05
        assert most[2, 10] < 0.05  # not a member at all

    def test_it_learns_lumps_beside_a_wall_that_is_as_bright(self) -> None:
        generator = torch.Generator().manual_seed(3)
        images, lumps = torch.full((12, 1, 32, 32), 0.1), torch.zeros(12, 32, 32, dtype=torch.long)
        for image, lump in zip(images, lumps, strict=True):
            row, column = (int(n) for n in torch.randint(3, 14, (2,), generator=generator))
            image[0, :, 24:] = 0.8
            image[0, row : row + 6, column : column + 6] = 0.8
            lump[row : row + 6, column : column + 6] = 1
        network = VoxelClassifier(2, 1, 2, scales=(), levels=(0.5,), reaches=(4, 8))
        features = seen_by_the_last_layer(network, images)
        for _ in range(60):
            network.final.zero_grad()
            torch.nn.functional.cross_entropy(network.final(features[:8]), lumps[:8]).backward()
            with torch.no_grad():
                for parameter in network.final.parameters():
                    assert parameter.grad is not None
                    parameter -= 0.3 * parameter.grad
        found = network(images[8:]).argmax(1)
        assert float(2 * (found * lumps[8:]).sum() / (found.sum() + lumps[8:].sum())) > 0.85


class TestFeatures:
    def test_intensities_are_kept_where_nothing_changes_and_edges_are_half_a_jump_on_both_sides(self) -> None:
        image = torch.zeros(1, 1, 4, 12)
        image[..., 6:] = 0.8
        assert voxel_classifier._edges(image)[0, 0, 2].tolist() == pytest.approx([0] * 5 + [0.4] * 2 + [0] * 5)
        smoothed = voxel_classifier._smoothed(image, 1)[0, 0, 2]
        assert smoothed[[0, -1]].tolist() == pytest.approx([0, 0.8])
        assert float(smoothed[5] + smoothed[6]) == pytest.approx(0.8)

    def test_scales_give_differences_the_coarsest_intensities_and_edges(self) -> None:
        image = drawn(1, 1, 7, 6)
        found = voxel_classifier._features(image, (1, 2), (), (), bright=True)
        fine, coarse = (voxel_classifier._smoothed(image, scale) for scale in (1, 2))
        edges = [voxel_classifier._edges(one) for one in (fine, coarse)]
        assert torch.equal(found, torch.cat([fine - coarse, coarse, *edges], dim=1))

    @pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 12])
    def test_the_highest_of_every_window_is_found(self, width: int) -> None:
        row = drawn(12)
        expected = [float(row[start : start + width].max()) for start in range(13 - width)]
        assert voxel_classifier._highest(row, 0, width).tolist() == expected

    def test_opening_takes_away_what_no_cube_fits_in(self) -> None:
        image = torch.zeros(1, 1, 12, 12)
        image[..., 2:6, 2:6] = 1
        lump = image.clone()
        image[..., 8:10, :] = 1
        assert torch.equal(voxel_classifier._opened(image, 1), lump)
