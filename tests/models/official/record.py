"""Records the logits of the official projects' own model classes on seeded weights and clips.

Run by hand, with clones of the official repositories:

    python record.py --tsm DIR --gst DIR --tam DIR --tpn DIR --mmaction2 DIR --torchvision DIR --out DIR
    python record.py --tsm DIR --check FILE --model tsm --segments 8 --out logits.json

The first form writes one json per model: the names and shapes of the project's checkpoint, from which
seeded_weights.fill makes the weights, and the logits of seeded_weights.clip. The second form loads a
checkpoint strictly into the official class and writes the logits of the same clip.

Needed besides torch, numpy, scipy, einops, pillow and opencv: torchvision for TSM and GST (--torchvision is a
directory to import it from; the pure Python 0.2.2 will do), mmengine 0.10 and mmcv-lite 2.1 for TPN and
MMAction2.
"""

import argparse
import importlib.metadata
import json
import multiprocessing
import subprocess
import sys
import types
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import seeded_weights
import torch
from torch import nn

CLASSES = 12
BATCH = {8: 2, 16: 1}
SIZE = 224
# The prefix that the DataParallel of the project's training script gives to every name.
PARALLEL = "module."

REPOSITORIES = {
    "tsm": "mit-han-lab/temporal-shift-module",
    "gst": "chenxuluo/GST-video",
    "tam": "IBM/action-recognition-pytorch",
    "tpn": "decisionforce/TPN",
    "mmaction2": "open-mmlab/mmaction2",
}


@dataclass(frozen=True)
class Recipe:
    """One official model: `key` names it for --check, `source` is the option with the project's clone."""

    key: str
    source: str
    model: str
    origin: str
    prefix: str = ""
    segments: tuple = (8, 16)


RECIPES = (
    Recipe("tsm", "tsm", "tsm_resnet50", "official", PARALLEL),
    Recipe("gst", "gst", "gst_resnet50", "official", PARALLEL),
    Recipe("gst_large", "gst", "gst_large_resnet50", "official", PARALLEL),
    # Without the prefix: the project's test script loads its files into the bare model.
    Recipe("tam", "tam", "tam_resnet50", "official"),
    Recipe("tam_t_stride", "tam", "tam_resnet50_t_stride", "official", segments=(8,)),
    Recipe("tpn", "tpn", "tpn_resnet50", "official"),
    Recipe("tpn_tsm", "tpn", "tsm_resnet50", "tpn_repo", segments=(8,)),
    Recipe("mmaction2_tsm", "mmaction2", "tsm_resnet50", "mmaction2"),
    Recipe("mmaction2_tpn", "mmaction2", "tpn_resnet50", "mmaction2"),
)


def stub(name: str, **members) -> None:
    """Replace an import that is not needed here with a module that holds only `members`."""
    sys.modules[name] = types.ModuleType(name)
    vars(sys.modules[name]).update(members)


def import_torchvision(directory: str | None) -> None:
    """TSM and GST take an untrained ResNet-50 and their base classes from torchvision."""
    import PIL

    if directory:
        sys.path.insert(0, directory)
    # Old torchvision reads a constant that Pillow has dropped.
    vars(PIL).setdefault("PILLOW_VERSION", PIL.__version__)
    importlib.import_module("torchvision")


# The arguments below are those of the projects' own training commands and configurations.


def build_tsm(key: str, root: str, segments: int, classes: int) -> nn.Module:
    from ops.models import TSN

    return TSN(
        classes,
        segments,
        "RGB",
        base_model="resnet50",
        consensus_type="avg",
        dropout=0.5,
        partial_bn=False,
        pretrain="",
        is_shift=True,
        shift_div=8,
        shift_place="blockres",
        fc_lr5=True,
    )


def build_gst(key: str, root: str, segments: int, classes: int) -> nn.Module:
    from models import TemporalModel

    # The class always downloads ImageNet weights but reads them non-strictly, so an empty dict works.
    with mock.patch("torch.utils.model_zoo.load_url", return_value={}):
        return TemporalModel(
            classes, segments, "GST", "resnet50", alpha=4, beta=1 if key == "gst_large" else 2, dropout=0.3
        )


def build_tam(key: str, root: str, segments: int, classes: int) -> nn.Module:
    from models import resnet

    return resnet(
        depth=50,
        num_classes=classes,
        without_t_stride=key == "tam",
        groups=segments,
        temporal_module_name="TAM",
        dw_conv=True,
        blending_frames=3,
        blending_method="sum",
        dropout=0.5,
        pooling_method="max",
        imagenet_pretrained=False,
    )


def build_tpn(key: str, root: str, segments: int, classes: int) -> nn.Module:
    import mmcv
    import mmcv.cnn
    from mmengine import Config
    from mmengine.model import constant_init, kaiming_init, xavier_init

    # The project uses mmcv 0.x; these names have moved since.
    mmcv.Config, mmcv.is_str = Config, lambda value: isinstance(value, str)
    mmcv.cnn.constant_init, mmcv.cnn.kaiming_init, mmcv.cnn.xavier_init = (
        constant_init,
        kaiming_init,
        xavier_init,
    )
    stub("mmcv.runner", load_checkpoint=None)
    # Its generated version file is not in the clone.
    stub("mmaction.version", __version__="", short_version="")
    from mmaction.models import build_recognizer
    from mmaction.models.tenons.segmental_consensuses import simple_consensus

    # torch no longer calls autograd functions that are not static: call their forward as a plain method.
    function = simple_consensus._SimpleConsensus
    simple_consensus.SimpleConsensus.forward = lambda self, x: function.forward(self, x)

    config = {"tpn": "tsm_tpn.py", "tpn_tsm": "tsm_baseline.py"}[key]
    cfg = Config.fromfile(Path(root, "config_files", "sthv1", config)).model
    cfg.backbone.update(pretrained=None, nsegments=segments)
    cfg.cls_head.num_classes = classes
    if key == "tpn":
        cfg.necks.temporal_modulation_config.scales = (segments, segments)
        cfg.necks.aux_head_config.planes = classes
    return build_recognizer(cfg)


def build_mmaction2(key: str, root: str, segments: int, classes: int) -> nn.Module:
    # The standard library has what the backport is asked for; the other two need mmcv.ops or torchvision.
    sys.modules.setdefault("importlib_metadata", importlib.metadata)
    stub("mmaction.models.multimodal")
    stub("mmaction.models.localizers")
    import mmaction.models  # noqa: F401  registers the classes
    from mmaction.registry import MODELS
    from mmengine import Config, DefaultScope

    DefaultScope.get_instance("record", scope_name="mmaction")
    config = {
        "mmaction2_tsm": f"tsm/tsm_imagenet-pretrained-r50_8xb16-1x1x{segments}-50e_sthv2-rgb.py",
        "mmaction2_tpn": "tpn/tpn-tsm_imagenet-pretrained-r50_8xb8-1x1x8-150e_sthv1-rgb.py",
    }[key]
    cfg = Config.fromfile(Path(root, "configs", "recognition", config)).model
    cfg.backbone.update(pretrained=None, num_segments=segments)
    cfg.cls_head.num_classes = classes
    if key == "mmaction2_tpn":
        cfg.neck.temporal_modulation_cfg.downsample_scales = (segments, segments)
        cfg.neck.aux_head_cfg.out_channels = classes
    return MODELS.build(cfg)


BUILDERS = dict(tsm=build_tsm, gst=build_gst, tam=build_tam, tpn=build_tpn, mmaction2=build_mmaction2)


