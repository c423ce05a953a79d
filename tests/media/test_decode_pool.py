"""Supervision: a crash, a hang or a memory blow-up costs one file, with a reason, and nothing else."""

import gc
import os
import subprocess
import sys
import time
import weakref
from multiprocessing import Pipe
from pathlib import Path

import pytest

from mirasol_cli.errors import EnvironmentProblem, MediaError
from mirasol_cli.geometry import ClipGeometry
from mirasol_cli.media.decode_pool import DecodePool
from mirasol_cli.media.decode_worker import Job, serve
from mirasol_cli.media.sampling import ClipRequest
from tests.media.made_clips import clicks, regular, write_clip

GEOMETRY = ClipGeometry(frames=32, chunks=4, size=64)
MISBEHAVING = [sys.executable, str(Path(__file__).with_name("misbehaving_worker.py"))]


def pool(workers=1, **options):
    options.setdefault("time_limit_s", 20.0)
    return DecodePool(workers, GEOMETRY, command=MISBEHAVING, **options)


def run(names, requests=1, **options):
    with pool(**options) as decoders:
        for name in names:
            decoders.submit(name, f"{name}.mp4", [ClipRequest(key=str(k)) for k in range(requests)])
        return dict(decoders.results())


def reasons(result):
    return [part.reason if isinstance(part, MediaError) else "good" for part in result]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("crash", "decoder crashed (signal 11)"),
        ("abort", "decoder crashed (signal 6)"),
        ("fault", "decoder crashed (signal 11)"),
        ("exit", "decoder ended (exit code 3)"),
        ("killed", "decoder killed (signal 9; the machine is out of memory?)"),
        ("error", "RuntimeError: something odd"),
        ("media", "no video stream"),
    ],
)
def test_a_bad_file_costs_itself(kind, reason):
    results = run(["fine", f"second-{kind}", "also-fine"], requests=3)
    assert reasons(results["fine"]) == reasons(results["also-fine"]) == ["good"] * 3
    assert reasons(results[f"second-{kind}"]) == ["good", reason, reason]


def test_the_way_out_travels_with_the_reason():
    (error,) = run(["second-media"], requests=2)["second-media"][1:]
    assert (error.reason, error.hint) == ("no video stream", "a hint")


@pytest.mark.parametrize("kind", ["hang", "spin"])
def test_a_hang_ends_at_the_time_limit(kind):
    begun = time.monotonic()
    results = run([f"second-{kind}", "fine"], requests=2, time_limit_s=1.0)
    assert reasons(results[f"second-{kind}"]) == ["good", "time limit of 1 s"]
    assert reasons(results["fine"]) == ["good", "good"]
    assert time.monotonic() - begun < 30


def test_a_steady_worker_is_not_timed_out():
    results = run(["slow-0.4"], requests=5, time_limit_s=1.5)
    assert reasons(results["slow-0.4"]) == ["good"] * 5


def test_a_slow_consumer_is_not_the_workers_fault():
    with pool(2, time_limit_s=1.0) as decoders:
        for k in range(4):
            decoders.submit(k, "fine.mp4")
        for _, result in decoders.results():
            time.sleep(1.3)
            assert reasons(result) == ["good"]


def test_an_answer_that_comes_while_another_is_used_is_not_late():
    with pool(2, time_limit_s=1.0) as decoders:
        for name in ("fine", "fine"):  # both processes are started: only then the limit holds
            decoders.submit(name, f"{name}.mp4")
        assert all(reasons(result) == ["good"] for _, result in decoders.results())
        for name in ("fine", "slow-0.6"):
            decoders.submit(name, f"{name}.mp4")
        for name, result in decoders.results():
            time.sleep(2.0 if name == "fine" else 0.0)
            assert reasons(result) == ["good"]


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
@pytest.mark.parametrize("kind", ["memory", "creep"])
def test_a_memory_blow_up_is_stopped(kind):
    results = run([f"second-{kind}", "fine"], requests=2, memory_limit_bytes=256 << 20)
    assert reasons(results[f"second-{kind}"]) == ["good", "memory limit"]
    assert reasons(results["fine"]) == ["good", "good"]


@pytest.mark.parametrize("kind", ["crash", "hang", "memory"])
def test_after_decord_dies_the_file_is_tried_with_pyav_alone(kind):
    results = run([f"decord-{kind}", "fine"], requests=2, time_limit_s=1.0, memory_limit_bytes=256 << 20)
    assert reasons(results[f"decord-{kind}"]) == ["good", "good"]
    assert results[f"decord-{kind}"][0]["options"]["use_decord"] is False
    assert [part["key"] for part in results[f"decord-{kind}"]] == ["0", "1"]


