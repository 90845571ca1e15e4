#!/usr/bin/env python3
"""extension.py - build a task's baseline as an extension of PyTorch, and print the seconds that it took.

Reads the task's definition.json and baseline.cu; builds in FOLDER. For tests/device/speed.
  tests/device/extension.py tasks/rmsnorm_h4096 /tmp/x
"""
import json
import os
import sys
import time

TYPES = {"float32": "float", "float16": "uint16_t", "bfloat16": "uint16_t", "float8_e4m3fn": "uint8_t", "int32": "int32_t",
         "int64": "int64_t", "bool": "uint8_t"}


def header(definition):
    """The declarations of task.h that a kernel needs."""
    axes, inputs, outputs = definition["axes"], definition["inputs"], definition["outputs"]
    lines = ["#include <stdint.h>", "#include <stddef.h>"]
    lines += [f"#define KM_AXIS_{name.upper()} {axis['value']}" for name, axis in axes.items() if axis["type"] == "const"]
    lines += ["struct km_args {"] + [f"int64_t {name};" for name in axes]
    for name, tensor in inputs.items():
        lines.append(f"{TYPES[tensor['dtype']]} {name};" if tensor["shape"] is None else f"const {TYPES[tensor['dtype']]} *{name};")
    lines += [f"{TYPES[tensor['dtype']]} *{name};" for name, tensor in outputs.items()]
    return "\n".join(lines + ["void *workspace; size_t workspace_bytes; void *stream;", "};"])


def main(task, folder):
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "9.0a")
    os.environ["TORCH_EXTENSIONS_DIR"] = folder
    with open(os.path.join(task, "definition.json"), encoding="utf-8") as f:
        definition = json.load(f)
    with open(os.path.join(task, "baseline.cu"), encoding="utf-8") as f:
        kernel = f.read().replace('#include "task.h"', header(definition))
    wrapper = "\nvoid call(torch::Tensor args) { km_run((const struct km_args *)args.data_ptr()); }\n"
    from torch.utils.cpp_extension import load_inline  # importing torch is not counted

    start = time.monotonic()
    load_inline(name="baseline", cpp_sources="void call(torch::Tensor args);", cuda_sources=kernel + wrapper, functions=["call"],
                extra_cuda_cflags=["-O3"], build_directory=folder)
    print(f"{time.monotonic() - start:.1f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
