"""Makes a GGUF of a model and the exits that `train.py` made: `paceline worker --model PATH` takes it.

The base's tensors, metadata and tokenizer stay as they are. Added are the exits' matrices, as Q8_0, and two keys: the
layers behind which there is an exit, and the tokens that they draft.

    python merge.py --model smollm2-135m.gguf --adapter ../../models/smollm2-layerskip --out smollm2-layerskip.gguf
"""

import argparse
import json
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize
from safetensors.numpy import load_file

KIND = gguf.GGMLQuantizationType.Q8_0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the base that the exits were trained for")
    parser.add_argument("--adapter", required=True, type=Path, help="folder with adapter.safetensors and early.json")
    parser.add_argument("--out", required=True)
    args = parser.parse_args()

    reader = gguf.GGUFReader(args.model)
    exits = load_file(args.adapter / "adapter.safetensors")
    early = json.loads((args.adapter / "early.json").read_text())
    width = reader.fields[f"{reader.fields['general.architecture'].contents()}.embedding_length"].contents()
    wrong = [name for name, matrix in exits.items() if matrix.shape != (width, width)]
    if wrong:
        raise SystemExit(f"{wrong[0]} has the shape {exits[wrong[0]].shape}; {args.model} needs {width} x {width}")
    writer = gguf.GGUFWriter(args.out, reader.fields["general.architecture"].contents())
    for name, field in reader.fields.items():
        # The writer has its own of these.
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    numbers = (gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.INT32)
    writer.add_key_value("paceline.early.layers", early["layers"], *numbers)
    writer.add_key_value("paceline.early.tokens", early["tokens"], *numbers)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    for name, matrix in exits.items():
        writer.add_tensor(name, quantize(matrix.astype(np.float32), KIND), raw_dtype=KIND)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
