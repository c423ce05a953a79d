"""The log-mel spectrogram of each chunk's window of sound.

The transform runs on one chunk's window at a time, with fixed constants of normalisation: nothing leaks over a border
or from the future. torchaudio computes it where it can be imported; the torch code here gives the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mirasol_cli.geometry import AudioGeometry, ClipGeometry

if TYPE_CHECKING:  # training reads masks from here, and must import without a decoder
    from mirasol_cli.media.audio import Window

MEL_FLOOR = 1e-5
"""Power below which a mel bin counts as silent."""
MEL_MEAN, MEL_STD = -4.5, 4.0
"""OURS: mean and deviation of the log-mel of everyday sound (speech, music, noise) at this floor."""
AST_FLOOR = 1.1920928955078125e-07
"""float32's epsilon, the floor of Kaldi's filterbank."""
AST_MEAN, AST_STD = -4.2677393, 4.5689974
"""AST's own constants (AudioSet), applied as AST does: (x - mean) / (2 std)."""
NORMALISATION = {
    "mel": (MEL_FLOOR, MEL_MEAN, MEL_STD),
    "ast": (AST_FLOOR, AST_MEAN, AST_STD),
    "whisper": (1e-10, -4 * math.log(10), 2 * math.log(10)),  # (log10(x) + 4) / 4
}
"""Front end -> floor of the power, and what its natural logarithm is normalised with: (x - mean) / (2 std)."""
WHISPER_RANGE = 1e-8
"""Whisper lifts all power to this share of the loudest: here of the chunk's, where Whisper takes that of its 30 seconds."""
FLOOR_MARGIN = 0.02
"""Stored numbers are float16: the logarithm of a power at the floor is found again to better than this."""
BLOCK_COLUMNS = 4096
"""Columns transformed at once, which bounds memory for windows of many minutes."""


def log_mel(windows: Iterable[Window], geometry: ClipGeometry) -> tuple[np.ndarray, np.ndarray]:
    """Spectrogram of T chunk windows, consumed one by one.

    Returns:
        (float16 [T, Z, S] normalised log-mel, 0 where masked; bool [T, S], True where a column holds sound)
    """
    mels, masks = zip(*(chunk_log_mel(window, geometry.audio) for window in windows), strict=True)
    return np.stack(mels), np.stack(masks)


def chunk_log_mel(window: Window, audio: AudioGeometry) -> tuple[np.ndarray, np.ndarray]:
    """(float16 [Z, S], bool [S]) of one window. More than S columns are pooled as power before the logarithm, over the
    valid ones only; fewer are followed by masked zeros: sound is never stretched."""
    mel = np.zeros((audio.n_mels, audio.columns), np.float16)
    if not window.valid.any():
        return mel, np.zeros(audio.columns, bool)
    waveform = torch.from_numpy(window.waveform)
    power_ZC = kaldi_power(waveform, audio) if audio.frontend == "ast" else mel_power(waveform, audio)
    valid_C = _column_valid(window.valid, power_ZC.shape[1], audio.hop_length)
    power_ZS, valid_S = _pooled(power_ZC, valid_C, audio.columns)
    if audio.frontend == "whisper":
        power_ZS = power_ZS.clamp_min(float(power_ZS.max()) * WHISPER_RANGE)
    normal_ZS = normalised(power_ZS.log(), audio)
    columns = power_ZS.shape[1]
    mel[:, :columns] = (normal_ZS * valid_S).to(torch.float16).numpy()
    mask = np.zeros(audio.columns, bool)
    mask[:columns] = valid_S.numpy()
    return mel, mask


def normalised(log_power: Tensor, audio: AudioGeometry) -> Tensor:
    """The logarithm of mel power as it is stored: not below the floor, in units of everyday sound's own mean and deviation."""
    floor, mean, std = NORMALISATION[audio.frontend]
    return (log_power.clamp_min(math.log(floor)) - mean) / (2 * std)


def log_power(normal: Tensor, audio: AudioGeometry) -> Tensor:
    """The logarithm of mel power of what is stored; -inf for silence, which is what lies at the floor."""
    floor, mean, std = NORMALISATION[audio.frontend]
    log_power = normal * (2 * std) + mean
    return log_power.masked_fill_(log_power < math.log(floor) + FLOOR_MARGIN, -math.inf)


