"""The table of a network against counts by hand, and the shapes against the forward pass of each part."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resid.errors import OptionError
from resid.nets.allconv import AllConvResNet
from resid.nets.preact import PlainNet, PreActResNet, ProcResNet
from resid.nets.shapes import shape_table
from resid.nets.shortcut_depth import ShortcutDepthResNet


def test_table_1_of_hardt_and_ma() -> None:
    table = shape_table(AllConvResNet())
    got = [(row.layers, row.count, row.shape, row.parameters) for row in table.rows]
    assert got == [
        ("3x3, 3 to 16", 1, (16, 32, 32), 27 * 16),
        ("3x3, 16 to 64; 3x3, 64 to 64", 1, (64, 32, 32), 9 * 64 * (16 + 64)),
        ("3x3, 64 to 64; 3x3, 64 to 64", 8, (64, 32, 32), 8 * 2 * 9 * 64**2),
        ("3x3, 64 to 128, half; 3x3, 128 to 128", 1, (128, 16, 16), 9 * 128 * (64 + 128)),
        ("3x3, 128 to 128; 3x3, 128 to 128", 8, (128, 16, 16), 8 * 2 * 9 * 128**2),
        ("3x3, 128 to 256, half; 3x3, 256 to 256", 1, (256, 8, 8), 9 * 256 * (128 + 256)),
        ("3x3, 256 to 256; 3x3, 256 to 256", 8, (256, 8, 8), 8 * 2 * 9 * 256**2),
        ("", 1, (10,), 0),  # the average and the random projection, which is not trained
    ]
    assert (table.convolutions, table.parameters) == (55, 13_538_736)
    assert str(table).splitlines()[-1].split() == ["all", "55", "convolutions", "13,538,736"]


@pytest.mark.parametrize(
    "model",
    [
        AllConvResNet(blocks=2, widths=(4, 8, 16), fixed_head=False),
        AllConvResNet(blocks=1, widths=(4, 8), batch_norm=True),
        PreActResNet(20, width=4),
        PlainNet(20, width=4),
        ProcResNet(22, width=4),
        ShortcutDepthResNet(20, 3, width=4, shortcut="B"),
        nn.Sequential(nn.Flatten(), nn.Linear(3 * 24 * 20, 5)),
        nn.Conv2d(3, 7, 3),
    ],
    ids=lambda m: type(m).__name__,
)
def test_nothing_is_counted_twice_or_left_out(model: nn.Module) -> None:
    table = shape_table(model, (3, 24, 20))
    assert table.parameters == sum(p.numel() for p in model.parameters() if p.requires_grad) > 0
    assert table.rows[-1].shape == tuple(model.eval()(torch.zeros(2, 3, 24, 20)).shape[1:])


def test_parts_in_the_order_in_which_they_are_called() -> None:
    rows = shape_table(ProcResNet(22, width=4), (3, 24, 20)).rows
    assert [row.name for row in rows] == [
        "stem", "stages.0.0 - stages.0.1", "transitions.1", "stages.1.0 - stages.1.1", "transitions.2",
        "stages.2.0 - stages.2.1", "head",
    ]  # fmt: skip
    assert [row.shape for row in rows[2:4]] == [(32, 12, 10)] * 2
    assert rows[2].layers == "1x1, 16 to 32, half"


def test_a_block_of_the_reader() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside = nn.Conv2d(3, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.inside(x)

    model = nn.Sequential(nn.Sequential(Mine(), Mine()), nn.Conv2d(3, 2, 1, stride=3))
    assert [row.name for row in shape_table(model).rows] == ["0", "1"]
    rows = shape_table(model, blocks=(Mine,)).rows
    assert [(row.name, row.count) for row in rows] == [("0.0 - 0.1", 2), ("1", 1)]
    assert rows[1].layers == "1x1, 3 to 2, 1/3"
    tied = nn.Sequential(model[0][0], model[0][0], nn.Conv2d(3, 2, 1))  # the same weights twice
    assert shape_table(tied, blocks=(Mine,)).parameters == 12 + 8


def test_the_network_is_left_as_it_was() -> None:
    model = PreActResNet(11, width=2)
    model.stages.eval()
    before = [m.training for m in model.modules()]
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    shape_table(model)
    assert [m.training for m in model.modules()] == before
    assert all(torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("image", [(), (3, 0, 4), (3, 2.5, 4)])
def test_image_of_no_use(image: tuple[int, ...]) -> None:
    with pytest.raises(OptionError, match="image = "):
        shape_table(AllConvResNet(blocks=1), image)
