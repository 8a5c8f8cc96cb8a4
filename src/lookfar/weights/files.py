"""Files of weights, read without running anything that they hold.

Torch files go through torch's own restricted unpickler. Training files hold more than tensors (mmengine's histories,
numpy arrays, arguments): numpy's globals are allowed, and every other class or function is replaced by one that does
nothing, so that the tensors beside it can be read. What is not a file of tensors is reported in one line.
"""

import _compat_pickle
import pickle
import pickletools
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

State = dict[str, Tensor]

# entries that wrap a state dict; where several stand side by side the averaged weights are taken, as their authors do
WRAPPERS = (
    *("params_ema", "state_dict_ema", "model_ema", "ema"),
    *("params", "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights"),
)
_LEADING = ("module.", "model.")  # DistributedDataParallel, Lightning
_NO_WEIGHTS = ("optim", "sched", "scaler", "meta", "message_hub", "config", "args")
_FOREIGN = {
    b"\x89HDF": "an HDF5 file, as of Keras",
    b"\x1f\x8b": "compressed by gzip: unpack it first",
    b"7z\xbc\xaf": "a 7z archive: unpack it first",
    b"Rar!": "a rar archive: unpack it first",
    b"\x93NUMPY": "one numpy array",
    b"GGUF": "a GGUF file",
    b"\x08\x0a": "an ONNX or TensorFlow graph",
}


def read(path: str | Path, *, prefix: str = "") -> State:
    """The state dict in a torch or safetensors file; no code that a file holds is ever run.

    What stands around the weights is taken off: entries such as ``state_dict``, ``model``, ``params_ema``, and
    ``module.``, ``model.`` and ``_orig_mod.`` before their names, nested in any order.

    Args:
        path: The file; its kind is recognised by its content, not by its name.
        prefix: Only the keys that start with it, which is then removed, as in ``"decode_head.nl_block."``.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It holds no weights that can be read; or no key starts with ``prefix``.

    >>> torch.save({"epoch": 3, "state_dict": {"module.head.weight": torch.ones(2)}}, "checkpoint.pth")
    >>> read("checkpoint.pth", prefix="head.")
    {'weight': tensor([1., 1.])}
    """
    return unwrapped(content(path), prefix=prefix, of=str(path))


def content(path: str | Path) -> Any:
    """All that a file holds; objects other than tensors are replaced by ones that do nothing."""
    path = Path(path)
    if path.is_dir():
        inside = sorted(p.name for p in path.iterdir() if p.suffix in (".safetensors", ".pth", ".pt", ".bin", ".tar"))
        holds = f"give one of {', '.join(inside[:3])}" if inside else "it holds no file of weights"
        raise ValueError(f"{path} is a folder, want a file: {holds}")
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    with path.open("rb") as file:
        start = file.read(512)
    text = start.lstrip().lower()
    if not start:
        raise ValueError(f"{path} is empty")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a git LFS pointer, not the weights: fetch them with `git lfs pull`")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise ValueError(f"{path} is a web page, not weights: the download gave an error or asked for a click")
    if path.suffix == ".safetensors" or start[8:9] == b"{":
        return _safetensors(path)
    for magic, what in _FOREIGN.items():
        if start.startswith(magic):
            raise ValueError(f"{path} is {what}; want a torch or safetensors file")
    return _torch_file(path, start)


def unwrapped(found: Any, *, prefix: str = "", of: str = "these weights") -> State:
    """The state dict within what a file held, or a state dict as it was given, without what stands before all keys."""
    state = state_in(found, of)
    plain = _without_leading(state)
    if not prefix:
        return plain
    start = prefix if prefix.endswith(".") else f"{prefix}."
    for keys in (plain, state):  # with or without what was taken off
        chosen = {key.removeprefix(start): value for key, value in keys.items() if key.startswith(start)}
        if chosen:
            return chosen
    raise ValueError(f"{of}: no key starts with {start!r}. There are {some_prefixes(plain, start)}")


