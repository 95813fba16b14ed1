"""Pictures of structures: shaded balls and sticks, with the cell if there is one.

Everything is drawn as balls: a stick is a row of small balls, a cell edge a row of smaller ones. All are painted
into one depth buffer, so that overlaps are correct. Contours are drawn where the depth jumps, which keeps a crowded
surface readable.
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.axes import Axes
from matplotlib.image import imsave

from eutectic.atoms import MAX_ATOMIC_NUMBER, Structure

BOND_REACH = 1.2
"""Two atoms are bonded below this multiple of the sum of their covalent radii."""
VACUUM = 5.0
"""Smallest gap (Å) along a lattice vector that makes a structure a slab instead of a crystal."""
NOT_METALS = np.array([1, 2, *range(5, 11), *range(14, 19), *range(33, 37), 52, 53, 54, 85, 86])
CELL_GREY = (0.55, 0.57, 0.60)
LIGHT = np.array([-0.45, 0.55, 0.70]) / np.linalg.norm([-0.45, 0.55, 0.70])


@dataclass(frozen=True, eq=False)
class Scene:
    """Balls to paint, in viewing coordinates: x to the right, y up, z towards the eye (Å).

    Attributes:
        centres: (n, 3).
        radii: (n,).
        colours: (n, 3) RGB in 0…1.
        flat: (n,) whether painted without shading, like the lines of a cell.
    """

    centres: np.ndarray
    radii: np.ndarray
    colours: np.ndarray
    flat: np.ndarray


def draw(axes: Axes, structure: Structure, pixels: int = 300) -> None:
    """Draw a structure into matplotlib axes and remove their frame.

    Args:
        axes: axes to draw into.
        structure: a molecule, slab or crystal (see `kind`).
        pixels: side length of the picture.
    """
    axes.imshow(picture(structure, pixels), interpolation="antialiased")
    axes.set_axis_off()


def png(structure: Structure, pixels: int = 300) -> str:
    """The picture as a `data:` URL for an HTML page, with a transparent background."""
    buffer = io.BytesIO()
    imsave(buffer, picture(structure, pixels), format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def formula(structure: Structure) -> str:
    """Elements and counts, carbon and hydrogen first (Hill's order): "C2H6O"."""
    counts = np.bincount(structure.numbers, minlength=MAX_ATOMIC_NUMBER + 1)
    first = [6, 1] if counts[6] else []
    order = first + sorted((z for z in np.flatnonzero(counts) if z not in first), key=lambda z: chemical_symbols[z])
    return "".join(f"{chemical_symbols[z]}{counts[z] if counts[z] > 1 else ''}" for z in order if counts[z])


def kind(structure: Structure) -> str:
    """Kind of structure: "molecule", "slab" or "crystal"."""
    if not structure.pbc.any():
        return "molecule"
    empty = _gaps(structure)[0] > VACUUM
    periodic = structure.pbc & ~empty
    return "molecule" if not periodic.any() else "slab" if empty.any() or not structure.pbc.all() else "crystal"


def picture(structure: Structure, pixels: int = 300) -> np.ndarray:
    """(pixels, pixels, 4) RGBA in 0…1 on a transparent background."""
    # Painted at twice the size and averaged, for smooth edges.
    return _paint(scene(structure), 2 * pixels).reshape(pixels, 2, pixels, 2, 4).mean(axis=(1, 3)).clip(0, 1)


def scene(structure: Structure) -> Scene:
    """The balls of a structure, rotated to a good view."""
    what = kind(structure)
    if what == "molecule":
        return _molecule(structure)
    return _slab(structure) if what == "slab" else _crystal(structure)


def _molecule(structure: Structure) -> Scene:
    positions = structure.positions - structure.positions.mean(axis=0)
    # The plane of largest extent faces the eye, tilted slightly so that a flat molecule has depth.
    axes = np.linalg.svd(positions, full_matrices=True)[2]
    if np.linalg.det(axes) < 0:
        axes = axes * np.array([[1.0], [1.0], [-1.0]])
    turned = positions @ (_tilt(18.0, -12.0) @ axes).T
    return _balls_and_sticks(turned, structure.numbers)


def _slab(structure: Structure) -> Scene:
    gaps, fractions = _gaps(structure)
    across = int(np.where(structure.pbc, gaps, np.inf).argmax())
    cell = _whole_cell(structure)
    fractions = fractions.copy()
    # Atoms cut off by the boundary return to their slab.
    values = np.sort(fractions[:, across])
    steps = np.diff(np.append(values, values[0] + 1))
    fractions[:, across] = (fractions[:, across] - values[(steps.argmax() + 1) % len(values)]) % 1.0
    inside = [i for i in range(3) if i != across]
    # Only OC20's tags are understood: ase.build counts layers from the top, the adsorbate being 0.
    tagged = structure.tags.min() < 2 and structure.tags.max() == 2
    adsorbed = np.flatnonzero(structure.tags == 2) if tagged else np.array([], dtype=int)
    substrate = np.setdiff1d(np.arange(len(structure)), adsorbed)
    if len(adsorbed):
        # Unwrapped, then centred in the cell.
        plane = fractions[:, inside]
        first = plane[adsorbed[0]]
        plane[adsorbed] -= np.round(plane[adsorbed] - first)
        plane += 0.5 - plane[adsorbed].mean(axis=0)
        plane[substrate] = (plane[substrate] + 1e-4) % 1.0 - 1e-4
        fractions[:, inside] = np.where(structure.pbc[inside], plane, fractions[:, inside])
    positions = fractions @ cell

    x = cell[inside[0]] / np.linalg.norm(cell[inside[0]])
    z = np.cross(x, cell[inside[1]])
    z = z / np.linalg.norm(z)
    if z @ cell[across] < 0:
        z = -z
    # Seen obliquely from above: 32° above the surface, rotated by 24° about its normal.
    view = _tilt(-58.0, 0.0) @ _about_z(-24.0) @ np.array([x, np.cross(z, x), z])
    turned = positions @ view.T

    # Atoms just outside the cell are shown too, so that a small slab does not look like a cluster.
    reach = np.where(structure.pbc, 0.9 / np.linalg.norm(cell, axis=1), 0.0)
    shifts = np.array([s for s in np.ndindex(3, 3, 3) if s[across] == 1]) - 1
    images = fractions[None, substrate] + shifts[:, None]
    inside_reach = np.all((images >= -reach - 1e-3) & (images <= 1 + reach + 1e-3), axis=-1)
    near = inside_reach | ~shifts.any(axis=1, keepdims=True)
    numbers = np.broadcast_to(structure.numbers[substrate], near.shape)[near]
    metal = ~np.isin(numbers, NOT_METALS)
    # In an oxide, the oxygen ions are the large ones.
    scale = 0.95 if metal.all() else np.where(metal, 0.6, 1.15)
    parts = [_balls(images[near] @ cell @ view.T, numbers, scale * _radii(numbers))]
    if len(adsorbed):
        parts.append(_balls_and_sticks(turned[adsorbed], structure.numbers[adsorbed], 1.9))
    height = positions @ z
    box = cell.copy()
    box[across] = z * max(float(np.ptp(height)), 1.0)
    origin = z * height.min()
    parts.append(_lines(*_box(origin @ view.T, box @ view.T)))
    return _together(parts)


def _crystal(structure: Structure) -> Scene:
    cell = _whole_cell(structure)
    fractions = _gaps(structure)[1]
    shown, numbers = [], []
    # Atoms on a face, edge or corner are repeated on the opposite ones, as is usual.
    for shift in np.ndindex(2, 2, 2):
        moved = fractions + np.array(shift)
        keep = (moved <= 1.02).all(axis=1)
        shown.append(moved[keep])
        numbers.append(structure.numbers[keep])
    positions = np.concatenate(shown) @ cell
    z = cell[2] / np.linalg.norm(cell[2])
    x = cell[0] - (cell[0] @ z) * z
    x = x / np.linalg.norm(x)
    view = _tilt(-76.0, 0.0) @ _about_z(-28.0) @ np.array([x, np.cross(z, x), z])
    turned = positions @ view.T
    balls = _balls_and_sticks(turned, np.concatenate(numbers), 1.2)
    return _together([balls, _lines(*_box(np.zeros(3), cell @ view.T))])


def _whole_cell(structure: Structure) -> np.ndarray:
    """The cell, with an artificial vector for every missing one."""
    cell = structure.cell.copy()
    missing = ~np.any(cell, axis=1) | ~structure.pbc & (np.linalg.norm(cell, axis=1) < 1e-6)
    if missing.any():
        span = np.ptp(structure.positions, axis=0).max() + 2 * VACUUM
        basis = np.linalg.svd(cell)[2][::-1]
        for row, vector in zip(np.flatnonzero(missing), basis, strict=False):
            cell[row] = vector * span * (1 if vector.sum() > 0 else -1)
    return cell


def _gaps(structure: Structure) -> tuple[np.ndarray, np.ndarray]:
    """The widest empty layer along each lattice vector (Å), and fractional coordinates in [0, 1)."""
    cell = _whole_cell(structure)
    inverse = np.linalg.inv(cell)
    # -1e-6 would wrap to the far face.
    fractions = (structure.positions @ inverse + 1e-4) % 1.0 - 1e-4
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    ordered = np.sort(fractions, axis=0)
    widest = np.diff(np.concatenate([ordered, ordered[:1] + 1.0]), axis=0).max(axis=0)
    # A single layer in a small cell is one period from its image, which is no vacuum unless it is wide.
    return widest * heights - 2.0, fractions


def _tilt(about_x: float, about_y: float) -> np.ndarray:
    a, b = np.radians([about_x, about_y])
    x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    return x @ y


def _about_z(angle: float) -> np.ndarray:
    a = np.radians(angle)
    return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])


