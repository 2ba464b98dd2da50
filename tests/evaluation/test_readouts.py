"""Neighbours and a ridge on pooled features."""

import numpy as np
import pytest

from keras_vjepa.evaluation.readouts import nearest_neighbors, ridge_classifier

pytestmark = pytest.mark.data


def clusters(count, seed, spread=0.3):
    """Three classes around a large common mean, on the corners of a triangle."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    corners = np.eye(3, 8)
    return 10 + corners[labels] + spread * rng.normal(size=(count, 8)), labels


@pytest.mark.parametrize("readout", [nearest_neighbors, ridge_classifier])
def test_clusters_are_told_apart_and_noise_is_not(readout):
    (train, labels), (test, expected) = clusters(120, 0), clusters(60, 1)
    right = readout(train, labels, test, 3).argmax(axis=1) == expected
    assert right.mean() > 0.8
    (train, _), (test, _) = clusters(120, 0, spread=1e3), clusters(60, 1, spread=1e3)
    assert (readout(train, labels, test, 3).argmax(axis=1) == expected).mean() < 0.6


def test_neighbors_by_hand(monkeypatch):
    monkeypatch.setattr("keras_vjepa.evaluation.readouts._ROWS_AT_A_TIME", 2)
    angles = np.deg2rad([0, 120, 240])
    train = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    votes = nearest_neighbors(train, np.arange(3), 2 * train, 3, 2, temperature=1.0)
    # Each sample has itself as a neighbour with similarity 1, and one other with -1/2; the third
    # does not vote.
    np.testing.assert_allclose(votes.diagonal(), np.exp(1.0))
    assert ((votes > 0).sum(axis=1) == 2).all() and np.isclose(votes, np.exp(-0.5)).sum() == 3
    # With more neighbours than samples, all samples vote.
    assert (nearest_neighbors(train, np.arange(3), train, 3) > 0).all()


def test_the_ridge_is_least_squares():
    (train, labels), (test, _) = clusters(120, 0), clusters(60, 1)
    design = np.concatenate([train, np.ones((120, 1))], axis=1)
    weights = np.linalg.lstsq(design, np.eye(3)[labels], rcond=None)[0]
    expected = np.concatenate([test, np.ones((60, 1))], axis=1) @ weights
    found = ridge_classifier(train, labels, test, 3, penalty=1e-12)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    few = ridge_classifier(train[:3], labels[:3], test, 3)
    assert np.isfinite(few).all()


@pytest.mark.parametrize("readout", [nearest_neighbors, ridge_classifier])
def test_bad_input_is_named(readout):
    train, labels = clusters(9, 0)
    for arguments, message in (
        ((train, labels, train[:, :4], 3), "must be .samples, dim. of one width"),
        ((train, labels[:4], train, 3), "one label for each row of `train`"),
        ((train, labels, train, 2), r"`labels` must be in \[0, `num_classes`=2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            readout(*arguments)
    option = "num_neighbors" if readout is nearest_neighbors else "penalty"
    with pytest.raises(ValueError, match=f"`{option}` must be"):
        readout(train, labels, train, 3, **{option: 0})
