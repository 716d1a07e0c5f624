#!/usr/bin/env python3
"""Writes released.pth and released4.pth: files as a training run of VMamba saves them, with everything that is known to lie beside the weights.

It needs Python alone: stand-ins with the names of PyTorch's, yacs's and NumPy's classes make the same pickles as those packages.
Run it in this folder. Its output is committed.
"""
import argparse, collections, datetime, enum, io, pathlib, pickle, struct, sys, types, zipfile


def module(name):
    for i, _ in enumerate(name.split(".")):
        sys.modules.setdefault(".".join(name.split(".")[: i + 1]), types.ModuleType(name))
    return sys.modules[name]


def named(of, name, thing):
    thing.__module__, thing.__name__, thing.__qualname__ = of, name, name
    setattr(module(of), name, thing)
    return thing


def function(of, name):
    return named(of, name, lambda *args: None)


rebuild = function("torch._utils", "_rebuild_tensor_v2")
parameter = function("torch._utils", "_rebuild_parameter")
with_state = function("torch._utils", "_rebuild_parameter_with_state")
from_type = function("torch._tensor", "_rebuild_from_type_v2")
scalar, dtype = function("numpy.core.multiarray", "scalar"), function("numpy", "dtype")
CfgNode = named("yacs.config", "CfgNode", type("CfgNode", (dict,), {}))
Tensor = named("torch", "Tensor", type("Tensor", (), {}))
Phase = enum.Enum("Phase", "TRAIN TEST", module=__name__)
named("timm.utils", "Phase", Phase)


class Storage:
    def __init__(self, kind, values, code):
        self.kind = getattr(module("torch"), kind, None) or named("torch", kind, type(kind, (), {}))
        self.data = struct.pack("<%d%s" % (len(values), code), *values)
        self.n = len(values)


class Call:  # pickled as a call of a function
    def __init__(self, *call, state=None):
        self.call, self.state = call, state

    def __reduce__(self):
        return (self.call[0], tuple(self.call[1:])) + ((self.state,) if self.state else ())


def tensor(values, *shape, kind="FloatStorage", code="f"):
    stride = [1]
    for n in reversed(shape[1:]):
        stride.insert(0, stride[0] * n)
    return Call(rebuild, Storage(kind, values, code), 0, shape, tuple(stride[: len(shape)]), False, collections.OrderedDict())


def integers(*values):
    return tensor(values, len(values), kind="LongStorage", code="q")


def state(scale):
    d = collections.OrderedDict()
    d["module.head.weight"] = tensor([scale * i for i in range(6)], 2, 3)
    d["module.head.bias"] = Call(parameter, tensor([scale, -scale], 2), True, collections.OrderedDict())
    d["module.A_log"] = Call(with_state, tensor([scale], 1), True, collections.OrderedDict(), {"_no_weight_decay": True})
    d["module.D"] = Call(from_type, rebuild, Tensor, tensor([scale / 2], 1).call[1:], {"_no_weight_decay": True})
    d["module.bn.num_batches_tracked"] = integers(7)
    d["module.extra"] = None
    return d


def save(path, protocol):
    config = CfgNode(MODEL=CfgNode(NAME="vssm_tiny", DEPTHS=[2, 2, 8, 2], RATE=0.2), AMP=True, KEYS={"a", "b"}, PATH=pathlib.PurePosixPath("/data"))
    config.__dict__.update({"__immutable__": True, "__deprecated_keys__": set()})
    everything = {
        "model": state(1.0),
        "model_ema": state(10.0),
        "optimizer": {
            "state": {0: {"step": tensor([5.0], 1), "exp_avg": tensor([0.5] * 6, 2, 3)}, 1: {"step": 3}},
            "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.999), "params": [0, 1], "decoupled": None}],
        },
        "lr_scheduler": {"t_initial": 300, "noise": None, "big": 1 << 100, "values": [1.5] * 3},
        "scaler": {"scale": 65536.0, "growth_tracker": 12},
        "args": argparse.Namespace(lr=0.1, output=pathlib.PurePosixPath("out"), opts=["a", 1], phase=Phase.TRAIN),
        "config": config,
        "max_accuracy": Call(scalar, Call(dtype, "f8", False, True, state=(3, "<", None, None, None, -1, -1, 0)), bytes([0, 255, 128, 64, 0, 0, 84, 64])),
        "time": datetime.datetime(2024, 1, 19, 1, 2, 3),
        "log": collections.defaultdict(list, {"loss": [1.0, 0.5], "text": "x" * 2000}),
        "counter": collections.Counter("mamba"),
        "rng_state": tensor(range(8), 8, kind="ByteStorage", code="B"),
        "complex": complex(1, 2),
        "epoch": 262,
        "shape": frozenset([1, 2]),
    }
    storages, text = [], io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, o):
            if not isinstance(o, Storage):
                return None
            if o not in storages:
                storages.append(o)
            return ("storage", o.kind, str(storages.index(o)), "cuda:0", o.n)

    Pickler(text, protocol).dump(everything)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as z:
        def write(name, data):
            z.writestr(zipfile.ZipInfo("archive/" + name), data)

        write("data.pkl", text.getvalue())
        write("byteorder", b"little")
        for i, s in enumerate(storages):
            write("data/%d" % i, s.data)
        write("version", b"3\n")


save("released.pth", 2)
save("released4.pth", 4)