def _colours(numbers: np.ndarray) -> np.ndarray:
    # Jmol's table ends at Mt; pure white and pure red are softened to be visible on white and black.
    table = np.vstack([jmol_colors, np.full((20, 3), 0.6)])
    return 0.08 * 0.5 + 0.92 * table[numbers]


def _balls(positions: np.ndarray, numbers: np.ndarray, radii: np.ndarray) -> Scene:
    return Scene(positions, radii, _colours(numbers), np.zeros(len(numbers), dtype=bool))


def _radii(numbers: np.ndarray) -> np.ndarray:
    """Covalent radii, Å; elements beyond curium get curium's."""
    return covalent_radii[np.minimum(numbers, 96)]


def _balls_and_sticks(positions: np.ndarray, numbers: np.ndarray, size: float = 1.0) -> Scene:
    radii = _radii(numbers)
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    bonded = np.triu((distance < BOND_REACH * (radii[:, None] + radii[None])) & (distance > 0.1), k=1)
    metal = ~np.isin(numbers, NOT_METALS)
    # Neighbouring metal atoms are close-packed; no bonds are drawn between them.
    bonded &= ~(metal[:, None] & metal[None])
    colours = _colours(numbers)
    # With radii proportional to the covalent ones, hydrogen would vanish in its stick.
    parts = [_balls(positions, numbers, size * (0.17 + 0.27 * radii))]
    for i, j in np.argwhere(bonded):
        middle = (positions[i] + positions[j]) / 2
        for atom in (i, j):
            rod = positions[atom] + np.linspace(0, 1, 24)[:, None] * (middle - positions[atom])
            radius = np.full(24, 0.11 * size)
            parts.append(Scene(rod, radius, np.tile(colours[atom], (24, 1)), np.zeros(24, dtype=bool)))
    return _together(parts)


