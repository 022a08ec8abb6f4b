"""How fast a GPU is at every step, each beside its alternative: the parts `speed` of tools/gpu_check.py."""

import time

import numpy as np
import torch
from gpu_correct import planted, planted_folds
from gpu_parts import Bench, clip_source, noise, pass_settings, random_encoder, write_clips
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from pez.encoder import blocks
from pez.encoder.attention import attention_plans
from pez.encoder.compute import compiled
from pez.encoder.extract import _batches, encode_pooled, extract_features, store_settings, with_content
from pez.encoder.flops import encoder_flops, matmul_rate, wait
from pez.encoder.vjepa2 import VJEPA2
from pez.mechanisms.ablation import masks
from pez.mechanisms.attention import attention_of
from pez.mechanisms.geometry import Condition, token_grid
from pez.probes.solvers import sweep as solver_sweep
from pez.probes.solvers.attentive_model import AttentiveClassifier
from pez.probes.solvers.attentive_stack import initial_parameters, stack_size
from pez.probes.solvers.attentive_training import AttentiveProbe, Recipe, _batch_order, learning_rate, train
from pez.probes.solvers.linear import linear_solver
from pez.probes.validation.cross_validate import cross_validate
from pez.store import FeatureStore

ONE = {"captures": ["resid_post"], "poolings": ["temporal_last"]}
SIX = {"captures": ["resid_pre", "resid_post"], "poolings": ["mean", "temporal_last", "temporal_diff"]}
N_CLIPS = 672


def clips(bench: Bench) -> None:
    """Clips of noise as PNGs, made while the checks run."""
    n_clips = 8 if bench.small else N_CLIPS
    start = time.perf_counter()
    write_clips(bench.folder / "clips", n_clips, 256, bench.cores)
    bench.add("clips written", clips=n_clips, seconds=time.perf_counter() - start)


def rates(bench: Bench) -> None:
    """What the device can do: matrix products, copies, attention of Large's shape."""
    for dtype in (torch.bfloat16, torch.float32):
        bench.add(f"matrix products, {dtype}", tflops=matmul_rate(bench.device, dtype) / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = True
    bench.add("matrix products, TF32", tflops=matmul_rate(bench.device, torch.float32) / 1e12)
    torch.backends.cuda.matmul.allow_tf32 = False
    source = torch.randn(2**20 if bench.small else 2**30, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.seconds(lambda: target.copy_(source))
    bench.add("copies on the device, bytes read and written", tb_per_s=8 * len(source) / seconds / 1e12)
    source = target = None  # memory for what follows
    for heads, width, tokens in ((2, 64, 64),) if bench.small else ((16, 64, 2048), (16, 80, 2048), (22, 64, 4608)):
        qkv = torch.randn(3, 16, heads, tokens, width, device=bench.device, dtype=torch.bfloat16)
        work = 4 * 16 * heads * tokens**2 * width
        for name, backend in _backends(bench).items():
            row = {"heads": heads, "head": width, "tokens": tokens}
            try:
                with torch.nn.attention.sdpa_kernel(backend):
                    seconds = bench.seconds(lambda: F.scaled_dot_product_attention(*qkv))  # noqa: B023
            except RuntimeError as error:  # this backend does not do this shape here
                bench.add(f"attention, {name}", **row, why_not=str(error).splitlines()[0])
                continue
            bench.add(f"attention, {name}", **row, tflops=work / seconds / 1e12)


def _backends(bench: Bench) -> dict:
    backends = torch.nn.attention.SDPBackend
    if not bench.on_gpu:
        return {"math": backends.MATH}
    return {"flash": backends.FLASH_ATTENTION, "cuDNN": backends.CUDNN_ATTENTION}


def _model(bench: Bench, model: str, own: bool = True):
    if bench.small:
        return random_encoder("tiny", bench.device, 64, own)
    return random_encoder(model, bench.device, None, own)


def _pass_rows(bench: Bench, title: str, encoder, sizes=(16,)) -> None:
    """Passes with one pooling captured, as step 2 makes them; frames lie on the device."""
    rate = matmul_rate(bench.device, torch.bfloat16)
    for size in sizes:
        frames = noise(size, encoder.resolution).to(bench.device)
        settings = pass_settings(encoder)
        seconds = bench.seconds(lambda: encode_pooled(encoder, frames, settings), rounds=6, warm=2)  # noqa: B023
        done = size * encoder_flops(encoder.spec, 16) / seconds
        row = {"batch": size, "ms": 1000 * seconds, "clips_per_s": size / seconds, "tflops": done / 1e12}
        bench.add(title, **row, share_of_matmul=done / rate, matmul_tflops=rate / 1e12)


def _both_blocks(bench: Bench, model: str, sizes) -> VJEPA2:
    """transformers' blocks, then our own with either attention; returns the encoder with our own."""
    _pass_rows(bench, f"{model}, transformers' blocks", _model(bench, model, own=False), sizes[:1])
    encoder = _model(bench, model)
    if bench.on_gpu:
        before, blocks.CUDNN_FROM = blocks.CUDNN_FROM, (99, 0)
        _pass_rows(bench, f"{model}, own blocks, FlashAttention", encoder, sizes[:1])
        blocks.CUDNN_FROM = before
    _pass_rows(bench, f"{model}, own blocks", encoder, sizes)
    return encoder


def large(bench: Bench) -> None:
    """Large: batch sizes, then what a pass spends its time on."""
    encoder = _both_blocks(bench, "large", (2,) if bench.small else (16, 4, 32))
    frames, settings = noise(2 if bench.small else 16, encoder.resolution).to(bench.device), pass_settings(encoder)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if bench.on_gpu else [])]
    with profile(activities=kinds) as profiler:
        encode_pooled(encoder, frames, settings)
        wait(bench.device)
    events = profiler.key_averages()
    own = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    kernels = [event for event in events if getattr(event, own) > 0]
    if bench.on_gpu:  # the profile lists operators too, with the time of their kernels
        kernels = [event for event in kernels if str(event.device_type).endswith("CUDA")]
    total = sum(getattr(event, own) for event in kernels)
    for event in sorted(kernels, key=lambda event: -getattr(event, own))[:15]:
        spent = getattr(event, own)
        bench.add("profile of a pass", kernel=event.key[:110], ms=spent / 1000, share=spent / total, calls=event.count)
    bench.add("profile of a pass, all kernels", ms=total / 1000, calls=sum(event.count for event in kernels))


