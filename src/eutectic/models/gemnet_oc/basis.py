"""Radial and angular bases and their projections, computed once per forward pass and shared by all blocks.

A triplet layer sums over the edges b→a into the target a of an edge e = c→a (GemNet-OC eq. 5, "efficient bilinear"),

    Z[e, i, f] = Σ_b Σ_s W[e, i, s] · Y_s(cos φ_cab) · x[b→a, f],

where W depends on the length of e and x are the messages. All factors except x depend on geometry alone. They are
multiplied here once per forward pass into one `mix` matrix per atom, so that each block only needs one batched matrix
product, mix @ x.

Shapes: atoms N; edges E; slots D (see `graph.padded`); radial functions K; angular functions S; projected
radial R, circular C and spherical B; middle edges Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from eutectic.graph import Graph
from eutectic.graph.padded import Layout
from eutectic.models.components import polynomial_envelope
from eutectic.models.gemnet_oc.layers import he_orthogonal_
from eutectic.models.gemnet_oc.settings import GemNetOCSettings
from eutectic.models.precision import autocast_dtype


class RadialBasis(nn.Module):
    """Gaussian radial basis with a polynomial envelope (DimeNet, Gasteiger et al. 2020, eq. 8).

    Args:
        count: number of Gaussians, evenly spaced from 0 to the cutoff; their width equals the spacing.
        cutoff: distance at which the envelope reaches zero, Å.
        exponent: exponent of the envelope.
    """

    centres: Tensor
    sharpness: Tensor

    def __init__(self, count: int, cutoff: float, exponent: int) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.exponent = exponent
        centres = torch.linspace(0, 1, count)
        # Saved buffers: published weights include them, rounded to float32.
        self.register_buffer("centres", centres)
        self.register_buffer("sharpness", torch.full((count,), 0.5 * (count - 1) ** 2))

    def forward(self, distance: Float[Tensor, " edges"]) -> Float[Tensor, "edges radial"]:
        x = distance / self.cutoff
        envelope = polynomial_envelope(x, self.exponent)
        # The sharpness amplifies rounding errors of this difference, so distances in float64 are rounded after it.
        difference = (x[:, None] - self.centres).to(self.centres.dtype)
        # Most Gaussians are practically zero. Clamping at e⁻⁷⁵ avoids subnormal numbers, which are twenty times slower.
        exponent = difference.square().mul_(-self.sharpness).clamp_(min=-75)
        return envelope[:, None].to(difference.dtype) * exponent.exp_()


def legendre(z: Tensor, start: Tensor, count: int) -> Tensor:
    """start · Y_l(z), l = 0 … count-1, on a new axis before the last.

    Y_l(z) = √((2l+1)/4π) P_l(z), spherical harmonics of order zero. `start` is a mask of 1 and 0, which the recurrence
    propagates to every degree at no extra cost.
    """
    norm = [math.sqrt((2 * degree + 1) / (4 * math.pi)) for degree in range(count)]
    y = [start * norm[0]]
    if count > 1:
        y.append(z * start * norm[1])
    for degree in range(1, count - 1):
        rise = (2 * degree + 1) / (degree + 1) * norm[degree + 1] / norm[degree]
        fall = degree / (degree + 1) * norm[degree + 1] / norm[degree - 1]
        y.append(torch.addcmul(y[degree - 1] * -fall, z, y[degree], value=rise))
    return torch.stack(y, dim=-2)


@dataclass(frozen=True, kw_only=True, eq=False)
class TripletBasis:
    """Attributes:
    radial: (edges or atom-edge edges that send messages, R).
    mix: (n_atoms, out · C, in) factor of the padded messages.
    """

    radial: Tensor
    mix: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class QuadrupletBasis:
    """Attributes:
    radial: (n_main, R), of d→b.
    circular: (centres · Q · D, C), of d→b→a.
    dihedral: (centres · Q, D · S, D), of d→b→a←c, indexed by c, then d.
    spherical: (centres · D, Q · S, B), of b→a←c, S the functions of the dihedral.
    """

    radial: Tensor
    circular: Tensor
    dihedral: Tensor
    spherical: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Bases:
    """All bases that the blocks need; None for interactions that are off.

    Attributes:
        main: (n_main, K) unprojected radial basis, for the initial edge features.
        directions: (n_main, 3) unit vectors times the edge envelope.
        update, output: (n_main, R).
        edge_edge, atom_edge, edge_atom: see `TripletBasis`.
        quadruplet: see `QuadrupletBasis`.
        atom_atom: (n_atoms, R, slots).
    """

    main: Tensor
    directions: Tensor
    update: Tensor
    output: Tensor
    edge_edge: TripletBasis
    atom_edge: TripletBasis | None
    edge_atom: TripletBasis | None
    quadruplet: QuadrupletBasis | None
    atom_atom: Tensor | None

    def mixed(self) -> Bases:
        """The bases in the autocast dtype if autocast is on, except directions.

        Geometry is computed in full precision and converted once here rather than in every block.
        """
        precision = autocast_dtype(self.main.device)
        return self if precision is None else _converted(self, precision, keep=("directions",))


def _converted(basis: Any, dtype: torch.dtype, keep: tuple[str, ...] = ()) -> Any:
    def convert(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) else None if value is None else _converted(value, dtype)

    return replace(basis, **{f.name: convert(getattr(basis, f.name)) for f in fields(basis) if f.name not in keep})


class BasisProjections(nn.Module):
    """Radial and angular bases and their projections, shared by all blocks (GemNet-OC section 3)."""

    def __init__(self, settings: GemNetOCSettings) -> None:
        super().__init__()
        s = settings
        self.settings = s
        self.radial = RadialBasis(s.num_radial, s.known_cutoff, s.envelope_exponent)

        def radial() -> nn.Parameter:
            return _filled(s.radial_width, s.num_radial)

        def angular(functions: int, width: int) -> nn.Parameter:
            return _filled(s.num_radial, functions, width)

        # The order of the published weights.
        if s.quadruplet:
            self.quadruplet_radial = radial()
            self.quadruplet_circular = angular(s.num_spherical, s.circular_width)
            self.quadruplet_spherical = angular(s.num_spherical**2, s.spherical_width)
        if s.atom_edge:
            self.atom_edge_radial = radial()
            self.atom_edge_angular = angular(s.num_spherical, s.circular_width)
        if s.edge_atom:
            self.edge_atom_radial = radial()
            self.edge_atom_angular = angular(s.num_spherical, s.circular_width)
        if s.atom_atom:
            self.atom_atom_radial = radial()
        self.edge_edge_radial = radial()
        self.edge_edge_angular = angular(s.num_spherical, s.circular_width)
        self.update_radial = radial()
        self.output_radial = radial()

    def forward(self, graph: Graph, layout: Layout) -> Bases:
        s = self.settings
        # Geometry in float64: it is cheap, and the sharp Gaussians amplify rounding errors of distances, mainly in
        # forces.
        dtype = graph.positions.dtype
        if graph.positions.device.type != "mps":  # MPS has no float64
            graph = graph.to(graph.positions.device, torch.float64)
        distance, direction = graph.vectors(graph.main)
        direction = direction.to(dtype)
        weight = graph.edge_envelope("main", distance)
        basis = self._functions(distance, weight)
        radial = self._radial(basis)
        main = layout.main.to_padded(direction)
        cosine = main @ main.mT
        # Padded before the projection, because the basis is narrower than its projection.
        padded = layout.main.to_padded(basis)
        mix = self._mix(padded, self.edge_edge_angular, cosine, layout.edge_edge)
        edge_edge = TripletBasis(radial=radial["edge_edge"], mix=mix)

        atom_edge = edge_atom = None
        if s.atom_edge or s.edge_atom:
            near_distance, near_direction = graph.vectors(graph.atom_edge)
            near = self._functions(near_distance, graph.edge_envelope("atom_edge", near_distance))
            cosine = main @ layout.atom_edge.to_padded(near_direction.to(dtype)).mT
            if s.atom_edge:
                mix = self._mix(padded, self.atom_edge_angular, cosine, layout.atom_edge_table)
                atom_edge = TripletBasis(radial=F.linear(near, self.atom_edge_radial), mix=mix)
            if s.edge_atom:
                # The outputs of an atom are summed, so the sum over out edges is included here.
                real = layout.atom_edge_table.mT.to(cosine.dtype)
                angular = legendre(cosine.mT, real, s.num_spherical).flatten(1, 2)
                weights = layout.atom_edge.to_padded(near) @ _relabelled(self.edge_atom_angular).mT.flatten(1)
                weights = weights.view(*angular.shape[:2], s.circular_width)
                edge_atom = TripletBasis(radial=radial["edge_atom"], mix=weights.mT @ angular)

        return Bases(
            main=basis,
            directions=direction if weight is None else direction * weight[:, None].to(dtype),
            update=radial["update"],
            output=radial["output"],
            edge_edge=edge_edge,
            atom_edge=atom_edge,
            edge_atom=edge_atom,
            quadruplet=self._quadruplet(graph, layout, padded, radial, main) if s.quadruplet else None,
            atom_atom=self._atom_atom(graph, layout) if s.atom_atom else None,
        )

    def _functions(self, distance: Tensor, weight: Tensor | None) -> Tensor:
        """(edges, K) radial basis times the edge envelope. Every message contains it as a factor, so an edge with
        envelope zero does not contribute."""
        basis: Tensor = self.radial(distance)
        return basis if weight is None else basis * weight[:, None].to(basis.dtype)

    def _radial(self, basis: Tensor) -> dict[str, Tensor]:
        """Interaction → (n_main, R), all from one matrix product."""
        names = ["edge_edge", "update", "output"]
        names += ["quadruplet"] if self.settings.quadruplet else []
        names += ["edge_atom"] if self.settings.edge_atom else []
        weights = torch.cat([getattr(self, f"{name}_radial") for name in names])
        parts = F.linear(basis, weights).split(self.settings.radial_width, dim=1)
        return dict(zip(names, parts, strict=True))

    def _mix(self, padded: Tensor, weight: Tensor, cosine: Tensor, real: Tensor) -> Tensor:
        """(N, D_out · C, D_in) angular factors of pairs of edges into the same atom.

        Args:
            padded: (N, D_out, K) radial basis of the out edges.
            weight: (K, S, C).
            cosine, real: (N, D_out, D_in).
        """
        angular = legendre(cosine, real.to(cosine.dtype), self.settings.num_spherical)
        weights = (padded @ weight.flatten(1)).view(*angular.shape[:2], *_relabelled(weight).shape[1:])
        return (weights @ angular).flatten(1, 2)

    def _atom_atom(self, graph: Graph, layout: Layout) -> Tensor:
        distance, _ = graph.vectors(graph.atom_atom)
        basis = self._functions(distance, graph.edge_envelope("atom_atom", distance))
        radial = F.linear(basis, self.atom_atom_radial)
        slots = layout.atom_atom
        return (slots.to_padded(radial) * slots.filled[:, :, None]).mT

    def _quadruplet(
        self, graph: Graph, layout: Layout, padded: Tensor, radial: dict[str, Tensor], main: Tensor
    ) -> QuadrupletBasis:
        s, q = self.settings, layout.quadruplets
        assert q is not None
        n_centres, n_middle, n_slots = q.angle_in.shape
        distance, direction = graph.vectors(graph.quadruplet)
        middle = q.middle.reshape(-1)
        ba = direction.to(main.dtype).index_select(0, middle).view(n_centres, n_middle, 1, 3)
        # Directions d→b and c→a: (centres, Q, D, 3), and (centres, 1, D, 3).
        db = main.index_select(0, q.source.reshape(-1)).view(n_centres, n_middle, n_slots, 3)
        ca = main.index_select(0, q.centre)[:, None]

        angle = legendre((db * ba).sum(-1), q.angle_in.to(ba.dtype), s.num_spherical)  # (centres, Q, S, D)
        basis = self._functions(distance, graph.edge_envelope("quadruplet", distance))
        weights = basis.index_select(0, middle) @ self.quadruplet_circular.flatten(1)
        weights = weights.view(len(middle), s.circular_width, s.num_spherical)
        circular = torch.bmm(angle.flatten(0, 1).mT, weights.mT).view(-1, s.circular_width)

        # The dihedral is the angle between the normals of the planes cab and abd.
        cosine = self._normal(ca, ba) @ self._normal(db, ba).mT
        dihedral = legendre(cosine, q.table.to(ba.dtype), s.num_spherical)  # (centres, Q, D, S, D)
        # Functions of both angles times a weight of c→a: summed over the first here and over the second in each block.
        cosine = (ca * ba).sum(-1).mT  # (centres, D, Q)
        angle = legendre(cosine, torch.ones_like(cosine), s.num_spherical).flatten(0, 1)
        weight = _relabelled(self.quadruplet_spherical)  # (K, B, S · S)
        weights = padded.index_select(0, q.centre) @ weight.mT.flatten(1)
        spherical = torch.bmm(angle.mT, weights.view(len(angle), s.num_spherical, s.num_spherical * s.spherical_width))
        return QuadrupletBasis(
            radial=radial["quadruplet"],
            circular=circular,
            dihedral=dihedral.view(n_centres * n_middle, n_slots * s.num_spherical, n_slots),
            spherical=spherical.view(len(angle), n_middle * s.num_spherical, s.spherical_width),
        )

    def _normal(self, first: Tensor, second: Tensor) -> Tensor:
        """Unit normal of the plane of two unit vectors; shorter if they are nearly collinear, to stay smooth."""
        cross = torch.linalg.cross(first, second)
        # 1e-10 is (1e-5 rad)²; the eps of float32 would change results at angles of a degree from collinear.
        epsilon = max(self.settings.dihedral_epsilon**2, min(torch.finfo(cross.dtype).eps, 1e-10))
        return cross * torch.rsqrt((cross * cross).sum(-1, keepdim=True) + epsilon)


def _filled(*shape: int) -> nn.Parameter:
    weight = nn.Parameter(torch.empty(*shape))
    he_orthogonal_(weight)
    return weight


def _relabelled(weight: Tensor) -> Tensor:
    """(K, angular, interaction) → (K, interaction, angular) by a reshape, without transposing.

    The published code stores the first layout and reads the product in the second. Released weights were trained this
    way, so the same reinterpretation of the parameters is needed here.
    """
    return weight.reshape(weight.shape[0], weight.shape[2], weight.shape[1])
