"""Folders for others to load: what training kept, made whole for plain transformers, PEFT and vLLM."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from .loading import load_tokenizer, model_files

_CARDS = ("README*", "LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
_LICENCE_KEYS = ("license", "license_name", "license_link")
_WEIGHTS = "adapter_model.safetensors"


def copy_base(base: Path, target: Path) -> None:
    """Copy what loads a base model, with its card and licence; no pickled weights, no code."""
    target.mkdir(parents=True)
    for path in dict.fromkeys([*model_files(base), *(p for pattern in _CARDS for p in sorted(base.glob(pattern)) if p.is_file())]):
        shutil.copyfile(path, target / path.name)


def write_adapter(adapter: Path, base: Path, target: Path, base_name: str, revision: str | None) -> dict[str, Any]:
    """Write an adapter whose config names a base that PEFT can load, with the tokenizer it was trained with.

    Args:
        base: the base model's folder, for the tokenizer.
        base_name: what `from_pretrained` takes: a hub id, or an absolute path. PEFT hands it on as it is, so a relative path would be
            looked up in whatever folder the user happens to be in, and then on the hub.
        revision: the commit of a hub id.

    Returns:
        The config as written.
    """
    target.mkdir(parents=True)
    shutil.copyfile(adapter / _WEIGHTS, target / _WEIGHTS)
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"base_model_name_or_path": base_name, "revision": revision}
    _write(target / "adapter_config.json", config)
    load_tokenizer(base).save_pretrained(target)
    _forget_loading(target)
    return config


def write_model(model: Path, base: Path, target: Path) -> None:
    """Write full weights with their tokenizer."""
    target.mkdir(parents=True)
    for path in model_files(model):
        shutil.copyfile(path, target / path.name)
    restore_settings(target, base)


def restore_settings(folder: Path, base: Path) -> None:
    """Undo what training had set in a model's config for itself: without its key-value cache a model generates slowly."""
    cache = json.loads((base / "config.json").read_text()).get("use_cache", True)
    config = json.loads((folder / "config.json").read_text())
    _write(folder / "config.json", config | {"use_cache": cache})
    _forget_loading(folder)


def _forget_loading(folder: Path) -> None:
    """Tokenizers save the arguments they were loaded with; that ours looked at local files only is nobody else's setting."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    _write(path, {k: v for k, v in config.items() if k not in ("local_files_only", "is_local")})


def _write(path: Path, config: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def stated_licence(base: Path) -> tuple[dict[str, str], str]:
    """What a base model's own card says of its licence: keys of its front matter, and the section of that name; empty where silent."""
    try:
        text = (base / "README.md").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}, ""
    section = re.search(r"^##+ +Licen[cs]e\s*\n+(.+?)(?=\n#|\Z)", text, re.MULTILINE | re.DOTALL)
    return _front_matter(text), " ".join(section[1].split()) if section else ""


def _front_matter(text: str) -> dict[str, str]:
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|\Z)", text, re.DOTALL)
    try:
        keys = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return {}
    return {k: keys[k] for k in _LICENCE_KEYS if isinstance(keys.get(k), str)} if isinstance(keys, dict) else {}
