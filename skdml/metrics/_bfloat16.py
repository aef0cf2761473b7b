"""Products of rows in bfloat16, with bounds on their error.

Axis letters: N rows, D components.
"""

import torch

from ._rows import matrix_in, rounding, tile_size

_LONGEST = 2.0**60  # length of rows whose products cannot overflow


class Rounded:
    """Rows in bfloat16, and what was lost."""

    def __init__(self, points, lost, lengths):
        self.points = points  # (N, D)
        self.lost = lost  # (N,) |x - x'| of the rows x, here x'
        self.lengths = lengths  # (N,) at least |x| and |x'|

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        return Rounded(self.points[index], self.lost[index], self.lengths[index])

    def margin(self, others):
        """Return by how much the product of each row with any other (N,) may be off at most.

        Or that less half the squares of both, or of one, in float32.
        """
        last_rounding = torch.finfo(torch.bfloat16).eps / 2
        return self.margin_of_sum(others) + self.lengths * (last_rounding * others.lengths.max())

    def margin_of_sum(self, others):
        """Return the same without the last rounding, of the sum to bfloat16, which keeps the order.

        |xz - x'z'| <= |x - x'| |z| + |x'| |z - z'| for x and z rounded to x' and z', whose product is summed in
        float32.
        """
        n_components, longest = self.points.shape[1], others.lengths.max()
        in_sum = n_components * torch.finfo(torch.float32).eps
        too_small = n_components * torch.finfo(torch.float32).tiny  # a product may count as 0
        of_difference = rounding(torch.float32) * self.lengths.clamp(min=longest).square()
        return self.lost * longest + self.lengths * (others.lost.max() + in_sum * longest) + of_difference + too_small

    def multiply(self, others, S, buffer):
        """Write the products of each row with each of the others into S; `buffer` is memory in bfloat16 to use."""
        return S.copy_(torch.mm(self.points, others.points.T, out=matrix_in(buffer, *S.shape)))


def round_rows(points):
    """Return the rows in bfloat16; None where that is not known to multiply twice as fast or more, or may overflow."""
    if not _has_fast_bfloat16(points.device):
        return None
    rounded = points.bfloat16()
    blocks = zip(*(p.split(tile_size(points)) for p in (points, rounded)), strict=True)
    lost = torch.cat([lengths(x - x_rounded) for x, x_rounded in blocks])
    longest = lengths(points) + lost
    return Rounded(rounded, lost, longest) if longest.max() < _LONGEST else None


def _has_fast_bfloat16(device):
    """Whether a product in bfloat16 takes half the time of float32 or less, on the devices where that was measured."""
    if device.type != "cpu" or not hasattr(torch.cpu, "get_capabilities"):  # older ones do not tell
        return False
    return any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


def lengths(points):
    """Return |x| of each row (N,): no copy of the rows, and no product that autocast would round."""
    return torch.linalg.vector_norm(points, dim=1)
