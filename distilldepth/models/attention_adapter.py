"""A student's features mixed by attention among their own positions, before they are compared with a teacher's."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend

from distilldepth.capacity import check_memory
from distilldepth.errors import did_you_mean

FORMS = ("full", "reduced", "window")
"""Between which positions attention is."""
REDUCTION = 4
"""Side of the cells over which `reduced` averages keys and values, positions."""
WINDOW = 8
"""Side of the windows of `window`, positions."""


class AttentionAdapter(nn.Module):
    """Features as averages of themselves, by learned likeness: `softmax(Q K^T) X`.

    X are the features of all positions as they are, Q and K 1x1 convolutions of them. There is no residual and no
    projection of the result: it lies within the hull of the features. As printed, the products are not divided by the
    root of their width; with wide keys the softmax then takes one position and its gradient fades.

    The table of all pairs of positions grows with the fourth power of the side: of a 352 x 1120 image at 1/4 it has
    24640 x 24640 entries, 2.3 GiB. Where the machine has a fused kernel for it, it is never laid out, but time is spent
    on all of it. So there are two cheaper forms: `reduced` looks at averages over 4 x 4 cells, a sixteenth of the
    pairs; `window` looks within windows of 8 x 8 only.

    Args:
        channels: width of the features.
        form: `full`, `reduced` or `window`.
        key_width: channels of Q and K.
        scaled: divide the products by `sqrt(key_width)`, as is usual elsewhere.

    Raises:
        ValueError: no channels or keys, an unknown form.

    Source: ADU-Depth, equation 1; the two cheaper forms are not in it.

    >>> AttentionAdapter(5, form="window")(torch.rand(2, 5, 9, 13)).shape
    torch.Size([2, 5, 9, 13])
    """

    def __init__(self, channels: int, *, form: str = "full", key_width: int = 64, scaled: bool = False) -> None:
        super().__init__()
        for name, value in (("channels", channels), ("key_width", key_width)):
            if value < 1:
                raise ValueError(f"AttentionAdapter: {name} must be at least 1, got {value}")
        if form not in FORMS:
            near = did_you_mean(str(form), FORMS)
            raise ValueError(f"AttentionAdapter: form must be one of {', '.join(FORMS)}, got {form!r}{near}")
        self.form = form
        self.scale = 1 / math.sqrt(key_width) if scaled else 1.0
        self.query = nn.Conv2d(channels, key_width, 1)
        # A bias of the keys adds the same to all products of a query, which the softmax does not see.
        self.key = nn.Conv2d(channels, key_width, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the features after attention.

        Args:
            features: `(B, C, H, W)`, a floating dtype.

        Returns:
            As `features`, of the same size; under autocast in its type.

        Raises:
            ValueError: another shape or width.
            DistillDepthError: the table of all pairs has to be laid out here, and there is no memory for it.

        Gradient: to the features, and to Q and K.
        """
        width = self.query.in_channels
        if features.ndim != 4 or features.shape[1] != width:
            raise ValueError(f"AttentionAdapter: features must be (B, {width}, H, W), got {tuple(features.shape)}")
        if features.numel() == 0:
            return features
        if self.form == "window":
            return self._in_windows(features)
        seen = features
        if self.form == "reduced":
            # The cells at the right and at the bottom are averages of what they have. Keys of averages are averages of
            # keys, being linear.
            seen = F.avg_pool2d(features, REDUCTION, ceil_mode=True)
        mixed = self._attend(_tokens(self.query(features)), _tokens(self.key(seen)), _tokens(seen))
        return mixed.transpose(2, 3).reshape(features.shape)

    def _in_windows(self, features: Tensor) -> Tensor:
        batch, _, height, width = features.shape
        rows, columns = -(-height // WINDOW), -(-width // WINDOW)
        margin = (0, columns * WINDOW - width, 0, rows * WINDOW - height)

        def windows(x: Tensor) -> Tensor:
            """`(B, windows, positions, C)`; windows take the place of heads."""
            x = F.pad(x, margin).unflatten(3, (columns, WINDOW)).unflatten(2, (rows, WINDOW))
            return x.permute(0, 2, 4, 3, 5, 1).reshape(len(x), rows * columns, WINDOW * WINDOW, x.shape[1])

        there = None
        if any(margin):
            inside = torch.ones(1, 1, height, width, dtype=torch.bool, device=features.device)
            there = windows(inside).transpose(2, 3)
        query, key = windows(self.query(features)), windows(self.key(features))
        mixed = self._attend(query, key, windows(features), there)
        mixed = mixed.view(batch, rows, columns, WINDOW, WINDOW, -1).permute(0, 5, 1, 3, 2, 4)
        return mixed.reshape(batch, -1, rows * WINDOW, columns * WINDOW)[..., :height, :width]

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, there: Tensor | None = None) -> Tensor:
        """Attention of tokens `(B, heads, N, C)`; `there` says which keys are, bool `(1, heads, 1, M)`."""
        channels = value.shape[-1]
        value = value.to(query.dtype)
        if query.device.type == "cpu":
            # The kernel of CPUs wants keys as wide as values; zeros change no product.
            wide = max(channels, query.shape[-1])
            query, key, value = (F.pad(x, (0, wide - x.shape[-1])) for x in (query, key, value))
        if not torch.compiler.is_compiling():
            self._check_room(query, key, value, there)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=there, scale=self.scale)
        return mixed[..., :channels]

    def _check_room(self, query: Tensor, key: Tensor, value: Tensor, there: Tensor | None) -> None:
        kernel = torch._fused_sdp_choice(query, key, value, there, 0.0, False, scale=self.scale)
        if kernel != SDPBackend.MATH.value:
            return
        batch, heads, queries = query.shape[:3]
        keys = key.shape[2]
        # The products and their softmax are there at once.
        check_memory(
            2 * batch * heads * queries * keys * query.element_size(),
            f"AttentionAdapter: {self.form} attention from {queries} positions to {keys}, twice {batch * heads} x "
            f"{queries} x {keys} numbers of {query.element_size()} bytes,",
            "use the form reduced or window, or a coarser level",
            device=query.device,
        )


def _tokens(x: Tensor) -> Tensor:
    """`(B, 1, positions, C)` of `(B, C, H, W)`, as fused kernels want it: a position's numbers side by side."""
    return x.flatten(2).transpose(1, 2).contiguous()[:, None]
