"""EDM's `.pkl` container, written as its authors' training loop writes it, for tiny networks."""

import contextlib
import pickle
import sys
import types

import numpy as np
from torch import nn

# What the original loader would execute. Ours must not: it would leave a file behind.
SOURCE = "import pathlib\npathlib.Path({marker!r}).write_text('executed')\n"

CLASSES = {  # of ours, and the published ones
    "SongUNet": "SongUNet",
    "ADMUNet": "DhariwalUNet",
    "SongBlock": "UNetBlock",
    "ADMBlock": "UNetBlock",
    "Conv2d": "Conv2d",
    "Float32Conv2d": "Conv2d",
    "ResampleConv": "Conv2d",
    "ConvHalve": "Conv2d",
    "Resample": "Conv2d",
    "Linear": "Linear",
    "GroupNorm": "GroupNorm",
    "GeometricAngles": "PositionalEmbedding",
    "FourierAngles": "FourierEmbedding",
}


@contextlib.contextmanager
def authors_modules():
    """The modules that EDM's pickles name, for as long as one is being written."""
    names = ["torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util"]
    modules = {name: types.ModuleType(name) for name in names}

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("the original loader was called")

    class EasyDict(dict):
        pass

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    EasyDict.__module__, EasyDict.__qualname__ = "dnnlib.util", "EasyDict"
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict = EasyDict
    sys.modules.update(modules)
    try:
        yield modules
    finally:
        for name in names:
            del sys.modules[name]


class Persistent(nn.Module):
    """An object whose pickle is a record of its class's name and source, and its attributes."""

    def __init__(self, class_name, arguments, source, version=6):
        super().__init__()
        self._init_args, self._init_kwargs = (), arguments
        self.__dict__["meta"] = {
            "type": "class",
            "version": version,
            "module_src": source,
            "class_name": class_name,
        }

    def __reduce__(self):
        state = dict(self.__dict__)
        meta = state.pop("meta") | {"state": state}
        module = sys.modules["torch_utils.persistence"]
        return module._reconstruct_persistent_obj, (meta,)


def published(module, source, **arguments):
    """Our network as the authors' objects, tensor by tensor under the same names."""
    kind = type(module).__name__
    if kind == "ModuleDict":
        return nn.ModuleDict({n: published(child, source) for n, child in module.items()})
    if kind == "SongBlock":
        arguments["skip_scale"] = np.sqrt(0.5)  # a number of numpy's
    copy = Persistent(CLASSES[kind], arguments, source)
    copy.register_buffer("resample_filter", None)  # as all of the authors' Conv2d have it
    for name, parameter in module.named_parameters(recurse=False):
        copy.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    for name, buffer in module.named_buffers(recurse=False):
        copy.register_buffer(name, buffer.clone())
    for name, child in module.named_children():
        if list(child.state_dict()) or type(child).__name__ == "GeometricAngles":
            setattr(copy, name, published(child, source))
    return copy


def snapshot(net, arguments, marker, precond="EDMPrecond"):
    """The dict that the authors' training loop pickles; needs `authors_modules`."""
    source = SOURCE.format(marker=str(marker))
    ema = Persistent(precond, arguments, source)
    ema.sigma_data = 0.5
    ema.model = published(net, source)
    easy = sys.modules["dnnlib.util"].EasyDict
    loss = Persistent("EDMLoss", {"P_mean": -1.2}, source)
    return {
        "ema": ema,
        "loss_fn": loss,
        "augment_pipe": None,
        "dataset_kwargs": easy(path="cifar10.zip", use_labels=False, max_size=50000),
    }


def write(path, content):
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path
