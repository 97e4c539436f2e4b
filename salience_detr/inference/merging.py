"""Merging of the detections on overlapping views of an image.

Views are the tiles of a grid and, optionally, the whole image. The rules, for each class by itself:

1. A detection on a tile is *cut* on each side where its box comes within a margin of the tile's
   border, because the object may continue there. Borders of the image do not count, and detections
   on the whole image are never cut.
2. Of two detections from different views, one may be a part of the other: the one that is cut on
   more sides or, if both are cut on equally many, the smaller one. It is dropped if most of its box
   (:data:`COVERED`) lies in the other box. The measure is the intersection over the area of the
   part, since the IoU of a part with its whole is low. A detection with less than half of the
   other's score drops nothing.
3. A detection that is cut is dropped if another tile shows its whole box: that tile also shows
   the rest of the object, and the detector has no detection there, or one of a lower score.
4. The parts of an object that no view shows whole are joined. Two detections on adjacent tiles are
   parts of one object if each is cut on the side towards the other, both fill the overlap of the
   tiles, and their extents in the other direction agree (:data:`SAME`). The joined box has the
   highest score of its parts. Then rule 2 is applied again.
5. If two detections from different views have an IoU of :data:`SAME` or more, only the one with
   the higher score stays. For this comparison, the score of a detection that is cut is halved.

Detections on one view never drop each other: objects in a crowd overlap.

Neither supervision's InferenceSlicer (0.31) nor SAHI (0.12) takes the place of this module: both
leave more false detections, and parts that overlap little are not joined. Recall / precision on
four generated plates of 1280x1280 pixels with 256 defects, tiles of 320 pixels with an overlap of
0.2, each library with its best merging (non-maximum merging by intersection over the smaller):

====================================  ===========  ===========  ===========
score threshold                       0.5          0.4          0.3
====================================  ===========  ===========  ===========
this module, with the whole image     .992 / .969  .992 / .944  .996 / .907
this module, tiles only               .992 / .969  .992 / .944  .996 / .911
SAHI, with the whole image            .961 / .840  .953 / .775  .945 / .729
SAHI, tiles only                      .992 / .951  .992 / .907  .996 / .876
supervision (tiles only)              .992 / .951  .992 / .904  .996 / .873
====================================  ===========  ===========  ===========

Detections are kept in :class:`Instances` with these fields:

- ``boxes``: (N, 4) float64, absolute xyxy in the frame of the image
- ``scores`` and ``classes``: (N,)
- ``views``: (N,) number of the view
- ``tiles``: (N, 4) float64, box of the view
- ``cut``: (N, 4) bool, cut on the left, top, right and bottom side
"""

from __future__ import annotations

from dataclasses import dataclass

import scipy  # loads its parts when they are used
import torch
from detectron2.structures import Instances
from torch import Tensor
from torchvision.ops import box_area

# Thresholds of the rules.
SAME = 0.5
COVERED = 0.7
MIN_RELATIVE_SCORE = 0.5
CUT_WEIGHT = 0.5

LEFT, TOP, RIGHT, BOTTOM = range(4)  # columns of boxes and of their sides
INWARDS = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)  # from each side of a tile
BLOCK_SIZE = 256  # detections that are compared with others at a time


@dataclass(frozen=True)
class Grid:
    """Tiles of an image.

    Attributes:
        tiles: (T, 4) float64 boxes.
        height: height of the image in pixels.
        width: width of the image in pixels.
        margin: distance in pixels; a box within it of a border of a tile may be cut there.
    """

    tiles: Tensor
    height: int
    width: int
    margin: float

    def cut_sides(self, boxes: Tensor, tile: Tensor) -> Tensor:
        """Return on which sides, (N, 4) bool, a (4,) tile cuts (N, 4) boxes."""
        # A side of the tile that is a side of the image cuts nothing.
        is_inner = tile != torch.tensor([0, 0, self.width, self.height])
        return is_inner & ((boxes - tile) * INWARDS <= self.margin)

    def shows_whole(self, boxes: Tensor) -> Tensor:
        """Return which of (N, 4) boxes, (N,) bool, some tile shows without cutting them."""
        result = torch.zeros(len(boxes), dtype=torch.bool)
        for tile in self.tiles:
            result |= ~self.cut_sides(boxes, tile).any(dim=1)
        return result


