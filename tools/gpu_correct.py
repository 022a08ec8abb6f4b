"""Whether a GPU gives the CPU's answers: the parts `correct` of tools/gpu_check.py."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from gpu_parts import (
    Bench,
    clip_source,
    error,
    noise,
    official_state,
    pass_settings,
    random_encoder,
    rms_error,
    write_clips,
)

from constants import MODELS, REPOSITORY
from pez.encoder.extract import encode_pooled, extract_features
from pez.encoder.loading import load_encoder
from pez.movies.intphys import INTPHYS, SUBTASKS
from pez.probes.data.movies import movie_data
from pez.probes.data.probe_data import ProbeData, Variable
from pez.probes.folds import Folds, repeated_scene_folds
from pez.probes.scores.score import Scored
from pez.probes.solvers.attentive_training import AttentiveProbe, Recipe, train
from pez.probes.solvers.linear import LinearSolver, linear_solver
from pez.probes.solvers.regression import Setting
from pez.probes.validation.cross_validate import cross_validate
from pez.store import FeatureStore, tensor_name

FIXTURES = {"vjepa2_small_giantlike": 2, "vjepa2_small_headdim64": 1}  # file: attention heads
DATA = REPOSITORY / "tests" / "data"


def fixtures(bench: Bench) -> None:
    """Encoders whose states are known from the original implementation."""
    for name, heads in FIXTURES.items():
        expected = np.load(DATA / f"{name}.expected.npz")
        encoder = load_encoder("custom", str(DATA / f"{name}.pt"), num_heads=heads, device=str(bench.device))
        frames = torch.from_numpy(expected["clip"]).permute(0, 3, 1, 2)[None]
        for dtype in ("float32", "bfloat16"):
            pooled = encode_pooled(
                encoder, frames, pass_settings(encoder, ["resid_pre", "resid_post"], ["mean"], dtype)
            )
            off = max(
                error(pooled[tensor_name("mean", state)][0], torch.from_numpy(expected["resid_mean"][state]))
                for state in range(encoder.depth + 1)
            )
            bench.check(f"{name} {dtype}, against the original", off, 1e-4 if dtype == "float32" else 0.1)


def encoders(bench: Bench) -> None:
    """The shipped tiny, and a Large in the format of Meta's files, against the CPU."""
    large = "tiny" if bench.small else "large"
    file = bench.folder / "official.pt"
    torch.save({MODELS[large].checkpoint_key or "target_encoder": official_state(MODELS[large])}, file)
    for title, model, weights, n_clips in (
        ("tiny, trained", "tiny", None, 2),
        (f"{large}, random, Meta's format", large, str(file), 1),
    ):
        on_device = load_encoder(model, weights, device=str(bench.device))
        on_cpu = on_device if not bench.on_gpu else load_encoder(model, weights)
        frames = noise(n_clips, on_cpu.resolution)
        both = ["resid_pre", "resid_post"]
        poolings = ["mean", "temporal_last", "temporal_diff", "temporal_last_patch"]
        start = time.perf_counter()
        expected = encode_pooled(on_cpu, frames, pass_settings(on_cpu, both, poolings, "float32"))
        took = time.perf_counter() - start
        for dtype in ("float32", "bfloat16"):
            actual = encode_pooled(on_device, frames, pass_settings(on_device, both, poolings, dtype))
            for pooling in poolings:
                names = [name for name in expected if name.startswith(f"{pooling}.")]
                off = max(error(actual[name], expected[name]) for name in names)
                rms = max(rms_error(actual[name], expected[name]) for name in names)
                most = 1e-4 if dtype == "float32" else 0.2  # a difference of two tubelets is small itself
                bench.check(f"{title}, {pooling}, {dtype}", off, most, rms=rms, cpu_seconds=took)
        same = encode_pooled(on_device, frames, pass_settings(on_device, both, poolings, "bfloat16"))
        again = encode_pooled(on_device, frames, pass_settings(on_device, both, poolings, "bfloat16"))
        equal = all(torch.equal(same[name], again[name]) for name in same)
        bench.holds(f"{title}: the same pass twice gives the same bytes", equal)


