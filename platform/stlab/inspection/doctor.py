"""Check whether a machine, a cluster and its services can run a study. Each check states a finding and, on failure, a remedy."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stlab.errors import UserError

_MIN_FREE_GIB = 5.0  # enough for the checkpoints, predictions and Ray files of a usual study


@dataclass(frozen=True)
class Check:
    """The result of one check."""

    ok: bool
    what: str
    found: str
    remedy: str = ""


def machine_checks() -> Iterator[Check]:
    """Check Python, libraries, processors, memory and threads of this machine."""
    yield Check(True, "Python", f"{platform.python_version()} ({platform.system()} {platform.machine()})")
    yield _libraries()
    yield from _devices()
    yield _threads()


def _libraries() -> Check:
    from packaging.requirements import Requirement

    texts = _required()
    if texts is None:
        return Check(True, "libraries", "stlab is imported but not installed here, so versions were not compared")
    needed = [r for r in map(Requirement, texts) if r.marker is None or r.marker.evaluate({"extra": ""})]
    wrong, remedy = [], []
    for requirement in needed:
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            version = "none"
        if version == "none" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version}")
            remedy.append(f"'{requirement.name}{requirement.specifier}'")
    if wrong:
        return Check(False, "libraries", ", ".join(wrong), f"pip install {' '.join(remedy)}")
    shown = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("torch", "ray", "mlflow"))
    return Check(True, "libraries", f"all {len(needed)} as needed ({shown})")


def _required() -> list[str] | None:
    """The requirements of stlab, from its installation or from its checkout."""
    try:
        return importlib.metadata.requires("stlab")
    except importlib.metadata.PackageNotFoundError:
        project = Path(__file__).resolve().parents[3] / "pyproject.toml"
        return list(tomllib.loads(project.read_text())["project"]["dependencies"]) if project.is_file() else None


def _devices() -> Iterator[Check]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    yield Check(True, "CPU", f"{_cores()} cores, {memory:.0f} GiB of memory")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            facts = torch.cuda.get_device_properties(index)
            yield Check(True, "GPU", f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB")
    elif Path("/dev/nvidia0").exists():
        build = torch.version.cuda or "no CUDA at all"
        remedy = "install a torch that fits the driver: nvidia-smi names its CUDA"
        yield Check(False, "GPU", f"torch cannot use the GPU of this machine (it was built for {build})", remedy)
    else:
        yield Check(True, "GPU", "none: trials train on CPUs")


def _threads() -> Check:
    import torch

    threads, cores = torch.get_num_threads(), _cores()
    if threads > cores:
        return Check(False, "threads", f"torch takes {threads} threads on {cores} cores", f"export OMP_NUM_THREADS={cores}")
    return Check(True, "threads", f"torch takes {threads} of {cores} cores; a worker as many as resources.cpus says")


def storage_checks(storage: str) -> Iterator[Check]:
    """Check that the storage can write, read and delete a file, and that it has free space."""
    from stlab.storage import Store

    try:
        store = Store(storage)
        store.make()
    except UserError as error:
        yield Check(False, "storage", str(error))
        return
    yield Check(True, "storage", f"{store.location}: written, read and deleted")
    if store.is_local:
        free = shutil.disk_usage(store.path("")).free / 2**30
        yield Check(free >= _MIN_FREE_GIB, "free space", f"{free:.0f} GiB", f"free some space: a study may use {_MIN_FREE_GIB:.0f} GiB")


def tracking_check(uri: str) -> Check:
    """Check that MLflow answers."""
    from stlab import tracking
    from stlab.files import shown

    try:
        with tracking.reaching(uri):
            tracking.connect(uri).search_experiments(max_results=1)
    except (UserError, tracking.TrackingUnavailable) as error:
        remedy = "start it, or correct --tracking-uri; a study also runs without MLflow, and stlab sync adds its trials later"
        return Check(False, "MLflow", str(error)[:200], remedy)
    return Check(True, "MLflow", f"{shown(uri)} answers")


def ray_checks(address: str | None) -> Iterator[Check]:
    """Check that the cluster answers, accepts the token, and has the same versions as this machine."""
    here = importlib.metadata.version("ray")
    if address is None:
        yield Check(True, "Ray", f"{here}; no --address: a study starts Ray on this machine")
        return
    if address.startswith(("http://", "https://")):
        from stlab.submission.jobs import Jobs

        try:
            there = Jobs(address).ray_version
        except UserError as error:
            yield Check(False, "Ray", str(error))
            return
        remedy = f"install the same version here: pip install ray=={there}"
        yield Check(there == here, "Ray", f"{address} answers, Ray {there} (here {here})", remedy)
        return
    yield from _cluster(address, here)


def _cluster(address: str, here: str) -> Iterator[Check]:
    from stlab.execution import ray as cluster
    from stlab.execution.preflight import check_address

    try:
        check_address(address)
        with cluster.connection(address):
            amounts, grows = cluster.cluster_amounts(), cluster.autoscaling_note()
    except UserError as error:
        yield Check(False, "Ray", str(error))
        return
    yield Check(True, "Ray", f"{address} answers, Ray {here}, Python {platform.python_version()} as here")
    found = ", ".join(f"{name} {value:g}" for name, value in amounts.items())
    yield Check(True, "cluster", found if grows is None else f"{found}; {grows}")


def data_check(path: str, overrides: list[str]) -> Check:
    """Check that the data can be read on this machine."""
    from stlab.execution.run_study import data_facts
    from stlab.study.file import StudySource, parse

    text = '{"name": "doctor", "base": {"data": {"path": "synthetic:city"}, "model": {"name": "last_value"}}}'
    try:
        facts = data_facts(parse(StudySource.from_text(text, "--set", overrides)).base.data)
    except UserError as error:
        return Check(False, "data", str(error))
    return Check(True, "data", f"{path}: {facts.name} can be read")


def weights_check() -> Check:
    """List the pretrained weights in the cache of this machine."""
    from huggingface_hub import constants, scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    from stmodels.backbones import TIMM_NAMES, VIDEOMAE_CHECKPOINT

    wanted = {name: f"timm/{repo}" for name, repo in TIMM_NAMES.items()}
    wanted |= {"videomae_s": VIDEOMAE_CHECKPOINT, "vilt_b32": "dandelin/vilt-b32-mlm"}
    try:
        cached = {repo.repo_id for repo in scan_cache_dir().repos if repo.size_on_disk > 1e6}
    except CacheNotFound:
        cached = set()
    there = [name for name, repo in wanted.items() if repo in cached]
    missing = [name for name in wanted if name not in there]
    found = f"in the cache: {', '.join(there) or 'none'}; fetched when used: {', '.join(missing) or 'none'}"
    if missing and constants.HF_HUB_OFFLINE:
        found = f"in the cache: {', '.join(there) or 'none'}; not to be had (HF_HUB_OFFLINE): {', '.join(missing)}"
    return Check(True, "weights", found)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