def _box(origin: np.ndarray, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Start and end points of the twelve edges of a cell."""
    begins, ends = [], []
    for axis in range(3):
        for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
            others = [cell[i] for i in range(3) if i != axis]
            begin = origin + a * others[0] + b * others[1]
            begins.append(begin)
            ends.append(begin + cell[axis])
    return np.array(begins), np.array(ends)


def _lines(begins: np.ndarray, ends: np.ndarray) -> Scene:
    # The same thickness in the picture, whatever the cell.
    radius = 0.006 * float(np.ptp(begins[:, :2], axis=0).max())
    points = []
    for begin, end in zip(begins, ends, strict=True):
        n = int(np.linalg.norm(end - begin) / (0.7 * radius)) + 2
        points.append(begin + np.linspace(0, 1, n)[:, None] * (end - begin))
    centres = np.concatenate(points)
    n = len(centres)
    return Scene(centres, np.full(n, radius), np.tile(CELL_GREY, (n, 1)), np.ones(n, dtype=bool))


def _together(parts: list[Scene]) -> Scene:
    return Scene(
        np.concatenate([p.centres for p in parts]),
        np.concatenate([p.radii for p in parts]),
        np.concatenate([p.colours for p in parts]),
        np.concatenate([p.flat for p in parts]),
    )


def _paint(balls: Scene, pixels: int) -> np.ndarray:
    low = (balls.centres - balls.radii[:, None]).min(axis=0)
    high = (balls.centres + balls.radii[:, None]).max(axis=0)
    # The picture spans at least 3 Å, so that a single atom is drawn small.
    span = max(float((high - low)[:2].max()) * 1.06, 3.0)
    scale = pixels / span
    centres = (balls.centres - (low + high) / 2) * scale
    radii = balls.radii * scale
    depth = np.full((pixels, pixels), -np.inf)
    colour = np.zeros((pixels, pixels, 3))
    for (x, y, z), r, base, flat in zip(centres, radii, balls.colours, balls.flat, strict=True):
        cx, cy = pixels / 2 + x, pixels / 2 - y
        left, top = max(int(cx - r), 0), max(int(cy - r), 0)
        right, bottom = min(int(cx + r) + 2, pixels), min(int(cy + r) + 2, pixels)
        dx = (np.arange(left, right) + 0.5 - cx) / r
        dy = (np.arange(top, bottom) + 0.5 - cy) / r
        inside = 1.0 - dx[None] ** 2 - dy[:, None] ** 2
        up = np.sqrt(np.maximum(inside, 0))
        here = z + r * up
        window = depth[top:bottom, left:right]
        nearer = (inside > 0) & (here > window)
        if not nearer.any():
            continue
        if flat:
            shade = np.broadcast_to(base, (*up.shape, 3))
        else:
            facing = np.maximum(dx[None] * LIGHT[0] - dy[:, None] * LIGHT[1] + up * LIGHT[2], 0)
            diffuse = (0.52 + 0.50 * facing)[..., None]
            shade = base * diffuse + 0.42 * (facing[..., None] ** 26)
        window[nearer] = here[nearer]
        colour[top:bottom, left:right][nearer] = shade[nearer]
    solid = np.isfinite(depth)
    far, near = (depth[solid].min(), depth[solid].max()) if solid.any() else (0.0, 1.0)
    level = np.where(solid, depth, far - 0.5 * pixels)
    # Distant balls are greyer, and a jump in depth gives a contour.
    haze = 0.35 * np.clip((near - level) / max(near - far, 2.5 * scale), 0, 1)[..., None]
    colour = colour * (1 - haze) + 0.80 * haze
    jump = np.zeros_like(depth)
    for axis in (0, 1):
        for shift in (1, -1, 2, -2):
            jump = np.maximum(jump, np.roll(level, shift, axis) - level)
    contour = np.clip((jump / scale - 0.25) / 0.6, 0, 1)
    edge = _edges(solid)
    colour = colour * (1 - 0.55 * np.maximum(contour, 0.8 * edge))[..., None]
    return np.dstack([np.clip(colour, 0, 1), solid.astype(float)])


def _edges(solid: np.ndarray) -> np.ndarray:
    """1 within two pixels of the background, else 0."""
    inner = solid.copy()
    for axis in (0, 1):
        for shift in (1, -1, 2, -2):
            inner &= np.roll(solid, shift, axis)
    return (solid & ~inner).astype(float)
