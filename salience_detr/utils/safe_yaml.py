"""YAML configs as data: what a file may name, so that loading and building it runs no code in it.

A LazyConfig names functions and calls them. Here only functions of known packages are admitted,
without those that load files with code in them, or run a text as code.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from detectron2.utils.registry import locate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

# Names that a YAML config may use.
TRUSTED = (
    "salience_detr.SalienceDETR",
    "salience_detr.data",
    "salience_detr.detections",
    "salience_detr.engine.optimizer",
    "salience_detr.evaluation",
    "salience_detr.layers",
    "salience_detr.modeling",
    "detectron2.data",
    "detectron2.evaluation",
    "detectron2.layers.ShapeSpec",  # of configs/models/retinanet.py
    "detectron2.modeling",
    "detectron2.solver",
    "fvcore.common",
    "timm",
    "torch.nn",
    "torch.optim",
    "torchvision",
)

# Modules of what these names stand for: detectron2.data.transforms has some of fvcore's, say.
ORIGINS = (
    *TRUSTED,
    "detectron2.layers",
    "detectron2.structures",
    "fvcore.transforms",
    "torch._C._nn",
)

# They unpickle, import, download, compile, write or delete what their arguments name.
REFUSED = (
    "detectron2.data.build.load_proposals_into_dataset",
    "detectron2.data.datasets.coco.convert_to_coco_json",
    "detectron2.modeling.mmdet_wrapper",
    "fvcore.common.benchmark",
    "fvcore.common.checkpoint",
    "fvcore.common.config",
    "fvcore.common.download",
    "fvcore.common.file_io",
    "salience_detr.data.datasets.derive_annotation_file",
    "salience_detr.data.preparation",
    "salience_detr.data.surface.generate_surface_defects",
    "salience_detr.layers.operator",
    "timm.data.dataset",
    "timm.data.dataset_factory",
    "timm.data.loader",
    "timm.data.readers",
    "timm.models._builder",
    "timm.models._helpers",
    "timm.models._hub",
    "timm.models._pretrained",
    "timm.models.helpers",
    "timm.models.hub",
    "timm.task",
    "timm.utils",
    "torchvision.datasets",
    "torchvision.extension",
    "torchvision.io",
)

# Arguments of admitted functions, which name files that are unpickled.
REFUSED_ARGUMENTS = {
    "cache_dir", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "proposal_file",
    "proposal_files", "LOAD_PROPOSALS", "PROPOSAL_FILES_TEST", "PROPOSAL_FILES_TRAIN",
}  # fmt: skip

# timm downloads such models with all their files.
REMOTE_MODEL = re.compile(r"\s*(hf[-_]hub|local[-_]dir)\s*:", re.IGNORECASE)

# ${key} of another node is data; ${name:...} calls a function, and ${${...}} may become one.
INTERPOLATION = re.compile(r"\$\{[^${}:]*\}")

MAX_NODES = 100_000  # a config has less than a thousand; aliases can multiply them without end


class UntrustedError(ValueError):
    """Content of a YAML config that could run code, or is no config."""


class SafeConfigLoader(yaml.SafeLoader):
    """SafeLoader with the two tags that detectron2's LazyConfig writes: tuples and names."""


def _construct_tuple(loader: SafeConfigLoader, node: yaml.Node) -> tuple[object, ...]:
    if not isinstance(node, yaml.SequenceNode):
        raise UntrustedError(f"line {node.start_mark.line + 1}: !!python/tuple is not of a list")
    return tuple(loader.construct_sequence(node, deep=True))


def _construct_name(loader: SafeConfigLoader, name: str, node: yaml.Node) -> object:
    line = f"line {node.start_mark.line + 1}"
    check_name(name, line)
    try:
        return locate(name)
    except Exception as error:  # of an import, which may raise anything
        raise UntrustedError(f"{line}: there is no {name}") from error


def _refuse_tag(loader: SafeConfigLoader, suffix: str, node: yaml.Node) -> object:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise UntrustedError(f"line {node.start_mark.line + 1}: a YAML config may not hold {tag}")


SafeConfigLoader.add_constructor("tag:yaml.org,2002:python/tuple", _construct_tuple)
SafeConfigLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _construct_name)
SafeConfigLoader.add_multi_constructor("", _refuse_tag)


def read_yaml(content: str | Path) -> dict[str, object]:
    """Read a YAML config as data.

    Args:
        content: the text, or the path of its file.

    Raises:
        UntrustedError: it is not YAML, is no mapping, or holds more than data.
        OSError: the file cannot be read.
    """
    text = content
    if isinstance(content, Path):
        try:
            text = content.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UntrustedError(f"it is not a text in UTF-8 ({error})") from error

    try:
        loader = SafeConfigLoader(text)
        node = loader.get_single_node()
        if node is None:
            raise UntrustedError("it is empty")

        count_nodes(node, {})
        settings = loader.construct_document(node)
    except yaml.YAMLError as error:
        raise UntrustedError(f"it is not valid YAML ({error})") from error
    except RecursionError as error:
        raise UntrustedError("it is nested too deeply") from error

    if not isinstance(settings, dict):
        raise UntrustedError(f"it holds a {type(settings).__name__}, not settings by name")
    check_content(settings)
    return settings


