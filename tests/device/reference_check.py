#!/usr/bin/env python3
"""reference_check.py - run the PyTorch text of a task's definition.json on exported inputs, and compare with reference.cu.

Reads TASK/definition.json, TASK/task.json and what `km-check-task --export FOLDER` has left; prints a line for each output.
Exit status 1 if one is not within the task's tolerance. For tests/device/reference-check.
  tests/device/reference_check.py tasks/rmsnorm_h4096 /tmp/export
"""
import json
import os
import sys

import torch


def load(path):
    with open(path, encoding="utf-8") as f:
        return json.load(f)


def read_tensor(folder, description, dtype):
    with open(os.path.join(folder, description["name"] + ".bin"), "rb") as f:
        data = bytearray(f.read())
    return torch.frombuffer(data, dtype=dtype).reshape(description["shape"]) if data else torch.empty(description["shape"], dtype=dtype)


def read_input(folder, description):
    if "value" in description:
        whole = description["dtype"].startswith("int")
        return int(description["value"]) if whole else float(description["value"])
    return read_tensor(folder, description, getattr(torch, description["dtype"])).cuda()


def outputs_of(result, names):
    """What a reference returns: one tensor, several in the order of the definition, or a dict."""
    if isinstance(result, dict):
        return [result[name] for name in names]
    return list(result) if isinstance(result, (tuple, list)) else [result]


def compare(name, got, expected, rows, tolerance):
    """Print the errors of an output, row by row as the judge sees it; is it within the tolerance?"""
    got, expected = got.double().reshape(rows, -1), expected.double().reshape(rows, -1)
    infinite = torch.isinf(expected)
    same = bool(torch.equal(torch.isinf(got), infinite) and torch.equal(got[infinite], expected[infinite]) and not torch.isnan(got).any())
    got, expected = got.masked_fill(infinite, 0), expected.masked_fill(infinite, 0)
    error, rms = (got - expected).abs(), expected.square().mean(1, keepdim=True).sqrt()
    row_error, row_norm = error.norm(dim=1), expected.norm(dim=1)
    allowed = tolerance.get("a", 0) * expected.abs() + tolerance.get("c", 0) * rms + tolerance.get("absolute", 0)
    within = same and bool((error <= allowed).all())
    if tolerance.get("r") is not None:
        within = within and bool((row_error <= tolerance["r"] * row_norm).all())
    share = torch.where(error > 0, error / allowed, torch.zeros_like(error)).max().item()
    relative = (row_error / row_norm.clamp_min(1e-300))[row_norm > 0]
    elements = (error / expected.abs())[expected.abs() > 0.1 * rms.expand_as(expected)]
    print(f"    {name}: |err| at most {error.max().item():.3g} ({share:.3f} of what is allowed), relative at most "
          f"{elements.max().item() if elements.numel() else 0:.3g} (elements above 0.1 rms), of a row ||err||/||ref|| at most "
          f"{relative.max().item() if relative.numel() else 0:.3g}"
          f"{'' if tolerance.get('r') is None else ' (allowed %g)' % tolerance['r']}, of all "
          f"{(error.norm() / expected.norm().clamp_min(1e-300)).item():.3g}{'' if same else ', NaN or infinities differ'}")
    return within


def main(task, folder):
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    definition, tolerances, export = load(task + "/definition.json"), load(task + "/task.json")["tolerance"], load(folder + "/export.json")
    scope = {"__name__": "reference"}
    exec(compile(definition["reference"], task + "/definition.json", "exec"), scope)  # the task's own text, which is trusted
    torch.set_default_device("cuda")
    with torch.device("cpu"):
        inputs = [read_input(folder, description) for description in export["inputs"]]
        expected = [read_tensor(folder, description, torch.float64).cuda() for description in export["outputs"]]
    got = outputs_of(scope["run"](*inputs), [description["name"] for description in export["outputs"]])
    within = True
    print(f"  {export['task']} {export['workload']} {export['input_set']}")
    for description, mine, theirs in zip(export["outputs"], got, expected):
        assert str(mine.dtype) == "torch." + description["dtype"] and list(mine.shape) == description["shape"], description["name"]
        within = compare(description["name"], mine, theirs, export["rows"], tolerances[description["name"]]) and within
    return 0 if within else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
