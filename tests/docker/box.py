"""Runs one command as a container engine would run it: read-only root, any uid, no capabilities, process 1.

A script, called in namespaces of its own with one JSON argument:
words, environment, uid; root: an empty folder; read and write: places inside → folders outside; shared: folders seen at
their own place. network: `none` or `host`.
The system's programs stand for the base image. Nothing that is mounted here is seen outside.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import sys
from fcntl import ioctl
from pathlib import Path

SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc")
DEVICES = ("null", "zero", "full", "random", "urandom")
DESCRIPTORS = {name: f"/proc/self/fd/{number}" for number, name in enumerate(("stdin", "stdout", "stderr"))}
DESCRIPTORS["fd"] = "/proc/self/fd"
ENGINE_TMPFS = "nosuid,nodev,noexec,mode=1777"
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)


def bind(outside: Path, inside: Path, *, writable: bool) -> None:
    """Show a folder or file of the machine at a place of the box."""
    if outside.is_dir():
        inside.mkdir(parents=True, exist_ok=True)
    else:
        inside.parent.mkdir(parents=True, exist_ok=True)
        inside.touch()
    mount("--bind", str(outside), str(inside))
    mount("-o", f"remount,bind,nosuid,{'rw' if writable else 'ro'}", str(inside))


def furnish(root: Path, spec: dict) -> None:
    """Everything that is seen in the box; what is not named as writable is mounted read-only."""
    mount("--make-rprivate", "/")
    mount("-t", "tmpfs", "-o", "mode=0755", "box", str(root))
    for entry in (Path("/") / name for name in SYSTEM):
        if entry.is_symlink():
            (root / entry.name).symlink_to(entry.readlink())
        elif entry.is_dir():
            bind(entry, root / entry.name, writable=False)
    for name in DEVICES:
        bind(Path("/dev") / name, root / "dev" / name, writable=True)
    for name, target in DESCRIPTORS.items():
        (root / "dev" / name).symlink_to(target)
    for place in ("proc", "tmp", "dev/shm"):
        (root / place).mkdir()
    mount("-t", "proc", "proc", str(root / "proc"))
    mount("-t", "tmpfs", "-o", f"{ENGINE_TMPFS},size=1g", "tmp", str(root / "tmp"))
    mount("-t", "tmpfs", "-o", f"{ENGINE_TMPFS},size=64m", "shm", str(root / "dev/shm"))
    for writable, places in ((False, spec["read"]), (True, spec["write"])):
        for inside, outside in places.items():
            bind(Path(outside), root / inside.lstrip("/"), writable=writable)
    for folder in spec["shared"]:
        bind(Path(folder), root / folder.lstrip("/"), writable=False)
    mount("-o", "remount,bind,ro", str(root))


def loopback_up() -> None:
    """A new network namespace has nothing but a loopback that is off."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = b"lo".ljust(16, b"\0")
        flags = struct.unpack("16xh", ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16sh", name, 0)))[0]
        if not flags & IFF_UP:
            ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", name, flags | IFF_UP))


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec["network"] == "none":
        loopback_up()
    root = Path(spec["root"])
    furnish(root, spec)
    identity = ["--reuid", str(spec["uid"]), "--regid", "0", "--clear-groups"] if spec["uid"] else []
    drop = [*identity, "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]
    os.chroot(root)
    os.chdir("/")
    os.umask(0o022)
    setpriv = shutil.which("setpriv") or "setpriv"
    os.execve(setpriv, [setpriv, *drop, "--", *spec["words"]], spec["environment"])  # noqa: S606  this is its job


main()
