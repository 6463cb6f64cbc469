"""A site of the bare loop: evaluate the arriving weights, train from them, send the new weights. Nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # else every worker would load it at its first optimizer step, inside the measured rounds
from monai.networks import nets
from torch import Tensor, nn

__all__ = ["serve"]


def _network(job: dict[str, Any]) -> nn.Module:
    torch.manual_seed(job["initial_seed"])
    args, norm = job["network"]["args"], ("group", {"num_groups": 8})
    network: nn.Module = (
        nets.DenseNet121(2, 1, 2)
        if job["network"]["name"] == "densenet121"
        else nets.Classifier(
            (1, job["pixels"], job["pixels"]),
            2,
            args["channels"],
            args["strides"],
            num_res_units=0,
            act="relu",
            norm=norm,
        )
    )
    return network


def _weights(network: nn.Module) -> dict[str, np.ndarray[Any, Any]]:
    return {name: tensor.numpy().copy() for name, tensor in network.state_dict().items()}


def _load(cases: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    """Cached tensors of one slice each → images (n, 1, H, W), classes (n,)."""
    images = np.stack([np.load(path)[..., 0] for path, _ in cases])
    return torch.from_numpy(images), torch.tensor([target for _, target in cases])


@torch.no_grad()
def _accuracy(network: nn.Module, data: tuple[Tensor, Tensor], batch: int) -> float:
    network.eval()
    images, classes = data
    logits = torch.cat([network(part) for part in torch.split(images, batch)])
    return float((logits.argmax(dim=1) == classes).float().mean())


def _train(network: nn.Module, data: tuple[Tensor, Tensor], job: dict[str, Any], seed: int) -> None:
    """One epoch over the images in a seeded order."""
    network.train()
    images, classes = data
    optimizer = torch.optim.SGD(network.parameters(), lr=job["lr"], momentum=job["momentum"])
    order = np.random.default_rng(seed).permutation(len(images))[::-1]
    for start in range(0, len(order), job["batch"]):
        rows = torch.from_numpy(order[start : start + job["batch"]].copy())
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(images[rows]), classes[rows])
        torch.autograd.backward(loss)
        optimizer.step()


def serve(pipe: Connection, job_file: str) -> None:
    """Answer (site, round, weights): without weights the initial ones, else accuracies and, if trained, new weights."""
    torch.set_num_threads(1)
    job = json.loads(Path(job_file).read_text())
    network = _network(job)
    data = cache(lambda site, split: _load(job["sites"][site][split]))
    while True:
        site, number, weights = pipe.recv()
        if weights is None:
            pipe.send(_weights(network))
            continue
        network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
        scores = [_accuracy(network, data(site, "validation"), job["batch"])]
        if number < job["rounds"]:
            _train(network, data(site, "train"), job, job["sites"][site]["order_seeds"][number])
            pipe.send((scores, _weights(network)))
        else:
            pipe.send(([*scores, _accuracy(network, data(site, "test"), job["batch"])], None))
