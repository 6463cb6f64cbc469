"""The machine and the home before the client starts: files, keys, policy, disk, memory, GPU, versions, and the line.

What judges takes values; `check_home` collects them.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from importlib import metadata
from pathlib import Path

from eucaim_fl.cohorts.findings import Severity
from eucaim_fl.enrolment import Invitation
from eucaim_fl.errors import EucaimError, KeyFileError, PolicyError, SiteFileError
from eucaim_fl.signing import PrivateKey, node_key_line
from eucaim_fl.site.enrol import NO_COHORT, read_joined
from eucaim_fl.site.home import SiteHome
from eucaim_fl.site.network import SetupFinding, check_line
from eucaim_fl.site.policy import load_policy
from eucaim_fl.sitefile import SiteFile, load_site_file

__all__ = [
    "check_home",
    "judge_disk",
    "judge_files",
    "judge_gpu",
    "judge_memory",
    "judge_policy_dates",
    "judge_versions",
]

_GB = 10**9
_EXPIRY_WARNS = timedelta(days=30)
_PINNED = ("flwr", "torch")


def judge_disk(free_bytes: int, where: str) -> tuple[SetupFinding, ...]:
    """Free space: below 10 GB warns, below 1 GB blocks (10⁹ bytes). where: `state` or `cache`."""
    what = {"state": "the home's state, with the audit log", "cache": "the cache of prepared images"}[where]
    if free_bytes >= 10 * _GB:
        return ()
    severe = free_bytes < _GB
    return (
        SetupFinding(
            f"machine.disk_{where}",
            "blocks" if severe else "warns",
            f"There is {'less than 1 GB' if severe else 'less than 10 GB'} left on the disk for {what}.",
            "Free some space. What can't be written down does not leave: a full disk stops this site.",
            f"{free_bytes / _GB:.1f} GB free",
        ),
    )


def judge_memory(available_bytes: int | None) -> tuple[SetupFinding, ...]:
    """Memory that a new process can have: below 4 GB warns, below 1 GB blocks (10⁹ bytes); None is not known."""
    if available_bytes is None or available_bytes >= 4 * _GB:
        return ()
    severe = available_bytes < _GB
    return (
        SetupFinding(
            "machine.memory",
            "blocks" if severe else "warns",
            f"There is {'less than 1 GB' if severe else 'less than 4 GB'} of memory available.",
            "Training needs some GB: close other programs, or give this machine or container more memory.",
            f"{available_bytes / _GB:.1f} GB available",
        ),
    )


def judge_gpu(wanted: bool, found: str | None) -> tuple[SetupFinding, ...]:
    """Whether the GPU is there that the site file asks for. found: its name, None without one."""
    if not wanted:
        return ()
    if found is None:
        text = "The site file says compute.device: cuda, but PyTorch finds no GPU."
        advice = "Check the driver (nvidia-smi) and that PyTorch's CUDA build is installed, or say cpu."
        return (SetupFinding("machine.gpu", "blocks", text, advice),)
    return (SetupFinding("machine.gpu_works", "informs", "PyTorch finds a GPU.", "", found),)


def judge_policy_dates(valid_until: date | None, today: date) -> tuple[SetupFinding, ...]:
    """A policy's last day (UTC): passed or missing blocks, within 30 days warns."""
    if valid_until is None:
        text = "The policy names no last day, so it allows nothing."
        return (SetupFinding("home.policy_dates", "blocks", text, "Set valid_until in policy.yaml."),)
    detail = f"valid until {valid_until}"
    if valid_until < today:
        advice = "If this site still takes part, set a later valid_until in policy.yaml."
        return (SetupFinding("home.policy_dates", "blocks", "The policy has expired.", advice, detail),)
    if valid_until - today < _EXPIRY_WARNS:
        advice = "Decide whether this site goes on; then set a later valid_until in policy.yaml."
        return (SetupFinding("home.policy_dates", "warns", "The policy expires within 30 days.", advice, detail),)
    return ()


def judge_files(site: SiteFile, site_file: Path, home: SiteHome, invitation: Invitation) -> tuple[SetupFinding, ...]:
    """Whether site file, policy and invitation belong together, and the cohort's folder is filled in."""
    found = []
    if site.name != invitation.site:
        text = "The site file has another name than the one that was invited."
        advice = "Set `name` in site.yaml to the invited name."
        found.append(SetupFinding("home.name", "blocks", text, advice, f"invited as {invitation.site}"))
    if site.policy_path(site_file) != home.policy_file.absolute():
        text = "The site file does not name the policy of this home."
        found.append(SetupFinding("home.policy_place", "blocks", text, "Set `policy: policy.yaml` in site.yaml."))
    if site.cohort.folder == NO_COHORT:
        text = "The site file does not yet say where the cohort lies."
        advice = "Write cohort.folder and cohort.layout into site.yaml."
        found.append(SetupFinding("home.cohort", "blocks", text, advice))
    return tuple(found)


