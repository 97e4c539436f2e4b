"""YAML configs are data: what could run code is refused by name."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf
from torch import nn

from salience_detr.utils.safe_yaml import (
    UntrustedError,
    check_content,
    check_joined_texts,
    read_yaml,
)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Linear",
        "torch.nn.functional.gelu",
        "torch.optim.SGD",
        "detectron2.data.DatasetMapper",
        "detectron2.data.get_detection_dataset_dicts",
        "detectron2.data.transforms.NoOpTransform",
        "detectron2.evaluation.COCOEvaluator",
        "detectron2.modeling.ResNet.make_stage",
        "detectron2.solver.WarmupParamScheduler",
        "fvcore.common.param_scheduler.CosineParamScheduler",
        "timm.create_model",
        "torchvision.models.resnet50",
        "salience_detr.SalienceDETR",
    ],
)
def test_functions_of_the_packages_that_models_are_made_of_are_admitted(target):
    check_content({"_target_": target})


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "subprocess.Popen",
        "torch.load",
        "torch.hub.load",
        "torch.utils.cpp_extension.load",
        "numpy.load",
        "detectron2.engine.launch",
        # Modules of known packages hold others.
        "salience_detr.data.images.np.load",
        "torch.nn.functional.torch.load",
        "torch.nn.functional.importlib.import_module",
        "detectron2.data.build.pickle.load",
        "timm.models.resnet.torch.hub.load",
        "torch.nn",
        # They read code, or run it.
        "salience_detr.Predictor",
        "salience_detr.config.load_config",
        "salience_detr.export.PackagedDetector",
        "salience_detr.layers.operator.import_file",
        "detectron2.data.build.load_proposals_into_dataset",
        "fvcore.common.config.CfgNode.load_yaml_with_base",
        "fvcore.common.checkpoint.Checkpointer",
        "fvcore.common.download.download",
        "timm.models.load_checkpoint",
        "timm.models.load_state_dict_from_hf",
        "timm.data.create_dataset",
        "torchvision.datasets.CIFAR10",
        # They write and delete.
        "detectron2.data.datasets.convert_to_coco_json",
        "salience_detr.data.surface.generate_surface_defects",
        # Its file_name could be that of any file, which is unpickled.
        "torchvision.models.ResNet18_Weights.DEFAULT.get_state_dict",
        # A method may be given any object for itself.
        "torchvision.models.WeightsEnum.get_state_dict",
        "torch.nn.Module.__init__.__globals__.get",
        "torch.nn.attention._fa4.register_flash_attention_fa4",
        "timmy.create_model",
        "${train.note}",
        "torch.nn.${train.note}",
        {"_target_": "torch.nn.Identity"},
        ["os.system"],
        None,
    ],
)
def test_what_else_there_is_to_call_is_refused(target):
    with pytest.raises(UntrustedError, match=r"a\.0\._target_: "):
        check_content({"a": [{"_target_": target}]})


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "a ${oc.env:HOME} b",
        "${oc.decode:'{_target_: os.system}'}",
        "${oc.create:${train.note}}",
        "${${train.name}:x}",
        "${train.${oc.env:HOME}}",
        "hf-hub:someone/model",
        "local-dir:/tmp/model",
        "HF_Hub:someone/model",
        " hf-hub:someone/model",
    ],
)
def test_resolvers_and_remote_models_are_refused(value):
    with pytest.raises(UntrustedError, match=r"^train\.note: "):
        check_content({"train": {"note": value}})


def test_remote_models_joined_from_parts_are_refused():
    config = OmegaConf.create({"a": "hf-", "b": "hub:x", "c": ["${d}"], "e": [{"k.e": "${a}${b}"}]})
    check_content(OmegaConf.to_container(config))
    with pytest.raises(UntrustedError, match=r"^e\.0\.k\.e: .* download the model 'hf-hub:x'"):
        check_joined_texts(config)


def test_interpolations_of_nodes_are_data():
    check_content({"a": "${..b.c}", "b": "${train.output_dir}/inference", "c": "$5 {x:y}"})


@pytest.mark.parametrize("name", ["checkpoint_path", "proposal_files", "pretrained_cfg"])
def test_arguments_that_name_pickled_files_are_refused(name):
    check_content({"options": {name: None}})
    with pytest.raises(UntrustedError, match=rf"options\.{name}: "):
        check_content({"options": {name: ["evil.pkl"]}})


@pytest.mark.parametrize(
    "content",
    [
        "a: !!python/object/apply:os.system [ls]",
        "a: !!python/object/new:os.system [ls]",
        "a: !!python/object:collections.Counter {}",
        "a: !!python/module:os",
        "a: !!python/name:os.system ''",
        "a: !!python/name:torch.load",
        "a: !!python/tuple 5",
        "a: !custom 5",
        "!!python/name:os.system : 5",
    ],
)
def test_tags_that_run_code_are_refused_with_the_line(content, tmp_path):
    (tmp_path / "a.yaml").write_text("b: 1\n" + content)
    with pytest.raises(UntrustedError, match=r"^line 2: "):
        read_yaml(tmp_path / "a.yaml")


def test_tuples_and_names_are_read(tmp_path):
    content = "a: !!python/tuple [1, [2]]\nb: !!python/name:torch.nn.modules.linear.Linear ''\n"
    (tmp_path / "a.yaml").write_text(content)
    assert read_yaml(tmp_path / "a.yaml") == {"a": (1, [2]), "b": nn.Linear}


@pytest.mark.parametrize("kind", ["[{}]", "{{<<: [{}]}}", "{{{}}}"])
def test_aliases_that_multiply_are_refused(kind, tmp_path):
    lines = ["a0: &a0 {x: 1}"]
    for i in range(1, 12):
        aliases = ", ".join([f"*a{i - 1}"] * 9)
        if kind == "{{{}}}":
            aliases = ", ".join(f"k{j}: *a{i - 1}" for j in range(9))
        lines.append(f"a{i}: &a{i} {kind.format(aliases)}")
    (tmp_path / "a.yaml").write_text("\n".join(lines))

    with pytest.raises(UntrustedError, match="more than 100000 entries"):
        read_yaml(tmp_path / "a.yaml")
