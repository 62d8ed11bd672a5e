"""Who is drawn when: fair rounds, weights that hold exactly, batches without repeats, and state that goes on."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from avtool.prior.sampler import Batch, BatchSampler, batch_shares


def test_the_sampler_shows_everyone_in_rounds() -> None:
    frames = [torch.arange(4) + 4 * k for k in range(5)]
    sampler = BatchSampler(frames, 2, 3, seed=0)
    seen: list[int] = []
    for _ in range(50):
        identities, pictures = sampler.draw()
        assert identities[0] != identities[1], "nobody twice in a batch"
        assert (pictures.view(2, 3) // 4 == identities[:, None]).all(), "grouped by identity"
        assert all(len(set(row)) == 3 for row in pictures.view(2, 3).tolist()), "distinct pictures"
        seen += identities.tolist()
    for k in range(5):
        places = [-1] + [i for i, one in enumerate(seen) if one == k] + [len(seen)]
        assert max(np.diff(places)) < 2 * 5
    assert [seen.count(k) for k in range(5)] == [20] * 5, "as often as everyone else, though two do not divide five"
    whole = BatchSampler(frames[:4], 2, 3, seed=0)
    seen = [k for _ in range(20) for k in whole.draw()[0].tolist()]
    assert [seen.count(k) for k in range(4)] == [10] * 4
    few = BatchSampler([torch.arange(2), torch.arange(2, 3)], 8, 4, seed=0)
    identities, pictures = few.draw()
    assert sorted(identities.tolist()) == [0, 1] and pictures.shape == (8,), "fewer people and pictures than asked for"


def test_the_sampler_goes_on_from_its_state() -> None:
    frames = [torch.arange(4) + 4 * k for k in range(5)]
    sampler = BatchSampler(frames, 2, 3, seed=0)
    sampler.draw()
    state = {name: value.clone() for name, value in sampler.state().items()}
    expected = [torch.cat(sampler.draw()) for _ in range(5)] + [sampler.colors(2).flatten()]
    other = BatchSampler(frames, 2, 3, seed=9)
    other.load_state(state)
    found = [torch.cat(other.draw()) for _ in range(5)] + [other.colors(2).flatten()]
    assert all(torch.equal(a, b) for a, b in zip(found, expected))


def test_equal_weights_draw_what_was_always_drawn() -> None:
    """The draws of the first release, so that its checkpoints go on as they would have then."""
    frames = [torch.arange(4) + 4 * k for k in range(5)]
    digests = []
    for weights in (None, [3.0] * 5):
        sampler = BatchSampler(frames, 3, 2, seed=7, weights=weights)
        drawn = [torch.cat(sampler.draw()).tolist() for _ in range(40)]
        digests.append(hashlib.sha256(str(drawn).encode()).hexdigest()[:16])
    assert digests == ["7bc5292e72e7d713"] * 2


def test_weights_are_shares_of_the_draws() -> None:
    frames = [torch.arange(3) + 3 * k for k in range(12)]
    weights = [1.0] * 6 + [0.5] * 3 + [0.25] * 3
    sampler = BatchSampler(frames, 3, 2, seed=1, weights=weights)
    counts, early = np.zeros(12), []
    for step in range(1100):
        identities, pictures = sampler.draw()
        assert len(set(identities.tolist())) == 3 and (pictures.view(3, 2) // 3 == identities[:, None]).all()
        counts[identities] += 1
        if step == 54:
            early = counts.copy()
    expected = np.array(weights) / sum(weights)
    assert np.abs(counts - expected * counts.sum()).max() <= 3, "exact but for the rounds at both ends"
    assert np.abs(early - expected * early.sum()).max() <= 3, "from the start, not only in the long run"


def test_a_weight_that_a_batch_cannot_hold_is_bounded() -> None:
    frames = [torch.arange(2) + 2 * k for k in range(4)]
    sampler = BatchSampler(frames, 2, 1, seed=0, weights=[100.0, 1.0, 1.0, 2.0])
    drawn = [sampler.draw()[0].tolist() for _ in range(400)]
    assert all(batch[0] != batch[1] for batch in drawn)
    counts = np.bincount(np.array(drawn).ravel(), minlength=4)
    assert np.abs(counts - [400, 100, 100, 200]).max() <= 4 and len(sampler.queue) < 16
    assert batch_shares([100.0, 1.0, 1.0, 2.0], 2).tolist() == pytest.approx([1, 0.25, 0.25, 0.5])
    assert batch_shares([1.0, 3.0], 2).tolist() == pytest.approx([1, 1])
    assert batch_shares([2.0, 1.0, 1.0], 1).tolist() == pytest.approx([0.5, 0.25, 0.25])


def test_weighted_draws_go_on_from_their_state() -> None:
    frames, weights = [torch.arange(4) + 4 * k for k in range(7)], [1.0, 1.0, 0.3, 0.3, 0.3, 2.0, 0.1]
    sampler = BatchSampler(frames, 2, 3, seed=0, weights=weights)
    for _ in range(9):
        sampler.draw()
    state = {name: value.clone() for name, value in sampler.state().items()}
    expected = [torch.cat(sampler.draw()) for _ in range(20)]
    other = BatchSampler(frames, 2, 3, seed=9, weights=weights)
    other.load_state(state)
    assert all(torch.equal(torch.cat(other.draw()), one) for one in expected)


def test_parts_of_a_batch_are_whole_identities() -> None:
    batch = Batch(torch.tensor([4, 2]), torch.arange(6), torch.rand(6, 1, 1, 3))
    first, second = (batch.part(i, 2) for i in range(2))
    assert first.identities.tolist() == [4] and first.pictures.tolist() == [0, 1, 2]
    assert second.identities.tolist() == [2] and torch.equal(second.background, batch.background[3:])
