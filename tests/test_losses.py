"""Losses against independent computations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from avtool.head import load_head_model
from avtool.head.mesh import unique_edges
from avtool.losses import Arap, l1, mse_to_psnr, ssim, ssim_map, ssim_map_torch, threshold_l2


def test_ssim_agrees_with_scikit_image() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(40, 52, 3, generator=generator)
    b = (a + 0.2 * torch.rand(40, 52, 3, generator=generator)).clamp(0, 1)
    expected = structural_similarity(
        a.numpy(), b.numpy(), channel_axis=-1, data_range=1.0, gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        full=True,
    )[1]  # fmt: skip
    found = ssim_map(a, b).numpy()
    assert np.abs(found - expected[5:-5, 5:-5]).max() < 1e-4
    assert ssim(a, a).item() == pytest.approx(1.0, abs=1e-5)


def test_ssim_gradient_and_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.rand(2, 16, 16, 3, generator=generator, dtype=torch.float64).requires_grad_()
    b = torch.rand(2, 16, 16, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: ssim(x, b), a, eps=1e-5, atol=1e-5)
    assert ssim(a, b).item() == pytest.approx((ssim(a[0], b[0]).item() + ssim(a[1], b[1]).item()) / 2)


@pytest.mark.parametrize("shape", [(11, 11, 1), (2, 12, 40, 3), (1, 65, 33, 4), (2, 2, 30, 17, 3)])
def test_the_compiled_ssim_agrees_with_its_twin(shape: tuple[int, ...]) -> None:
    """Forward and backward, against float64, with flat regions, where variances cancel."""
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand(2, *shape, generator=generator)
    a[..., : shape[-2] // 2, :], b[..., : shape[-2] // 2, :] = 1.0, 0.9
    weight = torch.rand(ssim_map(a, b).shape, generator=generator)
    results = []
    for compute, kind in ((ssim_map, torch.float32), (ssim_map_torch, torch.float64)):
        x = a.to(kind).requires_grad_()
        value = compute(x, b.to(kind))
        results.append((value, torch.autograd.grad((weight.to(kind) * value).sum(), x)[0]))
    (value, gradient), (expected, exact) = results
    # Float32 variances of flat regions are off by 1e-7, against a stabilizer of 9e-4.
    assert value.shape == expected.shape and (value - expected).abs().max() < 5e-4
    assert (gradient - exact).abs().max() < 1e-3 * exact.abs().max()


def test_ssim_gives_gradients_of_the_second_image_too() -> None:
    a, b = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(3))
    forward, backward = (torch.autograd.grad(ssim(x, y), z)[0] for x, y, z in ((a, b.requires_grad_(), b), (b, a, b)))
    assert torch.allclose(forward, backward, atol=1e-6) and forward.abs().max() > 0


def test_masked_losses_see_the_mask_only() -> None:
    a, b = torch.zeros(1, 24, 24, 3), torch.zeros(1, 24, 24, 3)
    b[:, :12] = 1
    mask = torch.zeros(1, 24, 24, 1)
    mask[:, 12:] = 1
    assert l1(a, b, mask).item() == 0 and l1(a, b).item() == 0.5
    far = torch.zeros(1, 24, 24, 1)
    far[:, 18:] = 1  # more than half a window from the edge
    assert ssim(a, b, far).item() == pytest.approx(1.0)
    assert l1(a, b, torch.zeros_like(mask)).item() == 0  # an empty mask is no error


def test_threshold_costs_only_the_excess() -> None:
    values = torch.tensor([[0.1, 0.2, 0.3], [0.6, 1.6, 0.0]], requires_grad=True)
    loss = threshold_l2(values, 0.6)
    assert loss.item() == pytest.approx(0.5, abs=1e-5)
    loss.backward()
    assert torch.isfinite(values.grad).all() and values.grad[0].abs().max() == 0 and values.grad[1, 1] > 0


def test_psnr() -> None:
    assert mse_to_psnr(0.01) == pytest.approx(20.0)


def test_arap_forgives_rigid_motion_and_nothing_else() -> None:
    head = load_head_model()
    edges = unique_edges(head.faces)
    spin = torch.tensor((0.0, 0.1, 0.05)).expand_as(head.template)
    rigid = torch.linalg.cross(spin, head.template) + 0.01
    noise = 1e-3 * torch.randn(head.template.shape, generator=torch.Generator().manual_seed(0))
    assert Arap(head.template, edges)(rigid).item() < 1e-6
    assert Arap(head.template, edges)(noise).item() > 1e-2
    both = Arap(head.template, edges)(torch.stack((rigid, noise))).item()
    assert both == pytest.approx(Arap(head.template, edges)(noise).item() / 2, rel=1e-4)


def test_arap_has_the_same_gradient_in_every_run() -> None:
    """Bit for bit: training that is resumed must equal training that was not interrupted."""
    head = load_head_model()
    edges = unique_edges(head.faces)
    offsets = (1e-3 * torch.randn(head.template.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    gradients = [torch.autograd.grad(Arap(head.template, edges)(offsets), offsets)[0] for _ in range(20)]
    assert all(torch.equal(gradient, gradients[0]) for gradient in gradients)


def test_arap_matches_the_rotation_solved_by_least_squares() -> None:
    """One vertex at a time, the plain definition: min over w of sum |d_ij - w x e_ij|^2."""
    generator = torch.Generator().manual_seed(2)
    template = torch.rand(6, 3, generator=generator, dtype=torch.float64)
    offsets = 0.1 * torch.rand(6, 3, generator=generator, dtype=torch.float64)
    edges = torch.tensor([[0, 1], [0, 2], [0, 3], [1, 2], [2, 3], [3, 4], [4, 5], [2, 5], [1, 5], [0, 4]])
    total, lengths = 0.0, []
    for i in range(6):
        pairs = [(i, int(j if k == i else k)) for k, j in edges.tolist() if i in (k, j)]
        e = np.stack([(template[j] - template[i]).numpy() for _, j in pairs])
        d = np.stack([(offsets[j] - offsets[i]).numpy() for _, j in pairs])
        rows = np.concatenate([[[0, z, -y], [-z, 0, x], [y, -x, 0]] for x, y, z in e])
        w = np.linalg.lstsq(rows, d.reshape(-1), rcond=None)[0]
        total += ((d - np.cross(w, e)) ** 2).sum()
        lengths += (e**2).sum(1).tolist()
    expected = total / len(lengths) / np.mean(lengths)
    assert Arap(template, edges)(offsets).item() == pytest.approx(expected, rel=2e-2)
