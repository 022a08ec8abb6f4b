"""The sweep against torch.optim.AdamW, one nn.Linear and setting at a time; ridge against scikit-learn."""

import functools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import pez.probes.solvers.sweep as sweep
from pez.errors import UserError
from pez.probes.solvers.regression import Moments, Setting, moment_regression, paper_settings, row_regression
from pez.probes.solvers.ridge import STRENGTHS, ridge_settings, solve_ridge
from pez.probes.solvers.sweep import solve

N, D = 120, 60
TRAIN, VALIDATION, PREDICT = np.arange(70), np.arange(70, 95), np.arange(95, N)
FEW = (Setting(1e-3, 0.01), Setting(3e-3, 0.8), Setting(5e-3, 0.1))
LOSSES = {
    "mse": torch.nn.functional.mse_loss,
    "logistic": torch.nn.functional.binary_cross_entropy_with_logits,
}


pytestmark = pytest.mark.usefixtures("one_thread")


def make_data():
    """Features and targets with so much noise that a validation loss has a clear minimum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64) * torch.linspace(0.5, 4, D) + 3
    noise = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    return x, x @ torch.randn(D, 3, generator=generator, dtype=torch.float64) / 4 + 5 * noise + 7


@pytest.fixture(scope="module")
def data():
    return make_data()


def reference(x, y, x_validation, y_validation, setting, loss="mse", epochs=400, patience=40, bias=True):
    """(best epoch, its validation loss, the model then) as anyone would write it with torch."""
    model = torch.nn.Linear(x.shape[1], y.shape[1], bias=bias, dtype=x.dtype)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    optimiser = torch.optim.AdamW(model.parameters(), lr=setting.learning_rate, weight_decay=setting.weight_decay)
    best, best_epoch, state = float("inf"), 0, None
    for epoch in range(1, epochs + 1):
        optimiser.zero_grad()
        LOSSES[loss](model(x), y).backward()
        optimiser.step()
        with torch.no_grad():
            now = LOSSES[loss](model(x_validation), y_validation).item()
        if now < best:
            best, best_epoch, state = now, epoch, {k: v.clone() for k, v in model.state_dict().items()}
        elif epoch - best_epoch >= patience:
            break
    model.load_state_dict(state)
    return best_epoch, best, model


def standardised(x, y, loss):
    scaled = (x - x[TRAIN].mean(0)) / x[TRAIN].std(0, correction=0)
    if loss == "logistic":
        return scaled, y, torch.zeros(y.shape[1]), torch.ones(y.shape[1])
    mean, scale = y[TRAIN].mean(0), y[TRAIN].std(0, correction=0)
    return scaled, (y - mean) / scale, mean, scale


@functools.cache
def expected_at(setting, first, last, loss, dtype, **options):
    """(best epoch, loss, validation and prediction rows' predictions) of the reference on the shared data."""
    x, y = make_data()
    scaled, aims, *_ = (part.to(dtype) for part in standardised(x, y if loss == "mse" else (y > 7).double(), loss))
    aims, options = aims[:, first:last], {"bias": loss == "logistic", **options}
    epoch, best, model = reference(
        scaled[TRAIN], aims[TRAIN], scaled[VALIDATION], aims[VALIDATION], setting, loss, **options
    )
    with torch.no_grad():
        return epoch, best, model(scaled[VALIDATION]).double(), model(scaled[PREDICT]).double()


def assert_equals_reference(result, loss, outputs, dtype, tolerance, **options):
    """Losses everywhere; epochs and predictions too, but for float32's best epoch on a flat minimum (one in five)."""
    x, y = make_data()
    *_, mean, scale = standardised(x, y, loss)
    flips, last = 0, 0
    for variable, size in enumerate(outputs):
        first, last = last, last + size
        for index, setting in enumerate(result.settings):
            epoch, best, *predictions = expected_at(setting, first, last, loss, dtype, **options)
            assert abs(float(result.validation_loss[index, variable]) - best) <= tolerance
            if result.best_epoch[index, variable] != epoch:
                flips += 1
                continue
            for found, expected in zip((result.validation_prediction, result.prediction), predictions):
                found = (found[index][:, first:last] - mean[first:last]) / scale[first:last]
                torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    assert flips <= (0 if dtype == torch.float64 else result.best_epoch.numel() // 5)


@pytest.mark.parametrize("gram", [False, True])
def test_all_twenty_settings_equal_adamw_in_float32(data, gram):
    x, y = data[0].float(), data[1].float()
    problem = row_regression(x, y, TRAIN, VALIDATION, PREDICT, outputs=(1, 2), gram=gram)
    (result,) = solve([problem])
    assert len(result.settings) == 20
    assert_equals_reference(result, "mse", (1, 2), torch.float32, 1e-4)


@pytest.mark.parametrize("loss, gram", [("mse", False), ("mse", True), ("logistic", False)])
def test_float64_equals_adamw_to_rounding(data, loss, gram):
    x, y = data
    y = y if loss == "mse" else (y > 7).double()
    options = {"outputs": (1, 1, 1), "gram": gram, "loss": loss, "settings": FEW, "dtype": torch.float64}
    (result,) = solve([row_regression(x, y, TRAIN, VALIDATION, PREDICT, **options)])
    assert_equals_reference(result, loss, (1, 1, 1), torch.float64, 1e-9)


def test_logistic_equals_adamw_in_float32(data):
    x, y = data[0], (data[1][:, :1] > 7).double()
    (result,) = solve([row_regression(x.float(), y.float(), TRAIN, VALIDATION, PREDICT, loss="logistic")])
    assert_equals_reference(result, "logistic", (1,), torch.float32, 1e-4)


def test_short_patience_and_few_epochs_stop_as_adamw_does(data):
    x, y = data
    problem = row_regression(x, y, TRAIN, VALIDATION, PREDICT, outputs=(3,), settings=FEW, dtype=torch.float64)
    (result,) = solve([problem], epochs=100, patience=3)
    assert_equals_reference(result, "mse", (3,), torch.float64, 1e-9, epochs=100, patience=3)


@pytest.mark.parametrize("loss", ["mse", "logistic"])
def test_batching_and_threads_change_nothing(data, loss, monkeypatch):
    x, y = data
    y = y if loss == "mse" else (y > 7).double()
    shared = {"loss": loss, "outputs": (1, 2), "settings": FEW, "dtype": torch.float64, "gram": False}
    splits = [(TRAIN, VALIDATION, PREDICT), (TRAIN[:51], PREDICT, VALIDATION[:3]), (PREDICT, TRAIN, None)]
    problems = [row_regression(x, y, *split, **shared) for split in splits]
    alone = [next(solve([problem], threads=1, keep_weights=True)) for problem in problems]
    for limit, threads in ((1, 2), (1e12, 1)):  # every problem its own batch; all padded into one
        monkeypatch.setattr(sweep, "_CACHE_BYTES", limit)
        for found, expected in zip(solve(iter(problems), threads=threads, keep_weights=True), alone, strict=True):
            assert torch.equal(found.best_epoch, expected.best_epoch)
            for name in ("validation_loss", "validation_prediction", "prediction", "weights", "bias"):
                torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("solver", ["mse", "gram", "logistic", "ridge"])
def test_each_judge_finds_what_it_would_alone(data, solver, monkeypatch):
    x, y = data
    y = (y > 7).double() if solver == "logistic" else y
    shared = {"loss": "logistic" if solver == "logistic" else "mse", "outputs": (1, 2), "dtype": torch.float64}
    shared |= {"gram": solver == "gram", "settings": ridge_settings() if solver == "ridge" else FEW}
    folds = [(VALIDATION, PREDICT[:7]), (PREDICT[:9], VALIDATION[:6])]  # two sweeps of one batch, judges of all sizes
    alone = [[row_regression(x, y, TRAIN, rows, **shared) for rows in pair] for pair in folds]
    together = [
        row_regression(x, y, TRAIN, np.concatenate(pair), fold_sizes=tuple(map(len, pair)), **shared) for pair in folds
    ]
    monkeypatch.setattr(sweep, "_CACHE_BYTES", 1e12)
    solving = solve_ridge if solver == "ridge" else functools.partial(solve, epochs=300, patience=5)
    for result, problems in zip(solving(together), alone):
        parts, expected = result.by_fold(), list(solving(problems))
        for own, one in zip(parts, expected, strict=True):
            assert torch.equal(own.best_epoch, one.best_epoch) and not own.fold_sizes
            for name in ("validation_loss", "validation_prediction"):
                torch.testing.assert_close(getattr(own, name), getattr(one, name), rtol=1e-9, atol=1e-9)
        if solver != "ridge":  # else each could be the other's by chance
            assert not torch.equal(parts[0].best_epoch, parts[1].best_epoch)


def test_judges_must_be_all_of_the_validation_rows_and_keep_no_weights(data):
    with pytest.raises(ValueError, match="judges of"):
        row_regression(*data, TRAIN, VALIDATION, fold_sizes=(3, 4))
    problem = row_regression(*data, TRAIN, VALIDATION, fold_sizes=(3, len(VALIDATION) - 3), settings=FEW)
    (result,) = solve([problem], keep_weights=True)
    assert result.weights is None and result.bias is None


def test_weights_give_the_predictions(data):
    x, y = data
    problem = row_regression(x, y, TRAIN, VALIDATION, PREDICT, outputs=(1, 2), settings=FEW, dtype=torch.float64)
    (result,) = solve([problem], keep_weights=True)
    for index in range(len(FEW)):
        predicted = x[PREDICT] @ result.weights[index].T + result.bias[index]
        torch.testing.assert_close(predicted, result.prediction[index])


def test_refit_stops_at_the_given_epochs(data):
    x, y = data
    options = {"outputs": (1, 2), "settings": FEW, "dtype": torch.float64}
    (chosen,) = solve([row_regression(x, y, TRAIN, VALIDATION, PREDICT, **options)])
    refit = row_regression(x, y, TRAIN, None, PREDICT, stop_epochs=chosen.best_epoch, **options)
    (result,) = solve([refit])
    assert torch.equal(result.best_epoch, chosen.best_epoch)
    torch.testing.assert_close(result.prediction, chosen.prediction)


def test_best_setting_is_chosen_for_each_variable(data):
    x, y = data
    (result,) = solve([row_regression(x, y, TRAIN, VALIDATION, PREDICT, outputs=(1, 2))])
    best = result.best()
    assert [result.settings[i] for i in best] == result.best_setting()
    assert all(result.validation_loss[i, v] == result.validation_loss[:, v].min() for v, i in enumerate(best))
    chosen = result.chosen(result.prediction)
    assert torch.equal(chosen[:, 0], result.prediction[best[0], :, 0])
    assert torch.equal(chosen[:, 1:], result.prediction[best[1], :, 1:])


def make_patches():
    """Patches [40, 6, 10] and targets [40, 2]."""
    rng = np.random.default_rng(0)
    patches = torch.tensor(rng.normal(size=(40, 6, 10)) * rng.uniform(0.5, 3, 10) + 2)
    return patches, patches.mean(1)[:, :2] + torch.tensor(rng.normal(size=(40, 2))) * 0.5


@pytest.mark.parametrize("normalise", ["zscore", "center", "none"])
def test_moment_problem_equals_training_on_every_patch(normalise):
    patches, y = make_patches()
    train, held_out = np.arange(30), np.arange(30, 40)
    shared = {"settings": FEW, "normalise": normalise, "dtype": torch.float64}
    rows, targets = patches[train].flatten(0, 1), y[train].repeat_interleave(6, 0)
    moments = Moments.of(rows[:80], targets[:80]) + Moments.of(rows[80:], targets[80:])
    (by_moments,) = solve([moment_regression(moments, patches[held_out].mean(1), y[held_out], **shared)], epochs=60)
    rows, targets = torch.cat([rows, patches[held_out].mean(1)]), torch.cat([targets, y[held_out]])
    problem = row_regression(rows, targets, np.arange(180), np.arange(180, 190), gram=False, **shared)
    (by_rows,) = solve([problem], epochs=60)
    assert torch.equal(by_moments.best_epoch, by_rows.best_epoch)
    torch.testing.assert_close(by_moments.validation_prediction, by_rows.validation_prediction, rtol=0, atol=1e-8)


@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
def test_moments_of_patches_equal_moments_of_rows(stored):
    patches, y = make_patches()
    patches = (patches + 50).to(stored)  # far from zero, where sums in float32 would lose the variance
    found, expected = (
        Moments.of_patches(patches, y, chunk=7),
        Moments.of(patches.flatten(0, 1), y.repeat_interleave(6, 0)),
    )
    assert found.count == expected.count == 240
    centred = [m.xx - torch.outer(m.x, m.x) / m.count for m in (found, expected)]
    torch.testing.assert_close(*centred, rtol=1e-5, atol=1e-4 * float(centred[1].diagonal().min()))
    for name in ("x", "xy", "y", "yy"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-6, atol=1e-9)


def test_moments_add(data):
    whole, part, rest = (
        Moments.of(data[0][rows], data[1][rows]) for rows in (slice(0, 90), slice(0, 30), slice(30, 90))
    )
    found = part + rest
    assert found.count == whole.count
    torch.testing.assert_close(found.xx, whole.xx)
    torch.testing.assert_close(found.xy, whole.xy)


def test_constant_columns_do_no_harm(data):
    x, y = data[0].clone(), data[1].clone()
    x[:, 3], y[:, 1] = 5.0, 0.1
    for gram in (False, True):
        (result,) = solve([row_regression(x, y, TRAIN, VALIDATION, outputs=(1, 1, 1), gram=gram)])
        assert torch.isfinite(result.validation_prediction).all()
        torch.testing.assert_close(
            result.validation_prediction[:, :, 1], torch.full((20, 25), 0.1).double(), atol=1e-6, rtol=0
        )


@pytest.mark.parametrize("gram", [False, True])
@pytest.mark.parametrize("rows", [TRAIN, TRAIN[:15]])  # more and fewer rows than features
def test_ridge_equals_scikit_learn(data, rows, gram):
    x, y = data
    options = {"settings": ridge_settings(), "outputs": (1, 2), "gram": gram, "dtype": torch.float64}
    (result,) = solve_ridge([row_regression(x, y, rows, VALIDATION, PREDICT, **options)])
    mean, scale = x[rows].mean(0), x[rows].std(0, correction=0)
    y_mean, y_scale = y[rows].mean(0), y[rows].std(0, correction=0)
    for index, strength in enumerate(STRENGTHS):
        model = Ridge(alpha=strength).fit(((x - mean) / scale)[rows].numpy(), ((y - y_mean) / y_scale)[rows].numpy())
        expected = model.predict(((x - mean) / scale)[PREDICT].numpy()) * y_scale.numpy() + y_mean.numpy()
        np.testing.assert_allclose(result.prediction[index].numpy(), expected, rtol=1e-6, atol=1e-6)
        raw = x[PREDICT] @ result.weights[index].T + result.bias[index]
        np.testing.assert_allclose(raw.numpy(), expected, rtol=1e-6, atol=1e-6)


def test_paper_settings_are_the_papers():
    settings = paper_settings()
    assert {s.learning_rate for s in settings} == {1e-4, 3e-4, 1e-3, 3e-3, 5e-3}
    assert {s.weight_decay for s in settings} == {0.01, 0.1, 0.4, 0.8}
    assert len(set(settings)) == 20


def test_bad_problems_are_refused(data):
    x, y = data
    with pytest.raises(UserError, match="finite"):
        row_regression(torch.where(x == x[0, 0], torch.nan, x), y, TRAIN, VALIDATION)
    with pytest.raises(UserError, match="train on"):
        row_regression(x, y, [], VALIDATION)
    with pytest.raises(UserError, match="validate on"):
        row_regression(x, y, TRAIN, [])
    with pytest.raises(UserError, match="zscore"):
        row_regression(x, y, TRAIN, VALIDATION, normalise="zscored")


def unlike_problems(data):
    """Problems of one judge and of two in turn, as a layer's outer and inner fits follow each other."""
    x, y = data
    for shift in range(3):
        rows = np.roll(np.arange(N), shift)
        train, validation, read = rows[:70], rows[70:95], rows[95:]
        yield row_regression(x, y, train, validation, read, settings=FEW, outputs=(1, 2))
        yield row_regression(x, y, train, validation, settings=FEW, outputs=(1, 2), fold_sizes=(10, 15))


def test_like_problems_share_a_batch_wherever_they_stand(data, monkeypatch):
    alone = [result for problem in unlike_problems(data) for result in solve([problem], epochs=30)]
    sizes, solve_batch = [], sweep._solve_batch
    options = {"epochs": 30, "patience": 40, "keep_weights": False, "tell_losses": False, "device": torch.device("cpu")}

    def counted(batch, **given):
        sizes.append(len(batch))
        return solve_batch(batch, **given)

    monkeypatch.setattr(sweep, "_solve_batch", counted)
    together = sweep._solve_mixed(list(unlike_problems(data)), options)
    assert sizes == [3, 3]
    for own, other in zip(together, alone, strict=True):
        assert own.fold_sizes == other.fold_sizes
        assert torch.equal(own.best_epoch, other.best_epoch)
        assert torch.allclose(own.validation_prediction, other.validation_prediction, rtol=1e-5)
        assert torch.allclose(own.prediction, other.prediction, rtol=1e-5)


def test_a_batch_that_does_not_fit_is_halved(data, monkeypatch):
    options = {"epochs": 5, "patience": 40, "keep_weights": False, "tell_losses": False, "device": torch.device("cpu")}
    expected = sweep._solve_mixed(list(unlike_problems(data)), options)
    sizes, solve_batch = [], sweep._solve_batch

    def bounded(batch, most, error, **given):
        sizes.append(len(batch))
        if len(batch) > most:
            raise error
        return solve_batch(batch, **given)

    for error in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUBLAS_STATUS_ALLOC_FAILED in gemm")):
        monkeypatch.setattr(sweep, "_solve_batch", functools.partial(bounded, most=1, error=error))
        found = sweep._solve_mixed(list(unlike_problems(data)), options)
        assert all(torch.allclose(a.prediction, b.prediction, rtol=1e-5) for a, b in zip(found, expected, strict=True))
    assert sizes == [3, 2, 1, 1, 1] * 4
    monkeypatch.setattr(sweep, "_solve_batch", functools.partial(bounded, most=0, error=error))
    with pytest.raises(UserError, match="not enough memory for one probe"):
        sweep._solve_mixed(list(unlike_problems(data)), options)
    monkeypatch.setattr(sweep, "_solve_batch", functools.partial(bounded, most=0, error=RuntimeError("a defect")))
    with pytest.raises(RuntimeError, match="a defect"):
        sweep._solve_mixed(list(unlike_problems(data)), options)
