"""Table 1's claims about mechanisms, each checked on a run of step4_mechanisms.py against its control.

A claim holds, or does not, where the intervals in the tables say so without overlapping; else it is undecided. Where
two intervals are compared, each is of its own quantity: a difference that only a paired test would show is undecided.
Claims whose tables are not there are left out. Edits are judged by `split`; without it by `paper`, in sample, and
the claim says so; with neither, claims about stored features are left out.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from pez.figures.plots.mechanisms import MechanismRun, judge_of_nulls, of_statistic, shown_judge, where
from pez.figures.verdicts.statements import FAILS, HOLDS, UNDECIDED, Checked, Finding, decided
from pez.figures.verdicts.verdict import rule_lines, statement_lines, write_verdict

Interval = tuple[float, float, float]  # value, low, high
FEW, MANY = 1, 20  # probes: the paper's 1 to 5 do not steer, 20 do
IN_SAMPLE = "judged in sample, on the edited clips themselves as in C.12: not the number to quote"


def below(one: Interval, other: Interval) -> str:
    """Whether the first is below the second, by intervals that do not overlap."""
    if one[2] < other[1]:
        return HOLDS
    return FAILS if one[1] > other[2] else UNDECIDED


def words(name: str, value: Interval, unit: str = "") -> str:
    """Such as "zone 5.1 [4.9, 5.3] patches"."""
    return f"{name} {value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]{unit}"


def _mean(rows: pd.DataFrame, value: str = "mean") -> Interval:
    return float(rows[value].mean()), float(rows["low"].mean()), float(rows["high"].mean())


def _attention(run: MechanismRun, table: pd.DataFrame) -> list[Checked]:
    zone, main = run.about("attention")["zone"], where(table, control="")
    depth = main["layer"].max() + 1
    parts = {"early third": range(min(depth // 3, min(zone))), "late third": range(depth - depth // 3, depth)}
    claims = []
    for statistic, claim in (
        ("mean", "attention looks nearer in the zone than before and after it"),
        ("spread", "heads differ more in the zone than before and after it"),
    ):
        rows, findings = of_statistic(main, statistic), []
        own = _mean(rows[rows["layer"].isin(zone)])
        for name, layers in parts.items():
            other = _mean(rows[rows["layer"].isin(layers)])
            verdict = below(own, other) if statistic == "mean" else below(other, own)
            findings.append(Finding(name, verdict, f"{words('zone', own, ' patches')}; {words(name, other)}"))
        claims.append(decided("attention", claim, findings))
    inside = main.loc[main["layer"].isin(zone), "n_local"].sum()
    outside = main["n_local"].sum() - inside
    verdict = UNDECIDED if inside == 0 and outside == 0 else (HOLDS if outside == 0 else FAILS)
    measured = f"heads nearer than 3 patches: {inside:.0f} in the zone, {outside:.0f} outside"
    finding = Finding("other layers", verdict, measured)
    return [*claims, decided("attention", "local heads are in the zone alone", [finding])]


def _sequence(run: MechanismRun, table: pd.DataFrame) -> list[Checked]:
    layer, findings = max(run.about("sequence")["zone"]), []
    rows = where(table, layer=layer, control="", probe=table["probe"].iloc[0])
    for rule, own in rows.groupby("rule", sort=False):
        k = {name: _mean(part, "K") for name, part in own.groupby("variable")}
        if {"direction", "speed"} <= set(k):
            measured = f"{words('direction', k['direction'])}; {words('speed', k['speed'])} rounds (folds)"
            findings.append(Finding(f"rule {rule}", below(k["speed"], k["direction"]), measured))
    claim = f"direction takes more orthogonal probes than speed (layer {layer})"
    return [decided("probe sequences", claim, findings)] if findings else []


def _overlap(run: MechanismRun, table: pd.DataFrame, dims: pd.DataFrame) -> list[Checked]:
    layer, claims = run.about("overlap")["focus_layer"], []
    rows = where(table, layer=layer, basis="all", scaling="ball", control="", b="possible")
    possible = where(dims, variable="possible", layer=layer, rule="c11")
    read = bool(len(possible)) and possible["K"].iloc[0] >= 1
    for row in rows.itertuples():
        verdict = UNDECIDED if row.p > 0.05 or not read else (HOLDS if row.z < 0 else FAILS)
        measured = f"{row.mean_angle:.1f}°, by chance {row.chance_data_mean:.1f}° (p = {row.p:.3f})"
        measured += "" if read else "; but probes do not read IntPhys here, so there is no subspace to compare"
        claim = f"the subspaces of {row.a} and IntPhys lie nearer than chance (layer {layer})"
        claims.append(decided("subspaces", claim, [Finding("probes of random targets", verdict, measured)]))
    return claims


def _steering(run: MechanismRun, table: pd.DataFrame, nulls: pd.DataFrame) -> list[Checked]:
    judge = shown_judge(table)
    claims = [] if judge is None else _edits(table, nulls if judge == judge_of_nulls(run) else nulls.iloc[:0], judge)
    later = run.table("steering_downstream")
    if later is not None:
        last = later[(later["read_layer"] == later["read_layer"].max()) & (later["arm"] == "probes")]
        kept = last.loc[last["n_probes"].idxmax()]
        measured = (
            f"{kept['retained']:.0%} of the effect of {kept['n_probes']} probes is left at layer {kept['read_layer']}"
        )
        finding = Finding("the layer edited", UNDECIDED, f"{measured} (no interval)")
        claims.append(decided("edits that run on", "an edit survives the later blocks", [finding]))
    return claims


def _edits(table: pd.DataFrame, nulls: pd.DataFrame, judge: str) -> list[Checked]:
    """Claims about edits of stored features by the readings of `judge`; `nulls` of the same judge, or empty."""
    rows = where(table, control="", judge=judge, target="all", arm="probes").set_index("n_probes")
    many = min(MANY, rows.index.max())
    of, in_sample = "edits of stored features", f" ({IN_SAMPLE})" if judge == "paper" else ""

    def error(n: int) -> Interval:
        row = rows.loc[n]
        return float(row["mae_target"]), float(row["low"]), float(row["high"])

    few, most = error(FEW), error(many)
    less = Finding("50 degrees", below((50.0,) * 3, few), words("error to the target", few, "°"))
    enough = Finding("20 degrees", below(most, (20.0,) * 3), words("error to the target", most, "°"))
    claims = [
        decided(of, f"{FEW} probe does not steer{in_sample}", [less]),
        decided(of, f"{many} probes steer{in_sample}", [enough]),
    ]
    for null in where(nulls, null="random_sequence", n_probes=many).itertuples():
        measured = f"{most[0]:.1f}°, random subspaces {null.mae_target:.1f}° (p = {null.p:.3f})"
        better = HOLDS if null.p < 0.05 else UNDECIDED
        finding = Finding("random subspaces of as many dimensions", better, measured)
        claims.append(decided(of, f"{many} probes steer better than chance{in_sample}", [finding]))
    return claims


def _patches(run: MechanismRun, table: pd.DataFrame) -> list[Checked]:
    first, main = min(run.about("patches")["zone"]), where(table, control="")

    def early_and_late(rows: pd.DataFrame) -> tuple[Interval, Interval] | None:
        parts = rows[rows["layer"] < first], rows[rows["layer"] >= first]
        return (_mean(parts[0], "value"), _mean(parts[1], "value")) if len(parts[0]) and len(parts[1]) else None

    claims = []
    if both := early_and_late(where(main, readout="pooled_patch", statistic="r2")):
        measured = f"{words('before', both[0])}; {words('from it on', both[1])} R²"
        finding = Finding("layers before it", below(*both), measured)
        claims.append(decided("places", "direction at single places rises at the zone", [finding]))
    if both := early_and_late(main[main["readout"].str.contains("_to_") & (main["statistic"] == "raw")]):
        early, late = both
        findings = [
            Finding("before the zone: none", below(early, (0.1,) * 3), words("before", early, " R²")),
            Finding("from it on: some", below((0.0,) * 3, late), words("from it on", late, " R²")),
        ]
        claim = "a probe of one half of the frame reads the other half only from the zone on"
        claims.append(decided("places", claim, findings))
    return claims


def _ablation(_run: MechanismRun, table: pd.DataFrame) -> list[Checked]:
    main = where(table, control="", variable="direction", probe="frozen")
    main = main[main["read_layer"] == main["last_masked"]]
    zone = where(main, band="zone").set_index("condition")
    unions = zone.index[zone["kind"] == "union"]
    if unions.empty:
        return []
    name = unions[0]
    row = zone.loc[name]
    fall = (row["delta"], row["delta_low"], row["delta_high"])
    collapse = Finding("no mask", below(fall, (-0.5,) * 3), words("change of R²", fall))
    claims = [decided("ablation", f"direction collapses without near attention ({name})", [collapse])]
    findings = []
    others = zone[zone["kind"].isin(["random", "farthest"]) & (zone["s"] == row["s"]) & (zone["t"] == row["t"])]
    for other in others.itertuples():
        change = (other.delta, other.delta_low, other.delta_high)
        measured = f"{words('near', fall)}; {words(other.kind, change)}"
        findings.append(Finding(other.kind, below(fall, change), measured))
    if findings:
        claims.append(decided("ablation", f"it falls more than when as many other keys go ({name})", findings))
    findings = []
    for other in main[(main["band"] != "zone") & (main["condition"] == name)].itertuples():
        change = (other.delta, other.delta_low, other.delta_high)
        measured = f"{words('zone', fall)}; {words(other.band, change)}"
        findings.append(Finding(f"{other.band} layers", below(fall, change), measured))
    if findings:
        claims.append(decided("ablation", f"it falls more than when other layers are masked ({name})", findings))
    return claims


def _tuning(run: MechanismRun, table: pd.DataFrame) -> list[Checked]:
    wide = table.pivot_table(index=["control", "layer"], columns="statistic", values="value")
    layer = max(set(run.about("tuning")["zone"]) & set(run.about("tuning")["layers"]), default=None)
    if layer is None:
        return []
    row = wide.loc[("", layer)]
    measured = f"{row['share_of_bins']:.0%} of 24 bins hold a tuned unit; {row['share_tuned']:.0%} of units are tuned"
    finding = Finding("none", UNDECIDED, f"{measured} (no interval; 8 directions cannot show harmonics above 4)")
    claims = [decided("MLP units", f"tuned units tile the circle (layer {layer})", [finding])]
    if ("", 0) in wide.index:
        first = wide.loc[("", 0), "ring_axis_ratio"]
        measured = f"axis ratio {first:.2f} at layer 0, {row['ring_axis_ratio']:.2f} at layer {layer}"
        finding = Finding("layer 0", UNDECIDED, f"{measured} (no interval; any smooth circular tuning makes a ring)")
        claims.append(decided("MLP units", "the population has a ring in the zone and none at layer 0", [finding]))
    return claims


CLAIMS: tuple[tuple[tuple[str, ...], Callable[..., list[Checked]]], ...] = (
    (("attention_layers",), _attention),
    (("ablation",), _ablation),
    (("tuning_layers",), _tuning),
    (("sequence_dims",), _sequence),
    (("overlap", "sequence_dims"), _overlap),
    (("steering", "steering_nulls"), _steering),
    (("patches",), _patches),
)


def build_mechanism_verdict(run: MechanismRun) -> list[Path]:
    """mechanisms_verdict_RUN.md and .json; none where no claim can be checked."""
    checked: list[Checked] = []
    for stems, claims in CLAIMS:
        if tables := run.tables(stems):
            checked += claims(run, *tables)
    if not checked:
        return []
    lines = [f"# {run.title('Mechanisms: the claims of Table 1')}", "", *statement_lines(checked, named=True), ""]
    text = "\n".join([*lines, *rule_lines(__doc__.partition("\n\n")[2].strip())])
    about = {"figure": "mechanisms", "run_name": run.name, "encoder": run.record["encoder"]}
    path = (run.results_dir / f"mechanisms_verdict_{run.name}").with_suffix(".md")
    return write_verdict(path, text, checked, about)
