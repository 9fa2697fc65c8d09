"""The choice of clips to attack."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Some rows of a batch, or all of them, which then need not be copied.

    Attributes:
        index: int64 [n], ascending; None for all rows.
    """

    index: Tensor | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Those rows of a tensor [B,...]: [n,...]; the tensor itself for all."""
        return tensor if self.index is None else tensor[self.index]

    def replaced(self, tensor: Tensor, rows: Tensor) -> Tensor:
        """The tensor [B,...] with ``rows`` [n,...] in their places; ``rows`` itself for all."""
        if self.index is None:
            return rows
        changed = tensor.clone()
        changed[self.index] = rows
        return changed


ALL_ROWS = Rows()
