"""Working memory that networks share: on one CUDA stream they run one after another, so one buffer does for all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    import torch


class MemoryUser(Protocol):
    """What works in shared memory."""

    def use_memory(self, address: int, size: int) -> None:
        """Work in these bytes of GPU memory from now on."""
        ...


class SharedMemory:
    """One buffer of GPU memory that is as large as its hungriest user needs.

    It grows when a user is added. Users from before then move to the new buffer and the old one is freed, unless `pin`
    was called: a captured CUDA graph has the old address in it, so its users keep the old buffer.

    Args:
        device: where it lies.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffer: torch.Tensor | None = None
        self._pinned = False
        # With each user the buffer that it works in: it lives for as long as one of them does.
        self._users: list[tuple[MemoryUser, torch.Tensor]] = []

    @property
    def size(self) -> int:
        """Bytes of the buffer that the next user gets."""
        return 0 if self._buffer is None else self._buffer.numel()

    def add(self, user: MemoryUser, size: int) -> None:
        """Give a user at least `size` bytes, aligned to 256. Not while the stream is being captured.

        Raises:
            torch.OutOfMemoryError: the GPU has no room for them. Older users keep what they have.
        """
        if self._buffer is None or size > self.size:
            self._grow(max(size, 1))
        assert self._buffer is not None
        self._users.append((user, self._buffer))
        user.use_memory(self._buffer.data_ptr(), self._buffer.numel())

    def remove(self, user: MemoryUser) -> None:
        """The user is gone; nothing happens if it never was there."""
        self._users = [(other, buffer) for other, buffer in self._users if other is not user]
        if not self._users:
            self._buffer, self._pinned = None, False

    def pin(self) -> None:
        """Keep today's address valid for today's users: a CUDA graph was captured that holds it."""
        self._pinned = True

    def _grow(self, size: int) -> None:
        import torch

        buffer = torch.empty(size, dtype=torch.uint8, device=self._device)
        if self._device.type == "cuda":
            # The allocator may have taken the bytes from work on another stream, and old users may still be running.
            torch.cuda.synchronize(self._device)
        moving = [user for user, old in self._users if old is self._buffer and not self._pinned]
        self._users = [(user, buffer if user in moving else old) for user, old in self._users]
        self._buffer, self._pinned = buffer, False
        for user in moving:
            user.use_memory(buffer.data_ptr(), size)


_of_stream: WeakValueDictionary[tuple[str, int], SharedMemory] = WeakValueDictionary()


def stream_memory(stream: torch.cuda.Stream) -> SharedMemory:
    """The memory that everything on this stream may share; it lives for as long as someone holds it."""
    key = (str(stream.device), int(stream.cuda_stream))
    memory = _of_stream.get(key)
    if memory is None:
        memory = _of_stream[key] = SharedMemory(stream.device)
    return memory