def stores(bench: Bench) -> None:
    """Step 2 as a command: whole, killed and resumed, and by two processes at once on one device: the same bytes."""
    n_clips = 48 if bench.small else 512
    write_clips(bench.folder / "small_clips", n_clips, 64, bench.cores)
    command = [sys.executable, "step2_extract.py", "--model", "tiny", "--clips", str(bench.folder / "small_clips")]
    command += ["--device", str(bench.device), "--pooling", "temporal_last_patch", "--workers", "2"]
    command += ["--model-resolution", "64"] if bench.small else []
    roots = {name: bench.folder / f"store_{name}" for name in ("whole", "killed", "shared")}

    def start(name: str, *options: str) -> subprocess.Popen:
        log = (bench.folder / f"step2_{name}.log").open("a")
        own = [*command, "--output-root", str(roots[name]), *options]
        return subprocess.Popen(own, cwd=REPOSITORY, stdout=log, stderr=log)

    shards = roots["killed"] / "small_clips" / "shards"
    killed, whole = start("killed"), start("whole")
    pair = [start("shared", "--num-shards", "2", "--shard-index", str(index)) for index in range(2)]
    while killed.poll() is None and len(list(shards.glob("*.safetensors"))) < 2:
        time.sleep(0.002)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    done = len(list(shards.glob("*.safetensors")))
    of = -(-n_clips // 16)
    bench.holds("killed between shards", 0 < done < of, shards_done=done, of=of)
    codes = [whole.wait(), *(process.wait() for process in pair), start("killed").wait()]
    bench.holds("all four commands end well", codes == [0] * 4, codes=codes)
    expected = _bytes(roots["whole"])
    for name, title in (("killed", "resumed after a kill"), ("shared", "two processes on one device")):
        actual = _bytes(roots[name])
        bench.holds(f"{title}: the bytes of an undisturbed run", len(actual) == of and actual == expected, shards=of)


def _bytes(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(root.glob("*/shards/*.safetensors"))}


def memory(bench: Bench) -> None:
    """A batch that does not fit the memory that another tensor leaves free on the device."""
    encoder = random_encoder("tiny" if bench.small else "large", bench.device)
    settings = pass_settings(encoder, poolings=["temporal_last", "temporal_last_patch"], dtype="float32")
    frames = noise(8 if bench.small else 16, encoder.resolution)
    expected = encode_pooled(encoder, frames, settings)
    if not bench.on_gpu:
        bench.add("batch halving", note="memory runs out on a GPU only")
        return
    expected = {name: tensor.cpu() for name, tensor in expected.items()}
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    encode_pooled(encoder, frames[:4], settings)
    four = torch.cuda.max_memory_allocated() - before
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(bench.device)[0]
    hog = torch.empty(free - int(1.4 * four) - 2**28, dtype=torch.uint8, device=bench.device)
    sizes, forward = [], type(encoder).forward

    def counted(self, batch):
        sizes.append(len(batch))
        return forward(self, batch)

    type(encoder).forward = counted
    try:
        passes = [encode_pooled(encoder, frames, settings) for _ in range(2)]
    finally:
        type(encoder).forward = forward
    off = max(error(own[name], expected[name]) for own in passes for name in expected)
    row = {"free_gib": free / 2**30, "taken_gib": len(hog) / 2**30, "batches_tried": sizes}
    bench.check("batch halving, memory really running out", off, 1e-4, **row)
    bench.holds("the batch was halved", sizes[0] == len(frames) and min(sizes) < len(frames), batches_tried=sizes)


# ---------------------------------------------------------------- probes


def planted(layers: int, clips: int, width: int) -> ProbeData:
    """Features of a few strong directions and noise, and three variables readable in part."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(clips, 24, generator=generator)
    features = [
        latent @ torch.randn(24, width, generator=generator) + 3 * torch.randn(clips, width, generator=generator)
        for _ in range(layers)
    ]
    targets = (latent[:, :3] + 0.3 * torch.randn(clips, 3, generator=generator)).double().numpy()
    variables = tuple(Variable(f"v{k}", "planted", targets[:, [k]], "", (f"v{k}",)) for k in range(3))
    table = pd.DataFrame({"clip_id": [f"clip_{index:04d}" for index in range(clips)]})
    group = np.array([f"g{index % 49:02d}" for index in range(clips)])
    return ProbeData("planted", table, group, variables, tuple(range(layers)), layers, features.__getitem__)


def planted_folds(data: ProbeData) -> Folds:
    """Five."""
    return Folds(data.group, np.array([int(name[1:]) % 5 for name in data.group]))


def linear(bench: Bench) -> None:
    """The sweep of 20 settings and ridge, both protocols, with bootstrap intervals, against the CPU."""
    data = planted(1 if bench.small else 2, 98 if bench.small else 392, 64 if bench.small else 1024)
    for name in ("trainable", "ridge"):
        curves = {}
        for device in ("cpu", str(bench.device)):
            solver = linear_solver(name, device=device, threads=bench.cores if device == "cpu" else None)
            start = time.perf_counter()
            predictions = cross_validate(data, [planted_folds(data)], solver, ("paper", "nested"))
            bench.add(f"{name} on {device}", seconds=time.perf_counter() - start)
            curves[device] = predictions
        for on_cpu, on_device in zip(curves["cpu"], curves[str(bench.device)]):
            spread = np.nanstd(on_cpu.predicted)
            off = float(np.sqrt(np.nanmean((on_cpu.predicted - on_device.predicted) ** 2)) / spread)
            same = sum(on_cpu.choices[key].setting == on_device.choices[key].setting for key in on_cpu.choices)
            mine, theirs = Scored(on_cpu, 1000).table, Scored(on_device, 1000).table
            numbers = mine.select_dtypes("number").columns
            scores = [column for column in numbers if column.startswith("r2")]
            row = {"same_settings": same, "of": len(on_cpu.choices), "columns": scores}
            scored = float(np.nanmax(np.abs(mine[scores].to_numpy() - theirs[scores].to_numpy())))
            title = f"{name}, {on_cpu.protocol}, {on_cpu.variable.name}"
            most = 1e-8 if name == "ridge" else 0.02
            bench.check(f"{title}: predictions, in units of their spread", off, most, **row)
            bench.check(f"{title}: R² and bootstrap intervals", scored, most / 4)


def movies_of(n_scenes: int) -> pd.DataFrame:
    """Movies as the IntPhys reader gives them, two possible and two impossible ones a scene."""
    rows = [
        [f"{block}_{scene:02d}_{movie}", block, subtask, f"{scene:02d}", movie, movie <= 2, 100]
        for block, subtask in SUBTASKS.items()
        for scene in range(1, n_scenes + 1)
        for movie in range(1, 5)
    ]
    return pd.DataFrame(rows, columns=["clip_id", "block", "subtask", "scene", "movie", "possible", "n_frames"])


def ties(bench: Bench) -> None:
    """Layer 0 with mean pooling cannot tell spliced movies apart, also in bfloat16 and with a cut inside a tubelet."""
    encoder = load_encoder("tiny", device=str(bench.device))
    movies, generator = movies_of(3 if bench.small else 6), torch.Generator().manual_seed(0)
    clips = {}
    for _, scene in movies.groupby(["block", "scene"]):
        first, second = torch.randint(0, 256, (2, 16, 3, 192, 192), dtype=torch.uint8, generator=generator)
        spliced = (torch.cat([first[:7], second[7:]]), torch.cat([second[:7], first[7:]]))
        clips |= dict(zip(scene["clip_id"], (first, second, *spliced)))
    for dtype in ("float32", "bfloat16"):
        settings = {
            **encoder.description(), **pass_settings(encoder, ["resid_pre"], ["mean"], dtype), "depth": 1,
            "transform": "resize", "frame_order": "original", "store_dtype": "auto", "shard_clips": 10_000,
            "clip_set": {"name": "intphys", "fingerprint": dtype, "settings": {"n_frames_sample": 16, "n_frames": 100}},
        }  # fmt: skip
        store = FeatureStore.plan(bench.folder / "ties" / dtype / "intphys", settings, movies, None)
        name = tensor_name("mean", 0)
        wanted = {**settings, "captures": ["resid_pre"]}
        states = [
            encode_pooled(encoder, torch.stack([clips[clip] for clip in part]), wanted)[name].cpu()
            for part in np.array_split(store.clips_of(0)["clip_id"].to_numpy(), -(-len(movies) // 12))
        ]
        store.write_shard(0, {name: torch.cat(states)})
        data = movie_data(FeatureStore.open(store.directory), INTPHYS, "resid_pre", "mean")
        folds = repeated_scene_folds(data.clips, 3, 0, 1)
        solver = LinearSolver(tuple(Setting(rate, 0.01) for rate in (1e-3, 5e-3)), epochs=60, device=str(bench.device))
        for own in cross_validate(data, folds, solver, ("paper", "nested"), metric="relative_accuracy"):
            row = Scored(own, 50).table.set_index("part").loc["overall"]
            values = {"ties": int(row["n_ties"]), "scenes": int(row["n_scenes"])}
            values["relative_accuracy"] = float(row["relative_accuracy_pooled"])
            exact = values["ties"] == values["scenes"] and values["relative_accuracy"] == 0.5
            bench.holds(f"layer 0 ties, {dtype}, {own.protocol}", exact, **values)


def attentive(bench: Bench) -> None:
    """Attentive probes, stacked or not, against the CPU's logits."""
    clips, tokens, width, layers = (24, 8, 32, 1) if bench.small else (60, 64, 128, 2)
    drawn = torch.randn(layers, clips, tokens, width, generator=torch.Generator().manual_seed(0))
    labels = (torch.arange(clips) // 2 % 2).float()
    drawn[..., 0] += labels[:, None]
    fold = np.arange(clips) % 3
    problems = [
        AttentiveProbe(layer, k, 1e-4, 0.1, np.flatnonzero(fold != k), np.flatnonzero(fold == k))
        for layer in range(layers)
        for k in range(3)
    ]

    def scores(device, size: int, dtype: str = "float32") -> torch.Tensor:
        recipe = Recipe(num_probe_blocks=4, num_heads=4, num_epochs=4, dtype=dtype)
        on = drawn.to(device)
        by_problem = {id(p): own for p, own in train(problems, on.__getitem__, labels, recipe, device, size)}
        return torch.from_numpy(np.concatenate([by_problem[id(p)].ravel() for p in problems]))

    expected = scores(torch.device("cpu"), 4)
    for size in (1, len(problems)):
        bench.check(f"attentive, stacks of {size}, float32", error(scores(bench.device, size), expected), 2e-3)
    low = scores(bench.device, len(problems), "bfloat16")
    bench.check("attentive, bfloat16", error(low, expected), 0.2, rms=rms_error(low, expected))
    again = scores(bench.device, len(problems), "bfloat16")
    bench.add("attentive, bfloat16, twice", same_bytes=torch.equal(low, again), value=error(again, low))


def compiling(bench: Bench) -> None:
    """--compile on and off: the same features to rounding, or a reason why it is not used."""
    n_clips = 4 if bench.small else 40
    write_clips(bench.folder / "compile_clips", n_clips, 64, bench.cores)
    source = clip_source(bench.folder / "compile_clips", n_clips)
    encoder = load_encoder("tiny", device=str(bench.device))
    stored, took = {}, {}
    for on in (False, True):
        start = time.perf_counter()
        options = {"captures": ["resid_post"], "poolings": ["temporal_last"], "compile_blocks": on, "workers": 0}
        stored[on] = extract_features(encoder, source, bench.folder / f"compile_{on}", **options)
        took[on] = time.perf_counter() - start
    used = stored[True].settings.get("compiled", False)
    layers = [store.layer("resid_post", "temporal_last", encoder.depth - 1) for store in stored.values()]
    row = {"used": used, "seconds_without": took[False], "seconds_with": took[True]}
    low = stored[False].settings["dtype"] != "float32"
    bench.check("--compile on and off, last layer", rms_error(layers[1], layers[0]), 0.05 if low else 1e-4, **row)


# name: (function, seconds at most, whether it needs the device for itself)
PARTS = {
    "fixtures": (fixtures, 60, False),
    "stores": (stores, 100, False),
    "encoders": (encoders, 100, False),
    "linear": (linear, 100, False),
    "compiling": (compiling, 80, False),
    "ties": (ties, 60, False),
    "attentive": (attentive, 60, False),
    "memory": (memory, 45, True),
}
