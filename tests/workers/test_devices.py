"""Which devices a worker trains on: asked of a real `nvidia-smi` on the path, which is a script of ours."""

import os
from pathlib import Path
from typing import get_args

import pytest

from ml.specs.job import JobKind
from workers.devices import BULK_SLOT, SHORT_SLOT, Slot, plan_slots, visible_gpus


def _no_question() -> list[str]:
    raise AssertionError("nobody asked for the GPUs of this machine")


def _install_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_cpu_worker_has_one_slot_and_hides_the_gpus() -> None:
    assert plan_slots("cpu", list_gpus=_no_question) == [Slot("cpu", ("cpu",), {"CUDA_VISIBLE_DEVICES": ""})]


def test_without_gpus_auto_means_the_cpu() -> None:
    assert plan_slots("auto", list_gpus=list) == plan_slots("cpu", list_gpus=_no_question)


def test_auto_makes_a_slot_for_every_gpu_that_sees_no_other() -> None:
    slots = plan_slots("auto", list_gpus=lambda: ["0", "3", "GPU-8a1f"])
    assert [slot.name for slot in slots] == ["gpu-0", "gpu-3", "gpu-GPU-8a1f"]
    assert [slot.environment for slot in slots] == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "GPU-8a1f"},
    ]


def test_a_gpu_takes_the_jobs_of_both_queues() -> None:
    (slot,) = plan_slots("auto", list_gpus=lambda: ["0"])
    assert set(slot.queues) == {"gpu", "cpu"}


def test_every_kind_of_job_has_a_slot_and_bulk_work_one_that_no_spare_trainer_is_kept_for() -> None:
    slots = [*plan_slots("cpu", list_gpus=_no_question), SHORT_SLOT, BULK_SLOT]
    assert sorted(kind for slot in slots for kind in slot.kinds) == sorted(get_args(JobKind))
    environments = [slot.environment for slot in (*slots, *plan_slots("0", list_gpus=_no_question))]
    assert environments.count(BULK_SLOT.environment) == 1


@pytest.mark.parametrize("devices", ["0,1", " 0 , 1 ", "0,1,"])
def test_named_gpus_are_taken_without_asking(devices: str) -> None:
    slots = plan_slots(devices, list_gpus=_no_question)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["0", "1"]


@pytest.mark.parametrize(
    ("variable", "gpus"),
    [("0,2", ["0", "2"]), ("0, 2", ["0", "2"]), ("GPU-8a1f", ["GPU-8a1f"]), ("", []), ("-1", []), ("1,-1,0", ["1"])],
)
def test_the_operators_choice_of_gpus_is_respected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, gpus: list[str]
) -> None:
    _install_nvidia_smi(tmp_path, monkeypatch, "echo 0; echo 1; echo 2; echo 3")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert visible_gpus() == gpus


def test_otherwise_the_driver_lists_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _install_nvidia_smi(tmp_path, monkeypatch, "echo 0; echo 1")
    assert visible_gpus() == ["0", "1"]


@pytest.mark.parametrize("script", ["exit 9", "echo 'no devices were found' >&2; exit 6"])
def test_a_driver_that_fails_means_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str) -> None:
    _install_nvidia_smi(tmp_path, monkeypatch, script)
    assert visible_gpus() == []


def test_no_driver_means_no_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == []
