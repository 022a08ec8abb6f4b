"""What the project's JSON files hold: one model for each kind of file, checked where the file is read.

    described = read_record(directory / "features.json", FeatureRecord)     # a plain dict, as it was written

Whatever is wrong with a file is one UserError: the file, the field, what came, what was expected, what to do. Fields
that a model does not name are kept as they are, so files of later versions can be read.
"""

import json
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from pez.errors import UserError

Text = Annotated[str, StringConstraints(min_length=1)]
Natural = Annotated[int, Field(ge=1)]
LONGEST = 60  # characters of a value in an error


class Part(BaseModel):
    """An object inside a file."""

    model_config = ConfigDict(strict=True, extra="allow")


class Record(Part):
    """One kind of JSON file; `mend` is what to do about a damaged one."""

    mend: ClassVar[str]


class AnyRecord(Record):
    """A file whose fields nobody relies on."""

    mend: ClassVar[str] = "remove it and rerun the step that wrote it"


# ---------------------------------------------------------------- clips and movies


class ClipSetRecord(Record):
    """clipset.json: pez/stimuli/clipset.py."""

    class Settings(Part):
        set: Text
        n_frames: Natural = 1

    mend: ClassVar[str] = "remove it and rerun the step1_generate.py command that made the set"
    settings: Settings
    tables: dict[str, Text] = {}


class StandInRecord(Record):
    """STAND_IN.json: pez/stimuli/intphys_mini.py."""

    mend: ClassVar[str] = "make the stand-in again with step1_generate.py --dataset intphys_mini --overwrite"
    settings: dict[str, Any] = {}
    scenes_per_block: Annotated[int, Field(ge=0)] = 0


class AgreedRecord(Record):
    """What a user agreed to: pez/movies/dataset.py."""

    mend: ClassVar[str] = "remove it; the question is asked again"


# ---------------------------------------------------------------- features


class FeatureRecord(Record):
    """features.json: pez/store.py."""

    class Settings(Part):
        model: Text
        weights_label: str
        captures: Annotated[list[Literal["resid_pre", "resid_post"]], Field(min_length=1)]
        poolings: Annotated[list[Text], Field(min_length=1)]
        transform: Text
        depth: Natural
        width: Natural
        shard_clips: Natural
        n_tubelets: Natural = 1
        n_patches: Natural = 1
        dtype: Literal["float32", "bfloat16", "float16"] = "float32"
        store_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
        clip_set: dict[str, Any] = {}

    mend: ClassVar[str] = "make the features again with step2_extract.py (--overwrite)"
    settings: Settings
    tables: dict[str, Text] = {}


# ---------------------------------------------------------------- runs


class BallRunRecord(Record):
    """config_RUN.json: pez/probes/results.py."""

    class ClipSet(Part):
        features: dict[str, Any] = {}

    mend: ClassVar[str] = "rerun the step3_probe.py command that made it"
    clip_sets: dict[str, ClipSet] = {}
    controls: list[dict[str, Any]] = []
    options: dict[str, Any] = {}
    files: dict[str, Text] = {}


class MovieRunRecord(Record):
    """summary_RUN.json: pez/probes/results.py."""

    mend: ClassVar[str] = "rerun the command that made it"
    features: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    files: dict[str, Text] = {}


class MechanismRecord(Record):
    """config_mechanisms_RUN.json: pez/mechanisms/runs.py."""

    mend: ClassVar[str] = "rerun the step4_mechanisms.py commands that made it"
    encoder: dict[str, Any]
    commands: dict[str, dict[str, Any]]


Size = Annotated[int, Field(ge=1, le=100_000)]
Depth = Annotated[int, Field(ge=1, le=1000)]


class _ModelSizes(Part):
    """Sizes that configurations share, those that they name."""

    num_hidden_layers: Depth = 1
    num_spatial_layers: Depth = 1
    num_temporal_layers: Depth = 1
    image_size: Size | list[Size] = 1
    crop_size: Size = 1
    patch_size: Size | list[Size] = 1
    tubelet_size: Size | list[Size] = 1
    num_frames: Size = 1
    num_channels: Literal[3] = 3
    in_chans: Literal[3] = 3
    quantization_config: None = None


