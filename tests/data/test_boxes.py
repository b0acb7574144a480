"""Boxes go where the pixels go: through resize, crop and flip, as gather_frames does them."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slowfast_model.data.boxes import is_visible, to_input_pixels
from slowfast_model.data.sampling import ClipGeometry
from slowfast_ops import gather_frames


@st.composite
def geometries(draw: st.DrawFn) -> ClipGeometry:
    source = draw(st.tuples(st.integers(30, 80), st.integers(30, 80)))
    resize = draw(st.tuples(st.integers(30, 120), st.integers(30, 120)))
    height, width = draw(st.integers(8, resize[0])), draw(st.integers(8, resize[1]))
    top, left = draw(st.integers(0, resize[0] - height)), draw(st.integers(0, resize[1] - width))
    return ClipGeometry(source, resize, (top, left, height, width), draw(st.booleans()))


@st.composite
def boxes_in(draw: st.DrawFn, source: tuple[int, int]) -> np.ndarray:
    """A box of whole pixels, as fractions of a frame of this size [1, 4]."""
    (height, width), edges = source, []
    for length in (width, height):
        start = draw(st.integers(0, length - 4))
        edges.append((start, draw(st.integers(start + 3, length))))
    (x1, x2), (y1, y2) = edges
    return np.array([[x1 / width, y1 / height, x2 / width, y2 / height]])


def painted(box: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """A frame that is white in the box and black elsewhere, after resize, crop and flip: [h, w] in [0, 1]."""
    height, width = geometry.source
    x1, y1, x2, y2 = np.round(box[0] * [width, height, width, height]).astype(int)
    frame = np.zeros((1, height, width, 3), np.uint8)
    frame[:, y1:y2, x1:x2] = 255
    _, image = gather_frames(
        frame,
        indices=[0],
        alpha=1,
        resize=geometry.resize,
        crop=geometry.crop,
        flip=geometry.flip,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        dtype=torch.float64,
    )
    return image[0, 0].numpy()


@settings(max_examples=150, deadline=None)
@given(data=st.data(), geometry=geometries())
def test_a_painted_box_arrives_where_its_coordinates_say(data: st.DataObject, geometry: ClipGeometry) -> None:
    box = data.draw(boxes_in(geometry.source))
    x1, y1, x2, y2 = to_input_pixels(box, geometry)[0]
    image = painted(box, geometry)
    height, width = geometry.output
    # Interpolation blurs an edge over half a pixel of the source on either side, but for the frame's own edges.
    blur_y, blur_x = (out / source / 2 + 1e-3 for out, source in zip(geometry.resize, geometry.source, strict=True))
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    left, top, right, bottom = box[0] * [1, 1, -1, -1] + [0, 0, 1, 1] > 0
    if geometry.flip:
        left, right = right, left
    inside = np.outer(
        (rows > y1 + blur_y * top) & (rows < y2 - blur_y * bottom),
        (columns > x1 + blur_x * left) & (columns < x2 - blur_x * right),
    )
    outside = ~np.outer((rows > y1 - blur_y) & (rows < y2 + blur_y), (columns > x1 - blur_x) & (columns < x2 + blur_x))
    assert (image[inside] > 0.999).all()
    assert (image[outside] < 0.001).all()


def test_hand_computed_boxes() -> None:
    boxes = np.array([[0.25, 0.5, 0.5, 1.0], [0.0, 0.0, 0.1, 0.1]])
    geometry = ClipGeometry((50, 100), (100, 200), (10, 30, 80, 100))
    np.testing.assert_allclose(to_input_pixels(boxes, geometry), [[20, 40, 70, 80], [0, 0, 0, 0]])
    flipped = ClipGeometry((50, 100), (100, 200), (10, 30, 80, 100), flip=True)
    np.testing.assert_allclose(to_input_pixels(boxes, flipped), [[30, 40, 80, 80], [100, 0, 100, 0]])
    np.testing.assert_array_equal(is_visible(to_input_pixels(boxes, geometry)), [True, False])


def test_no_boxes_stay_no_boxes() -> None:
    geometry = ClipGeometry((50, 100), (100, 200), (10, 30, 80, 100), flip=True)
    assert to_input_pixels(np.zeros((0, 4)), geometry).shape == (0, 4)
    assert is_visible(np.zeros((0, 4))).shape == (0,)