def louder(normal: Tensor, db: float, audio: AudioGeometry) -> Tensor:
    """What is stored of the same sound played `db` louder. Silence stays silence."""
    return normal if db == 0 else normalised(log_power(normal, audio) + db * math.log(10) / 10, audio)


def audio_valid(column_valid_TS: np.ndarray, geometry: ClipGeometry) -> np.ndarray:
    """bool [T, N_audio]: a patch is valid when at least one of its columns is; patches by rows (bins), then columns."""
    audio = geometry.audio
    rows, columns = audio.grid
    valid = np.asarray(column_valid_TS).astype(bool)
    starts = [i * audio.patch_step[1] for i in range(columns)]
    along = np.stack([valid[:, start : start + audio.patch_shape[1]].any(axis=1) for start in starts], axis=1)
    return np.tile(along, (1, rows))


def _column_valid(valid: np.ndarray, columns: int, hop: int) -> Tensor:
    """bool [columns]: at least half of the samples of the column's hop are there."""
    covered = np.zeros(columns * hop, bool)
    length = min(len(valid), len(covered))
    covered[:length] = valid[:length]
    share = covered.reshape(columns, hop).sum(axis=1)
    present = np.minimum(hop, np.maximum(1, len(valid) - np.arange(columns) * hop))  # the last hop may be cut by the border
    return torch.from_numpy(2 * share >= present)


def _pooled(power_ZC: Tensor, valid_C: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """At most `columns` columns: mean power of the valid ones under each."""
    if power_ZC.shape[1] <= columns:
        return power_ZC, valid_C
    weight = valid_C.to(power_ZC.dtype)
    total = F.adaptive_avg_pool1d(power_ZC * weight, columns)
    share = F.adaptive_avg_pool1d(weight[None], columns)[0]
    return total / share.clamp_min(1e-12), share > 0


def mel_power(waveform: Tensor, audio: AudioGeometry) -> Tensor:
    """Mel power spectrogram of float32 [n]: [Z, ceil(n / hop)], centred columns, reflected at the window's own borders."""
    columns = math.ceil(len(waveform) / audio.hop_length)
    half = audio.n_fft // 2
    padded = F.pad(waveform, (0, max(0, half + 1 - len(waveform))))
    padded = F.pad(padded[None], (half, half), mode="reflect")[0]
    transform = _torchaudio_mel(audio) if audio.frontend == "mel" else None
    blocks = []
    for first in range(0, columns, BLOCK_COLUMNS):
        count = min(BLOCK_COLUMNS, columns - first)
        block = padded[first * audio.hop_length : (first + count - 1) * audio.hop_length + audio.n_fft]
        blocks.append(transform(block) if transform is not None else torch_mel(block, audio))
    return torch.cat(blocks, dim=1)


def torch_mel(waveform: Tensor, audio: AudioGeometry) -> Tensor:
    """What torchaudio's MelSpectrogram(center=False) computes, bit for bit (HTK scale, no filter normalisation); with Whisper's filters
    what its feature extractor does."""
    window = torch.hann_window(audio.win_length, periodic=True)
    spectrum = torch.stft(
        waveform[None], audio.n_fft, audio.hop_length, audio.win_length, window, center=False, onesided=True, return_complex=True
    )
    power = spectrum.abs().pow(2.0)
    filters = _slaney_filters(audio) if audio.frontend == "whisper" else _mel_filters(audio)
    return torch.matmul(power.transpose(-1, -2), filters).transpose(-1, -2)[0]


@lru_cache(maxsize=4)
def _mel_filters(audio: AudioGeometry) -> Tensor:
    """Triangular filters on the HTK mel scale, [n_fft / 2 + 1, Z]."""
    frequencies = torch.linspace(0, audio.sample_rate // 2, audio.n_fft // 2 + 1)
    top = 2595.0 * math.log10(1.0 + audio.sample_rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, audio.n_mels + 2) / 2595.0) - 1.0)
    return _triangles(frequencies, edges)