def judge_versions(installed: Mapping[str, str | None], required: Mapping[str, str]) -> tuple[SetupFinding, ...]:
    """Whether installed packages are those that this version was tested with; a build such as `+cpu` does not matter.

    Another flwr blocks, since the line uses names that Flower keeps to itself; another torch warns: the same plan may
    give other bits.
    """
    found = []
    for name, version in required.items():
        there = installed.get(name)
        if there is None or there.partition("+")[0] != version:
            text = f"{name} {there or 'is missing'}{'' if there is None else ' is installed'}; {version} is needed."
            severity: Severity = "blocks" if name == "flwr" or there is None else "warns"
            advice = "Install eucaim-fl anew with its constraints."
            found.append(SetupFinding(f"machine.{name}", severity, text, advice))
    return tuple(found)


def check_home(home: SiteHome, clock: Callable[[], datetime]) -> tuple[SetupFinding, ...]:
    """The line, the home's files and keys, and the machine, as one list; sends one handshake and no more.

    clock: the time now, in UTC.
    """
    return tuple(_found(home, clock))


def _found(home: SiteHome, clock: Callable[[], datetime]) -> Iterator[SetupFinding]:
    invitation: Invitation | None = None
    try:
        invitation = read_joined(home)
        yield from check_line(invitation.address, invitation.ca_pem, clock)
    except EucaimError as problem:
        yield _of("home.invitation", problem)
    yield from _private(home)
    yield from _policy(home, clock())
    try:
        site = load_site_file(home.site_file)
    except SiteFileError as problem:
        yield _of("home.site_file", problem)
    else:
        if invitation is not None:
            yield from judge_files(site, home.site_file, home, invitation)
        yield from judge_disk(_free(site.cache_folder()), "cache")
        yield from judge_gpu(site.compute.device == "cuda", _gpu() if site.compute.device == "cuda" else None)
    yield from judge_disk(_free(home.status_file), "state")
    yield from judge_memory(_available_memory())
    yield from _versions()


def _of(code: str, problem: EucaimError) -> SetupFinding:
    return SetupFinding(code, "blocks", problem.message, problem.fix, problem.local_detail)


def _private(home: SiteHome) -> Iterator[SetupFinding]:
    """Keys that can be used and are their owner's alone, and a home that can be written by its owner only."""
    for code, read in (("home.site_key", PrivateKey.load), ("home.node_key", node_key_line)):
        try:
            read(home.site_key if code == "home.site_key" else home.node_key)
        except KeyFileError as problem:
            yield _of(code, problem)
    try:
        mode = stat.S_IMODE(home.folder.stat().st_mode)
        writable = os.access(home.folder, os.W_OK)
    except OSError as problem:
        text = "The home can't be read."
        yield SetupFinding("home.folder", "blocks", text, "Check its name.", f"{home.folder}: {problem.strerror}")
        return
    if not writable:
        advice = "Run the client as the home's owner."
        yield SetupFinding("home.folder", "blocks", "This user can't write in the home.", advice, str(home.folder))
    if mode & 0o007:
        text = "Other users of this machine can look into the home."
        yield SetupFinding("home.mode", "warns", text, "Run `chmod o-rwx` on it.", str(home.folder))


def _policy(home: SiteHome, now: datetime) -> Iterator[SetupFinding]:
    try:
        loaded = load_policy(home.policy_file)
    except PolicyError as problem:
        yield _of("home.policy", problem)
        return
    yield from judge_policy_dates(loaded.policy.valid_until, now.astimezone(UTC).date())


def _free(path: Path) -> int:
    """Bytes free where a path lies or will lie."""
    place = path.absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    return shutil.disk_usage(place).free


def _available_memory() -> int | None:
    """What the system has available, or the container may still take, whichever is less."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError, IndexError):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        found.append(max(0, limit - int((group / "memory.current").read_text(encoding="ascii"))))
    except (OSError, ValueError):  # no limit is the word `max`
        pass
    return min(found, default=None)


def _gpu() -> str | None:
    import torch

    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    return f"{about.name}, {about.total_memory / _GB:.0f} GB"


def _versions() -> Iterator[SetupFinding]:
    try:
        wanted = metadata.requires("eucaim-fl") or []
    except metadata.PackageNotFoundError:  # run from a folder of sources: nobody says what is needed
        return
    pairs = (one.partition("==") for one in wanted)
    required = {name: version for name, mark, version in pairs if mark and name in _PINNED}
    yield from judge_versions({name: _installed(name) for name in required}, required)


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
