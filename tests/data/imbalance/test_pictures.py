import io

import numpy as np
import pytest
from PIL import Image

from sdr_lightning.data.images import Pixels
from sdr_lightning.data.imbalance import Imbalance
from sdr_lightning.data.imbalance.pictures import IMAGE_KINDS

SEVERITIES = (1, 2, 3, 4, 5)
SHAPES = [(1, 1), (7, 5), (1, 40), (32, 32), (224, 224)]
every_kind = pytest.mark.parametrize("kind", IMAGE_KINDS)


def corrupted(kind: str, pixels: Pixels, severity: int = 3, item: str = "a", seed: int = 0) -> Pixels:
    imbalance = Imbalance(kind, 1.0, "image", severity=severity, seed=seed)  # type: ignore[arg-type]
    return IMAGE_KINDS[kind](pixels, severity, imbalance.generator(item))


def even(value: int, height: int = 224, width: int = 224) -> Pixels:
    return np.full((height, width, 3), value, dtype=np.uint8)


def random_pixels(height: int, width: int) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def landscape(side: int = 224) -> Pixels:
    """Waves of every length, the long ones high and the colours alike, as in photographs."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :])
    spectrum = np.fft.fft2(np.random.default_rng(1).standard_normal((4, side, side)))
    light, *colours = np.fft.ifft2(spectrum / np.maximum(frequency, 1 / side) ** 1.5).real
    waves = np.stack([light + colour / 5 for colour in colours], axis=2)
    pixels: Pixels = np.clip(128 + 50 * (waves - waves.mean()) / waves.std(), 0, 255).astype(np.uint8)
    return pixels


def roughness(pixels: Pixels) -> float:
    """Mean absolute difference of neighbours."""
    return float(
        np.abs(np.diff(pixels.astype(float), axis=0)).mean() + np.abs(np.diff(pixels.astype(float), axis=1)).mean()
    )


def test_noise_depends_on_item_and_seed() -> None:
    for kind in ["gaussian_noise", "low_light", "occlusion"]:
        pixels = landscape()
        results = [corrupted(kind, pixels, item=item, seed=seed) for item, seed in (("a", 0), ("b", 0), ("a", 1))]
        assert len({result.tobytes() for result in results}) == 3


@every_kind
def test_corruption_is_deterministic_and_keeps_shape_and_input(kind: str) -> None:
    for height, width in SHAPES:
        pixels = random_pixels(height, width)
        before = pixels.copy()
        pixels.setflags(write=False)
        for severity in SEVERITIES:
            result = corrupted(kind, pixels, severity)
            assert result.shape == pixels.shape
            assert result.dtype == np.uint8
            assert result.flags.writeable  # torch.from_numpy warns otherwise
            assert not np.shares_memory(result, pixels)
            np.testing.assert_array_equal(pixels, before)
            np.testing.assert_array_equal(corrupted(kind, pixels, severity), result)


@pytest.mark.parametrize("kind", [kind for kind in IMAGE_KINDS if kind != "missing"])
def test_error_grows_with_severity(kind: str) -> None:
    pixels = landscape()
    errors = [np.abs(corrupted(kind, pixels, severity).astype(float) - pixels).mean() for severity in SEVERITIES]
    assert errors == sorted(errors)
    assert 0 < errors[0] < 0.75 * errors[-1]


def test_gaussian_noise_has_the_stated_strength() -> None:
    for severity, sigma in list(zip(SEVERITIES, (0.08, 0.12, 0.18, 0.26, 0.38), strict=True)):
        difference = corrupted("gaussian_noise", even(128), severity).astype(float) - 128
        # Saturation leaves the inner part of the bell alone.
        for quantile, sigmas in ((0.1587, -1), (0.3085, -0.5), (0.5, 0), (0.6915, 0.5), (0.8413, 1)):
            assert np.quantile(difference, quantile) == pytest.approx(255 * sigma * sigmas, abs=1 + 255 * sigma * 0.02)
        assert np.abs(np.corrcoef(difference.reshape(-1, 3).T) - np.eye(3)).max() < 0.02


def test_gaussian_noise_saturates_instead_of_wrapping() -> None:
    assert corrupted("gaussian_noise", even(255), 1).min() > 100  # sigma is 20 of 255
    assert corrupted("gaussian_noise", even(0), 1).max() < 155


def test_blur_spreads_an_edge_by_the_stated_width() -> None:
    for side in [112, 224]:
        for severity, sigma in list(zip(SEVERITIES, (1, 2, 3, 4, 6), strict=True)):
            edge = even(0, side, side)
            edge[:, side // 2 :] = 255
            slope = np.diff(corrupted("blur", edge, severity)[side // 2, :, 0].astype(float)) / 255
            places = np.arange(side - 1)
            centre = (slope * places).sum()
            width = ((slope * (places - centre) ** 2).sum()) ** 0.5
            assert slope.sum() == pytest.approx(1)
            assert width == pytest.approx(sigma * side / 224, rel=0.1)


def test_blur_smooths_and_keeps_the_mean() -> None:
    pixels = landscape()
    rough = [roughness(pixels), *(roughness(corrupted("blur", pixels, severity)) for severity in SEVERITIES)]
    assert rough == sorted(rough, reverse=True)
    assert rough[-1] < 0.3 * rough[0]
    assert corrupted("blur", pixels, 5).mean() == pytest.approx(pixels.mean(), abs=2)


def test_occlusion_covers_a_share_with_one_grey_rectangle() -> None:
    for height, width in [(224, 224), (100, 300)]:
        for severity, share in list(zip(SEVERITIES, (0.1, 0.2, 0.3, 0.45, 0.6), strict=True)):
            pixels = even(7, height, width)
            result = corrupted("occlusion", pixels, severity)
            covered = (result != pixels).all(axis=2)
            assert covered.mean() == pytest.approx(share, rel=0.02)
            rows, columns = np.flatnonzero(covered.any(axis=1)), np.flatnonzero(covered.any(axis=0))
            assert covered.sum() == len(rows) * len(columns) == (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
            assert len(rows) / height == pytest.approx(len(columns) / width, rel=0.02)
            assert (result[covered] == 128).all()


def test_occlusion_reaches_every_corner() -> None:
    pixels = even(7, 8, 8)
    covered = sum((corrupted("occlusion", pixels, 4, item=f"{i}") == 128).all(axis=2).astype(int) for i in range(300))
    assert np.min(covered) > 0
    assert np.max(covered) == covered[3:5, 3:5].max()


def test_low_resolution_leaves_few_blocks() -> None:
    for side in [32, 224]:
        for severity, share in list(zip(SEVERITIES, (0.6, 0.5, 0.4, 0.3, 0.25), strict=True)):
            result = corrupted("low_resolution", random_pixels(side, side), severity)
            blocks = round(share * side)
            for lines in (result, result.transpose(1, 0, 2)):
                changes = (lines[1:] != lines[:-1]).any(axis=(1, 2)).sum()
                assert blocks - 1 <= changes < blocks * 1.5


def test_low_resolution_averages_blocks() -> None:
    pixels = random_pixels(32, 32)
    means = pixels.reshape(16, 2, 16, 2, 3).astype(float).mean(axis=(1, 3))
    result = corrupted("low_resolution", pixels, 2)
    np.testing.assert_array_equal(result, result[::2, ::2].repeat(2, axis=0).repeat(2, axis=1))
    np.testing.assert_allclose(result[::2, ::2], means, atol=1)


def test_low_light_is_dark_and_grainy() -> None:
    for value in [60, 128, 255]:
        for severity, light, photons in list(
            zip(SEVERITIES, (0.6, 0.45, 0.3, 0.2, 0.1), (60, 25, 12, 5, 3), strict=True)
        ):
            result = corrupted("low_light", even(value), severity).astype(float) / 255
            assert result.mean() == pytest.approx(light * value / 255, rel=0.03, abs=0.002)
            # A count of photons has its mean as its variance.
            assert result.std() == pytest.approx(light * (value / 255 / photons) ** 0.5, rel=0.05)


def test_low_light_keeps_black() -> None:
    np.testing.assert_array_equal(corrupted("low_light", even(0)), even(0))


def test_jpeg_equals_a_saved_file() -> None:
    for severity, quality in list(zip(SEVERITIES, (25, 18, 15, 10, 7), strict=True)):
        pixels = landscape()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, format="JPEG", quality=quality)
        result = corrupted("jpeg", pixels, severity)
        np.testing.assert_array_equal(result, np.array(Image.open(file)))
        assert (result != pixels).any(axis=2).mean() > 0.9


def test_missing_is_grey() -> None:
    np.testing.assert_array_equal(corrupted("missing", random_pixels(7, 5)), even(128, 7, 5))


def test_noise_does_not_change_between_versions() -> None:
    """Another answer would change the noise of every published number."""
    noise = corrupted("gaussian_noise", even(128, 1, 2), item="0.jpg", seed=7)
    dark = corrupted("low_light", even(128, 1, 2), item="0.jpg", seed=7)
    covered = np.flatnonzero((corrupted("occlusion", even(7, 4, 4), item="0.jpg", seed=7) == 128)[:, :, 0])
    assert noise.ravel().tolist() == [107, 188, 192, 167, 156, 151]
    assert dark.ravel().tolist() == [51, 70, 13, 32, 13, 13]
    assert covered.tolist() == [0, 1, 4, 5]
