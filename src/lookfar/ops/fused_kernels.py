"""Which path an op with a kernel of its own takes on a GPU: the plain one until asked for the kernel."""

from lookfar.ops._kernels import KERNELS


def use_fused_kernels(on: bool = True) -> None:
    """Let ops run as one kernel on CUDA, in the whole process, or no more.

    Only :func:`~lookfar.ops.neighborhood` has one: product similarity, softmax, heads of at most 512 channels in
    float32, float16 or bfloat16, with gradients and under ``torch.compile``. Everything else, and second derivatives,
    ``torch.func`` and exports, take the plain path as before.

    The kernel has never been run on a GPU: its tests run it in Triton's interpreter on the CPU and compile it for two
    cards. Hence the default is off; ``make bench-gpu`` tells for a card whether it is right and quicker.

    >>> use_fused_kernels(False)  # as it is without a call

    Args:
        on: Whether the kernels may be used from now on; what is compiled already is compiled again.

    Raises:
        ImportError: Triton is missing. It comes with torch's CUDA builds for Linux.
    """
    if not on:
        KERNELS.clear()
        return
    try:
        from lookfar.ops import _triton
    except ImportError as error:
        if not (error.name or "").startswith("triton"):
            raise
        raise ImportError("fused kernels need Triton, which comes with torch's CUDA builds for Linux") from None
    KERNELS["neighborhood"] = _triton
