"""V-JEPA 2 with its predictor: what the encoder will make of the frames to come, from the frames so far.

    context      frames so far, encoded alone        `encoder` of a Meta file
    target       all frames, encoded together        `target_encoder`, as V-JEPA 2's training has it
    prediction   of the target's later tokens, by the predictor from the context's tokens and their places

The context's frames are cut off before they are encoded. Encoding all frames and then keeping the early tokens, as
transformers' VJEPA2Model does when it is given masks, lets attention carry the future into the context.

A Meta file's `predictor` holds `predictor_embed`, `mask_tokens.N`, `predictor_blocks.N`, `predictor_norm` and
`predictor_proj`, with the prefix `module.backbone.`; the module here is transformers' VJEPA2Predictor.
"""

import copy
import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn
from transformers import VJEPA2Model
from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2Encoder, VJEPA2Predictor

from constants import MODELS, ModelSpec
from pez.encoder.checkpoints import check_fits, converted, read_checkpoint
from pez.encoder.loading import load_encoder, random_encoder, registered_file
from pez.encoder.preprocessing import normalise
from pez.encoder.protocol import Encoder
from pez.encoder.vjepa2 import FUSED, rescale_blocks
from pez.errors import UserError

PREDICTOR_HEADS = 12  # of all released predictors; a checkpoint does not say
# V-JEPA 2 trains a mask token for every kind of mask; the authors' evaluations of surprise take the first
MASK_TOKEN = 0
_NAMES = (  # Meta's, transformers'
    (".predictor_embed.", ".embeddings.predictor_embeddings."),
    (".predictor_blocks.", ".layer."),
    (".predictor_norm.", ".layernorm."),
    (".predictor_proj.", ".proj."),
    (".attn.", ".attention."),
)
_MASK_TOKENS = "embeddings.mask_tokens"
_NO_PREDICTOR = "use a checkpoint in Meta's format that has one (vitl.pt, ...), or --weights random"