def run(source: str, model: nn.Module, clip: torch.Tensor) -> dict[str, list]:
    """The logits in eval mode; those of the auxiliary head, if there is one, go by "aux_logits"."""
    model.eval()
    neck = getattr(model, "necks", None) if source == "tpn" else getattr(model, "neck", None)
    recorded = {}
    if neck is not None:
        # The auxiliary head only runs in training: below it gets the same input as in training.
        neck.register_forward_pre_hook(lambda module, inputs: recorded.update(features=inputs[0][-2]))
        neck.aux_head.fc.register_forward_hook(lambda module, inputs, out: recorded.update(aux_logits=out))
    with torch.no_grad():
        if source == "mmaction2":
            logits, _ = model.extract_feat(clip, stage="head")
        elif source == "tpn":
            logits = model([1], None, return_loss=False, img_group_0=clip)
        else:
            logits = model(clip.flatten(1, 2))
        result = {"logits": torch.as_tensor(logits).tolist()}
        if neck is not None:
            target = [] if source == "mmaction2" else [torch.zeros(len(clip), dtype=torch.int64)]
            neck.aux_head(recorded["features"], *target)
            result["aux_logits"] = recorded["aux_logits"].tolist()
    return {name: [[float(f"{x:.9g}") for x in row] for row in rows] for name, rows in result.items()}


def read_checkpoint(path: str, recipe: Recipe) -> dict[str, torch.Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=False)
    state = state.get("state_dict", state)
    if not all(name.startswith(PARALLEL) == bool(recipe.prefix) for name in state):
        print(f"note: by {PARALLEL!r} the names differ from those this project stores", file=sys.stderr)
        state = {recipe.prefix + name.removeprefix(PARALLEL): tensor for name, tensor in state.items()}
    return state


def execute(recipe: Recipe, root: str, torchvision: str | None, segments: int, check: str | None) -> dict:
    """Builds the official model, loads seeded weights or the checkpoint `check`, and runs it."""
    warnings.simplefilter("ignore")
    sys.path.insert(0, root)
    if recipe.source in ("tsm", "gst"):
        import_torchvision(torchvision)
    state = read_checkpoint(check, recipe) if check else None
    classes = next(len(tensor) for tensor in state.values() if tensor.ndim == 2) if check else CLASSES
    model = BUILDERS[recipe.source](recipe.key, root, segments, classes)
    shapes = {recipe.prefix + name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    state = state or seeded_weights.fill(shapes)
    model.load_state_dict({name.removeprefix(recipe.prefix): tensor for name, tensor in state.items()})
    batch = BATCH.get(segments, 1)
    git = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
    return {
        "repository": REPOSITORIES[recipe.source],
        "commit": git.stdout.strip(),
        "model": recipe.model,
        "origin": recipe.origin,
        "num_segments": segments,
        "num_classes": classes,
        "batch": batch,
        "size": SIZE,
        "shapes": shapes,
        **run(recipe.source, model, seeded_weights.clip(batch, segments, SIZE)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for source in BUILDERS:
        parser.add_argument(f"--{source}", metavar="DIR")
    parser.add_argument("--torchvision", metavar="DIR")
    parser.add_argument("--out", metavar="PATH", type=Path, required=True)
    parser.add_argument("--check", metavar="FILE")
    parser.add_argument("--model", choices=[recipe.key for recipe in RECIPES])
    parser.add_argument("--segments", type=int)
    args = parser.parse_args()
    if args.check and not (args.model and args.segments):
        parser.error("--check needs --model and --segments")

    jobs = [
        (recipe, root, args.torchvision, segments, args.check)
        for recipe in RECIPES
        if (root := getattr(args, recipe.source)) and args.model in (None, recipe.key)
        for segments in ([args.segments] if args.segments else recipe.segments)
    ]
    if not jobs:
        parser.error("nothing to do: give the directory of a clone, and of the one that --model needs")
    # A process for each: the projects share top-level names such as "models" and "mmaction".
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        for job in jobs:
            record = pool.apply(execute, job)
            path = args.out
            if args.check:
                record = {name: rows for name, rows in record.items() if name.endswith("logits")}
                print(json.dumps(record))
            else:
                path /= "{model}_{origin}_{num_segments}f.json".format(**record)
            lines = (f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}" for k, v in record.items())
            path.write_text("{" + ",\n".join(lines) + "}\n")
            print(path)


if __name__ == "__main__":
    main()
