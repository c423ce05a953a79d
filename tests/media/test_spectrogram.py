import importlib
import subprocess
import sys
import types

import numpy as np
import pytest
import torch

from mirasol_cli.geometry import AudioGeometry, ClipGeometry
from mirasol_cli.media import spectrogram
from mirasol_cli.media.audio import Window

AUDIO = AudioGeometry()


def noise(samples, seed=0):
    return torch.randn(samples, generator=torch.Generator().manual_seed(seed)) * 0.1


def window(samples=40960, seed=0, valid=None):
    waveform = noise(samples, seed).numpy()
    return Window(waveform, np.ones(samples, bool) if valid is None else valid)


@pytest.fixture(scope="module")
def torchaudio():
    """torchaudio's Python part, with a stand-in for its compiled part, which a CPU build of torch cannot load."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]
    stand_in = types.ModuleType("torchaudio._extension")
    stand_in._IS_TORCHAUDIO_EXT_AVAILABLE = stand_in._IS_ALIGN_AVAILABLE = stand_in._IS_RIR_AVAILABLE = False
    stand_in._check_cuda_version = lambda: None
    stand_in.fail_if_no_align = stand_in.fail_if_no_rir = lambda function: function
    sys.modules["torchaudio._extension"] = stand_in
    library = pytest.importorskip("torchaudio")
    importlib.import_module("torchaudio.compliance.kaldi")
    yield library
    for name in [name for name in sys.modules if name.split(".")[0] == "torchaudio"]:
        del sys.modules[name]


@pytest.mark.parametrize("samples", [40960, 16000, 1000])
def test_the_torch_path_equals_torchaudio_bit_for_bit(torchaudio, samples, monkeypatch):
    for audio in (AUDIO, AudioGeometry(n_mels=64, n_fft=512, win_length=320, hop_length=100, columns=64)):
        monkeypatch.setattr(spectrogram, "_torchaudio_mel", lambda audio: None)
        ours = spectrogram.mel_power(noise(samples), audio)
        whole = torchaudio.transforms.MelSpectrogram(
            sample_rate=16000, n_fft=audio.n_fft, win_length=audio.win_length, hop_length=audio.hop_length, n_mels=audio.n_mels
        )(noise(samples))
        assert torch.equal(ours, whole[:, : ours.shape[1]])
        monkeypatch.undo()
        spectrogram._torchaudio.cache_clear()
        spectrogram._torchaudio_mel.cache_clear()
        try:
            assert spectrogram._torchaudio() is not None
            assert torch.equal(spectrogram.mel_power(noise(samples), audio), ours)
        finally:
            spectrogram._torchaudio.cache_clear()
            spectrogram._torchaudio_mel.cache_clear()


def test_blocks_are_invisible(monkeypatch):
    whole = spectrogram.mel_power(noise(60000), AUDIO)
    whole_ast = spectrogram.kaldi_power(noise(60000), AUDIO)
    monkeypatch.setattr(spectrogram, "BLOCK_COLUMNS", 100)
    torch.testing.assert_close(spectrogram.mel_power(noise(60000), AUDIO), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(spectrogram.kaldi_power(noise(60000), AUDIO), whole_ast, rtol=1e-5, atol=1e-6)


def test_a_broken_torchaudio_is_no_obstacle():
    code = (
        "import sys, types\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.startswith('torchaudio'): raise OSError('libc10_cuda.so: cannot open shared object file')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from mirasol_cli.media import spectrogram\n"
        "assert spectrogram._torchaudio() is None\n"
        "assert 'av' not in sys.modules and 'decord' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_ast_front_end_is_kaldis_filterbank(torchaudio):
    audio = AudioGeometry(frontend="ast")
    waveform = noise(40960)
    theirs = torchaudio.compliance.kaldi.fbank(
        waveform[None], htk_compat=True, sample_frequency=16000, use_energy=False, window_type="hanning", num_mel_bins=128,
        dither=0.0, frame_shift=10,
    )  # fmt: skip
    ours = spectrogram.kaldi_power(waveform, audio).clamp_min(spectrogram.AST_FLOOR).log().T
    assert ours.shape == theirs.shape == (254, 128)
    assert torch.equal(ours, theirs)
    mel, valid = spectrogram.chunk_log_mel(window(), audio)
    np.testing.assert_allclose(mel[:, :254].T, (theirs.numpy() + 4.2677393) / (2 * 4.5689974), atol=2e-3)
    assert valid.tolist() == [True] * 254 + [False] * 2
    assert not mel[:, 254:].any()


def test_a_full_window_fills_the_columns():
    mel, valid = spectrogram.chunk_log_mel(window(), AUDIO)
    assert mel.shape == (128, 256)
    assert mel.dtype == np.float16
    assert valid.all()
    power = spectrogram.mel_power(noise(40960), AUDIO)
    expected = (power.clamp_min(spectrogram.MEL_FLOOR).log() - spectrogram.MEL_MEAN) / (2 * spectrogram.MEL_STD)
    assert np.array_equal(mel, expected.half().numpy())


def test_a_short_window_is_padded_and_masked_never_stretched():
    mel, valid = spectrogram.chunk_log_mel(window(16000), AUDIO)
    assert valid.tolist() == [True] * 100 + [False] * 156
    assert not mel[:, 100:].any()
    longer, _ = spectrogram.chunk_log_mel(window(40960), AUDIO)
    assert np.array_equal(mel[:, :96], spectrogram.chunk_log_mel(window(16000), AUDIO)[0][:, :96])
    same_start = spectrogram.mel_power(noise(40960)[:16000], AUDIO)[:, :90]
    torch.testing.assert_close(same_start, spectrogram.mel_power(noise(16000), AUDIO)[:, :90])
    assert longer.shape == mel.shape


def test_tiny_windows_work():
    for samples in (1, 79, 159, 160, 161, 600):
        for frontend in ("mel", "ast"):
            mel, valid = spectrogram.chunk_log_mel(window(samples), AudioGeometry(frontend=frontend))
            assert np.isfinite(mel.astype(float)).all()
            assert 1 <= valid.sum() <= 4


def test_a_long_window_is_pooled_as_power():
    mel, valid = spectrogram.chunk_log_mel(window(2 * 40960), AUDIO)
    assert valid.all()
    power = spectrogram.mel_power(noise(2 * 40960), AUDIO).reshape(128, 256, 2).mean(dim=2)
    expected = (power.clamp_min(spectrogram.MEL_FLOOR).log() - spectrogram.MEL_MEAN) / (2 * spectrogram.MEL_STD)
    np.testing.assert_allclose(mel, expected.numpy(), atol=2e-3)


def test_pooling_counts_only_what_is_there():
    loud = window(4 * 40960)
    loud.valid[: 40960 * 2 + 320] = False
    loud.waveform[: 40960 * 2 + 320] = 0
    mel, valid = spectrogram.chunk_log_mel(loud, AUDIO)
    assert valid.tolist() == [False] * 128 + [True] * 128
    assert not mel[:, :128].any()
    there = spectrogram.mel_power(torch.from_numpy(loud.waveform), AUDIO)[:, 514:516].mean(dim=1)
    expected = (there.clamp_min(spectrogram.MEL_FLOOR).log() - spectrogram.MEL_MEAN) / (2 * spectrogram.MEL_STD)
    np.testing.assert_allclose(mel[:, 128], expected.numpy(), atol=2e-3, err_msg="a half-empty column is not a quiet one")


@pytest.mark.parametrize(("there", "valid"), [(160, True), (80, True), (79, False), (1, False), (0, False)])
def test_a_column_holds_sound_when_half_of_its_hop_does(there, valid):
    gap = window()
    gap.valid[:] = False
    gap.valid[: 1600 + there] = True  # ten whole hops, and a part of the eleventh
    _, columns = spectrogram.chunk_log_mel(gap, AUDIO)
    assert columns[:10].all()
    assert bool(columns[10]) is valid
    assert not columns[11:].any()


def test_no_leak_over_a_border():
    geometry = ClipGeometry(frames=32, chunks=4, size=64)
    windows = [window(40960, seed) for seed in range(4)]
    before = spectrogram.log_mel(windows, geometry)[0]
    windows[2] = window(40960, 99)
    after = spectrogram.log_mel(windows, geometry)[0]
    assert [np.array_equal(before[t], after[t]) for t in range(4)] == [True, True, False, True]


def test_a_patch_is_valid_when_one_of_its_columns_is():
    geometry = ClipGeometry(frames=32, chunks=4, size=64)
    columns = np.zeros((4, 256), bool)
    columns[1, 16] = columns[2, 255] = True
    valid = spectrogram.audio_valid(columns, geometry).reshape(4, 8, 16)
    assert not valid[0].any()
    assert np.flatnonzero(valid[1].any(axis=0)).tolist() == [1]
    assert np.flatnonzero(valid[2].all(axis=0)).tolist() == [15]
    overlapping = ClipGeometry(frames=32, chunks=4, size=64, audio=AudioGeometry(patch_stride=10))
    valid = spectrogram.audio_valid(columns, overlapping).reshape(4, *overlapping.audio.grid)
    assert np.flatnonzero(valid[1, 0]).tolist() == [1]
    assert valid.shape[1:] == (12, 25)
