"""What the tests of the trials share."""

import torch

from resid.ledger import get_claim


def generator(seed=1):
    return torch.Generator().manual_seed(seed)


def passes(claim_id, evidence):
    claim = get_claim(claim_id)
    assert evidence.malformed(claim) == []
    assert evidence.unfavourable(claim, "smoke") == []


def fails(claim_id, evidence):
    claim = get_claim(claim_id)
    assert evidence.malformed(claim) == []
    assert evidence.unfavourable(claim, "smoke")
