"""One step: its gradients do not depend on how the batch is computed."""

from __future__ import annotations

import pytest
import torch
from detectron2.config import instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.events import EventStorage
from torch import nn

from salience_detr.config import load_config
from salience_detr.engine.trainer import Trainer, group_losses, split_evenly
from tests.fixed_loader import FixedLoader


@pytest.fixture
def step(micro_config, make_input):
    """Return a function that does one step in float64 and returns losses, gradients and the model.

    Its four images have different sizes; one has no boxes.
    """
    images = [
        make_input(64, 96, [[4, 4, 40, 30], [50, 8, 90, 60]], [0, 5]),
        make_input(96, 50, [[1, 1, 20, 90]], [2]),
        make_input(40, 64, [], []),
        make_input(64, 64, [[5, 5, 12, 14], [30, 30, 60, 60], [0, 0, 64, 64]], [1, 3, 4]),
    ]

    def run(*overrides, config=micro_config, frozen=True, **options):
        torch.manual_seed(1)
        model = instantiate(load_config(config, overrides).model)
        model = (FrozenBatchNorm2d.convert_frozen_batchnorm(model) if frozen else model).double()
        # As initialized, all tokens are nearly equally likely: rounding would choose the queries.
        nn.init.normal_(model.query_selection.class_head.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trainer = Trainer(
            model=model,
            data_loader=FixedLoader(images),
            optimizer=optimizer,
            clip_grad_norm=0.0,
            **options,
        )
        trainer.start_iter = trainer.iter = 0
        with EventStorage() as trainer.storage:
            trainer.run_step()
            losses = {
                name: value
                for name, (value, _) in trainer.storage.latest().items()
                if "loss" in name
            }

        return (
            losses,
            {name: p.grad for name, p in model.named_parameters() if p.requires_grad},
            model,
        )

    return run


@pytest.mark.parametrize(
    ("config", "parts"),
    [("micro", 2), ("micro", 3), ("micro", 4), ("micro", 9), ("variants", 2), ("variants", 4)],
)
def test_parts_of_a_batch_add_up_to_the_batch(step, config, parts, micro_config):
    path = micro_config.replace("micro.py", f"{config}.py")
    losses, gradients, _ = step(config=path)
    part_losses, part_gradients, _ = step(config=path, accumulate=parts)

    assert part_losses.keys() == losses.keys() and "loss_class_dn" in losses
    for name in ("loss_class_o2m_0", "loss_class_0_hybrid"):
        assert (name in losses) == (config == "variants")
    for name, value in losses.items():
        assert part_losses[name] == pytest.approx(value, rel=1e-10), name

    for name, value in gradients.items():
        torch.testing.assert_close(part_gradients[name], value, rtol=1e-8, atol=1e-10, msg=name)


@pytest.mark.parametrize("frozen", [True, False])
def test_activation_checkpointing_changes_nothing(step, frozen):
    losses, gradients, model = step(frozen=frozen)
    again, same_gradients, same_model = step(
        "model.encoder.use_checkpoint=True", "model.backbone.use_checkpoint=True", frozen=frozen
    )

    assert again == losses
    assert all(torch.equal(same_gradients[name], value) for name, value in gradients.items())

    buffers = dict(same_model.named_buffers())
    for name, value in model.named_buffers():
        assert torch.equal(buffers[name], value), name
    assert same_model.state_dict().keys() == model.state_dict().keys()


def test_activation_checkpointing_keeps_less_memory(micro_config, make_input):
    kept = {}
    for use in (False, True):
        overrides = [f"model.{part}.use_checkpoint={use}" for part in ("encoder", "backbone")]
        model, sizes = instantiate(load_config(micro_config, overrides).model).train(), []
        for name in ("backbone", "encoder"):
            stage = model.get_submodule(name)
            stage.register_forward_pre_hook(lambda *_, sizes=sizes: sizes.clear())
            stage.register_forward_hook(
                lambda *_, at=(name, use), sizes=sizes: kept.update({at: sum(sizes)})
            )
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.append(x.nbytes) or x, lambda x: x
        ):
            model([make_input(256, 256, [[10, 10, 200, 200]], [0])])

    for name in ("backbone", "encoder"):
        assert kept[name, True] < 0.7 * kept[name, False], name


def test_a_model_without_loss_normalizers_is_refused_when_accumulating():
    class Plain(nn.Linear):
        pass

    model = Plain(1, 1)
    options = {
        "data_loader": FixedLoader([]),
        "optimizer": torch.optim.SGD(model.parameters()),
        "clip_grad_norm": 0.0,
    }

    with pytest.raises(
        ValueError, match=r"train\.accumulate is 2, but Plain cannot be trained in parts"
    ):
        Trainer(model=model, accumulate=2, **options)


def test_gradients_that_no_scale_makes_finite_stop_the_run():
    class Overflowing(nn.Linear):
        def forward(self, batch):
            return {"loss": self.weight.sum() * torch.tensor(1e38) * 1e38}

    model = Overflowing(1, 1)
    model.weight.data.fill_(1e-38)  # the loss is finite, its gradient is not
    trainer = Trainer(
        model=model,
        data_loader=FixedLoader([{"image_id": 7}]),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        clip_grad_norm=0.0,
        amp_dtype=torch.float16,
    )
    trainer.start_iter = 0
    words = "not finite at iteration 20; images 7"

    with EventStorage() as trainer.storage, pytest.raises(FloatingPointError, match=words):
        for trainer.iter in range(30):
            trainer.run_step()


@pytest.mark.parametrize(
    ("count", "expected"),
    [(1, ["abcde"]), (2, ["abc", "de"]), (3, ["ab", "cd", "e"]), (9, ["a", "b", "c", "d", "e"])],
)
def test_batches_are_split_evenly(count, expected):
    assert ["".join(part) for part in split_evenly(list("abcde"), count)] == expected


def test_losses_are_grouped_by_what_they_teach():
    names = [
        "class",
        "bbox",
        "class_0",
        "bbox_10",
        "class_enc",
        "class_dn",
        "class_dn_0",
        "class_o2m",
        "class_o2m_0",
        "class_hybrid",
        "class_0_hybrid",
        "class_enc_hybrid",
        "salience",
    ]
    losses = {f"loss_{name}": 1.0 for name in names} | {"grad_norm": 5.0}

    assert group_losses(losses) == {
        "class": 1, "bbox": 1, "earlier": 2, "encoder": 1, "denoising": 2, "one_to_many": 2,
        "hybrid": 3, "salience": 1,
    }  # fmt: skip


def test_a_batch_too_small_for_batch_norm_names_its_image_and_the_remedy(make_input):
    class Pooled(nn.Module):
        """BatchNorm after a global mean, as some backbones of timm have it."""

        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, batch):
            means = [x["image"].float().mean((1, 2), keepdim=True) for x in batch]
            return {"loss": self.norm(torch.stack(means)).sum()}

    model = Pooled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    image = make_input(8, 8, [], []) | {"file_name": "plates/a.png"}

    def train(batch):
        trainer = Trainer(
            model=model, data_loader=FixedLoader(batch), optimizer=optimizer, clip_grad_norm=0.0
        )
        trainer.start_iter = trainer.iter = 0
        with EventStorage() as trainer.storage:
            trainer.run_step()

    train([image, image])
    with pytest.raises(ValueError, match=r"plates/a\.png .*dataloader\.train\.total_batch_size"):
        train([image])
