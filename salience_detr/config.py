"""Loading of LazyConfig files with overrides, which are checked; devices and autocast dtypes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from detectron2.config import LazyConfig
from detectron2.utils.registry import _convert_target_to_string
from omegaconf import DictConfig, ListConfig, OmegaConf, SCMode

from salience_detr.model_zoo import get_config_file, list_models
from salience_detr.utils.config_keys import has_key, parameters_of, unknown_key_message, walk
from salience_detr.utils.config_paths import make_paths_absolute
from salience_detr.utils.errors import one_line, suggest
from salience_detr.utils.processor import computes_bfloat16
from salience_detr.utils.safe_yaml import (
    UntrustedError,
    check_content,
    check_joined_texts,
    read_yaml,
)

logger = logging.getLogger(__name__)

SECTIONS = ("model", "dataloader", "optimizer", "lr_multiplier", "train")
POSITIVE_KEYS = (
    "model.num_classes",
    "model.num_queries",
    "dataloader.train.total_batch_size",
    "train.max_iter",
    "train.log_period",
    "train.accumulate",
    "train.checkpointer.max_to_keep",
)
# A run needs them; other texts may be null.
TEXT_KEYS = ("train.output_dir", "train.device", "train.best_metric")
AMP_DTYPES = {
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
    "fp16": torch.float16,
    "float16": torch.float16,
}
MATMUL_PRECISIONS = ("highest", "high", "medium")


class ConfigError(ValueError):
    """A config or an override that cannot be used."""


def load_config(
    config_file: str | Path, overrides: Sequence[str] = (), *, trust: bool = False
) -> DictConfig:
    """Load a LazyConfig file and apply ``key=value`` overrides; ``+key=value`` adds a key.

    A .py file is code, and is run. A .yaml file is data: what it, or an override of it, calls is
    limited to known packages, so that neither loading nor building it runs other code.

    Args:
        config_file: a .py, .yaml or .yml file, or the name of a config of the model zoo.
        overrides: changes of it.
        trust: let a .yaml file call whatever it names, as a .py file does.

    Raises:
        ConfigError: the file does not exist, names what it may not call or does not fit this
            version, or an override is not of this form or has a key that does not exist (the
            nearest is named).
    """
    path = Path(config_file)
    if not path.is_file():
        names = list_models()
        if str(config_file) not in names:
            hint = suggest(str(config_file), names)
            raise ConfigError(f"there is no config file {config_file}; {hint}")
        path = Path(get_config_file(str(config_file)))

    if path.suffix in (".yaml", ".yml") and not trust:
        return parse_config(path, str(config_file), overrides)
    with one_error(config_file):
        config = LazyConfig.load(str(path))
    return finish_config(config, config_file, overrides, is_data=False)


def parse_config(
    content: str | Path, source: str, overrides: Sequence[str] = (), *, trust: bool = False
) -> DictConfig:
    """Load a config from YAML (see :func:`load_config`).

    Args:
        content: the text, or the path of its file if it is not trusted.
        source: where it comes from, for messages.
        overrides: changes of it.
        trust: let it call whatever it names.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    with one_error(source):
        settings = yaml.unsafe_load(content) if trust else read_yaml(content)
        config = OmegaConf.create(settings, flags={"allow_objects": True})
        if not trust:
            check_joined_texts(config)
    return finish_config(config, source, overrides, is_data=not trust)


@contextmanager
def one_error(source: str | Path) -> Iterator[None]:
    """Turn all errors of reading a config into a ConfigError."""
    try:
        yield
    except UntrustedError as error:
        raise untrusted(source, error) from error
    except Exception as error:  # the file is code, which may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"the config file {source} cannot be loaded: {reason}") from error


