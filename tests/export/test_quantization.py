"""Precisely the wanted layers compute in int8, accepted by AP; the file runs as the others do."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys

import pytest
from safetensors.torch import save_file
from torch import nn

from salience_detr.cli import export, export_int8
from salience_detr.cli.export_int8 import calibration_images, find_validation
from salience_detr.export import DetectorInfo, ExportError, OpenVinoDetector, quantization
from salience_detr.export.acceptance import Acceptance
from salience_detr.export.info import Quantization
from salience_detr.export.openvino import save_openvino, to_openvino
from salience_detr.export.quantization import find_layers, is_constant, quantize, stages_of
from salience_detr.inference.loading import load_detector
from salience_detr.modeling.feature_fusion import RepVGGBlock

pytestmark = pytest.mark.xdist_group("export")

LINEAR = ("linear1", "linear2", "value_proj", "output_proj")


@pytest.fixture(scope="module")
def graph(exported):
    """The micro model as OpenVINO's, in float32."""
    pytest.importorskip("openvino", reason="needs openvino")
    pytest.importorskip("nncf", reason="needs nncf")
    import onnx

    return to_openvino(onnx.load(exported / "model.onnx"))


@pytest.fixture(scope="module")
def info(predictor):
    return DetectorInfo.from_predictor(predictor)


@pytest.fixture(scope="module")
def images(surface_root):
    return calibration_images(surface_root / "surface_defects" / "val", 2)


@pytest.fixture(scope="module")
def quantized(graph, info, images):
    return quantize(graph, info, images)


def wanted_modules(model):
    """Return the names of the modules that are to be in int8, by the model itself."""
    names = set()
    for name, module in model.named_modules(prefix="model"):
        words = name.split(".")
        is_conv = isinstance(module, nn.Conv2d)
        if words[1:2] == ["backbone"] or words[1:2] == ["neck"]:
            wanted = is_conv
        elif words[1:2] == ["feature_fusion"]:
            # The convolutions of a RepVGG block are one in the graph.
            wanted = isinstance(module, RepVGGBlock) or (is_conv and "blocks" not in words)
        else:
            wanted = words[1:2] == ["encoder"] and words[-1] in LINEAR
        if wanted:
            names.add(name.removesuffix(".conv"))
    return names


def module_of(name):
    """Return the module that a node belongs to; a convolution bears the name of its norm."""
    return name.partition("/")[0].removesuffix(".norm")


def inputs_of(node):
    return [node.input_value(i).get_node() for i in range(node.get_input_size())]


def test_layers_are_found_by_their_modules(graph, predictor):
    layers = find_layers(graph)
    sums = [name for name in layers if "/Add_" in name]
    found = [module_of(name) for name in layers if name not in sums]
    assert sorted(found) == sorted(wanted_modules(predictor.model))
    assert {name.rpartition(".")[0] for name in map(module_of, sums)} == {
        f"model.backbone.res{stage}" for stage in (2, 3, 4, 5)
    }


def test_groups_are_stages_and_parts(graph):
    for name, group in find_layers(graph).items():
        if "backbone" in name:
            assert f"model.{group}." in name and group != "backbone"
    stages = [f"backbone.{stage}" for stage in ("stem", "res2", "res3", "res4", "res5")]
    parts = ["neck", "encoder.projections", "encoder.ffn", "feature_fusion"]
    assert set(find_layers(graph).values()) == {*stages, *parts}


def test_stages_are_told_by_the_first_part_that_differs():
    swin = ["model.backbone.patch_embed.proj/Conv_1"]
    swin += [f"model.backbone.layers.{i}.blocks.0.mlp.fc1/MatMul_2" for i in range(2)]
    assert stages_of(swin) == [
        "backbone.patch_embed.proj",
        *(f"backbone.layers.{i}" for i in (0, 1)),
    ]
    assert stages_of(["model.backbone.conv/Conv_1"]) == ["backbone"]


def test_only_the_wanted_layers_compute_in_int8(graph, quantized):
    wanted = set(find_layers(graph))
    activations = set()
    for node in quantized.get_ordered_ops():
        types = [x.get_type_name() for x in inputs_of(node)]
        if types[:1] == ["FakeQuantize"]:
            activations.add(node.get_friendly_name())
    # What is between a quantizer and a layer only moves values.
    assert wanted <= activations
    for node in quantized.get_ordered_ops():
        if node.get_type_name() in ("Softmax", "MVN", "TopK", "GridSample", "NonMaxSuppression"):
            assert node.get_friendly_name() not in activations


