"""The stages one by one: tokens, selection, encoder, fusion, query selection, detections."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from salience_detr.layers.heads import bbox_head, class_head
from salience_detr.modeling.encoder import (
    BackgroundEmbedding,
    ProbabilityEncoder,
    SalienceEncoder,
    SalienceEncoderLayer,
)
from salience_detr.modeling.feature_fusion import FeatureFusion, RepVGGBlock
from salience_detr.modeling.neck import ChannelMapper
from salience_detr.modeling.query_selection import QuerySelection
from salience_detr.modeling.salience import (
    NormModulatedSalienceHead,
    SalienceFilter,
    SalienceHead,
)
from salience_detr.modeling.token_pyramid import TokenPyramidBuilder, flatten_maps

D = 16


def make_tokens(sizes, padded=(32, 48), dim=D):
    """Return tokens and maps of two levels (strides 8 and 16) for images of these sizes."""
    pixels = torch.ones(len(sizes), *padded, dtype=torch.bool)
    for mask, (height, width) in zip(pixels, sizes, strict=True):
        mask[:height, :width] = False
    maps = [torch.randn(len(sizes), dim, padded[0] // s, padded[1] // s) for s in (8, 16)]
    return TokenPyramidBuilder(embed_dim=dim, num_levels=2)(maps, pixels), maps


def test_tokens_are_flattened_level_by_level_and_back():
    tokens, maps = make_tokens([(32, 48)])
    assert tokens.spatial_shapes_list == ((4, 6), (2, 3))
    assert tokens.level_start_index.tolist() == [0, 24]
    assert torch.equal(tokens.features[0, 6 * 1 + 2], maps[0][0, :, 1, 2])
    assert torch.equal(tokens.features[0, 24 + 3 * 1 + 2], maps[1][0, :, 1, 2])
    assert all(
        torch.equal(a, b) for a, b in zip(tokens.to_maps(tokens.features), maps, strict=True)
    )
    assert torch.equal(flatten_maps(maps), tokens.features)


def test_padding_and_valid_ratios_follow_the_image():
    tokens, _ = make_tokens([(32, 48), (16, 24)])
    # Image 1 has 2 x 3 tokens on level 0, and 1 x 2 on level 1, whose columns 0 and 1 start inside.
    assert (~tokens.padding_mask).sum(1).tolist() == [30, 2 * 3 + 1 * 2]
    assert tokens.valid_ratios[1].tolist() == [[3 / 6, 2 / 4], [pytest.approx(2 / 3), 1 / 2]]


def test_proposals_are_centered_on_their_tokens_and_grow_with_the_level():
    tokens, _ = make_tokens([(32, 48)])
    # Token (row 1, column 2) of level 0 (4 x 6), then (row 0, column 1) of level 1 (2 x 3).
    assert tokens.output_proposals[0, 8].tolist() == pytest.approx([2.5 / 6, 1.5 / 4, 0.05, 0.05])
    assert tokens.output_proposals[0, 25].tolist() == pytest.approx([1.5 / 3, 0.5 / 2, 0.1, 0.1])
    assert tokens.output_proposals_valid.all()


def test_padded_tokens_and_centers_outside_have_no_valid_proposal():
    tokens, _ = make_tokens([(16, 24), (32, 48)])
    assert tokens.output_proposals_valid[0].sum() <= 8
    assert not (tokens.output_proposals_valid & tokens.padding_mask).any()


def make_filter(level_ratios=(0.4, 0.8), layer_ratios=(1.0, 0.5)):
    return SalienceFilter(embed_dim=D, level_ratios=level_ratios, layer_ratios=layer_ratios)


def test_each_image_keeps_the_truncated_part_of_its_own_unpadded_tokens():
    tokens, _ = make_tokens([(32, 48), (16, 24)])
    selection = make_filter()(torch.randn(2, 30, D), tokens)
    # Image 0: int(24 * 0.4) + int(6 * 0.8) = 9 + 4. Image 1: int(6 * 0.4) + int(2 * 0.8) = 2 + 1.
    assert selection.counts == [13, 3]
    assert selection.layer_counts == [[13, 3], [6, 1]]


def test_selected_tokens_are_the_best_of_each_level_by_falling_score_and_never_padding():
    tokens, _ = make_tokens([(32, 48), (16, 24)])
    selection = make_filter()(torch.randn(2, 30, D), tokens)
    scores = torch.cat([x.flatten(1) for x in selection.score_maps], dim=1)

    for image, counts in enumerate([(9, 4), (2, 1)]):
        chosen = selection.token_index[image, : sum(counts)]
        expected = set()
        for start, size, count in ((0, 24, counts[0]), (24, 6, counts[1])):
            level = scores[image, start : start + size].masked_fill(
                tokens.padding_mask[image, start : start + size], -torch.inf
            )
            expected |= {start + i for i in level.topk(count).indices.tolist()}

        assert set(chosen.tolist()) == expected
        assert not tokens.padding_mask[image, chosen].any()

        values = selection.scores[image, : sum(counts)].tolist()
        assert values == sorted(values, reverse=True)


def test_an_image_with_fewer_tokens_is_padded_by_others_of_its_own():
    tokens, _ = make_tokens([(32, 48), (16, 24)])
    index = make_filter()(torch.randn(2, 30, D), tokens).token_index
    assert index.shape == (2, 13)
    assert all(len(set(row)) == 13 for row in index.tolist())


def test_the_selection_of_an_image_does_not_depend_on_its_batch_mates():
    both, maps = make_tokens([(32, 48), (16, 24)])
    memory = torch.randn(2, 30, D)
    salience_filter = make_filter()
    together = salience_filter(memory, both)

    for image, size in enumerate([(32, 48), (16, 24)]):
        pixels = torch.ones(1, 32, 48, dtype=torch.bool)
        pixels[:, : size[0], : size[1]] = False
        tokens = TokenPyramidBuilder(embed_dim=D, num_levels=2)(
            [x[image : image + 1] for x in maps], pixels
        )
        alone = salience_filter(memory[image : image + 1], tokens)
        count = alone.counts[0]
        assert count == together.counts[image]
        assert torch.equal(alone.token_index[0], together.token_index[image, :count])


def test_a_coarse_score_modulates_the_finer_level_only_where_the_factor_is_negative():
    tokens, _ = make_tokens([(32, 48)])
    salience_filter, memory = make_filter(), torch.randn(1, 30, D)
    with torch.no_grad():
        salience_filter.alpha.fill_(0.0)
        plain = salience_filter.score_levels(memory, tokens)[0]
        salience_filter.alpha.fill_(-1e3)
        assert not torch.allclose(salience_filter.score_levels(memory, tokens)[0], plain, atol=1e-4)
        assert torch.equal(
            salience_filter.score_levels(memory, tokens)[1],
            salience_filter.head(memory[:, 24:]).view(1, 2, 3),
        )


def test_a_head_modulated_behind_its_norm_learns_from_a_positive_factor():
    tokens, _ = make_tokens([(32, 48)])
    memory = torch.randn(1, 30, D, dtype=torch.float64)

    gradients = {}
    for head in (SalienceHead(embed_dim=D), NormModulatedSalienceHead(embed_dim=D)):
        head.local[0].eps = 0.0
        salience_filter = SalienceFilter(
            embed_dim=D, level_ratios=[0.5, 1.0], layer_ratios=[1.0], head=head
        ).double()
        nn.init.constant_(salience_filter.alpha, 0.1)
        salience_filter.score_levels(memory, tokens)[0].sum().backward()
        gradients[type(head)] = salience_filter.alpha.grad.abs().item()

    assert gradients[SalienceHead] < 1e-12 < 1e-4 < gradients[NormModulatedSalienceHead]


def test_a_factor_behind_the_norm_scales_what_the_linear_layer_sees():
    head = NormModulatedSalienceHead(embed_dim=4)
    nn.init.eye_(head.local[1].weight)

    # Mean 2 and deviation 1: normalized to -1, -1, 1, 1, then tripled.
    found = head.embed(torch.tensor([[[1.0, 1.0, 3.0, 3.0]]]), torch.tensor([[[3.0]]]))
    expected = nn.functional.gelu(torch.tensor([-3.0, -3.0, 3.0, 3.0]))
    torch.testing.assert_close(found[0, 0], expected, atol=1e-4, rtol=0)


def test_a_product_of_probabilities_ranks_two_negative_logits_last():
    logits = torch.tensor([[-3.0, 2.0, -1.0]])
    salience = torch.tensor([[-4.0, 1.0, 3.0]])
    encoder = make_encoder(encoder_class=ProbabilityEncoder)

    # 0.0474 * 0.0180, 0.8808 * 0.7311, 0.2689 * 0.9526; as published 12, 2 and -3.
    found = encoder.importance(logits, salience)[0]
    assert found.tolist() == pytest.approx([0.00085, 0.64391, 0.25619], abs=1e-5)
    published = make_encoder().importance(logits, salience)[0]
    assert published.tolist() == [12, 2, -3]


def test_ratios_outside_zero_to_one_are_refused():
    with pytest.raises(ValueError, match=r"level_ratios must lie in \(0, 1\], got \[0.4, 1.2\]"):
        make_filter(level_ratios=(0.4, 1.2))


def make_encoder(encoder_class=SalienceEncoder, **options):
    options = {"embed_dim": D, "num_heads": 2, "ffn_dim": 8, "num_levels": 2, **options}
    layers = [SalienceEncoderLayer(**options) for _ in range(2)]
    background = BackgroundEmbedding(embed_dim=D, size=8)
    return encoder_class(layers=layers, background_embedding=background)


def test_only_selected_tokens_move_and_the_others_are_marked_as_background():
    tokens, _ = make_tokens([(32, 48), (16, 24)])
    selection = make_filter()(torch.randn(2, 30, D), tokens)
    encoder = make_encoder()
    memory = encoder(tokens, selection, nn.Linear(D, 3))
    background = encoder.background_embedding(tokens.spatial_shapes_list)

    for image in range(2):
        moved = set(selection.token_index[image, : selection.counts[image]].tolist())
        last = set(selection.token_index[image, : selection.layer_counts[-1][image]].tolist())

        for token in range(30):
            expected = tokens.features[image, token]
            if token not in last and not tokens.padding_mask[image, token]:
                expected = expected + background[token]

            unchanged = torch.allclose(memory[image, token], expected)
            assert unchanged == (token not in moved), (image, token)


def test_fewer_than_topk_tokens_all_attend_and_padding_does_not_matter():
    tokens, _ = make_tokens([(32, 48), (16, 24)])
    selection = make_filter()(torch.randn(2, 30, D), tokens)
    encoder = make_encoder(num_topk=300)
    classify = nn.Linear(D, 3)

    # Image 1 has three tokens; the others pad it. Whichever they are, its memory stays.
    swapped = torch.cat([selection.token_index[:, :3], selection.token_index[:, 3:].flip(1)], dim=1)
    before = encoder(tokens, selection, classify)
    after = encoder(tokens, replace(selection, token_index=swapped), classify)

    torch.testing.assert_close(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


def test_the_background_table_is_stretched_beyond_its_size():
    embedding = BackgroundEmbedding(embed_dim=4, size=3)
    found = embedding(((2, 5),)).view(2, 5, 4)

    assert torch.equal(found[0, 0, :2], embedding.col_embed[0])
    torch.testing.assert_close(found[0, 4, :2], embedding.col_embed[2])
    # The middle of 5 columns is the middle of 3.
    torch.testing.assert_close(found[0, 2, :2], embedding.col_embed[1])
    # Two rows fit into the table.
    assert torch.equal(found[1, 3, 2:], embedding.row_embed[1])


def test_the_folded_block_equals_its_branches():
    block = RepVGGBlock(channels=8, groups=4).double()
    for norm in (block.conv3x3.norm, block.conv1x1.norm):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
        nn.init.uniform_(norm.weight)
        nn.init.uniform_(norm.bias)
    block.eval()

    x = torch.randn(2, 8, 5, 7, dtype=torch.float64)
    branches = nn.functional.silu(block.conv3x3(x) + block.conv1x1(x))
    torch.testing.assert_close(block(x), block.gate(branches) + x)


def test_fusion_keeps_odd_sizes():
    maps = [torch.randn(2, D, *size) for size in ((9, 13), (5, 7), (3, 4))]
    fused = FeatureFusion(channels=D, num_levels=3, num_blocks=1).eval()(maps)
    assert [x.shape for x in fused] == [x.shape for x in maps]


def test_the_extra_level_reads_the_last_backbone_map():
    neck = ChannelMapper(in_features=["a", "b"], in_channels=[4, 6], out_channels=8, num_groups=2)
    levels = neck({"a": torch.randn(1, 4, 8, 8), "b": torch.randn(1, 6, 4, 5)})
    assert [tuple(x.shape[1:]) for x in levels] == [(8, 8, 8), (8, 4, 5), (8, 2, 3)]
    assert neck.extra_levels[0].in_channels == 6


def make_query_selection(num_queries=6):
    return QuerySelection(
        class_head=class_head(embed_dim=D, num_classes=3),
        bbox_head=bbox_head(embed_dim=D),
        num_queries=num_queries,
    )


def test_direct_neighbors_of_a_better_token_are_suppressed_diagonal_ones_are_not():
    tokens, _ = make_tokens([(32, 48)])
    scores = torch.full((1, 30), -9.0)

    # On level 0 (6 columns) 7 is best; 8 (right) and 13 (below) touch it, 14 is diagonal. 25 is on
    # level 1.
    for token, score in {7: 5.0, 8: 4.0, 13: 3.0, 14: 2.0, 25: 1.0}.items():
        scores[0, token] = score

    kept = make_query_selection(num_queries=3).nms_keep_indices(scores, tokens)[0]

    assert kept.tolist() == [7, 14, 25]


def test_images_in_which_nms_keeps_fewer_tokens_are_padded():
    tokens, _ = make_tokens([(32, 48)] * 2)
    selection = make_query_selection(num_queries=100)
    proposals = selection(torch.randn(2, 30, D), tokens)

    counts = proposals.valid_mask.sum(1)
    length = proposals.pred_boxes.shape[1]
    assert length == counts.max() < 30
    # Valid queries come first.
    assert torch.equal(proposals.valid_mask, torch.arange(length) < counts[:, None])


def test_invalid_tokens_propose_the_lower_right_corner():
    tokens, _ = make_tokens([(16, 24)])
    boxes = make_query_selection().propose_boxes(torch.randn(1, 1, D), torch.tensor([[23]]), tokens)
    assert boxes.flatten().tolist() == [1, 1, 1, 1]