def state_in(found: Any, of: str = "these weights") -> State:
    """The state dict within what a file held, its keys as they are."""
    state = _state(found)
    if not state:
        raise ValueError(f"{of}: {_what_instead(found)}")
    return state


def some_prefixes(state: Mapping[str, Any], like: str = "", most: int = 4) -> str:
    """What a state dict holds, in words: its first prefixes with counts, those first that share parts with ``like``."""
    depth = 1 if len({key.split(".")[0] for key in state}) > 1 else 2
    counts: dict[str, int] = {}
    for key in state:
        start = ".".join(key.split(".")[:depth])
        counts[start] = counts.get(start, 0) + 1
    near = [part for part in like.split(".") if part]
    order = sorted(counts, key=lambda start: not any(part in start for part in near))
    listed = ", ".join(f"{start} ({counts[start]})" for start in order[:most])
    return listed + (f" and {len(order) - most} more" if len(order) > most else "")


def _state(found: Any) -> State:
    """The tensors of the innermost wrapper, by name; an empty dictionary where there are none."""
    if not isinstance(found, Mapping):
        return {}
    for name in WRAPPERS:
        if isinstance(found.get(name), Mapping) and (inside := _state(found[name])):
            return inside
    own = {str(key): tensor for key, value in found.items() if (tensor := _tensor(value)) is not None}
    nested = {
        str(key): inside
        for key, value in found.items()
        if isinstance(value, Mapping) and not str(key).lower().startswith(_NO_WEIGHTS) and (inside := _state(value))
    }
    if own and any(value.dim() for value in own.values()):
        return own | {f"{key}.{name}": value for key, inside in nested.items() for name, value in inside.items()}
    if len(nested) == 1:
        return next(iter(nested.values()))
    if nested:  # a state dict a part, as {"encoder": {...}, "decoder": {...}}
        return {f"{key}.{name}": value for key, inside in nested.items() for name, value in inside.items()}
    return own


def _tensor(value: Any) -> Tensor | None:
    import numpy as np

    if isinstance(value, Tensor):
        return value.detach()
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        return torch.from_numpy(np.array(value))
    return None


def _without_leading(state: State) -> State:
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    if "n_averaged" in state and all(key.startswith("module.") for key in state if key != "n_averaged"):
        del state["n_averaged"]  # torch.optim.swa_utils.AveragedModel
    while True:
        start = next((s for s in _LEADING if state and all(key.startswith(s) for key in state)), None)
        if start is None:
            break
        state = {key.removeprefix(start): value for key, value in state.items()}
    return {key.removeprefix("module."): value for key, value in state.items()}


def _safetensors(path: Path) -> State:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is not a safetensors file, or is cut off: {reason}") from None