def test_the_weights_of_the_wanted_layers_alone_are_int8(graph, quantized):
    wanted = set(find_layers(graph))
    in_int8 = set()
    for node in quantized.get_ordered_ops():
        name = node.get_friendly_name()
        is_layer = node.get_type_name() in quantization.LAYERS
        if is_layer and is_constant(inputs_of(node)[1]) and "i8" in constant_types(node):
            in_int8.add(name)
    assert in_int8 == {name for name in wanted if "/Add_" not in name}


def constant_types(node):
    """Return the types of the constants that the weight of a layer is made of."""
    types = set()
    left = [inputs_of(node)[1]]
    while left:
        source = left.pop()
        left += inputs_of(source)
        if source.get_type_name() == "Constant":
            types.add(source.get_element_type().get_type_name())
    return types


def test_groups_are_given_back_to_float32(graph, info, images):
    without = quantize(graph, info, images, float_groups=("backbone.stem", "encoder.ffn"))
    groups = find_layers(graph)
    floating = set()
    for node in without.get_ordered_ops():
        name = node.get_friendly_name()
        if name in groups and "/Add_" not in name and "i8" not in constant_types(node):
            floating.add(groups[name])
    assert floating == {"backbone.stem", "encoder.ffn"}


def test_a_graph_without_names_is_refused(graph):
    other = graph.clone()
    for number, node in enumerate(other.get_ordered_ops()):
        node.set_friendly_name(f"node_{number}")
    with pytest.raises(ExportError, match="does not tell of all nodes which module"):
        find_layers(other)


def test_the_file_runs_and_says_what_it_is(quantized, info, surface_data, tmp_path):
    about = Quantization(("neck",), ("encoder.ffn",), "images", 2, "val", 33.5, 33.25)
    path = tmp_path / "model.xml"
    save_openvino(quantized, path, dataclasses.replace(info, quantization=about))

    detector = load_detector(None, path)
    assert isinstance(detector, OpenVinoDetector) and detector.info.quantization == about
    detections = detector(str(sorted((surface_data / "val").glob("*.jpg"))[0]))
    assert len(detections) > 0


def test_metadata_of_float_models_do_not_mention_it(info):
    assert "quantization" not in json.loads(info.to_json())


@pytest.fixture
def tried(monkeypatch):
    """Replace the quantization; its graphs are the sets of groups in float32."""
    groups = {"a/Conv": "first", "b/Conv": "second", "c/Conv": "third"}
    monkeypatch.setattr("salience_detr.export.acceptance.find_layers", lambda model: groups)
    monkeypatch.setattr(
        "salience_detr.export.acceptance.quantize",
        lambda model, info, images, float_groups: frozenset(float_groups),
    )

    def search(losses, max_drop):
        """Search where each group in int8 loses an AP of its own, of 30."""

        def measure(model):
            if model is None:
                return 30.0
            return 30.0 - sum(loss for group, loss in losses.items() if group not in model)

        return Acceptance(None, None, [], measure=measure, max_drop=max_drop).search()

    return search


def test_int8_that_loses_little_is_accepted_at_once(tried, capsys):
    accepted = tried({"first": 0.2, "second": 0.1, "third": 0.2}, 0.5)
    assert accepted.float_groups == () and accepted.ap == pytest.approx(29.5)
    assert capsys.readouterr().out.splitlines() == ["float32: AP 30.00", "int8: AP 29.50 (-0.50)"]


def test_the_most_harmful_groups_are_given_back_first(tried, capsys):
    accepted = tried({"first": 0.4, "second": 2, "third": 1}, 0.5)
    assert accepted.float_groups == ("second", "third")
    assert accepted.model == {"second", "third"} and accepted.ap == pytest.approx(29.6)
    out = capsys.readouterr().out
    assert "int8: AP 26.60 (-3.40)" in out and "int8 but for second: AP 28.60 (-1.40)" in out
    assert "int8 but for second, third: AP 29.60 (-0.40)" in out


def test_the_first_group_that_suffices_alone_is_given_back(tried, capsys):
    accepted = tried({"first": 0.3, "second": 2, "third": 0}, 0.5)
    assert accepted.float_groups == ("second",)
    assert "third" not in capsys.readouterr().out


def test_where_every_group_loses_too_much_it_is_an_error(tried):
    with pytest.raises(ExportError, match=r"loses more than 0\.5 AP whichever group"):
        tried({"first": 1, "second": 1, "third": 1}, 0.5)


