"""The trials of the chapter on spectra of convolutions at small size: they pass, and they notice a wrong library."""

import math

import numpy as np
import pytest
import sympy as sp
import torch

from resid.book.checks.norms import conv_spectrum as trials
from tests.checks.helpers import fails, generator, passes
from tests.twins.conv import conv_matrix_twin


def test_the_two_second_definitions_agree():
    for stride, n, k in ((1, 5, 3), (1, 3, 5), (2, 6, 2), (3, 6, 4)):
        kernel = torch.randn(2, 3, k, k, generator=generator(k), dtype=torch.float64)
        np.testing.assert_array_equal(trials.circular_matrix(kernel, n, stride), conv_matrix_twin(kernel, n, stride))


def test_theorem_3_passes_and_notices_lost_copies_and_a_wrong_size(monkeypatch):
    passes("zaeemzadeh/theorem-3", trials.theorem_3(25, generator()))
    real = trials.conv_singular_values
    monkeypatch.setattr(trials, "conv_singular_values", lambda *a: real(*a)[:-1])
    fails("zaeemzadeh/theorem-3", trials.theorem_3(5, generator()))
    monkeypatch.setattr(trials, "conv_singular_values", lambda K, n: real(K, n + 1)[: len(real(K, n))])
    fails("zaeemzadeh/theorem-3", trials.theorem_3(5, generator()))
    monkeypatch.setattr(trials, "conv_singular_values", lambda *a: real(*a) * math.nan)
    with pytest.raises(ArithmeticError, match="NaN"):
        trials.theorem_3(5, generator())


def test_padding_passes_and_notices_circular_for_zeros(monkeypatch):
    found = trials.padding(16, generator(), sizes=(6, 8))
    passes("zaeemzadeh/section-3-theorem-3-padding", found.smallest)
    passes("zaeemzadeh/section-3-theorem-3-padding", found.compression)
    assert 0.5 < found.bound <= 1
    assert [row[0] for row in found.rows] == [6, 8]
    real_matrix, real_values = trials.conv_matrix, trials.conv_singular_values
    monkeypatch.setattr(trials, "conv_matrix", lambda K, n, padding: real_matrix(K, n))
    monkeypatch.setattr(trials, "conv_singular_values", lambda K, n, padding: real_values(K, n))
    wrong = trials.padding(4, generator(), sizes=(6,))
    fails("zaeemzadeh/section-3-theorem-3-padding", wrong.compression)
    fails("zaeemzadeh/section-3-theorem-3-padding", wrong.smallest)


def test_strides_pass_and_notice_blocks_that_are_not_stacked(monkeypatch):
    found = trials.strides(20, generator())
    for evidence in (found.largest, found.copies, found.aliased):
        passes("zaeemzadeh/section-3-output-size", evidence)
    assert found.pointwise < 1e-12
    real = trials.conv_singular_values
    monkeypatch.setattr(trials, "conv_singular_values", lambda K, n, stride: real(K, n // stride))
    fails("zaeemzadeh/section-3-output-size", trials.strides(6, generator()).aliased)


def test_symbolic_theorem_in_one_dimension(monkeypatch):
    for sizes in ({"n": 4, "k": 3, "c": 2, "d": 1}, {"n": 2, "k": 3, "c": 1, "d": 2}, {"n": 1, "k": 2, "c": 1, "d": 1}):
        difference = trials.block_diagonal_difference(**sizes)
        assert difference == sp.zeros(*difference.shape)
    real = sp.exp
    monkeypatch.setattr(trials.sp, "exp", lambda z: real(-z / 2))  # not a root of unity of this order
    assert trials.block_diagonal_difference(n=2, k=2, c=1) != sp.zeros(2)


def test_isometry_transfer_reports_ends_of_the_spectrum():
    identity = torch.zeros(2, 2, 3, 3, dtype=torch.float64)
    identity[:, :, 1, 1] = torch.eye(2)
    for _, least, largest in trials.isometry_transfers(identity, (3, 8)):
        assert (least, largest) == (pytest.approx(1), pytest.approx(1))