def count_nodes(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Return the number of nodes below a node, those of aliases as often as they occur.

    Args:
        node: of a document.
        sizes: numbers by the nodes' ids, for nodes that are met again; 0 while one is counted.

    Raises:
        UntrustedError: there are too many, or an alias contains itself.
    """
    if sizes.get(id(node)) == 0:
        line = node.start_mark.line + 1
        raise UntrustedError(f"line {line}: an alias of YAML refers to itself")
    if id(node) in sizes:
        return sizes[id(node)]

    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = list(chain.from_iterable(node.value))

    sizes[id(node)] = 0
    size = 1 + sum(count_nodes(child, sizes) for child in children)
    if size > MAX_NODES:
        raise UntrustedError(f"it has more than {MAX_NODES} entries, its aliases expanded")
    sizes[id(node)] = size
    return size


def check_content(node: object, key: str = "") -> None:
    """Check that building a config can only call what a YAML config may name.

    Args:
        node: plain containers, interpolations not resolved.
        key: dotted key of the node, for the message.

    Raises:
        UntrustedError: naming the key and the value.
    """
    if isinstance(node, str):
        check_text(node, key)
    elif isinstance(node, list | tuple):
        for i, value in enumerate(node):
            check_content(value, f"{key}.{i}".lstrip("."))
    elif isinstance(node, Mapping):
        for name, value in node.items():
            child_key = f"{key}.{name}".lstrip(".")
            if name in REFUSED_ARGUMENTS and value:
                raise UntrustedError(
                    f"{child_key}: a YAML config may not name files that could hold code: {value!r}"
                )

            if name == "_target_":
                check_target(value, child_key)
            else:
                check_content(value, child_key)


def check_text(text: str, key: str) -> None:
    """Raise UntrustedError if a text would call a function when it is read."""
    check_model_name(text, key)
    if "${" in INTERPOLATION.sub("", text):
        raise UntrustedError(f"{key}: a YAML config may not call a resolver: {text!r}")


def check_model_name(text: str, key: str) -> None:
    """Raise UntrustedError if a text is the name of a model that timm would download."""
    if REMOTE_MODEL.match(text):
        raise UntrustedError(f"{key}: a YAML config may not download the model {text!r}")


def check_joined_texts(node: DictConfig | ListConfig, key: str = "") -> None:
    """Check the texts that interpolations join from harmless parts: ``${a}${b}``.

    Those that cannot be resolved are left to whoever uses them.

    Raises:
        UntrustedError: naming the key and the value.
    """
    names: Sequence[Any] = list(node) if isinstance(node, DictConfig) else range(len(node))
    for name in names:
        child_key = f"{key}.{name}".lstrip(".")
        if OmegaConf.is_missing(node, name):
            continue

        try:
            value = node[name]
        except OmegaConfBaseException:
            continue
        if isinstance(value, str):
            check_model_name(value, child_key)
        elif OmegaConf.is_config(value) and not OmegaConf.is_interpolation(node, name):
            check_joined_texts(value, child_key)


def check_target(target: object, key: str) -> None:
    """Raise UntrustedError unless a ``_target_`` is the name of an admitted function, or one."""
    if isinstance(target, str):
        check_name(target, key)
    elif callable(target) and not isinstance(target, Mapping):
        check_origin(target, str(target), key)
    else:
        raise UntrustedError(f"{key}: a YAML config names what to call by a text, not {target!r}")


def check_name(name: str, key: str) -> None:
    """Check that a dotted name is that of an admitted function or class.

    A name that does not exist is left to whoever uses it.

    Raises:
        UntrustedError: it is not.
    """
    if "$" in name:
        raise UntrustedError(f"{key}: a YAML config names what to call by a plain text, not {name}")

    is_private = any(part.startswith("_") for part in name.split("."))
    if is_private or not is_below(name, TRUSTED) or is_below(name, REFUSED):
        raise UntrustedError(f"{key}: a YAML config may not call {name}")

    try:
        found = locate(name)
    except Exception:  # of an import, which may raise anything
        return
    check_origin(found, name, key)


def check_origin(found: object, name: str, key: str) -> None:
    """Check where a function or class comes from, as modules also hold what they import.

    Raises:
        UntrustedError: it comes from elsewhere, or is a method, which could be given any object.
    """
    module = getattr(found, "__module__", None) or ""
    qualified = f"{module}.{getattr(found, '__qualname__', '')}"
    is_function = callable(found) and not isinstance(found, ModuleType)
    if not is_function or not hasattr(found, "__qualname__"):
        raise UntrustedError(f"{key}: a YAML config may not call {name}, which is no function")
    if not is_below(qualified, ORIGINS) or is_below(qualified, REFUSED):
        raise UntrustedError(f"{key}: a YAML config may not call {name}, which is {qualified}")

    if is_method(found):
        raise UntrustedError(f"{key}: a YAML config may not call {name}, which is a method")


def is_method(found: object) -> bool:
    """Return whether a function is a method, bound to an object or not; those of classes are not.

    Methods of objects that packages hold could read files: torchvision's weights are such objects.
    """
    if inspect.ismethod(found):
        return not inspect.isclass(found.__self__)
    if not inspect.isfunction(found):
        return False
    return next(iter(inspect.signature(found).parameters), "") == "self"


def is_below(name: str, prefixes: tuple[str, ...]) -> bool:
    """Return whether a dotted name is one of the prefixes or begins with one."""
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)