def merge(detections: Instances, grid: Grid) -> Instances:
    """Return the detections on the image, in descending order of scores."""
    detections = drop_covered(detections)

    # Rule 3: another tile would show the whole object.
    is_cut = detections.cut.any(dim=1)
    detections = detections[~(is_cut & grid.shows_whole(detections.boxes))]

    # Rules 4 and 2: a joined box may cover parts that were too short to be joined.
    detections = drop_covered(join_parts(detections, grid.margin))
    detections = drop_doubles(detections)
    return detections[detections.scores.argsort(descending=True, stable=True)]


def drop_covered(detections: Instances) -> Instances:
    """Apply rule 2."""
    # Each pair in both orders, since either may be the part.
    one, other = touching_pairs(detections)
    part = torch.cat([one, other])
    whole = torch.cat([other, one])

    # The detection that is cut on more sides shows less of the object; if equal, the smaller one.
    num_cut = detections.cut.sum(dim=1)
    areas = box_area(detections.boxes)
    is_as_cut = (num_cut[part] == num_cut[whole]) & (num_cut[part] > 0)
    is_part = (num_cut[part] > num_cut[whole]) | (is_as_cut & (areas[part] < areas[whole]))

    # A detection of a much lower score is no reason to drop the other.
    is_covered = intersections(detections.boxes, part, whole) >= COVERED * areas[part]
    is_sure = detections.scores[whole] >= MIN_RELATIVE_SCORE * detections.scores[part]

    keep = torch.ones(len(detections), dtype=torch.bool)
    keep[part[is_part & is_covered & is_sure]] = False
    return detections[keep]


def join_parts(detections: Instances, margin: float) -> Instances:
    """Apply rule 4: replace the parts of each object by one detection, a view of its own."""
    # Each pair in both orders, since either may be to the left or above.
    one, other = touching_pairs(detections, margin)
    first = torch.cat([one, other])
    second = torch.cat([other, one])

    # A side that a part is joined on is no longer cut.
    is_open = detections.cut.clone()
    pairs = []
    for low, high in ((LEFT, RIGHT), (TOP, BOTTOM)):
        is_pair = continues(detections, first, second, low, high, margin)
        is_open[first[is_pair], high] = False
        is_open[second[is_pair], low] = False
        pairs.append(torch.stack([first[is_pair], second[is_pair]]))

    links = torch.cat(pairs, dim=1).numpy()
    if links.shape[1] == 0:
        return detections

    # Parts of one object are a connected component of the graph of all pairs.
    graph = scipy.sparse.coo_array(
        ([True] * links.shape[1], (links[0], links[1])), (len(detections), len(detections))
    )
    labels = torch.from_numpy(scipy.sparse.csgraph.connected_components(graph, directed=False)[1])
    is_part = labels.bincount()[labels] > 1

    joined = []
    for number, label in enumerate(labels[is_part].unique()):
        parts = (labels == label).nonzero().flatten()
        best = parts[detections.scores[parts].argmax()]
        boxes = detections.boxes[parts]

        whole = detections[best[None]]
        whole.boxes = torch.cat([boxes[:, :2].amin(0), boxes[:, 2:].amax(0)])[None]
        whole.cut = is_open[parts].any(dim=0, keepdim=True)
        # A number that no other view has, so that rules 2 and 5 compare it with all of them.
        whole.views = detections.views.min()[None] - 1 - number
        joined.append(whole)

    return Instances.cat([detections[~is_part], *joined])