def finish_config(
    config: DictConfig, config_file: str | Path, overrides: Sequence[str], is_data: bool
) -> DictConfig:
    """Check a config, and apply overrides to it.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    if not isinstance(config, DictConfig):
        raise ConfigError(f"the config file {config_file} holds no settings by name")

    missing = [key for key in SECTIONS if key not in config]
    if missing:
        raise ConfigError(f"{config_file} defines no {', '.join(missing)} (see configs/*.py)")
    check_targets(config, config_file)
    drop_old_keys(config, config_file)
    if Path(config_file).suffix in (".yaml", ".yml"):
        # Of an earlier version, which wrote paths as they were given.
        folders = [Path.cwd(), *Path(config_file).resolve().parents]
        make_paths_absolute(config, folders, must_exist=True)

    for override in overrides:
        apply_override(config, override)
        if is_data:
            check_trusted(config, config_file)

    # Here, because some would fail only after hours, and others with a message of a library.
    seed = OmegaConf.select(config, "train.seed")
    if isinstance(seed, int) and not 0 <= seed < 2**32:
        raise ConfigError(f"train.seed is {seed}; it must be between 0 and {2**32 - 1}")
    for key in POSITIVE_KEYS:
        value = OmegaConf.select(config, key)
        if value is not None and not value >= 1:
            raise ConfigError(f"{key} is {value}; it must be at least 1")
    precision = config.train.get("matmul_precision", "highest")
    if precision not in MATMUL_PRECISIONS:
        names = ", ".join(MATMUL_PRECISIONS)
        raise ConfigError(f"train.matmul_precision is {precision!r}; use one of {names}")
    return config


def to_yaml(config: DictConfig) -> str:
    """Return a config as YAML, as detectron2's ``LazyConfig.save`` writes it.

    That writes the file itself, which a crash may leave half-written, and hides errors of the disk.

    Raises:
        ConfigError: it holds something that YAML cannot.
    """
    content = OmegaConf.to_container(config, structured_config_mode=SCMode.INSTANTIATE)
    try:
        named = name_targets(content)
        text = yaml.dump(named, default_flow_style=None, allow_unicode=True, width=9999)
    except Exception as error:  # objects may raise anything when they are to be written
        raise ConfigError(f"YAML cannot hold the config ({one_line(error)})") from error
    return str(text)


def name_targets(node: object) -> object:
    """Replace functions and classes under ``_target_`` by their names, in plain containers."""
    if isinstance(node, list):
        return [name_targets(value) for value in node]
    if not isinstance(node, dict):
        return node

    named = {name: name_targets(value) for name, value in node.items()}
    target = named.get("_target_")
    if hasattr(target, "__qualname__"):
        named["_target_"] = _convert_target_to_string(target)
    return named


def check_trusted(config: DictConfig, config_file: str | Path) -> None:
    """Check that a config of a YAML file calls nothing but what data may call.

    Raises:
        ConfigError: naming what it calls.
    """
    try:
        check_content(OmegaConf.to_container(config))
        check_joined_texts(config)
    except UntrustedError as error:
        raise untrusted(config_file, error) from error


def untrusted(config_file: str | Path, error: UntrustedError) -> ConfigError:
    """Return the error of a YAML config that is more than data."""
    remedy = "if you trust whoever wrote it, add --trust-config"
    return ConfigError(f"the config file {config_file} is not used: {error}; {remedy}")


def check_targets(config: DictConfig, config_file: str | Path) -> None:
    """Check that this version has what a config names; the config may be of an earlier one.

    Raises:
        ConfigError: a target of this package does not exist, or does not take one of its arguments.
    """
    remedy = "if an earlier version wrote the file, use a recipe in configs/ with its overrides"
    for key, node in walk(config):
        if not isinstance(node, dict):
            continue
        target = str(node.get("_target_"))
        if not target.startswith("salience_detr."):
            continue

        try:
            parameters = parameters_of(target)
        except ImportError as error:
            raise ConfigError(f"{config_file}: {key}: there is no {target}; {remedy}") from error

        # A target with **kwargs takes anything.
        if any(x.kind == x.VAR_KEYWORD for x in parameters.values()):
            continue
        for name in node:
            if name != "_target_" and name not in parameters:
                raise ConfigError(f"{config_file}: {key}: {target} takes no {name}; {remedy}")


def drop_old_keys(config: DictConfig, config_file: str | Path) -> None:
    """Delete keys of earlier versions that nothing reads any more, and say so."""
    if "match_classes" in config.train:
        del config.train.match_classes
        logger.warning(
            "%s: train.match_classes is gone and not used: the rows of classes with the same name "
            "are always kept",
            config_file,
        )


def check_arguments(config: DictConfig, key: str) -> None:
    """Check that a part of a config, if it is there, has all arguments that its target needs.

    Raises:
        ConfigError: one is missing, or there is no such target.
    """
    node = OmegaConf.select(config, key)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return

    target = node._target_
    try:
        parameters = parameters_of(target)
    except (ImportError, TypeError) as error:
        raise ConfigError(f"{key}: there is no {target}") from error

    for name, parameter in parameters.items():
        is_variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.default is parameter.empty and not is_variable and name not in node:
            raise ConfigError(f"{key}: {target} needs {name}; add +{key}.{name}=...")


def apply_override(config: DictConfig, override: str) -> None:
    """Apply one override in place.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    word, equals, value = override.partition("=")
    key = word.removeprefix("+")
    if not equals or not key:
        raise ConfigError(f"the override {override!r} is not of the form key=value")
    if key == word and not has_key(config, key):
        raise ConfigError(unknown_key_message(config, key))

    # Neither hydra's parser nor omegaconf compares a value with the type that it replaces.
    before = OmegaConf.select(config, key)
    try:
        LazyConfig.apply_overrides(config, [override.removeprefix("+")])
    except Exception as error:  # of hydra's parser or of omegaconf, which have no common class
        reason = one_line(error)
        raise ConfigError(f"the override {override!r} cannot be applied: {reason}") from error

    after = OmegaConf.select(config, key)
    is_free_text = isinstance(before, str) and key not in TEXT_KEYS
    if is_free_text and isinstance(after, bool | int | float):
        OmegaConf.update(config, key, value)  # such as the name of a project, 5
        return

    if after is None and is_optional(config, key):
        return
    wanted = wanted_kind(key, before, after)
    if wanted:
        raise ConfigError(f"the override {override!r} does not fit: {key} is {wanted}")


