"""Codes rounded with one step for all their numbers, as fine as a memory's bytes allow, and coded close to their entropy.

A code's numbers vary by a thousandfold, and by how much is known beforehand (`scales`); so is what each of their levels costs
then. A memory's step is the finest with which its levels fit into the bytes that it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from cmt_core.config import MemoryConfig
from cmt_core.errors import ConfigError, MemoryFormatError
from cmt_core.memory.blocks import TokenBlocks, check_shape
from cmt_core.memory.entropy_coder import ZERO_UP_TO, EntropyCoder, normal_frequencies

__all__ = ["EntropyCodes"]

_OCTAVE = 64  # steps that differ by a factor of two
_PER_TABLE = 8  # steps that share a table
_LEAST, _MOST = -2, 7  # octaves: a number that varies by less than a fourth of the step is not kept
_STEP_BYTES = 2
_LANE_BYTES = 128  # a lane costs three, and more lanes are read in fewer steps
_READ_AT_ONCE = 16  # memories: more are hardly faster, and each takes 4 MB meanwhile
_MARGIN = 1.0005  # of what a stream's words take beside their levels' entropy


class EntropyCodes:
    """See the module. `scales` (N,) int16 are 64 * log2 of the deviations of the N numbers of a block, in falling order."""

    def __init__(self, blocks: TokenBlocks, scales: Tensor, frequencies: Tensor, bits_per_token: int) -> None:
        self.blocks, self.scales, self.bits_per_token = blocks, scales, bits_per_token
        self.coder = EntropyCoder(frequencies)
        self._at_once = max(1, self._size_of(1) // _LANE_BYTES)  # numbers of a block that are read at once
        least = -(-8 * (_STEP_BYTES + self.coder.least_bytes(self._at_once)) // blocks.tokens)
        if bits_per_token < least:
            raise ConfigError(f"code_storage entropy takes at least {least} bits a token, not {bits_per_token}")
        device = scales.device
        self._bits, self._reach = self.coder.bits.to(device), self.coder.reach.to(device)

    @classmethod
    def fit(cls, blocks: TokenBlocks, sigma: Tensor, bits_per_token: int) -> EntropyCodes:
        """For blocks whose numbers have deviations `sigma` (N,); those that get no bit, or hardly one, are not kept."""
        scales = (sigma.double().clamp_min(2.0**-16).log2() * _OCTAVE).round().to(torch.int16)
        tables = (_MOST - _LEAST) * _OCTAVE // _PER_TABLE
        middles = [_LEAST + (table + 0.5) * _PER_TABLE / _OCTAVE for table in range(tables)]
        whole = cls(blocks, scales, normal_frequencies([2.0**middle for middle in middles]), bits_per_token)
        step = whole._usual_step()
        used = max(1, int((scales > step + (_LEAST - 0.5) * _OCTAVE).sum()))
        return cls(blocks.first(used), scales[:used], whole.coder.frequencies, bits_per_token)

    def to(self, device: torch.device, dtype: torch.dtype = torch.float32) -> EntropyCodes:
        """See Rounding."""
        blocks = self.blocks.to(device, dtype)
        return EntropyCodes(blocks, self.scales.to(device), self.coder.frequencies, self.bits_per_token)

    def with_bits(self, bits_per_token: int) -> EntropyCodes:
        """The same numbers with another number of bits a token."""
        return EntropyCodes(self.blocks, self.scales, self.coder.frequencies, bits_per_token)

    @classmethod
    def stored(cls, config: MemoryConfig, tensors: Mapping[str, Tensor]) -> EntropyCodes:
        """Out of a checkpoint's tensors. Raises ConfigError for tensors of other sizes."""
        basis = tensors["block_basis"].float()
        check_shape("block_basis", basis, (config.block_tokens * config.code_width, basis.shape[-1]))
        check_shape("scales", tensors["scales"], (basis.shape[-1],))
        return cls(
            TokenBlocks(basis, config.block_tokens), tensors["scales"], tensors["frequencies"], config.bits_per_token
        )

    def tensors(self) -> dict[str, Tensor]:
        """What `stored` reads, as a checkpoint keeps it."""
        return {
            "scales": self.scales,
            "frequencies": self.coder.frequencies,
            "block_basis": self.blocks.basis.half(),
        }

    def round(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Codes (B, T, C) as they are kept, with a straight-through gradient; the first `lengths` (B,) of a row are tokens."""
        numbers = self.blocks.of(codes, lengths)
        with torch.no_grad():
            steps = self._finest(numbers, self._counts(lengths.tolist()))
            rounded = self._levels(numbers, self._tables(steps), steps) * _size(steps)[:, None, None]
        return self.blocks.codes(numbers + (rounded - numbers).detach())[:, : codes.shape[1]]

    @torch.no_grad()
    def pack(self, codes: Tensor, lengths: Sequence[int]) -> list[bytes]:
        """See Rounding: a memory's step (int16), then the stream of its levels, filled up with zeros."""
        numbers = self.blocks.of(codes, torch.tensor(lengths)).float().nan_to_num()  # levels of a NaN would be any
        counts = self._counts(lengths)
        steps = self._finest(numbers, counts)
        packed: list[bytes] = [b""] * len(counts)
        todo = list(range(len(counts)))
        while todo:  # once, nearly always: `_finest` knows a stream's size to a few bytes
            streams = self._encoded(numbers[todo], steps[todo], [counts[row] for row in todo])
            for row, stream in zip(todo, streams, strict=True):
                head = int(steps[row]).to_bytes(_STEP_BYTES, "little", signed=True)
                packed[row] = (head + stream).ljust(self._size_of(counts[row]), b"\0")
            todo = [row for row in todo if len(packed[row]) > self._size_of(counts[row])]
            steps[todo] += 1
        return packed

    def unpack(self, packed: Sequence[bytes], lengths: Sequence[int]) -> Tensor:
        """See Rounding."""
        starts = range(0, len(packed), _READ_AT_ONCE)
        parts = [slice(start, start + _READ_AT_ONCE) for start in starts]
        return torch.cat([self._unpacked(packed[part], lengths[part]) for part in parts])

    def _unpacked(self, packed: Sequence[bytes], lengths: Sequence[int]) -> Tensor:
        counts, device = self._counts(lengths), self.scales.device
        for memory, count in zip(packed, counts, strict=True):
            if len(memory) != self._size_of(count):
                raise MemoryFormatError(f"codes of {len(memory)} bytes, not {self._size_of(count)}")
        steps = torch.tensor([int.from_bytes(memory[:_STEP_BYTES], "little", signed=True) for memory in packed])
        tables = self._tables(steps.to(device)).cpu()
        streams = [memory[_STEP_BYTES:] for memory in packed]
        levels = self.coder.decode(streams, self._by_step(tables, counts).numpy(), self._lanes(counts))
        kept = self._by_block(torch.from_numpy(levels), max(counts))
        numbers = (kept * _size(steps)[:, None, None]).to(device)
        every = torch.cat([row[:count] for row, count in zip(numbers, counts, strict=True)])
        parts = torch.split(self.blocks.codes(every), [self.blocks.tokens * count for count in counts])
        return torch.cat([part[:length] for part, length in zip(parts, lengths, strict=True)])

    def _counts(self, lengths: Sequence[int]) -> list[int]:
        """Blocks of texts with so many tokens."""
        return [-(-length // self.blocks.tokens) for length in lengths]

    def _lanes(self, counts: Sequence[int]) -> list[int]:
        return [count * self._at_once for count in counts]

    def _size_of(self, count: int) -> int:
        """Bytes of so many blocks."""
        return count * self.blocks.tokens * self.bits_per_token // 8

    def _tables(self, steps: Tensor) -> Tensor:
        """Which table each number (B, N) has at steps (B,): 0 for none."""
        octaves = self.scales.long() - steps[:, None] - _LEAST * _OCTAVE
        return (octaves // _PER_TABLE + 1).clamp(0, len(self.coder.frequencies))

    def _levels(self, numbers: Tensor, tables: Tensor, steps: Tensor) -> Tensor:
        """Whole levels (B, R, N), as floats, of numbers at steps (B,)."""
        return numbers.sign() * self._magnitudes(numbers.abs(), tables, steps)

    def _magnitudes(self, sizes: Tensor, tables: Tensor, steps: Tensor) -> Tensor:
        """How large the levels are of numbers of these sizes (B, R, N)."""
        most = self._reach[tables][:, None].to(sizes.dtype)
        return (sizes / _size(steps)[:, None, None]).add_(1 - ZERO_UP_TO).floor_().minimum(most)

    def _finest(self, numbers: Tensor, counts: Sequence[int]) -> Tensor:
        """The finest step (B,) with which each row's blocks, the first `counts` of R, fit into their bytes."""
        device = numbers.device
        blocks = torch.tensor(counts, device=device)
        used = torch.arange(numbers.shape[1], device=device) < blocks[:, None]  # (B, R)
        overhead = 8 * _STEP_BYTES + torch.tensor([self.coder.overhead(n) for n in self._lanes(counts)], device=device)
        room = (8 * torch.tensor([self._size_of(count) for count in counts], device=device) - overhead) / _MARGIN
        sizes = numbers.abs()
        low = torch.full_like(blocks, int(self.scales[0]) - _MOST * _OCTAVE)
        high = torch.full_like(blocks, int(self.scales[0]) - _LEAST * _OCTAVE + 1)  # nothing is kept there
        while bool((low < high).any()):
            middle = (low + high) // 2
            fits = self._cost(sizes, middle, used) <= room
            low, high = torch.where(fits, low, middle + 1), torch.where(fits, middle, high)
        return high

    def _cost(self, sizes: Tensor, steps: Tensor, used: Tensor) -> Tensor:
        """Bits (B,) of the levels of numbers of these sizes (B, R, N), of the blocks that are `used` (B, R)."""
        tables = self._tables(steps)
        most = self._most(tables)
        place = self._magnitudes(sizes[..., :most], tables[:, :most], steps).long()
        place += tables[:, None, :most] * self._bits.shape[1]
        return (self._bits.flatten()[place].sum(dim=-1, dtype=torch.float64) * used).sum(dim=-1)

    def _usual_step(self) -> int:
        """The step at which normal numbers of these scales take the bits of a block."""
        shares = self.coder.frequencies.double() / self.coder.frequencies[0].sum()
        entropy = torch.cat(
            [torch.zeros(1, dtype=torch.float64), -torch.xlogy(shares, shares).sum(dim=1) / 0.6931471805599453]
        )
        first = int(self.scales[0])
        for step in range(first - _MOST * _OCTAVE, first - _LEAST * _OCTAVE):
            tables = self._tables(torch.tensor([step], device=self.scales.device))[0].cpu()
            if float(entropy[tables].sum()) <= self.bits_per_token * self.blocks.tokens:
                return step
        return first - _LEAST * _OCTAVE

    def _encoded(self, numbers: Tensor, steps: Tensor, counts: Sequence[int]) -> list[bytes]:
        tables = self._tables(steps)
        by_step = self._by_step(tables, counts)
        levels = self._levels(numbers[:, : max(counts)], tables, steps).long()
        kept = self._lay(levels[..., : self._most(tables)])
        return self.coder.encode(torch.where(by_step > 0, kept, 0), by_step, self._lanes(counts))

    def _by_step(self, tables: Tensor, counts: Sequence[int]) -> Tensor:
        """Tables (B, N) as (S, B, W), one for each of the numbers that all lanes take a step at; 0 where a text has no block."""
        blocks = torch.tensor(counts, device=tables.device)
        inside = torch.arange(max(counts), device=tables.device) < blocks[:, None]
        return self._lay(tables[:, None, : self._most(tables)] * inside[..., None])

    @staticmethod
    def _most(tables: Tensor) -> int:
        """How many numbers are kept where most are: the last vary least, and so are the first to go."""
        return int((tables > 0).sum(dim=1).max())

    def _lay(self, numbers: Tensor) -> Tensor:
        """(B, R, N) as (S, B, R * g): number s * g + i of block r is step s of lane r * g + i."""
        B, R, N = numbers.shape
        g = self._at_once
        filled = torch.nn.functional.pad(numbers, (0, -N % g))
        return filled.view(B, R, -1, g).permute(2, 0, 1, 3).reshape(-1, B, R * g).contiguous()

    def _by_block(self, levels: Tensor, blocks: int) -> Tensor:
        """The other way: levels (S, B, R * g) as numbers (B, R, N), as floats; what no step has is 0."""
        S, B, _ = levels.shape
        g, N = self._at_once, len(self.scales)
        numbers = levels.view(S, B, blocks, g).permute(1, 2, 0, 3).reshape(B, blocks, S * g)[..., :N]
        return torch.nn.functional.pad(numbers, (0, N - numbers.shape[2])).float()


def _size(steps: Tensor) -> Tensor:
    """How large steps are."""
    return torch.exp2(steps.double() / _OCTAVE).float()
