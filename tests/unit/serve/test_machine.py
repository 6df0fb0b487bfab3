"""The machine around a launch."""

import sys

import pytest

from tunescope.serve import machine
from tunescope.serve.machine import busy, uneven


def test_a_step_records_its_own_gpus_only(tmp_path, monkeypatch):
    """A host with more GPUs than the step has would otherwise make every launch anew on a host with fewer."""
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *--id=1*) echo "second, 570";; *--id=*) exit 1;; *) echo "first, 570"; echo "second, 570";; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.machine_state("cuda")["gpu"] == ["first, 570", "second, 570"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert machine.machine_state("cuda")["gpu"] == ["second, 570"]


def test_a_slice_of_a_card_that_nvidia_smi_refuses_is_named_by_torch_in_a_child(tmp_path, monkeypatch):
    """Without a name, times of an H100's slice and of an A100's would be taken for one cell's."""
    smi, python = tmp_path / "nvidia-smi", tmp_path / "python"
    smi.write_text('#!/bin/sh\necho "No devices were found"; exit 6\n')
    python.write_text('#!/bin/sh\necho "NVIDIA H100 MIG 1g.10gb"; echo asked >> "$0.calls"\n')
    for program in (smi, python):
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1")
    machine._names.cache_clear()
    state = machine.machine_state("cuda")
    assert [line.split(",")[0] for line in state["gpu"]] == ["NVIDIA H100 MIG 1g.10gb"]
    assert len(state["gpu"][0].split(",")) == len(state["gpu_columns"].split(","))
    smi.unlink()
    assert machine.machine_state("cuda")["gpu"] == state["gpu"]
    assert (tmp_path / "python.calls").read_text() == "asked\n" and "gpu" not in machine.machine_state("cpu")
    python.write_text("#!/bin/sh\nexit 1\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-gone")
    assert machine.machine_state("cuda")["gpu"] == []


def launch(before, after, cores=32, ok=True):
    state = {when: {"load_average_1min": load, "cores": cores} for when, load in (("before", before), ("after", after))}
    return {"ok": ok, "machine": state}


@pytest.mark.parametrize(
    ("before", "after", "cores", "is_busy"),
    [
        (27.2, 5.5, 32, False),  # the step had just prepared its models, on as many threads as cores
        (33.0, 2.5, 32, True),
        (2.5, 16.5, 32, True),
        (2.0, 2.8, 2, False),  # the launch itself
        (2.1, 2.8, 2, True),
        (1.0, 3.1, 2, True),
    ],
)
def test_a_launch_is_busy_by_the_load_of_what_ran_beside_it(before, after, cores, is_busy):
    said = busy([launch(before, after, cores), launch(0.5, 1.0, cores), launch(99.0, 99.0, cores, ok=False)])
    shown = f"1 of 2 launches ran on a busy machine (load up to {max(before, after):.1f} on {cores} cores)"
    assert said == (shown if is_busy else "")


def test_launches_without_cores_in_their_record_are_not_judged():
    assert busy([{"ok": True, "machine": {"before": {"load_average_1min": 99.0}, "after": {}}}, {"ok": True}]) == ""
    state = machine.machine_state("cpu")
    assert state["cores"] >= 1 and state["load_average_1min"] >= 0


def test_the_speed_of_the_host_is_told_by_one_loop():
    """Ten times the turns take about ten times as long: the figure is a time of the loop and no constant."""
    loop = machine.machine_state("cpu")["python_loop_ms"]
    assert 0 < loop["median"] <= loop["max"]
    few, many = (min(machine.python_loop_ms(turns)["median"] for _ in range(3)) for turns in (10_000, 100_000))
    assert 4 < many / few < 25  # a shared core goes at two speeds


@pytest.mark.parametrize(("times", "told"), [((3.6, 5.3), False), ((3.6, 5.4), True), ((6.1, 6.0), False)])
def test_a_host_that_changes_its_speed_between_launches_is_told(times, told):
    rows = [{"ok": True, "machine": {when: {"python_loop_ms": {"median": ms, "max": 9.0}} for when in ("before", "after")}} for ms in times]
    lost = {"ok": False, "machine": {when: {"python_loop_ms": {"median": 99.0, "max": 99.0}} for when in ("before", "after")}}
    older = {"ok": True, "machine": {"before": {"load_average_1min": 1.0}, "after": {"load_average_1min": 1.0}}}
    assert ("took up to 1.5 times as long" in uneven([*rows, lost, older])) is told
    assert uneven([older, {"ok": True}]) == ""