def is_optional(config: DictConfig, key: str) -> bool:
    """Return whether a key is an argument of a target that is None where nothing is given."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(config, parent)
    if not isinstance(node, DictConfig) or "_target_" not in node:
        return False
    try:
        parameter = parameters_of(node._target_).get(name)
    except (ImportError, TypeError):
        return False
    return parameter is not None and parameter.default is None


def wanted_kind(key: str, before: object, after: object) -> str:
    """Return what kind of value a key takes if the new one is of another kind, else "".

    Args:
        key: dotted key, for the remedy.
        before: value in the config; null may become anything.
        after: value to replace it. Free texts may become a list or null.
    """
    if key in TEXT_KEYS and not isinstance(after, str):
        return f"a text, such as {before}"
    if isinstance(before, bool) and not isinstance(after, bool):
        return "true or false"
    if type(before) is int and type(after) is not int:
        return f"a whole number, such as {before}"
    if isinstance(before, float) and type(after) not in (int, float):
        return f"a number, such as {before}"  # lr=1 is meant as 1.0
    if isinstance(before, ListConfig) and not isinstance(after, ListConfig):
        return f"a list: set {key}=[...]"

    if isinstance(before, DictConfig) and not isinstance(after, DictConfig):
        names = [str(name) for name in before if name != "_target_"]
        name = "enabled" if "enabled" in names else "".join(names[:1])
        return f"a group of settings: set {key}.{name}={after if name == 'enabled' else '...'}"
    return ""


def resolve_device(device: str) -> torch.device:
    """Return a device by its name; "auto" is this process's GPU if there is one, else the CPU.

    Raises:
        ConfigError: there is no such device.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("cpu")

    # The name of a device may be right, and still no such device be there.
    try:
        resolved = torch.device(device)
        torch.zeros(1, device=resolved).tolist()  # "meta" has no values
    except (RuntimeError, AssertionError, TypeError) as error:
        message = f"the device {device!r} cannot be used ({one_line(error)})"
        raise ConfigError(f"{message}; use auto, cpu, cuda or cuda:N") from error
    return resolved


def set_matmul_precision(config: DictConfig) -> None:
    """Set the precision of float32 matrix products in this process (``train.matmul_precision``)."""
    torch.set_float32_matmul_precision(config.train.get("matmul_precision", "highest"))


def resolve_amp(amp: DictConfig, device: torch.device) -> torch.dtype | None:
    """Return the autocast dtype of a config's ``train.amp``, or None if mixed precision is off.

    "auto" is bfloat16 where the device computes with it. PyTorch emulates bfloat16 elsewhere, which
    is slower than float32: older GPUs (T4, V100) take float16, and older processors (without
    AVX-512) stay with float32.

    Raises:
        ConfigError: the dtype is unknown.
    """
    if not amp.enabled:
        return None
    if amp.dtype == "auto":
        if device.type == "cpu":
            return torch.bfloat16 if computes_bfloat16() else None
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16

    if amp.dtype not in AMP_DTYPES:
        raise ConfigError(f"train.amp.dtype is {amp.dtype!r}; use auto, bf16 or fp16")
    return AMP_DTYPES[amp.dtype]
