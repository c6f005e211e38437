"""What open tasks must share to stand in one slot, as one number: components that move or mark tasks keep it up to date."""

from __future__ import annotations

from pit.compiled import kernel


@kernel
def key_of(t):
    """Octave (16), function (128), priority (4), bucket (64), echo (2), whether attempted (2) and class (4) of a task."""
    flags = t.echo * 8 + (4 if t.attempts > 0 else 0) + t.mark
    return (((t.octave * 128 + t.function) * 4 + t.priority) * 64 + t.bucket) * 16 + flags
