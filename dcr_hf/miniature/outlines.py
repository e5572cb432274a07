"""The outlines of the classes, around the middle, y down; any two can be mixed."""

from functools import cache

import numpy as np

_ANGLES = 120  # a multiple of every shape's own symmetry


def outline_between(shape: str, other: str, share: float) -> np.ndarray:
    """(A, 2): the outline of `shape`, that share of the way towards `other`'s."""
    return (1 - share) * _outline(shape) + share * _outline(other)


@cache
def _outline(shape: str) -> np.ndarray:
    """(A, 2), y down: where rays from the middle at A equal angles leave the shape, so that shapes can be mixed."""
    corners = _corners(shape)
    ahead = np.roll(corners, -1, axis=0) - corners
    rays = _polar(np.linspace(0, 2 * np.pi, _ANGLES, endpoint=False) - np.pi / 2, 1.0)
    # corner + s * ahead = r * ray, for every ray (rows) and edge (columns)
    determinant = rays[:, None, 0] * ahead[:, 1] - rays[:, None, 1] * ahead[:, 0]
    with np.errstate(divide="ignore", invalid="ignore"):
        r = (corners[:, 0] * ahead[:, 1] - corners[:, 1] * ahead[:, 0]) / determinant
        s = (corners[:, 0] * rays[:, None, 1] - corners[:, 1] * rays[:, None, 0]) / determinant
    met = (r > 0) & (s >= -1e-9) & (s <= 1 + 1e-9)
    return rays * np.where(met, r, 0).max(axis=1)[:, None]


def _corners(shape: str) -> np.ndarray:
    """Corners of a shape around the middle, y down."""
    if shape == "circle":
        return _polar(np.linspace(0, 2 * np.pi, 40, endpoint=False), 0.95)
    if shape == "square":
        return np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)])
    if shape == "triangle":
        return np.array([(0, -1.0), (1.0, 0.85), (-1.0, 0.85)])
    if shape == "diamond":
        return np.array([(0, -1.1), (0.75, 0), (0, 1.1), (-0.75, 0)])
    if shape == "star":
        angles = np.arange(10) * np.pi / 5
        return _polar(angles - np.pi / 2, np.where(np.arange(10) % 2, 0.45, 1.12))
    if shape == "cross":
        arm = 0.36
        return np.array(
            [
                *((-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)),
                *((arm, 1), (-arm, 1), (-arm, arm), (-1, arm), (-1, -arm), (-arm, -arm)),
            ]
        )
    if shape == "heart":
        t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        return np.stack([16 * np.sin(t) ** 3, -y], axis=1) / 16
    return np.array([(0, -1.05), (1.0, -0.2), (0.72, -0.2), (0.72, 0.95), (-0.72, 0.95), (-0.72, -0.2), (-1.0, -0.2)])


def _polar(angles: np.ndarray, radius) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.broadcast_to(radius, angles.shape)[:, None]
