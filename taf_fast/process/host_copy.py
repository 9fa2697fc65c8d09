"""Values of a device, read on the host without waiting for what the device was given to do since."""

import torch
from torch import Tensor


class HostCopy:
    """Starts a copy of a tensor from its device to the host; only :meth:`read` waits, for the copy alone."""

    def __init__(self, tensor: Tensor):
        self._on_host = tensor.to("cpu", non_blocking=True)
        self._copied = torch.cuda.current_stream(tensor.device).record_event() if tensor.is_cuda else None

    def read(self) -> Tensor:
        if self._copied is not None:
            self._copied.synchronize()
        return self._on_host
