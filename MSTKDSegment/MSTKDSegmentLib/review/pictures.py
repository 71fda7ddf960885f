"""The slices of a review: outlines of prediction and ground truth, right and wrong voxels, the worst places, doubt.

Right, invented and missed are told apart by colours of Okabe and Ito's set, which people with any colour vision tell
apart, and by hatching: plain, rising stripes, falling stripes. matplotlib is imported when a picture is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, Union

import numpy as np
import SimpleITK as sitk

from ..geometry import array_to_image
from ..quality_pictures import Section
from ..quality_slices import Colour, cuts_of, middle_of
from ..quality_views import WHITE, Row, View
from ..regions import LABELS, REGIONS, bounding_box, components, labels_to_regions
from ..report_case import fullest_slices, turned_to_lps
from ..report_picture import box_with_margin, grey_window
from ..report_template import format_ml
from ..volume_checks import same_grid
from .comparison import Review, Reviewed
from .places import INVENTED, MISSED, RIGHT, Place
from .report_text import where_text
from .what_if import WhatIf

ERROR_COLOURS: Mapping[int, Colour] = {
    RIGHT: (0.0, 158 / 255, 115 / 255),  # bluish green
    INVENTED: (230 / 255, 159 / 255, 0.0),  # orange
    MISSED: (86 / 255, 180 / 255, 233 / 255),  # sky blue
}
ERROR_LEGEND = (
    ("right", ERROR_COLOURS[RIGHT]),
    ("invented ///", ERROR_COLOURS[INVENTED]),
    ("missed \\\\\\", ERROR_COLOURS[MISSED]),
)
LABEL_LEGEND = tuple((item.key, item.colour) for item in LABELS)
STRIPE_PIXELS = 4
PLACE_HALF_MM = 40.0
LESION_MARGIN_MM, LEAST_SIDE_MM = 20.0, 70.0
SHOWN_PLACES = 6
# On which sequence a region is judged best.
_PREFERRED = {"WT": ("FLAIR", "T2", "T1Gd", "T1"), "TC": ("T1Gd", "FLAIR", "T2", "T1")}

ImageLike = Union[sitk.Image, np.ndarray]


@dataclass(frozen=True)
class Scene:
    """A reviewed patient turned to LPS axes: sequences (z, y, x) on `grid`, their grey windows, the head's box.

    empty: no sequence was given; one of zeros stands for it.
    """

    images: Mapping[str, np.ndarray]
    windows: Mapping[str, tuple[float, float]]
    grid: sitk.Image
    head: Sequence[slice]
    turned: Any
    empty: bool

    @classmethod
    def of(cls, review: Review, images: Mapping[str, ImageLike]) -> Scene:
        """images: by sequence, anywhere in the patient's space, or (D, H, W) on the review's grid (else ValueError)."""
        grid, turned = turned_to_lps(review.image)
        size = review.image.GetSize()[::-1]
        arrays = {name: turned(on_review_grid(image, review.image)) for name, image in images.items()}
        arrays = arrays or {"": turned(np.zeros(size, np.uint8))}
        windows = {name: grey_window(array) for name, array in arrays.items()}
        shown = np.zeros(next(iter(arrays.values())).shape, bool)
        for name, array in arrays.items():
            low, high = windows[name]
            shown |= array > low + 0.1 * (high - low)
        for labels in (review.ground_truth, *(one.labels for one in review.predictions)):
            if labels is not None:
                shown |= turned(labels) > 0
        head = box_with_margin(shown, grid.GetSpacing()[::-1])
        return cls(arrays, windows, grid, head, turned, not images)

    def base(self, region: str) -> str:
        """The sequence on which `region` is shown."""
        order = _PREFERRED.get(region, _PREFERRED["TC"])
        return next((name for name in order if name in self.images), next(iter(self.images)))

    def cuts(self, name: str, index: Sequence[int], box: Sequence[slice], **options: Any) -> list[Any]:
        """`quality_slices.cuts_of` of the sequence `name`."""
        return cuts_of(self.images[name], self.grid, self.windows[name], index, box, **options)

    def around(self, tight: Sequence[slice], margin_mm: float, least_mm: float) -> list[slice]:
        """`tight` with a margin and sides of at least `least_mm`, as far as they lie in the volume."""
        box = []
        shape = next(iter(self.images.values())).shape
        for side, size, mm in zip(tight, shape, self.grid.GetSpacing()[::-1]):
            half = max((side.stop - side.start) / 2 + margin_mm / mm, least_mm / 2 / mm)
            middle = (side.start + side.stop) / 2
            start, stop = max(0, int(middle - half)), min(size, int(np.ceil(middle + half)))
            box.append(slice(min(start, side.start), max(stop, side.stop)))
        return box

    def on(self, name: str) -> str:
        """ " on T1Gd", or "" where there is no sequence."""
        return "" if self.empty else f" on {name}"


def on_review_grid(image: ImageLike, reference: sitk.Image) -> np.ndarray:
    """(D, H, W) at the voxels of `reference`; ValueError for an array of another shape."""
    if isinstance(image, sitk.Image):
        if not same_grid(image, reference):
            image = sitk.Resample(image, reference, sitk.Transform(), sitk.sitkLinear, 0.0)
        return np.asarray(sitk.GetArrayFromImage(image))
    if image.shape != reference.GetSize()[::-1]:
        raise ValueError(f"an array's grid {image.shape} is not the review's {reference.GetSize()[::-1]}")
    return image


def error_painter(errors: np.ndarray) -> np.ndarray:
    """Colours (rows, columns, 4) of an error map (rows, columns) at the picture's pixels, hatched by kind."""
    rows, columns = np.indices(errors.shape)
    stripes = {
        INVENTED: (rows + columns) // STRIPE_PIXELS % 2 == 0,
        MISSED: (rows - columns) // STRIPE_PIXELS % 2 == 0,
    }
    painted = np.zeros((*errors.shape, 4), np.float32)
    for kind, colour in ERROR_COLOURS.items():
        mask = errors == kind
        painted[mask, :3] = colour
        painted[mask, 3] = 0.18
        if kind in stripes:
            painted[mask & stripes[kind], 3] = 0.85
    return painted