def _torch_file(path: Path, start: bytes) -> Any:
    zipped = start.startswith(b"PK")
    if zipped and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is cut off: download it again")
    try:
        names = _globals(path, zipped)
    except ValueError as error:
        raise ValueError(f"{path} {error}") from None
    except EOFError:
        raise ValueError(f"{path} is not a torch or safetensors file, or is cut off") from None
    try:
        with torch.serialization.safe_globals(_allowed(names)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # torch's message is left out: it advises loading the file unsafely
        raise ValueError(f"{path} holds {_listed(names)}, not only tensors: {_HOW}") from None
    except Exception as error:
        reason = str(error).splitlines()[0][:60] if str(error) else type(error).__name__
        raise ValueError(f"{path} is cut off or damaged ({reason})") from None


_HOW = "where it was made, save state_dict() alone"


def _globals(path: Path, zipped: bool) -> set[str]:
    """Dotted names of the classes and functions that a torch file asks for; nothing of it is run.

    Raises:
        ValueError: It is a file of another kind; the message says which.
        EOFError: It is not a pickle, or ends too early.
    """
    if not zipped:
        with path.open("rb") as file:
            first = _one_pickle(file)
            if first[1] != 0x1950A86A20F9469CFC6C:  # the first of the pickles in torch's old files
                raise ValueError("is a plain pickle, as Caffe2's and Detectron's; want a torch or safetensors file")
            return set().union(*(_one_pickle(file)[0] for _ in range(3)))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise ValueError("is a TorchScript program: save torch.jit.load(path).state_dict() and read that")
        data = next((name for name in names if name.endswith("data.pkl")), None)
        if data is None:
            raise ValueError(f"is a zip archive without weights (it holds {', '.join(names[:2]) or 'nothing'})")
        with archive.open(data) as file:
            return _one_pickle(file)[0]  # type: ignore[arg-type]


def _one_pickle(file: BinaryIO) -> tuple[set[str], Any]:
    """The globals of the pickle that starts here, and its first number."""
    names, number = set(), None
    strings: list[str] = []
    try:
        for code, value, _ in pickletools.genops(file):
            if code.name == "GLOBAL":
                names.add(_today(*str(value).split(" ", 1)))
            elif code.name == "STACK_GLOBAL":
                names.add(_today(*strings[-2:]))
            elif isinstance(value, str):
                strings.append(value)
            elif isinstance(value, int) and code.name.startswith("LONG") and number is None:
                number = value
    except Exception as error:
        raise EOFError(str(error)) from None
    return names, number


def _today(module: str, name: str) -> str:
    """The dotted name in Python 3 of what an old pickle calls ``__builtin__`` and the like."""
    module, name = _compat_pickle.NAME_MAPPING.get((module, name), (module, name))
    return f"{_compat_pickle.IMPORT_MAPPING.get(module, module)}.{name}"


class _Inert:
    """Stands for an object of a training file: takes whatever it is made of, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Inert":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


def _allowed(names: set[str]) -> list[Any]:
    """Numpy's own for arrays and numbers, a class that does nothing for every other name; torch's go before them."""
    import numpy as np

    known: dict[str, Any] = {"numpy.ndarray": np.ndarray, "numpy.dtype": np.dtype, "_codecs.encode": _encode}
    for home in ("numpy.core.multiarray", "numpy._core.multiarray"):
        known[f"{home}._reconstruct"] = np.zeros(0).__reduce__()[0]
        known[f"{home}.scalar"] = np.float64(0).__reduce__()[0]
    known |= {f"numpy.dtypes.{type(np.dtype(c)).__name__}": type(np.dtype(c)) for c in "?bBhHiIlLqQefdUSMm"}
    allowed: list[Any] = [(value, name) for name, value in known.items() if name in names]
    allowed += [type(np.dtype(c)) for c in "?bBhHiIlLqQefdUSMm"] if allowed else []
    inert = [(type("_Inert", (_Inert,), {"was": name}), name) for name in sorted(names - known.keys())]
    return allowed + inert


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    return text.encode(encoding)  # what _codecs.encode does to the bytes of an array


def _what_instead(found: Any) -> str:
    if isinstance(found, _Inert):
        return f"holds a whole pickled object ({found.was}), no state dict: {_HOW}"  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(found, Tensor):
        return f"holds one tensor {tuple(found.shape)}, no state dict"
    if isinstance(found, Mapping):
        whole = next(((k, v) for k, v in found.items() if isinstance(v, _Inert) and k in WRAPPERS), None)
        if whole is not None:
            return f"{whole[0]!r} is a whole pickled object ({whole[1].was}), no state dict: {_HOW}"  # pyright: ignore[reportAttributeAccessIssue]
        return f"holds no tensors, but {', '.join(map(str, list(found)[:5])) or 'nothing'}"
    return f"holds no state dict, but a {type(found).__name__}"


def _listed(names: set[str]) -> str:
    modules = sorted(name for name in names if name.startswith("torch.nn.modules."))
    plain = ("torch.", "collections.", "numpy.", "builtins.", "_codecs.")
    odd = sorted(name for name in names if not name.startswith(plain))
    if modules:
        return f"a whole pickled module ({(odd or modules)[0]})"
    return f"pickled objects ({', '.join(odd[:2])})" if odd else "pickled objects"
