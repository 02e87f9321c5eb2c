"""Makes a GGUF of a model and what `layerskip.py` trained: `paceline worker --model PATH` takes it.

The changed matrices get the type that they had (Q4_1, which is what was trained, or `--type Q8_0`), the norms stay floats.
Added are the exits' matrices, as Q8_0, and two keys: the layers behind which there is an exit, and the tokens that they
draft. All else stays as it is.

    python merge.py --model smollm2-135m.gguf --adapter ../../models/smollm2-layerskip --out smollm2-layerskip.gguf
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from llama import NORMS, PARTS
from safetensors import safe_open

EXIT = gguf.GGMLQuantizationType.Q8_0


def changes(adapter, layers: int):
    """By name of the file what is added to each matrix."""
    found = {}
    for name, parts in PARTS.items():
        runs = sorted(key for key in adapter if key.startswith(f"{name}_") and key.endswith("_out"))
        whole = np.concatenate([adapter[run] @ adapter[run.replace("_out", "_in")] for run in runs])
        if len(whole) != layers:
            raise SystemExit(f"the adapter changes {name} of {len(whole)} layers; the model has {layers}")
        found |= {(index, parts): change for index, change in enumerate(whole)}
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the base that the adapter was trained for")
    parser.add_argument("--adapter", required=True, type=Path, help="folder with adapter.safetensors and early.json")
    parser.add_argument("--out", required=True)
    parser.add_argument("--exits", type=int, nargs="+", help="of those that were trained; all without this")
    parser.add_argument("--tokens", type=int, default=4096, help="how many of the most frequent ones are drafted")
    parser.add_argument("--type", choices=["Q4_1", "Q8_0"], default="Q4_1", help="of the changed matrices")
    args = parser.parse_args()

    reader = gguf.GGUFReader(args.model)
    # Numpy has no bfloat16.
    with safe_open(args.adapter / "adapter.safetensors", "pt") as file:
        adapter = {name: file.get_tensor(name).float().numpy() for name in file.keys()}
    early = json.loads((args.adapter / "early.json").read_text())
    exits = sorted(args.exits or early["layers"])
    if unknown := set(exits) - set(early["layers"]):
        raise SystemExit(f"no exit was trained behind {sorted(unknown)}; there are {early['layers']}")
    architecture = reader.fields["general.architecture"].contents()
    layers = reader.fields[f"{architecture}.block_count"].contents()
    changed, kind = {}, gguf.GGMLQuantizationType[args.type]
    base = {tensor.name: tensor for tensor in reader.tensors}
    for (index, parts), change in changes(adapter, layers).items():
        names = [f"blk.{index}.{part}.weight" for part in parts]
        whole = np.concatenate([dequantize(base[name].data, base[name].tensor_type) for name in names]) + change
        # What was trained lies on the grid of Q4_1, also where it is written in a finer one.
        whole = quantize(whole, gguf.GGMLQuantizationType.Q4_1)
        if args.type != "Q4_1":
            whole = quantize(dequantize(whole, gguf.GGMLQuantizationType.Q4_1), kind)
        ends = np.cumsum([base[name].shape[1] for name in names])[:-1]
        changed |= {name: (part, kind) for name, part in zip(names, np.split(whole, ends))}
    for norm in NORMS:
        changed |= {f"blk.{i}.{norm}.weight": (row, None) for i, row in enumerate(adapter[norm])}

    writer = gguf.GGUFWriter(args.out, architecture)
    for name, field in reader.fields.items():
        # The writer has its own of these.
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    numbers = (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)
    writer.add_key_value("paceline.early.layers", exits, *numbers)
    writer.add_key_value("paceline.early.tokens", sorted(early["tokens"][: args.tokens]), *numbers)
    for tensor in reader.tensors:
        data, raw = changed.get(tensor.name, (tensor.data, tensor.tensor_type))
        writer.add_tensor(tensor.name, data, raw_dtype=raw)
    for layer in exits:
        name = f"blk.{layer - 1}.early.weight"
        writer.add_tensor(name, quantize(adapter[name], EXIT), raw_dtype=EXIT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