class HuggingFaceConfig(Record):
    """config.json of a model in Hugging Face's format."""

    mend: ClassVar[str] = "download the model again"
    model_type: Text


class EncoderConfig(_ModelSizes, HuggingFaceConfig):
    """config.json of a model in Hugging Face's format that is read as an encoder of three colours."""

    mend: ClassVar[str] = "download the model again, or choose an encoder of RGB frames in float32 or half precision"
    vision_config: _ModelSizes | None = None


Colours = Annotated[list[Annotated[float, Field(allow_inf_nan=False)]], Field(min_length=3, max_length=3)]
Spread = Annotated[list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=3, max_length=3)]


class _Processor(Part):
    """What is done to the pixels of a frame before the encoder."""

    image_mean: Colours | None = None
    image_std: Spread | None = None
    do_normalize: bool | None = None
    do_rescale: bool | None = None
    rescale_factor: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    offset: bool | None = None


class Preprocessing(_Processor, Record):
    """preprocessor_config.json, processor_config.json of a model in Hugging Face's format."""

    mend: ClassVar[str] = "download it again, or remove it"
    video_processor: _Processor = _Processor()
    image_processor: _Processor = _Processor()


class PieceRecord(Record):
    """layers_RUN/settings.json: pez/probes/validation/checkpoints.py."""

    mend: ClassVar[str] = "choose another --run-name, or remove the folder"


class VerdictRecord(Record):
    """figureN_verdict.json: pez/figures/verdicts/verdict.py."""

    mend: ClassVar[str] = "rerun plot_figures.py"


# ---------------------------------------------------------------- launches


class LaunchRecord(Record):
    """launch.json: pez/launch/slurm.py."""

    mend: ClassVar[str] = "submit the launch again"
    job: Text
    num_shards: Natural


class ShardState(Record):
    """states/shard_I.json: pez/launch/task.py."""

    mend: ClassVar[str] = "remove it and submit the launch again"
    code: int | None


# ---------------------------------------------------------------- reading


def read_record(path: str | Path, kind: type[Record]) -> dict[str, Any]:
    """The object in a JSON file, checked; UserError for a file that is missing or is not what `kind` says."""
    return checked(path, kind, parsed(path, kind.mend))


def parsed(path: str | Path, mend: str) -> Any:
    """What a JSON file holds (UTF-8, -16 or -32, with or without a byte order mark); UserError that ends in `mend`."""
    path = Path(path)
    if not path.is_file():  # a pipe would never answer
        raise UserError(f"{path} is {'no file' if path.exists() else 'missing'}: {mend}")
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON ({error}): {mend}") from None


def checked(path: str | Path, kind: type[Record], value: Any) -> dict[str, Any]:
    """`value`, read from `path`, if it is what `kind` says; else UserError that names the first wrong field."""
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {shown(value)}, expected an object in braces: {kind.mend}")
    try:
        kind.model_validate(value)
    except ValidationError as error:
        wrong = error.errors(include_url=False)[0]
        field = ".".join(map(str, wrong["loc"]))
        if wrong["type"] == "missing":
            raise UserError(f"{path} has no {field}: {kind.mend}") from None
        expected = wrong["msg"].removeprefix("Input should be ").removeprefix("Value ")
        raise UserError(f"{path}: {field} is {shown(wrong['input'])}, expected {expected}: {kind.mend}") from None
    return value


def shown(value: Any) -> str:
    """A value in an error, in one short line."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def first_difference(recorded: dict[str, Any], wanted: dict[str, Any], within: str = "") -> tuple[str, Any, Any] | None:
    """(name, recorded value, wanted value) of the first setting that differs; names of nested settings are dotted.

    A fingerprint says least about the difference, so it comes last.
    """
    names = dict.fromkeys([*wanted, *recorded])
    for name in sorted(names, key=lambda name: name in ("fingerprint", "content")):
        held, asked = recorded.get(name), wanted.get(name)
        if isinstance(held, dict) and isinstance(asked, dict):
            difference = first_difference(held, asked, f"{within}{name}.")
            if difference is not None:
                return difference
        elif held != asked:
            return f"{within}{name}", held, asked
    return None