def continues(
    detections: Instances, first: Tensor, second: Tensor, low: int, high: int, margin: float
) -> Tensor:
    """Select the pairs whose second detection continues the first in the next tile.

    Args:
        detections: all detections.
        first: (P,) indices of detections.
        second: (P,) indices of the detections that may continue them.
        low: the side where the second tile begins, LEFT or TOP.
        high: the opposite side.
        margin: distance in pixels within which a box reaches a border.

    Returns:
        (P,) bool mask of the pairs.
    """
    # The sides in the other direction.
    top, bottom = (TOP, BOTTOM) if low == LEFT else (LEFT, RIGHT)

    # The second tile lies to the right of the first one, or below it, and overlaps or touches it.
    tile = detections.tiles[first]
    next_tile = detections.tiles[second]
    is_next = (tile[:, low] < next_tile[:, low]) & (next_tile[:, low] <= tile[:, high])
    is_next &= tile[:, top] == next_tile[:, top]
    is_next &= tile[:, bottom] == next_tile[:, bottom]

    # Both boxes are cut on the sides towards each other, and reach across the overlap.
    box = detections.boxes[first]
    next_box = detections.boxes[second]
    are_cut = detections.cut[first, high] & detections.cut[second, low]
    fill_overlap = box[:, low] <= next_tile[:, low] + margin
    fill_overlap &= next_box[:, high] >= tile[:, high] - margin

    # IoU of their intervals in the other direction.
    shared = torch.minimum(box[:, bottom], next_box[:, bottom])
    shared -= torch.maximum(box[:, top], next_box[:, top])
    spanned = torch.maximum(box[:, bottom], next_box[:, bottom])
    spanned -= torch.minimum(box[:, top], next_box[:, top])
    agree = (shared >= SAME * spanned) & (spanned > 0)

    return is_next & are_cut & fill_overlap & agree


def drop_doubles(detections: Instances) -> Instances:
    """Apply rule 5."""
    one, other = touching_pairs(detections)
    areas = box_area(detections.boxes)
    common = intersections(detections.boxes, one, other)
    is_same = common >= SAME * (areas[one] + areas[other] - common)
    one = one[is_same]
    other = other[is_same]

    # A detection that is cut shows less of the object: its score counts less.
    weights = torch.where(detections.cut.any(dim=1), CUT_WEIGHT, 1.0)
    rank = (weights * detections.scores).argsort(descending=True, stable=True).argsort()
    winner = torch.where(rank[one] < rank[other], one, other)
    loser = one + other - winner

    # From the best on, since a detection that was dropped drops no others.
    keep = torch.ones(len(detections), dtype=torch.bool)
    for i in rank[winner].argsort().tolist():
        if keep[winner[i]]:
            keep[loser[i]] = False
    return detections[keep]


def touching_pairs(detections: Instances, margin: float = 0.0) -> tuple[Tensor, Tensor]:
    """Select the pairs of detections of one class, on different views, that touch each other.

    Args:
        detections: all detections.
        margin: pixels by which each box is enlarged on each side.

    Returns:
        (P,) and (P,) indices; each pair is returned once, in one order.
    """
    low = detections.boxes[:, :2] - margin
    high = detections.boxes[:, 2:] + margin

    # Sorted from left to right, only boxes that begin before a box ends can touch it.
    order = low[:, 0].argsort(stable=True)
    ends = torch.searchsorted(low[order, 0], high[order, 0], right=True)

    # Blocks bound the memory, which would otherwise grow with the square of the number.
    pairs = [torch.empty((2, 0), dtype=torch.int64)]
    for start in range(0, len(detections), BLOCK_SIZE):
        block = order[start : start + BLOCK_SIZE]
        others = order[start : ends[start : start + BLOCK_SIZE].max()]

        touch = (low[block, None] <= high[others]).all(dim=2)
        touch &= (low[others] <= high[block, None]).all(dim=2)
        touch &= detections.classes[block, None] == detections.classes[others]
        touch &= detections.views[block, None] != detections.views[others]

        # A block is followed by the later boxes only: the upper triangle has each pair once.
        rows, columns = touch.triu(diagonal=1).nonzero(as_tuple=True)
        pairs.append(torch.stack([block[rows], others[columns]]))

    one, other = torch.cat(pairs, dim=1)
    return one, other


def intersections(boxes: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Return the (P,) areas that the (N, 4) boxes of (P,) pairs have in common."""
    low = torch.maximum(boxes[one, :2], boxes[other, :2])
    high = torch.minimum(boxes[one, 2:], boxes[other, 2:])
    return (high - low).clamp(min=0).prod(dim=1)