def doubt_painter(shares: np.ndarray) -> np.ndarray:
    """Colours (rows, columns, 4) of shares of runs, 0 to 1, at the picture's pixels; nothing where the share is 0."""
    painted = np.asarray(_doubt_colours(shares), np.float32)
    painted[..., 3] = np.where(shares > 0.01, 0.35 + 0.6 * shares, 0.0)
    return painted


def _doubt_colours(shares: Any) -> Any:
    from matplotlib import colormaps

    return colormaps["plasma"](0.25 + 0.75 * np.asarray(shares))  # its darkest part is not seen on black


# --- one prediction --------------------------------------------------------------------------------------------------


def prediction_sections(review: Review, one: Reviewed, scene: Scene) -> list[Section]:
    """Pictures through the largest lesion and, with a ground truth, through the worst places of one prediction."""
    sections = [Section("Through the largest lesion", _lesion_words(review), _lesion_rows(review, one, scene))]
    places = one.places[:SHOWN_PLACES]
    if places:
        views = [_place_view(review, one, scene, rank + 1, place) for rank, place in enumerate(places)]
        rows: list[Row] = [tuple(views[n : n + 2]) for n in range(0, len(views), 2)]
        words = (
            "The largest connected errors, a cross at the deepest voxel of each. White lines: the prediction's border; "
            "white dashes: the ground truth's."
        )
        sections.append(Section("Worst places", words, rows))
    return sections


def _lesion_words(review: Review) -> str:
    if review.ground_truth is None:
        return "The slices with most of the prediction's largest lesion in each plane."
    return (
        "The slices with most of the ground truth's largest lesion in each plane; below, those with most of each "
        "region's largest part, with its right and wrong voxels. "
        "White lines: the prediction's border; white dashes: the ground truth's."
    )


def _lesion_rows(review: Review, one: Reviewed, scene: Scene) -> list[Row]:
    labels = scene.turned(one.labels)
    truth = None if review.ground_truth is None else scene.turned(review.ground_truth)
    index, tight = _largest(labels, truth, scene)
    close = scene.around(tight, LESION_MARGIN_MM, LEAST_SIDE_MM)
    base = scene.base("TC")
    whole = _labels_view(scene, f"Prediction{scene.on(base)}", base, labels, index, scene.head)
    if truth is None:
        inside = _labels_view(scene, f"Prediction{scene.on(base)}, closer", base, labels, index, close, True)
        return [(whole, inside)]
    views = [whole, _labels_view(scene, f"Ground truth{scene.on(base)}", base, truth, index, scene.head)]
    for score in one.scores:
        region = score.region
        index, tight = _largest(labels_to_regions(labels)[region], labels_to_regions(truth)[region], scene)
        close = scene.around(tight, LESION_MARGIN_MM, LEAST_SIDE_MM)
        caption = f"Dice {score.score.dice:.3f}; volume {score.score.volume_error_ml:+.2f} ml."
        heading = f"{region}{scene.on(scene.base(region))}: right and wrong"
        views.append(_error_view(review, one, scene, region, heading, caption, index, close))
    if len(views) % 2:
        views.append(View(f"{base or 'No sequence'}, alone", "", scene.cuts(base, index, close), (), close=True))
    return [tuple(views[n : n + 2]) for n in range(0, len(views), 2)]