def test_calibration_images_are_evenly_spread(surface_data, tmp_path):
    names = sorted(path.name for path in (surface_data / "val").glob("*.jpg"))
    found = calibration_images(surface_data / "val", 2)
    assert [path.name for path in found] == [names[0], names[len(names) // 2]]
    assert len(calibration_images(surface_data / "val", 1000)) == len(names)

    annotations = surface_data / "annotations" / "val.json"
    assert {x.name for x in calibration_images(annotations, 1000)} == set(names)
    for missing in (tmp_path, tmp_path / "missing"):
        with pytest.raises(FileNotFoundError):
            calibration_images(missing, 3)


@pytest.fixture
def export_micro(
    graph, exported, predictor, micro_config, surface_data, tmp_path, monkeypatch, capsys
):
    """Return a function that exports the micro model to int8 by the tool, and gives its output."""
    import onnx

    model = onnx.load(exported / "model.onnx")
    monkeypatch.setattr(export, "export_program", lambda predictor, sampling: None)
    monkeypatch.setattr(export, "build_onnx", lambda program, info, **options: model)
    save_file(predictor.model.state_dict(), tmp_path / "weights.safetensors")

    def run(*extra):
        start = ["--config-file", micro_config, "--weights", str(tmp_path / "weights.safetensors")]
        start += ["--output", str(tmp_path / "model.xml"), "--int8", "--calibration-size", "2"]
        assert export.main([*start, "--calibration", str(surface_data / "train"), *extra]) == 0
        return capsys.readouterr().out, OpenVinoDetector(tmp_path / "model.xml").info.quantization

    return run


def test_the_tool_measures_ap_on_own_data(export_micro, surface_data):
    out, about = export_micro("--data-dir", str(surface_data))
    assert "measuring AP on 6 images of " in out and "float32: AP 0." in out
    assert about.validation.endswith("val.json") and about.ap - about.float_ap >= -0.5
    assert about.num_images == 2 and about.calibration == str(surface_data / "train")
    assert about.float32 == () and "feature_fusion" in about.int8


def test_the_tool_says_that_ap_was_not_measured(export_micro, quantized, monkeypatch):
    monkeypatch.setattr(export_int8, "quantize", lambda model, info, images: quantized)
    out, about = export_micro("--no-validation")
    assert out.count("accuracy was not checked") == 1 and about.ap is None
    assert "int8: backbone.stem (1), " in out


def test_the_config_has_validation_data_if_they_are_at_hand(
    predictor, micro_config, surface_data, tmp_path, monkeypatch
):
    flags = ["--config-file", micro_config, "--output", "model.xml", "--weights", "unknown"]
    flags += ["--int8", "--calibration", "."]
    assert find_validation(predictor, export.parse_args([*flags, "--no-validation"])) is None
    save_file(predictor.model.state_dict(), tmp_path / "weights.safetensors")
    flags[5] = str(tmp_path / "weights.safetensors")
    found = find_validation(predictor, export.parse_args(flags))
    assert found.num_images == 6 and found.source == "surface_defects_val"

    missing = copy.deepcopy(predictor.config)
    missing.dataloader.test.dataset.names = "missing_val"
    missing.dataloader.test.dataset.json_file = str(tmp_path / "missing.json")
    missing.dataloader.test.dataset.image_root = str(tmp_path)
    monkeypatch.setattr(predictor, "config", missing)
    assert find_validation(predictor, export.parse_args(flags)) is None


def call(tmp_path, *extra, output="model.xml"):
    start = ["--config-file", "neu_det_r18", "--output", str(tmp_path / output)]
    return export.main([*start, *extra])


@pytest.mark.parametrize(
    ("output", "extra", "message"),
    [
        ("model.onnx", ["--int8", "--calibration", "."], "must end in .xml"),
        ("model.pt2", ["--int8", "--calibration", "."], "must end in .xml"),
        ("model.xml", ["--int8"], "add --calibration DIR"),
        ("model.xml", ["--calibration", "."], "--calibration goes with --int8"),
        ("model.xml", ["--data-dir", "."], "--data-dir goes with --int8"),
    ],
)
def test_flags_that_do_not_go_together(tmp_path, capsys, output, extra, message):
    with pytest.raises(SystemExit, match="2"):
        call(tmp_path, *extra, output=output)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("package", ["openvino", "nncf"])
def test_without_a_package_one_line_names_it(monkeypatch, tmp_path, capsys, package):
    if package == "nncf":
        pytest.importorskip("openvino", reason="needs openvino")
    monkeypatch.setitem(sys.modules, package, None)
    assert call(tmp_path, "--int8", "--calibration", str(tmp_path)) == 2
    error = capsys.readouterr().err
    assert package in error and "pip install 'salience_detr[openvino]'" in error
    assert error.count("\n") == 1