@dataclass(frozen=True)
class Forecaster:
    """A frozen V-JEPA 2 with its predictor. N tokens of a clip are T / tubelet times `n_patches`, time-major."""

    context_encoder: nn.Module = field(repr=False)
    target_encoder: nn.Module = field(repr=False)
    predictor: VJEPA2Predictor = field(repr=False)
    spec: ModelSpec
    model: str
    weights_label: str
    weights_sha256: str  # over all three
    keys: tuple[str, str] | None  # entries of a Meta file: of the context's and the target's encoder
    device: torch.device

    @property
    def n_patches(self) -> int:
        """Tokens of one tubelet."""
        return (self.spec.resolution // self.spec.patch_size) ** 2

    def encode_context(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, width] of uint8 frames [B, T, 3, R, R]: those of the context alone, no later one."""
        return self.context_encoder(normalise(frames.to(self.device))).last_hidden_state

    def encode_target(self, frames: torch.Tensor) -> torch.Tensor:
        """Tokens [B, N, width] of uint8 frames [B, T, 3, R, R], by the encoder that predictions are compared with."""
        return self.target_encoder(normalise(frames.to(self.device))).last_hidden_state

    def predict(self, context: torch.Tensor, n_tokens: int) -> torch.Tensor:
        """What follows a context [B, n, width] up to `n_tokens` in all: [B, n_tokens - n, width]."""
        batch, n = context.shape[:2]
        places = torch.arange(n_tokens, device=context.device).expand(batch, -1)
        return self.predictor(context, [places[:, :n]], [places[:, n:]]).last_hidden_state

    def random_like(self, seed: int) -> "Forecaster":
        """One of the same sizes with random weights, the same in context and target."""
        encoder = random_encoder(self.model, self.spec, seed, self.device)
        predictor = _random_predictor(self.predictor.config, seed)
        return _forecaster(encoder, encoder.module, predictor, None)

    def description(self) -> dict:
        """What a run records of it."""
        config = self.predictor.config
        return {
            "model": self.model,
            "weights_label": self.weights_label,
            "weights_sha256": self.weights_sha256,
            "checkpoint_keys": self.keys,
            "depth": self.spec.depth,
            "width": self.spec.width,
            "resolution": self.spec.resolution,
            "predictor_depth": config.pred_num_hidden_layers,
            "predictor_width": config.pred_hidden_size,
            "predictor_heads": config.pred_num_attention_heads,
        }


def load_forecaster(
    model: str,
    weights: str | None = None,
    *,
    checkpoint_key: str | None = None,
    num_heads: int | None = None,
    predictor_heads: int = PREDICTOR_HEADS,
    mask_token: int = MASK_TOKEN,
    resolution: int | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Forecaster:
    """Load a frozen V-JEPA 2 with its predictor.

    Args:
        model, weights, num_heads, resolution, seed, device: as of pez.encoder.loading.load_encoder.
        checkpoint_key: of a Meta file, the entry that encodes context and target both; None: the registry's for the
            target, and where that is `target_encoder`, `encoder` for the context. Hugging Face's format has only one.
        predictor_heads: attention heads of a Meta file's predictor.
        mask_token: which of the predictor's mask tokens stands for what is to be predicted.

    Raises:
        UserError: as load_encoder; or no V-JEPA 2, no predictor, or one that does not fit.
    """
    options = {"num_heads": num_heads, "resolution": resolution, "seed": seed, "device": device}
    if weights == "random":
        encoder = load_encoder(model, weights, **options)
        config = _encoder_config(encoder, model)
        config.pred_hidden_size, config.pred_num_hidden_layers, config.pred_num_attention_heads = 384, 12, 12
        config.pred_mlp_ratio, config.pred_num_mask_tokens = 4.0, 1
        return _forecaster(encoder, encoder.module, _random_predictor(config, seed), None)
    path = Path(weights) if weights is not None else registered_file(MODELS[model]) if model in MODELS else None
    if path is None or not path.is_file():  # Hugging Face, or a path that load_encoder refuses
        encoder = load_encoder(model, weights, **options)
        predictor = _hugging_face_predictor(str(weights), encoder, mask_token)
        return _forecaster(encoder, encoder.module, predictor, None)
    target = load_encoder(model, weights, checkpoint_key=checkpoint_key, **options)
    content, context = read_checkpoint(path), target
    predictor = _meta_predictor(content, path, _encoder_config(target, path), predictor_heads, mask_token, model)
    if checkpoint_key is None and target.checkpoint_key == "target_encoder" and content.get("encoder"):
        context = load_encoder(model, weights, checkpoint_key="encoder", **options)
    keys = (context.checkpoint_key, target.checkpoint_key)
    return _forecaster(target, context.module, predictor, keys)


def _forecaster(target: Encoder, context: nn.Module, predictor: nn.Module, keys) -> Forecaster:
    digest = hashlib.sha256(target.weights_sha256.encode())
    for module in (context, predictor):
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy())
    predictor = predictor.to(target.device).eval().requires_grad_(False)
    sha256, parts = digest.hexdigest(), (context, target.module, predictor)
    return Forecaster(*parts, target.spec, target.model, target.weights_label, sha256, keys, target.device)


def _encoder_config(encoder, where):
    """A copy of the encoder's configuration; UserError if it is no V-JEPA 2."""
    if encoder.spec.family != "vjepa2" or not isinstance(encoder.module, VJEPA2Encoder):
        raise UserError(f"{where} is no V-JEPA 2, which alone has the predictor that is asked here: {_NO_PREDICTOR}")
    return copy.deepcopy(encoder.module.config)


# ---------------------------------------------------------------- predictors


def _meta_predictor(content: dict, path: Path, config, heads: int, mask_token: int, model: str) -> VJEPA2Predictor:
    tensors = content.get("predictor")
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path} has no predictor, so it expects nothing that a film could violate: {_NO_PREDICTOR}")
    bare = {name.removeprefix("module.").removeprefix("backbone."): tensor for name, tensor in tensors.items()}
    bare.pop("predictor_pos_embed", None)  # left over from training with absolute positions; it uses RoPE
    state, tokens = converted(bare, _NAMES, FUSED), {}
    for name in list(state):
        if match := re.fullmatch(r"mask_tokens\.(\d+)", name):
            tokens[int(match[1])] = state.pop(name)
    embed, mlp = state.get("embeddings.predictor_embeddings.weight"), state.get("layer.0.mlp.fc1.weight")
    if embed is None or mlp is None or not tokens:
        lacking = "mask_tokens" if embed is not None and mlp is not None else "predictor_embed or predictor_blocks"
        raise UserError(f"{path} has no predictor of V-JEPA 2's kind (no {lacking} in it): {_NO_PREDICTOR}")
    if mask_token not in tokens:
        raise UserError(f"--mask-token {mask_token} is not there: {path} has {len(tokens)}: give 0 to {max(tokens)}")
    width = embed.shape[0]
    if heads < 1 or width % heads:
        raise UserError(
            f"--predictor-heads {heads} does not divide the predictor's width {width} in {path}: give a divisor"
        )
    state[_MASK_TOKENS] = tokens[mask_token][None]
    config.pred_hidden_size, config.pred_num_attention_heads = width, heads
    config.pred_num_hidden_layers = len({name.split(".")[1] for name in state if name.startswith("layer.")})
    config.pred_mlp_ratio = (mlp.shape[0] + 0.5) / width  # transformers floors the product
    config.pred_num_mask_tokens = 1  # the chosen one: transformers' own forward pass would always take its second
    with torch.device("meta"):
        predictor = VJEPA2Predictor(config)
    check_fits(state, predictor.state_dict(), path, f"give the checkpoint of --model {model}, with its predictor")
    predictor.load_state_dict({name: tensor.float().clone() for name, tensor in state.items()}, assign=True)
    return predictor


def _hugging_face_predictor(weights: str, encoder, mask_token: int) -> VJEPA2Predictor:
    _encoder_config(encoder, weights)
    loaded, report = VJEPA2Model.from_pretrained(
        weights,
        local_files_only=Path(weights).is_dir(),
        use_safetensors=True,  # never a pickle
        output_loading_info=True,
        dtype=torch.float32,
        crop_size=encoder.spec.resolution,
    )
    if any(name.startswith("predictor.") for name in report["missing_keys"]):
        raise UserError(f"{weights} has no predictor, so it expects nothing that a film could violate: {_NO_PREDICTOR}")
    embeddings = loaded.predictor.embeddings
    if not 0 <= mask_token < len(embeddings.mask_tokens):
        last = len(embeddings.mask_tokens) - 1
        raise UserError(f"--mask-token {mask_token} is not there: {weights} has {last + 1}: give 0 to {last}")
    embeddings.mask_tokens = nn.Parameter(embeddings.mask_tokens[mask_token : mask_token + 1].detach().clone())
    embeddings.num_mask_tokens = 1
    return loaded.predictor


def _random_predictor(config, seed: int) -> VJEPA2Predictor:
    """A predictor of these sizes, initialised as the original is."""
    config = copy.deepcopy(config)
    config.num_hidden_layers = 1  # of the encoder that comes with it and is thrown away
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        predictor = VJEPA2Model(config).predictor
    rescale_blocks(predictor)
    return predictor