def _largest(labels: np.ndarray, truth: Optional[np.ndarray], scene: Scene) -> tuple[Sequence[int], Sequence[slice]]:
    """The slices with most of the largest lesion and the box around it: the ground truth's, else the prediction's."""
    for lesions in (truth, labels):
        if lesions is not None and lesions.any():
            numbered, counts = components(lesions > 0)
            largest = numbered == counts.argmax()
            return fullest_slices(largest), bounding_box(largest) or ()
    middle = middle_of(scene.head)
    return middle, [slice(at, at + 1) for at in middle]


def _labels_view(
    scene: Scene,
    heading: str,
    base: str,
    labels: np.ndarray,
    index: Sequence[int],
    box: Sequence[slice],
    close: bool = False,
) -> View:
    masks = [(item.colour, labels == item.labels[0]) for item in LABELS]
    caption = "" if labels.any() else "It marks no tumour at all."
    return View(heading, caption, scene.cuts(base, index, box, outlined=masks), LABEL_LEGEND, close)


def _error_view(
    review: Review,
    one: Reviewed,
    scene: Scene,
    region: str,
    heading: str,
    caption: str,
    index: Sequence[int],
    box: Sequence[slice],
    marked: bool = False,
) -> View:
    found = scene.turned(labels_to_regions(one.labels)[region])
    true = scene.turned(labels_to_regions(review.ground_truth)[region])  # type: ignore[arg-type]
    cuts = scene.cuts(
        scene.base(region), index, box, outlined=[(WHITE, found)], dashed=[(WHITE, true)],
        painted=scene.turned(one.errors[region]), painter=error_painter, marked=marked,
    )  # fmt: skip
    return View(heading, caption, cuts, ERROR_LEGEND, close=True)


def _place_view(review: Review, one: Reviewed, scene: Scene, rank: int, place: Place) -> View:
    index = [int(n) for n in scene.grid.TransformPhysicalPointToIndex(place.point)[::-1]]
    box = scene.around([slice(at, at + 1) for at in index], PLACE_HALF_MM, 2 * PLACE_HALF_MM)
    base = scene.base(place.region)
    heading = f"{rank}. {place.region} {place.kind_text}{scene.on(base)}"
    furthest = f"up to {place.distance_mm:.1f} mm away" if np.isfinite(place.distance_mm) else "nothing near it"
    caption = f"{format_ml(place.volume_ml)} ml, {furthest}; at {where_text(place.point)}."
    return _error_view(review, one, scene, place.region, heading, caption, index, box, marked=True)


# --- what if ---------------------------------------------------------------------------------------------------------


def doubt_section(review: Review, what_if: WhatIf, scene: Scene) -> Section:
    """Where the further runs disagree with the full result, by region, through the slices with most of it."""
    legend = tuple((f"{share:.0%}", tuple(_doubt_colours(share)[:3])) for share in (0.1, 0.4, 0.7, 1.0))
    full = scene.turned(_labels_on(what_if.full.labels, what_if.full.reference_image, review.image))
    views = []
    for region in REGIONS:
        image = array_to_image(what_if.maps[region.key], what_if.full.reference_image)
        shares = scene.turned(on_review_grid(image, review.image))
        base = scene.base(region.key)
        box = bounding_box(shares > 0)
        index = fullest_slices(shares) if box else middle_of(scene.head)
        close = scene.around(box or scene.head, LESION_MARGIN_MM, LEAST_SIDE_MM)
        cuts = scene.cuts(
            base, index, close, outlined=[(WHITE, labels_to_regions(full)[region.key])], painted=shares,
            painter=doubt_painter,
        )  # fmt: skip
        caption = change_text(what_if, region.key)
        views.append(View(f"{region.key}{scene.on(base)}: doubt", caption, cuts, legend, close=True))
    words = (
        "The share of the runs with mirrored volumes and with sequences left out whose result differs at a voxel from "
        "that of all sequences, whose border is white."
    )
    return Section("Where the result changes", words, [tuple(views[:2]), tuple(views[2:])])


def change_text(what_if: WhatIf, region: str) -> str:
    """How much of a region changes, in words."""
    change = what_if.changes[region]
    parts = [
        f"{share:.1%} {cause}"
        for share, cause in ((change.flips, "when mirrored"), (change.subsets, "with sequences left out"))
        if share is not None
    ]
    return f"Of its volume change in the mean {', '.join(parts)}." if parts else "The full result has none of it."


def _labels_on(labels: np.ndarray, image: sitk.Image, reference: sitk.Image) -> np.ndarray:
    if same_grid(image, reference):
        return labels
    moved = sitk.Resample(array_to_image(labels, image), reference, sitk.Transform(), sitk.sitkNearestNeighbor, 0)
    return np.asarray(sitk.GetArrayFromImage(moved))