@lru_cache(maxsize=4)
def _slaney_filters(audio: AudioGeometry) -> Tensor:
    """Whisper's filters [n_fft / 2 + 1, Z]: Slaney's scale, linear to 1 kHz and logarithmic above, each filter of equal area."""
    frequencies = torch.linspace(0, audio.sample_rate / 2, audio.n_fft // 2 + 1, dtype=torch.float64)
    step = math.log(6.4) / 27
    top = 15.0 + math.log(max(audio.sample_rate / 2, 1000.0) / 1000.0) / step
    mels = torch.linspace(0.0, top, audio.n_mels + 2, dtype=torch.float64)
    edges = torch.where(mels < 15.0, mels * (200.0 / 3), 1000.0 * torch.exp(step * (mels - 15.0)))
    return (_triangles(frequencies, edges) * (2.0 / (edges[2:] - edges[:-2]))).float()


def _triangles(frequencies: Tensor, edges: Tensor) -> Tensor:
    """[frequencies, Z]: filter i rises from edge i to 1 at edge i + 1 and falls to edge i + 2."""
    between = edges[1:] - edges[:-1]
    slopes = edges[None] - frequencies[:, None]
    falling, rising = -slopes[:, :-2] / between[:-1], slopes[:, 2:] / between[1:]
    return torch.clamp(torch.minimum(falling, rising), min=0)


@lru_cache(maxsize=1)
def _torchaudio() -> Any | None:
    """torchaudio, or None: its wheels fail with ImportError, OSError or RuntimeError beside a torch they were not built for."""
    try:
        import torchaudio.transforms

        return torchaudio
    except Exception:
        return None


@lru_cache(maxsize=4)
def _torchaudio_mel(audio: AudioGeometry) -> Any | None:
    library = _torchaudio()
    if library is None:
        return None
    return library.transforms.MelSpectrogram(
        sample_rate=audio.sample_rate,
        n_fft=audio.n_fft,
        win_length=audio.win_length,
        hop_length=audio.hop_length,
        n_mels=audio.n_mels,
        center=False,
    )


def kaldi_power(waveform: Tensor, audio: AudioGeometry) -> Tensor:
    """Kaldi's mel filterbank power [Z, columns] as AST was trained with: `torchaudio.compliance.kaldi.fbank` with
    htk_compat, a Hann window, no dither, no energy, before its logarithm. Frames lie inside the window (snip_edges)."""
    if len(waveform) < audio.win_length:
        waveform = F.pad(waveform, (0, audio.win_length - len(waveform)))
    frames = waveform.unfold(0, audio.win_length, audio.hop_length)
    blocks = [_kaldi_block(block, audio) for block in frames.split(BLOCK_COLUMNS)]
    return torch.cat(blocks).T


def _kaldi_block(frames_CW: Tensor, audio: AudioGeometry) -> Tensor:
    n_fft = 1 << (audio.win_length - 1).bit_length()
    frames = frames_CW - frames_CW.mean(dim=1, keepdim=True)
    previous = F.pad(frames[None], (1, 0), mode="replicate")[0][:, :-1]
    frames = (frames - 0.97 * previous) * torch.hann_window(audio.win_length, periodic=False)
    power = torch.fft.rfft(F.pad(frames, (0, n_fft - audio.win_length))).abs().pow(2.0)
    return torch.mm(power, _kaldi_filters(audio, n_fft).T)


@lru_cache(maxsize=4)
def _kaldi_filters(audio: AudioGeometry, n_fft: int) -> Tensor:
    """Kaldi's filters [Z, n_fft / 2 + 1]: triangles in mel, from 20 Hz to half the sample rate, nothing at that last bin."""

    def mel(frequency: float) -> float:
        return 1127.0 * math.log(1.0 + frequency / 700.0)

    low, high = mel(20.0), mel(0.5 * audio.sample_rate)
    step = (high - low) / (audio.n_mels + 1)
    number = torch.arange(audio.n_mels)[:, None]
    left, centre, right = low + number * step, low + (number + 1.0) * step, low + (number + 2.0) * step
    bins = 1127.0 * (1.0 + (audio.sample_rate / n_fft) * torch.arange(n_fft / 2) / 700.0).log()[None]
    triangles = torch.clamp(torch.minimum((bins - left) / (centre - left), (right - bins) / (right - centre)), min=0)
    return F.pad(triangles, (0, 1))