def test_workers_are_reused_and_replaced():
    with pool(files_per_worker=3) as decoders:
        for k in range(7):
            decoders.submit(k, "fine.mp4")
        pids = {job: result[0]["pid"] for job, result in decoders.results()}
    assert len({pids[0], pids[1], pids[2]}) == 1
    assert len(set(pids.values())) == 3
    for pid in set(pids.values()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_jobs_run_side_by_side_and_may_be_added_later():
    with pool(2) as decoders:
        decoders.submit("slow", "slow-1.mp4")
        decoders.submit("quick", "fine.mp4")
        seen = []
        for job, _ in decoders.results():
            seen.append(job)
            if job == "quick":
                decoders.submit("later", "fine.mp4")
        assert seen[0] == "quick"
        assert set(seen) == {"slow", "quick", "later"}
        decoders.submit_probe("probe", "x.mp4")
        assert list(decoders.results()) == [("probe", ["x.mp4"])]


def test_a_decoder_that_cannot_start_is_a_problem_of_the_machine(monkeypatch):
    monkeypatch.setenv("MIRASOL_TEST_BROKEN", "1")
    with pytest.raises(EnvironmentProblem, match="video decoding cannot start: ImportError: no decoder here"):
        run(["fine"])
    monkeypatch.delenv("MIRASOL_TEST_BROKEN")
    with DecodePool(1, GEOMETRY, command=[sys.executable, "-c", "import sys; sys.exit(9)"]) as decoders:
        decoders.submit(0, "fine.mp4")
        with pytest.raises(EnvironmentProblem, match="ended while it started"):
            list(decoders.results())


def test_children_end_with_a_killed_parent(tmp_path):
    code = (
        "import sys, os; sys.path.insert(0, os.getcwd())\n"
        "from mirasol_cli.geometry import ClipGeometry\n"
        "from mirasol_cli.media.decode_pool import DecodePool\n"
        f"pool = DecodePool(2, ClipGeometry(frames=32, chunks=4, size=64), command={MISBEHAVING!r})\n"
        "pool.submit(0, 'hang.mp4'); pool.submit(1, 'fine.mp4')\n"
        "for job, result in pool.results():\n"
        "    if not job: break\n"
        "    print(*[worker.process.pid for worker in pool._workers], flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    children = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(children) == 2
    parent.kill()
    parent.wait()
    for _ in range(100):
        left = [pid for pid in children if Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]]
        if not left:
            break
        time.sleep(0.1)
    assert not left


def test_a_sample_has_the_fields_of_a_shard(tmp_path):
    path = write_clip(tmp_path / "clip.mp4", regular(50, 25), audio=clicks([0.5], 2.0))
    with DecodePool(1, GEOMETRY) as pool:
        pool.submit("part", path, [ClipRequest(start_s=0.5, end_s=1.5)])
        pool.submit("nothing", tmp_path / "nothing.mp4")
        results = dict(pool.results())
    (sample,), (problem,) = results["part"], results["nothing"]
    assert sample["span"].tolist() == [0.5, 1.5]
    shapes = {name: (value.dtype.name, value.shape) for name, value in sample.items()}
    tubes = {
        f"tubes.{k}": ("uint8", (4, n, tube.numbers_per_token))
        for k, (n, tube) in enumerate(zip(GEOMETRY.tube_tokens, GEOMETRY.tubes, strict=True))
    }
    assert shapes == tubes | {
        "thumbnails": ("uint8", (4, 4, 32, 32, 3)),
        "mel": ("float16", (4, 128, 256)),
        "mel_valid": ("uint8", (4, 256)),
        "frame_valid": ("uint8", (4, 8)),
        "frame_times": ("float64", (4, 8)),
        "span": ("float64", (2,)),
        "audio_state": ("uint8", ()),
    }
    assert isinstance(problem, MediaError)
    assert "file not found" in problem.reason


def test_the_users_script_is_not_run_again(tmp_path):
    """Library use needs no `if __name__ == "__main__"` guard."""
    path = write_clip(tmp_path / "clip.mp4", regular(25, 25))
    script = tmp_path / "script.py"
    script.write_text(
        "from mirasol_cli.geometry import ClipGeometry\n"
        "from mirasol_cli.media.decode_pool import DecodePool\n"
        "with DecodePool(1, ClipGeometry()) as pool:\n"
        f"    pool.submit_probe('probe', {str(path)!r})\n"
        "    ((_, (info,)),) = pool.results()\n"
        "print('run', info.width)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    (tmp_path / "av.py").write_text("raise SystemExit('an av.py from the current folder')\n")
    done = subprocess.run([sys.executable, "-P", str(script)], env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "run 192\n", done.stderr


def test_what_a_job_leaves_in_cycles_is_gone_when_it_is_done():
    """Decoders leave frames in reference cycles; over the pieces of an hour they would add up to 100 MB."""
    left = []

    class Frame:
        def __init__(self):
            self.itself = self

    def work(job, progress):
        left.append(weakref.ref(Frame()))
        yield "info", [frame() is None for frame in left[:-1]]

    ours, theirs = Pipe()
    for job in (Job(path="a", geometry=GEOMETRY, requests=None, options={}), Job(path="b", geometry=GEOMETRY, requests=None, options={})):
        ours.send(job)
    ours.send(None)
    gc.disable()
    try:
        serve(theirs, work)
    finally:
        gc.enable()
    answers = [ours.recv() for _ in range(5)]
    assert [answer for answer in answers if answer[0] == "info"] == [("info", []), ("info", [True])]