def huge(bench: Bench) -> None:
    """Huge, with either's blocks."""
    _both_blocks(bench, "huge", (2,) if bench.small else (16,))


def giant(bench: Bench) -> None:
    """Giant, with either's blocks."""
    _both_blocks(bench, "giant", (2,) if bench.small else (16,))


def giant_384(bench: Bench) -> None:
    """Giant of 384 pixels, with either's blocks."""
    _both_blocks(bench, "giant_384", (2,) if bench.small else (16,))


def compiling(bench: Bench) -> None:
    """Large with compiled blocks: how long until the first pass, and how fast then."""
    encoder = _model(bench, "large")
    frames, settings = noise(2 if bench.small else 16, encoder.resolution).to(bench.device), pass_settings(encoder)
    start = time.perf_counter()
    dtype = torch.bfloat16
    fast, why = compiled(encoder, lambda each: encode_pooled(each, frames, settings), dtype)
    bench.add("large, compiling", seconds=time.perf_counter() - start, why_not=why)
    _pass_rows(bench, "large, compiled", fast, (2,) if bench.small else (16,))


def extraction(bench: Bench) -> None:
    """Step 2 of Large from PNGs to the store: one branch, six, patches; and decoding alone."""
    n_clips = 8 if bench.small else N_CLIPS
    write_clips(bench.folder / "clips", n_clips, 256, bench.cores)  # only the missing ones
    encoder = _model(bench, "large")
    flops = encoder_flops(encoder.spec, 16)
    rate = matmul_rate(bench.device, torch.bfloat16)
    encode_pooled(encoder, noise(16, encoder.resolution), pass_settings(encoder))

    def run(title: str, n_clips: int, **branch) -> None:
        source = clip_source(bench.folder / "clips", n_clips)
        start = time.perf_counter()
        store = extract_features(encoder, source, bench.folder / "stores" / title.replace(" ", "_"), **branch)
        seconds = time.perf_counter() - start
        size = sum(path.stat().st_size for path in (store.directory / "shards").iterdir())
        row = {"clips": n_clips, "seconds": seconds, "clips_per_s": n_clips / seconds, "gb": size / 1e9}
        bench.add(f"step 2, {title}", **row, share_of_matmul=flops * n_clips / seconds / rate)

    run("one branch", n_clips, **ONE)
    run("six branches", n_clips, **SIX)
    run("one branch again", n_clips, **ONE)
    start = time.perf_counter()
    source = clip_source(bench.folder / "clips", n_clips)
    table = with_content(source)
    hashed = time.perf_counter() - start
    settings = store_settings(encoder, source, **ONE)
    store = FeatureStore.plan(bench.folder / "decoding", settings, table, None)
    shards = [store.clips_of(shard)["clip_id"].tolist() for shard in range(store.n_shards)]
    start = time.perf_counter()
    first, decoded = None, 0
    for batch in _batches(store, encoder, source, shards, 16, None):
        first = first or time.perf_counter() - start
        decoded += len(batch)
    seconds = time.perf_counter() - start
    row = {"clips": decoded, "seconds": seconds, "clips_per_s": decoded / seconds, "first_batch_s": first}
    bench.add("decoding alone", **row, hashing_s=hashed, cores=bench.cores)
    patches = {"captures": ["resid_post"], "poolings": ["temporal_last_patch"]}
    run("patches", n_clips // 4, **patches)


def sweep(bench: Bench) -> None:
    """Figure 2(c) at Large's size: 24 layers, 392 clips, 20 settings, both protocols; and a layer of it on the CPU."""
    layers, n_clips, width = (2, 98, 64) if bench.small else (24, 392, 1024)
    data = planted(layers, n_clips, width)
    folds = [planted_folds(data)]

    def run(title: str, device: str, own, protocols) -> None:
        solver = linear_solver("trainable", device=device, threads=bench.cores)
        start = time.perf_counter()
        cross_validate(own, folds, solver, protocols)
        row = {"layers": len(own.layers), "protocols": "+".join(protocols)}
        bench.add(title, seconds=time.perf_counter() - start, **row)

    both = ("paper", "nested")
    first = planted(1, n_clips, width)
    run("sweep, warming up", str(bench.device), first, ("paper",))
    run("sweep", str(bench.device), data, both)
    run("sweep", str(bench.device), data, ("paper",))
    mixed = solver_sweep._batches
    solver_sweep._batches = lambda *given, alike=True: mixed(*given, alike=True)  # as a CPU has them
    run("sweep, a batch ends where the next problem is not alike", str(bench.device), data, both)
    solver_sweep._batches = mixed
    run(f"sweep on {bench.cores} cores", "cpu", first, both)


def attentive(bench: Bench) -> None:
    """Figure 8 of Large: probes over 256 tokens of width 1024 of 360 movies, and what all of them would take."""
    clips_, tokens, width, heads = (24, 8, 32, 4) if bench.small else (360, 256, 1024, 16)
    n_layers, n_folds, epochs = (1, 2, 1) if bench.small else (2, 5, 1)
    generator = torch.Generator(bench.device).manual_seed(0)
    drawn = [
        torch.randn(clips_, tokens, width, device=bench.device, generator=generator).half() for _ in range(n_layers)
    ]
    labels = (torch.arange(clips_) // 2 % 2).float()
    fold = np.arange(clips_) % n_folds
    problems = [
        AttentiveProbe(layer, k, 1e-4, 0.01, np.flatnonzero(fold != k), np.flatnonzero(fold == k))
        for layer in range(n_layers)
        for k in range(n_folds)
    ]
    sizes = Recipe(num_heads=heads).sizes(width)
    free = torch.cuda.mem_get_info(bench.device)[0] if bench.on_gpu else 2**31
    fits = stack_size(sizes, 16, tokens, bench.device, int(0.7 * free))
    n_starts = n_layers * n_folds
    start = time.perf_counter()
    initial_parameters(list(range(n_starts)), sizes, bench.device)
    drawing = (time.perf_counter() - start) / n_starts
    bench.add("attentive, drawing first weights", probes=n_starts, s_a_probe=drawing, stack_fits=fits)
    for dtype in ("bfloat16", "float32"):
        if dtype == "float32":
            problems = problems[: len(problems) // 2]
        kinds = {"stacked": problems, "one at a time": problems[:2]}
        epoch = {}
        for name, own in kinds.items():
            took = []
            for n_epochs in (epochs, epochs, 2 * epochs):  # the first warms up
                recipe = Recipe(num_heads=heads, num_epochs=n_epochs, dtype=dtype)
                start = time.perf_counter()
                if name == "stacked":
                    list(train(own, drawn.__getitem__, labels, recipe, bench.device, min(fits, len(own))))
                else:
                    for problem in own:
                        _alone(problem, drawn, labels, recipe, bench.device)
                wait(bench.device)
                took.append(time.perf_counter() - start)
            epoch[name] = (took[2] - took[1]) / epochs / len(own)
            row = {"probes": len(own), "steps": len(_batch_order(problems[0], Recipe(num_epochs=1)))}
            bench.add(f"attentive, {name}, {dtype}", **row, s_a_probe_and_epoch=epoch[name])
        # 24 layers, five outer folds and five inner ones with 3/4 of the steps, 20 epochs
        outer = 24 * 5
        whole = {name: outer * (2 * drawing + 1.75 * 20 * each) / 60 for name, each in epoch.items()}
        ratio = epoch["one at a time"] / epoch["stacked"]
        bench.add(f"Figure 8 of Large, projected, {dtype}", minutes=whole, stacked_is_faster_by=ratio)


def _alone(problem: AttentiveProbe, tokens, labels: torch.Tensor, recipe: Recipe, device) -> None:
    """The usual loop: a module and its own optimiser."""
    torch.manual_seed(0)
    with torch.device(device):
        probe = AttentiveClassifier(**recipe.sizes(tokens[0].shape[-1]))
    optimizer = torch.optim.AdamW(probe.parameters(), lr=problem.lr, weight_decay=problem.weight_decay, fused=True)
    batches = _batch_order(problem, recipe)
    for step, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = learning_rate(step, len(batches), problem.lr, recipe)
        optimizer.zero_grad()
        inputs = tokens[problem.layer][batch.to(device)].float()
        inputs = F.layer_norm(inputs, inputs.shape[-1:])
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=recipe.dtype == "bfloat16"):
            logits = probe(inputs)[:, 0].float()
        F.binary_cross_entropy_with_logits(logits, labels[batch].to(device)).backward()
        optimizer.step()


def mechanisms(bench: Bench) -> None:
    """Statistics of every head's attention, and masked keys, beside a plain pass of Large: time and memory."""
    encoder = _model(bench, "large")
    frames, settings = noise(4, encoder.resolution).to(bench.device), pass_settings(encoder)
    grid = token_grid(encoder, 16)
    dropped = Condition("union", s=3, t=1).dropped(grid).to(bench.device)
    plans = {block: masks(dropped, "zero") for block in range(encoder.depth)}
    peaks: dict[str, int] = {}

    def masked() -> None:
        with attention_plans(encoder, plans):
            encode_pooled(encoder, frames, settings)

    def statistics() -> None:
        with torch.inference_mode(), torch.autocast(bench.device.type, torch.bfloat16):
            attention_of(encoder, frames, grid)

    kinds = {"plain": lambda: encode_pooled(encoder, frames, settings), "attention": statistics, "masked": masked}
    for name, work in kinds.items():
        if bench.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        seconds = bench.seconds(work, rounds=3)
        peaks[name] = torch.cuda.max_memory_allocated() if bench.on_gpu else 1
        row = {"batch": len(frames), "clips_per_s": len(frames) / seconds}
        bench.add(f"mechanisms, {name} pass", **row, peak_of_plain=peaks[name] / peaks["plain"])


# name: (function, seconds at most, whether it needs the device for itself)
PARTS = {
    "clips": (clips, 90, False),
    "rates": (rates, 40, True),
    "large": (large, 60, True),
    "extraction": (extraction, 120, True),
    "sweep": (sweep, 60, True),
    "attentive": (attentive, 75, True),
    "giant_384": (giant_384, 60, True),
    "giant": (giant, 45, True),
    "huge": (huge, 45, True),
    "compiling": (compiling, 90, True),
    "mechanisms": (mechanisms, 45, True),
}
