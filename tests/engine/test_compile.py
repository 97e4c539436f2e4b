"""train.compile: one graph for a stage, and few of them for images of any size."""

from __future__ import annotations

from functools import partialmethod

import pytest
import torch
from detectron2.config import instantiate
from torch import nn

from salience_detr.config import load_config
from salience_detr.engine.compilation import compile_model

SIZES = [(64, 96), (64, 96), (96, 64), (128, 160), (80, 200), (150, 90)]


@pytest.fixture
def graphs(monkeypatch):
    """Let compiled stages run as they are, and return the list of the graphs they consist of."""
    found = []

    def keep(graph, inputs):
        found.append(graph)
        return graph.forward

    torch.compiler.reset()
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=keep))
    yield found
    torch.compiler.reset()


def test_encoder_and_decoder_are_one_graph_each_and_few_for_all_sizes(
    micro_config, make_input, graphs, monkeypatch
):
    stages = ("encoder", "decoder")
    monkeypatch.setattr("salience_detr.engine.compilation.COMPILED_STAGES", stages)
    config = load_config(micro_config, ["train.compile=True"])
    torch.manual_seed(0)
    plain = instantiate(config.model).eval()
    torch.manual_seed(0)
    model = instantiate(config.model).eval()
    compile_model(config, model)

    numbers = []
    for height, width in SIZES:
        batch = [make_input(height, width, [], []), make_input(height - 16, width - 20, [], [])]
        with torch.no_grad():
            found = model(batch)
            expected = plain(batch)
        numbers.append(len(graphs))

        for output, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(output["instances"].scores, wanted["instances"].scores)

    # One graph for the first size, then some whose sizes are free; each is compiled for minutes.
    assert numbers[:2] == [2, 2]
    assert numbers[-1] == numbers[-3] <= 5


def test_training_compiles_few_graphs_for_all_sizes(micro_config, make_input, graphs, monkeypatch):
    stages = ("encoder", "decoder")
    monkeypatch.setattr("salience_detr.engine.compilation.COMPILED_STAGES", stages)
    config = load_config(micro_config, ["train.compile=True"])
    torch.manual_seed(0)
    plain = instantiate(config.model)
    torch.manual_seed(0)
    model = instantiate(config.model)
    compile_model(config, model)

    numbers = []
    for height, width in SIZES:
        batch = [
            make_input(height, width, [[4, 4, 40, 30]], [0]),
            make_input(height - 16, width - 20, [[1, 1, 20, 20], [8, 8, 30, 24]], [1, 2]),
        ]
        losses = []
        for each in (plain, model):
            torch.manual_seed(1)
            losses.append(torch.stack(list(each(batch).values())).sum())
        numbers.append(len(graphs))
        torch.testing.assert_close(losses[1], losses[0], rtol=1e-4, atol=0)

    assert numbers[:2] == [2, 2]
    assert numbers[-1] == numbers[-3] <= 6


@pytest.mark.slow
def test_the_decoder_of_a_variant_is_one_graph_for_each_set_of_queries(
    micro_config, make_input, graphs, monkeypatch
):
    monkeypatch.setattr("salience_detr.engine.compilation.COMPILED_STAGES", ("decoder",))
    variants = micro_config.replace("micro.py", "variants.py")
    config = load_config(variants, ["train.compile=True"])
    model = instantiate(config.model)
    compile_model(config, model)

    losses = model([make_input(64, 96, [[4, 4, 40, 30]], [0])])

    assert len(graphs) == 2
    assert "loss_class_o2m" in losses and "loss_class_hybrid" in losses
